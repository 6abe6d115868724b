//! The whole of Naru on engines that misbehave within their contracts: they fail before or after the effect, lose what
//! they may lose, reorder what a reassignment may reorder, go away and come back. Seeded; the seed is in every failure.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::ready;
use naru::pipeline::Changes;
use naru_client::{Client, Incoming};
use naru_engines::Engines;
use naru_faults::{Call, Counted, Flaky, Only, Outage, intercepted, losing, reordering};
use serde_json::{Value, json};

use crate::support::{Before, Naru};

/// All users whom the load makes write, each to the next.
const PEOPLE: [&str; 4] = ["A", "B", "C", "D"];
/// How many messages each of them writes.
const EACH: usize = 40;

async fn on(change: impl FnOnce(Engines) -> Engines + Send + 'static) -> Naru {
    Naru::start_with(&[], Changes { engines: Some(Box::new(change)), ..Changes::default() }).await
}

fn direct(one: &str, other: &str) -> String {
    if one < other { format!("{one}_{other}") } else { format!("{other}_{one}") }
}

/// One person writes all their messages without waiting, and writes again, in order, what was not accepted. Answers the
/// id that each message was acknowledged under.
async fn write(phone: &mut Client, room: &str, person: &str) -> HashMap<String, Value> {
    let names: Vec<String> = (0..EACH).map(|number| format!("{person}-{number:03}")).collect();
    let mut acknowledged = HashMap::new();
    while acknowledged.len() < EACH {
        let left: Vec<&String> = names.iter().filter(|name| !acknowledged.contains_key(*name)).collect();
        for name in &left {
            phone.chat(room, name, name).await;
        }
        for _ in 0..left.len() {
            let answer = answer(phone).await;
            let name = answer["clientMessageId"].as_str().expect("the name it was sent under").to_owned();
            match answer["type"].as_str() {
                Some("ACK") => drop(acknowledged.insert(name, answer)),
                _ => assert_eq!(answer["code"], "UNAVAILABLE", "{answer}"),
            }
        }
    }
    acknowledged
}

async fn answer(phone: &mut Client) -> Value {
    loop {
        match phone.next().await {
            Some(Incoming::Frame(frame)) if frame["type"] == "ACK" || frame["type"] == "ERROR" => {
                return frame;
            }
            Some(Incoming::Frame(_)) => {}
            other => panic!("waited for an answer, got {other:?}"),
        }
    }
}

/// All users write at the same time; then the rooms must hold what was acknowledged: each message once, densely
/// numbered. Answers each room's history.
async fn all_users_write(naru: &Naru) -> Vec<Vec<Value>> {
    let mut writing = Vec::new();
    for (index, person) in PEOPLE.into_iter().enumerate() {
        let other = PEOPLE[(index + 1) % PEOPLE.len()];
        naru.http(person).create_room(&[person, other]).await;
        let mut phone = naru.phone(person).await;
        writing.push(async move {
            (direct(person, other), write(&mut phone, &direct(person, other), person).await)
        });
    }
    let mut histories = Vec::new();
    for (room, acknowledged) in futures_util::future::join_all(writing).await {
        let person = room.split('_').find(|person| acknowledged.keys().any(|name| name.starts_with(person)));
        let history = naru.http(person.expect("a writer")).history(&room, "afterSeq=0").await;
        let places: Vec<u64> = history.iter().filter_map(|message| message["seq"].as_u64()).collect();
        assert_eq!(places, (1..=EACH as u64).collect::<Vec<_>>(), "{room} is not dense");
        for message in &history {
            let name = message["clientMessageId"].as_str().expect("a name");
            assert_eq!(message["id"], acknowledged[name]["id"], "{name}");
            assert_eq!(message["seq"], acknowledged[name]["seq"], "{name}");
        }
        histories.push(history);
    }
    histories
}

fn assert_in_order(histories: &[Vec<Value>]) {
    for history in histories {
        let names: Vec<&str> =
            history.iter().filter_map(|message| message["clientMessageId"].as_str()).collect();
        assert!(names.is_sorted(), "not in the order of sending: {names:?}");
    }
}

