//! Push on proof of delivery: an open socket silences no phone, and a proof does.
//!
//! "No push" is known without waiting for time to pass: the fanout has closed the intake entry, and the notifier was handed
//! nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use naru::pipeline::Changes;
use naru_client::Reading;
use naru_engines::Engines;
use naru_faults::{Counted, Only, Outage, intercepted};
use naru_services::Stopwatch;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::support::{Before, Naru};

const GRACE: Duration = Duration::from_millis(300);
const SHORT: [&str; 2] = ["--delivery-grace", "300ms"];

async fn on(flags: &[&str], change: impl FnOnce(Engines) -> Engines + Send + 'static) -> Naru {
    let changes = Changes { engines: Some(Box::new(change)), ..Changes::default() };
    Naru::start_with(flags, changes).await
}

/// A phone in a tunnel: its connection is open, and nothing that is written to it arrives.
#[tokio::test]
async fn a_frozen_phone_gets_the_push_when_the_grace_is_over() {
    let mut naru = Naru::start(&SHORT).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    ben.reading(Reading::Paused);
    let sent = Instant::now();
    ada.chat("A_B", "can you hear me?", "a-1").await;
    ada.expect("ACK").await;
    let push = naru.backend.next().await;
    assert_eq!((&push.json["userId"], &push.json["body"]), (&json!("B"), &json!("can you hear me?")));
    assert!(push.arrived - sent >= GRACE, "the push came after {:?}", push.arrived - sent);

    // Out of the tunnel: the message is there, it was only not proven in time.
    ben.reading(Reading::Answering);
    assert_eq!(ben.expect("CHAT").await["content"], "can you hear me?");
    naru.backend.none_waiting();
    naru.stop().await;
}

/// A phone that answers pings and says nothing else, as every client library does.
#[tokio::test]
async fn a_phone_that_only_pongs_gets_no_push() {
    let mut naru = Naru::start(&SHORT).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    for number in 1..=20 {
        ada.chat("A_B", &format!("message {number}"), &format!("a-{number}")).await;
    }
    for _ in 1..=20 {
        ben.expect("CHAT").await;
    }
    naru.counts("naru_fanout_proven_total 20").await;
    naru.counts("naru_fanout_closed_total 20").await;
    naru.counts("naru_fanout_offline_total 0").await;
    naru.backend.none_waiting();
    naru.stop().await;
}

/// The tablet on the desk proves it for the phone in the tunnel: it is the same user's.
#[tokio::test]
async fn a_proof_by_any_session_of_a_user_counts() {
    let mut naru = Naru::start(&SHORT).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    let (phone, mut tablet) = (naru.phone("B").await, naru.phone("B").await);
    phone.reading(Reading::Paused);
    ada.chat("A_B", "to both", "a-1").await;
    tablet.expect("CHAT").await;
    naru.counts("naru_fanout_closed_total 1").await;
    naru.counts("naru_fanout_offline_total 0").await;
    naru.backend.none_waiting();
    naru.stop().await;
}

