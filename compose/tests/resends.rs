//! A message that is sent again: it is recognised before anything may refuse it, it reaches its recipients once, and what
//! was refused keeps its place in the order.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{join, join_all};
use naru::pipeline::Changes;
use naru_client::{Client, Incoming};
use naru_engines::Engines;
use naru_engines::store::MemberChange;
use naru_faults::{Only, intercepted};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::{Before, Naru};

/// The answer to the message of this name.
async fn answer(phone: &mut Client, name: &str) -> Value {
    loop {
        match phone.next().await {
            Some(Incoming::Frame(frame))
                if frame["clientMessageId"] == name
                    && (frame["type"] == "ACK" || frame["type"] == "ERROR") =>
            {
                return frame;
            }
            Some(Incoming::Frame(_)) => {}
            other => panic!("waited for the answer to {name}, got {other:?}"),
        }
    }
}

/// Naru, and its engines: what is done with them another gateway could have done.
async fn with_engines(flags: &[&str]) -> (Naru, Engines) {
    let (keep, kept) = std::sync::mpsc::channel();
    let engines = move |engines: Engines| {
        keep.send(engines.clone()).expect("the test waits");
        engines
    };
    let naru =
        Naru::start_with(flags, Changes { engines: Some(Box::new(engines)), ..Changes::default() }).await;
    (naru, kept.recv().expect("it was started"))
}

/// Writes until one is refused; returns the refusal.
async fn write_until_refused(phone: &mut Client, room: &str) -> Value {
    for number in 0.. {
        let name = format!("new-{number}");
        phone.chat(room, "new", &name).await;
        let answer = answer(phone, &name).await;
        if answer["type"] == "ERROR" {
            return answer;
        }
    }
    unreachable!("it ends with a refusal")
}

#[tokio::test]
async fn a_saved_message_is_acknowledged_again_while_new_ones_come_too_fast() {
    let naru = Naru::start(&["--rate-messages-per-second", "1", "--rate-burst", "1"]).await;
    let room = naru.http("A").create_room(&["A", "B"]).await;
    let (mut phone, mut tablet) = (naru.phone("A").await, naru.phone("A").await);
    phone.chat(&room, "one", "1").await;
    let ack = answer(&mut phone, "1").await;
    assert_eq!(ack["type"], "ACK");
    assert_eq!(write_until_refused(&mut phone, &room).await["code"], "RATE_LIMITED");
    for _ in 0..3 {
        phone.chat(&room, "one", "1").await;
        assert_eq!(answer(&mut phone, "1").await, ack);
        tablet.chat(&room, "one", "1").await;
        assert_eq!(answer(&mut tablet, "1").await, ack);
        assert_eq!(naru.http("A").send(&room, "one", "1").await.1["id"], ack["id"]);
        phone.chat(&room, "other", "1").await;
        assert_eq!(answer(&mut phone, "1").await["code"], "CONFLICT");
    }
    naru.stop().await;
}

#[tokio::test]
async fn a_saved_message_is_acknowledged_again_after_its_sender_left_the_room() {
    let naru = Naru::start(&[]).await;
    let room = naru.http("B").create_room(&["A", "B", "C"]).await;
    let mut ada = naru.phone("A").await;
    ada.chat(&room, "one", "1").await;
    let ack = answer(&mut ada, "1").await;
    assert_eq!(naru.http("B").delete(&format!("/api/rooms/{room}/members/A")).await.0, 204);
    ada.chat(&room, "new", "2").await;
    assert_eq!(answer(&mut ada, "2").await["code"], "ROOM_NOT_FOUND");
    ada.chat(&room, "one", "1").await;
    assert_eq!(answer(&mut ada, "1").await, ack);
    let (status, again) = naru.http("A").send(&room, "one", "1").await;
    assert_eq!((status, &again["seq"]), (200, &ack["seq"]));
    assert_eq!(naru.http("A").send(&room, "new", "2").await.0, 404);
    naru.stop().await;
}