/// The sweep brings back what the bus lost, in the order it was sent.
#[tokio::test]
async fn a_bus_that_loses_half_loses_nothing() {
    let naru = on(|engines| Engines { bus: losing(engines.bus.clone(), 11, 0.5), ..engines }).await;
    assert_in_order(&all_users_write(&naru).await);
    naru.stop().await;
}

/// `after` restores the order that a reassignment breaks.
#[tokio::test]
async fn a_bus_that_reorders_changes_no_order() {
    let naru = on(|engines| Engines { bus: reordering(engines.bus.clone(), 12, 0.5), ..engines }).await;
    assert_in_order(&all_users_write(&naru).await);
    naru.stop().await;
}

/// Every tenth call of the store and the bus fails, half of them after their effect.
#[tokio::test]
async fn engines_that_fail_are_asked_again() {
    const PARTS: &[&str] = &[
        "intake.append",
        "intake.close",
        "messages.append_run",
        "messages.bump",
        "messages.find",
        "messages.heads",
        "accepted.send",
        "accepted.ack",
        "saved.send",
        "saved.ack",
        "offline.send",
        "live.confirm",
        "live.publish",
        "presence.online",
        "proofs.proven",
        "proofs.record",
    ];
    let naru = on(|engines| intercepted(engines, Arc::new(Only(PARTS, Flaky::new(13, 0.1))))).await;
    all_users_write(&naru).await;
    naru.stop().await;
}

/// While the store is gone the sender is told that the fate of the message is unknown, and never that it is safe; when
/// it is back all goes on by itself.
#[tokio::test]
async fn a_store_that_goes_away_confirms_nothing_and_comes_back() {
    let outage = Arc::new(Outage::default());
    let store = outage.clone();
    let naru = on(move |engines| intercepted(engines, Arc::new(Only(&["intake", "messages"], store)))).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    ada.chat("A_B", "before", "a-1").await;
    ada.expect("ACK").await;

    outage.cut(true);
    ada.chat("A_B", "during", "a-2").await;
    let error = ada.expect("ERROR").await;
    assert_eq!((&error["code"], &error["clientMessageId"]), (&json!("UNAVAILABLE"), &json!("a-2")));
    let (status, _) = naru.http("A").get("/readyz").await;
    assert_eq!(status, 503);

    outage.cut(false);
    ada.chat("A_B", "during", "a-2").await;
    assert_eq!(ada.expect("ACK").await["seq"], 2);
    for content in ["before", "during"] {
        assert_eq!(ben.expect("CHAT").await["content"], content);
    }
    naru.stop().await;
}

/// Presence that can't be asked is not absence: every recipient gets both.
#[tokio::test]
async fn unknown_is_not_offline() {
    let outage = Arc::new(Outage::default());
    let presence = outage.clone();
    let mut naru =
        on(move |engines| intercepted(engines, Arc::new(Only(&["presence.online"], presence)))).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    outage.cut(true);
    ada.chat("A_B", "both", "a-1").await;
    assert_eq!(ben.expect("CHAT").await["content"], "both");
    assert_eq!(naru.backend.next().await.json["body"], "both");
    naru.stop().await;
}

/// What the live layer does not take becomes a push, and the message waits in the store.
#[tokio::test]
async fn a_live_layer_that_goes_away_costs_pushes_and_no_message() {
    let outage = Arc::new(Outage::default());
    let live = outage.clone();
    let mut naru = on(move |engines| intercepted(engines, Arc::new(Only(&["live.publish"], live)))).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    outage.cut(true);
    ada.chat("A_B", "unheard", "a-1").await;
    ada.expect("ACK").await;
    assert_eq!(naru.backend.next().await.json["body"], "unheard");
    ben.send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": "A_B", "afterSeq": 0}]})).await;
    assert_eq!(ben.expect("CHAT").await["content"], "unheard");
    naru.stop().await;
}