/// A client that comes back within the grace time and asks has it.
#[tokio::test]
async fn what_a_sync_brings_is_proven_too() {
    let mut naru = Naru::start(&["--delivery-grace", "1s"]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    ben.reading(Reading::WithoutPongs);
    ada.chat("A_B", "before the tunnel", "a-1").await;
    ben.expect("CHAT").await;
    ben.abort().await;
    let mut ben = naru.phone("B").await;
    ben.send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": "A_B", "afterSeq": 0}]})).await;
    ben.expect("CHAT").await;
    naru.counts("naru_fanout_closed_total 1").await;
    naru.counts("naru_fanout_offline_total 0").await;
    naru.backend.none_waiting();
    naru.stop().await;
}

/// Behind a proxy that answers pings, a pong proves nothing, and the app's own word does.
#[tokio::test]
async fn where_only_the_app_can_prove_it_pongs_do_not_count() {
    let mut naru = Naru::start(&[&SHORT[..], &["--delivery-proof", "received"]].concat()).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    ada.chat("A_B", "received", "a-1").await;
    ben.expect("CHAT").await;
    ben.send_json(&json!({"type": "RECEIVED", "chatRoomId": "A_B", "seq": 1})).await;
    ada.expect("RECEIVED").await;
    ada.chat("A_B", "silence", "a-2").await;
    ben.expect("CHAT").await;
    assert_eq!(naru.backend.next().await.json["body"], "silence");
    naru.counts("naru_fanout_closed_total 2").await;
    naru.counts("naru_fanout_proven_total 1").await;
    naru.backend.none_waiting();
    naru.stop().await;
}

/// The fanout has found Ben here, and before it has published he is gone: the message reaches no session.
#[tokio::test]
async fn a_session_that_dies_between_the_look_up_and_the_publish_is_made_up_for() {
    let (reached, open) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (arrival, gate) = (reached.clone(), open.clone());
    let wait = move |_: &_| {
        arrival.add_permits(1);
        let gate = gate.clone();
        let waiting = async move {
            gate.acquire().await.expect("it is never closed").forget();
            Ok(())
        };
        waiting.boxed()
    };
    let wait = Arc::new(Only(&["live.publish"], Before(wait)));
    let mut naru = on(&SHORT, move |engines| intercepted(engines, wait)).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, ben) = (naru.phone("A").await, naru.phone("B").await);
    ada.chat("A_B", "are you there?", "a-1").await;
    reached.acquire().await.expect("it is never closed").forget();
    ben.abort().await;
    naru.counts("naru_gateway_connections 1").await;
    open.add_permits(1);
    assert_eq!(naru.backend.next().await.json["body"], "are you there?");
    naru.counts("naru_fanout_closed_total 1").await;
    naru.backend.none_waiting();
    naru.stop().await;
}

/// The session got the message, and died before it proved that its phone did.
#[tokio::test]
async fn a_session_that_dies_with_the_message_is_made_up_for() {
    let mut naru = Naru::start(&SHORT).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    ben.reading(Reading::WithoutPongs);
    ada.chat("A_B", "one last word", "a-1").await;
    ben.expect("CHAT").await;
    ben.abort().await;
    assert_eq!(naru.backend.next().await.json["body"], "one last word");
    naru.stop().await;
}

/// What could not be published is pushed at once, and again when its proof is missing: that is one push.
#[tokio::test]
async fn not_published_and_not_proven_is_one_push() {
    let outage = Arc::new(Outage::default());
    let live = outage.clone();
    let mut naru =
        on(&SHORT, move |engines| intercepted(engines, Arc::new(Only(&["live.publish"], live)))).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, _ben) = (naru.phone("A").await, naru.phone("B").await);
    outage.cut(true);
    ada.chat("A_B", "unheard", "a-1").await;
    assert_eq!(naru.backend.next().await.json["body"], "unheard");
    naru.counts("naru_notifier_pushes_total{lane=\"webhook\",outcome=\"repeated\"} 1").await;
    naru.backend.none_waiting();
    naru.stop().await;
}

/// Lost proofs cost a push too many, and never a push.
#[tokio::test]
async fn proofs_that_cannot_be_asked_prove_nothing() {
    let outage = Arc::new(Outage::default());
    let proofs = outage.clone();
    let mut naru = on(&SHORT, move |engines| intercepted(engines, Arc::new(Only(&["proofs"], proofs)))).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    outage.cut(true);
    ada.chat("A_B", "not proven", "a-1").await;
    ben.expect("CHAT").await;
    assert_eq!(naru.backend.next().await.json["body"], "not proven");

    // The position is a proof that needs no Redis.
    ada.chat("A_B", "received", "a-2").await;
    ben.expect("CHAT").await;
    ben.send_json(&json!({"type": "RECEIVED", "chatRoomId": "A_B", "seq": 2})).await;
    naru.counts("naru_notifier_spared_total{reason=\"received\"} 1").await;
    naru.backend.none_waiting();
    naru.stop().await;
}