#[tokio::test]
async fn what_was_rejected_is_saved_when_its_sender_is_back() {
    let (naru, engines) = with_engines(&[]).await;
    let room = naru.http("B").create_room(&["A", "B", "C"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    ada.chat(&room, "one", "1").await;
    assert_eq!(answer(&mut ada, "1").await["seq"], 1);
    let (id, user) = (room.parse().expect("a room"), "A".parse::<naru_model::UserId>().expect("a user"));
    // This gateway takes her for a member for a while, and the persister does not.
    engines.store.rooms.change(&id, MemberChange::Remove(user.clone()), 9).await.expect("a change");
    ada.chat(&room, "two", "2").await;
    assert_eq!(answer(&mut ada, "2").await["code"], "ROOM_NOT_FOUND");
    engines.store.rooms.change(&id, MemberChange::Add(user), 9).await.expect("a change");
    ada.chat(&room, "two", "2").await;
    let ack = answer(&mut ada, "2").await;
    assert_eq!((&ack["type"], &ack["seq"]), (&json!("ACK"), &json!(2)));
    let chat = ben.expect_where("CHAT", |chat| chat["content"] == "two").await;
    assert_eq!(chat["id"], ack["id"]);
    naru.stop().await;
}

/// Twenty equal sends over two sockets and HTTP, the first under way: one message, and one `CHAT` for each session of a
/// member that did not send it.
#[tokio::test]
async fn a_message_sent_again_while_it_is_under_way_is_published_once() {
    let gate = Arc::new(Semaphore::new(0));
    let passing = gate.clone();
    let wait = move |_: &_| {
        let gate = passing.clone();
        async move {
            let _open = gate.acquire_owned().await;
            Ok(())
        }
        .boxed()
    };
    let wait = Arc::new(Only(&["messages.append_run"], Before(wait)));
    let engines = |engines| intercepted(engines, wait);
    let naru =
        Naru::start_with(&[], Changes { engines: Some(Box::new(engines)), ..Changes::default() }).await;
    let room = naru.http("A").create_room(&["A", "B"]).await;
    let (mut phone, mut tablet) = (naru.phone("A").await, naru.phone("A").await);
    let mut ben = naru.phone("B").await;
    let http = naru.http("A");
    let requests = join_all((0..6).map(|_| http.send(&room, "once", "1")));
    let sockets = async {
        for _ in 0..7 {
            phone.chat(&room, "once", "1").await;
            tablet.chat(&room, "once", "1").await;
        }
        naru.counts("naru_gateway_in_flight 20").await;
        gate.add_permits(1);
    };
    let (answers, ()) = join(requests, sockets).await;
    let id = ben.expect("CHAT").await["id"].clone();
    assert!(answers.iter().all(|(status, ack)| *status == 200 && ack["id"] == id), "{answers:?}");
    for phone in [&mut phone, &mut tablet] {
        for _ in 0..7 {
            assert_eq!(answer(phone, "1").await["id"], id);
        }
    }
    // What comes after it comes after all of it.
    phone.chat(&room, "the end", "2").await;
    assert_eq!(ben.expect("CHAT").await["content"], "the end");
    assert_eq!(tablet.expect("CHAT").await["content"], "the end");
    assert_eq!(naru.http("B").history(&room, "afterSeq=0").await.len(), 2);
    naru.stop().await;
}

/// A refusal holds back what its session sends after it to the room, in whatever pace the session tries.
#[tokio::test]
async fn a_refused_message_keeps_its_place_in_the_order() {
    let naru = Naru::start(&["--rate-messages-per-second", "20", "--rate-burst", "2"]).await;
    let (room, other) =
        (naru.http("A").create_room(&["A", "B"]).await, naru.http("A").create_room(&["A", "C"]).await);
    let mut ada = naru.phone("A").await;
    let names: Vec<String> = (0..12).map(|number| number.to_string()).collect();
    let mut refused = None;
    // The slow pace gives each later message a place in the bucket.
    for name in &names {
        ada.chat(&room, name, name).await;
        let answer = answer(&mut ada, name).await;
        match &refused {
            None if answer["type"] == "ERROR" => refused = Some((name, answer)),
            None => {}
            Some((_, first)) => {
                assert_eq!(
                    (&answer["code"], &answer["retryAfterMs"]),
                    (&first["code"], &first["retryAfterMs"])
                );
            }
        }
        if refused.is_some() {
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }
    let (first, refusal) = refused.expect("a burst of two is over");
    assert_eq!(refusal["code"], "RATE_LIMITED");
    ada.chat(&other, "elsewhere", "elsewhere").await;
    assert_eq!(answer(&mut ada, "elsewhere").await["type"], "ACK", "of the room only");

    // Its client drops the first one, and sends the others again, the last one too soon.
    ada.send_json(&json!({"type": "DROP", "chatRoomId": room, "clientMessageId": first})).await;
    let left: Vec<&String> = names.iter().skip_while(|name| *name != first).skip(1).collect();
    let [.., last] = *left else { panic!("all were accepted") };
    tokio::time::sleep(Duration::from_millis(60)).await;
    ada.chat(&room, last, last).await;
    assert_eq!(answer(&mut ada, last).await["code"], "RATE_LIMITED");
    for name in left {
        loop {
            tokio::time::sleep(Duration::from_millis(60)).await;
            ada.chat(&room, name, name).await;
            if answer(&mut ada, name).await["type"] == "ACK" {
                break;
            }
        }
    }
    let history = naru.http("A").history(&room, "afterSeq=0").await;
    let saved: Vec<&str> = history.iter().filter_map(|message| message["content"].as_str()).collect();
    let expected: Vec<&str> = names.iter().filter(|name| *name != first).map(String::as_str).collect();
    assert_eq!(saved, expected);
    naru.stop().await;
}