/// A confirmation that is lost is looked up.
#[tokio::test]
async fn a_lost_confirmation_is_looked_up() {
    let outage = Arc::new(Outage::default());
    outage.cut(true);
    let confirm = outage.clone();
    let naru = on(move |engines| intercepted(engines, Arc::new(Only(&["live.confirm"], confirm)))).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    let sent = std::time::Instant::now();
    ada.chat("A_B", "is it safe?", "a-1").await;
    assert_eq!(ada.expect("ACK").await["seq"], 1);
    assert!(sent.elapsed() >= Duration::from_millis(500), "the confirmation came from elsewhere");
    naru.stop().await;
}

/// The hot path's round trips: a constant number per batch, and fewer than one per message when there is a load.
#[tokio::test]
async fn round_trips_are_shared_by_a_batch() {
    let counted = Arc::new(Counted::default());
    let interceptor = counted.clone();
    let naru = on(move |engines| intercepted(engines, interceptor)).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    ada.chat("A_B", "the rooms are known now", "a-0").await;
    ada.expect("ACK").await;
    ben.expect("CHAT").await;
    counted.reset();

    ada.chat("A_B", "one message", "a-1").await;
    ada.expect("ACK").await;
    ben.expect("CHAT").await;
    for (call, wanted) in [
        ("intake.append", 1),
        ("accepted.send", 1),
        ("rooms.current_since", 1),
        ("messages.find", 0),
        ("messages.heads", 0),
        ("messages.append_run", 1),
        ("live.confirm", 1),
        ("saved.send", 1),
        ("rooms.members_at", 0),
        ("presence.online", 1),
        ("offline.send", 0),
        ("live.publish", 1),
    ] {
        assert_eq!(counted.count(call), wanted, "{call}: {:?}", counted.all());
    }

    counted.reset();
    const LOAD: u64 = 200;
    for number in 0..LOAD {
        ada.chat("A_B", "one of many", &format!("b-{number}")).await;
    }
    for _ in 0..LOAD {
        ada.expect("ACK").await;
        ben.expect("CHAT").await;
    }
    for call in ["intake.append", "rooms.current_since", "messages.append_run", "live.publish", "saved.send"]
    {
        assert!(counted.count(call) <= LOAD / 2, "{call} is not shared: {:?}", counted.all());
    }
    naru.stop().await;
}

/// TYPING is published by the sender's own session, so a fault of the live layer can make that session panic.
#[tokio::test]
async fn a_session_that_panics_leaves_presence() {
    let is_broken = Arc::new(AtomicBool::new(false));
    let broken = is_broken.clone();
    let panics = Before(move |_: &Call| {
        assert!(!broken.swap(false, Ordering::Relaxed), "a fault of the test");
        ready(Ok(())).boxed()
    });
    let mut naru = on(move |engines| intercepted(engines, Arc::new(Only(&["live.publish"], panics)))).await;
    let room = naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    let ben = naru.http("B");
    assert_eq!(ben.get("/api/presence?userIds=A").await.1[0]["online"], true);

    is_broken.store(true, Ordering::Relaxed);
    ada.send_json(&json!({"type": "TYPING", "chatRoomId": room})).await;
    assert_eq!(ada.closed().await.0, 1006, "no close frame");
    naru.counts("naru_gateway_closed_total{reason=\"panic\"} 1").await;
    naru.counts("naru_gateway_connections 0").await;
    assert_eq!(ben.get("/api/presence?userIds=A").await.1[0]["online"], false);

    // She gets a push, and then her place again.
    let mut phone = naru.phone("B").await;
    phone.chat(&room, "hello", "one").await;
    phone.expect("ACK").await;
    assert_eq!(naru.backend.next().await.json["body"], "hello");
    let mut ada = naru.phone("A").await;
    phone.chat(&room, "again", "two").await;
    assert_eq!(ada.expect("CHAT").await["content"], "again");
    naru.stop().await;
}