/// The sender's other devices are sent the message, and have nothing to prove.
#[tokio::test]
async fn a_sender_gets_no_push() {
    let mut naru = Naru::start(&SHORT).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut phone, mut tablet) = (naru.phone("A").await, naru.phone("A").await);
    tablet.reading(Reading::WithoutPongs);
    phone.chat("A_B", "from my phone", "a-1").await;
    tablet.expect("CHAT").await;
    assert_eq!(naru.backend.next().await.json["userId"], "B");
    naru.counts("naru_fanout_closed_total 1").await;
    naru.counts("naru_fanout_offline_total 1").await;
    naru.backend.none_waiting();
    naru.stop().await;
}

/// Turned off, presence decides by itself: a frozen phone is thought to be there.
#[tokio::test]
async fn without_a_grace_time_presence_decides() {
    let counted = Arc::new(Counted::default());
    let interceptor = counted.clone();
    let mut naru = on(&["--delivery-grace", "0s"], move |engines| intercepted(engines, interceptor)).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, ben) = (naru.phone("A").await, naru.phone("B").await);
    ben.reading(Reading::Paused);
    ada.chat("A_B", "into the tunnel", "a-1").await;
    ada.expect("ACK").await;
    naru.counts("naru_fanout_closed_total 1").await;
    assert_eq!(counted.count("offline.send"), 0);
    assert_eq!(
        counted.count("presence.online"),
        2,
        "before the publish, and after it: which sessions left in between?"
    );
    assert_eq!(counted.count("proofs"), 0);
    naru.backend.none_waiting();
    naru.stop().await;
}

/// Nothing is asked of a store or a live layer for each message: what is due is asked about, and closed, at once.
#[tokio::test]
async fn a_burst_is_accounted_for_in_few_calls() {
    let counted = Arc::new(Counted::default());
    let interceptor = counted.clone();
    let mut naru = on(&["--delivery-grace", "10s"], move |engines| intercepted(engines, interceptor)).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    for number in 1..=200 {
        ada.chat("A_B", &format!("message {number}"), &format!("a-{number}")).await;
    }
    for _ in 1..=200 {
        ben.expect("CHAT").await;
    }
    naru.counts("naru_fanout_closed_total 200").await;
    for (call, max) in [("proofs.proven", 8), ("proofs.record", 8), ("intake.close", 8)] {
        assert!((1..=max).contains(&counted.count(call)), "{call}: {} times", counted.count(call));
    }
    naru.backend.none_waiting();
    naru.stop().await;
}

/// An orderly stop leaves no message open, and needs no grace time: what the last pongs prove is closed, the rest is handed
/// to the notifier, whose queue is on disk.
#[tokio::test]
async fn an_orderly_stop_accounts_for_every_message() {
    let counted = Arc::new(Counted::default());
    let interceptor = counted.clone();
    let naru = on(&["--delivery-grace", "1h"], move |engines| intercepted(engines, interceptor)).await;
    naru.http("A").create_room(&["A", "B"]).await;
    naru.http("A").create_room(&["A", "C"]).await;
    let (mut ada, mut ben, mut cleo) = (naru.phone("A").await, naru.phone("B").await, naru.phone("C").await);
    cleo.reading(Reading::WithoutPongs);
    ada.chat("A_B", "to a user who answers", "a-1").await;
    ada.chat("A_C", "to a user who does not", "a-2").await;
    ben.expect("CHAT").await;
    cleo.expect("CHAT").await;
    ada.expect("ACK").await;
    ada.expect("ACK").await;
    let began = Stopwatch::start();
    naru.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "it did not wait for the grace time");
    assert_eq!(counted.count("offline.send"), 1, "for the user who did not answer");
}
