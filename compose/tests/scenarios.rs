//! The flow's scenarios, one by one, and the orders in which things must happen.

use std::sync::Arc;
use std::time::Duration;

use naru::pipeline::Changes;
use naru_client::{Claims, Client, Reading, TEST_TIMEOUT, token};
use naru_faults::{Recorder, intercepted};
use naru_model::RoomId;
use serde_json::json;

use crate::support::{Naru, SECRET};

/// Both online. The message comes at once and no push is sent.
#[tokio::test]
async fn both_online_no_push() {
    let mut naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    for number in 1..=20 {
        ada.chat("A_B", &format!("message {number}"), &format!("a-{number}")).await;
    }
    for number in 1..=20 {
        assert_eq!(ada.expect("ACK").await["seq"], number);
        assert_eq!(ben.expect("CHAT").await["seq"], number);
    }
    // A push for these would have been enqueued before the next message is published.
    ben.abort().await;
    wait_until_offline(&naru, "B").await;
    ada.chat("A_B", "are you there?", "a-21").await;
    let push = naru.backend.next().await;
    assert_eq!(push.json["body"], "are you there?");
    naru.backend.none_waiting();
    naru.stop().await;
}

/// B offline. A push for each message, and the history holds them all when the app opens.
#[tokio::test]
async fn offline_is_pushed_and_reads_the_history() {
    let mut naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    let mut pushed = Vec::new();
    for number in 1..=3 {
        ada.chat("A_B", &format!("message {number}"), &format!("a-{number}")).await;
        ada.expect("ACK").await;
        pushed.push(naru.backend.next().await.json["data"]["messageId"].clone());
    }
    let history = naru.http("B").history("A_B", "afterSeq=0").await;
    let ids: Vec<_> = history.iter().map(|message| message["id"].clone()).collect();
    assert_eq!(ids, pushed);
    naru.backend.none_waiting();
    naru.stop().await;
}

/// The sending session never gets its message back; the sender's other devices do.
#[tokio::test]
async fn a_senders_other_devices_get_the_message_too() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut phone, mut tablet) = (naru.phone("A").await, naru.phone("A").await);
    phone.chat("A_B", "from my phone", "a-1").await;
    let ack = phone.expect("ACK").await;
    assert_eq!(tablet.expect("CHAT").await["id"], ack["id"]);
    phone.quiet("CHAT").await;

    // The tablet sends the same message again (it shares the phone's outbox): the same id, and nothing twice.
    tablet.chat("A_B", "from my phone", "a-1").await;
    assert_eq!(tablet.expect("ACK").await["id"], ack["id"]);
    phone.quiet("CHAT").await;
    assert_eq!(naru.http("A").history("A_B", "afterSeq=0").await.len(), 1);

    // Sent over HTTP there is no sending session: all of them get it.
    let (status, sent) = naru.http("A").send("A_B", "from my watch", "a-2").await;
    assert_eq!(status, 200);
    for session in [&mut phone, &mut tablet] {
        assert_eq!(
            session.expect_where("CHAT", |chat| chat["clientMessageId"] == "a-2").await["id"],
            sent["id"]
        );
    }
    naru.stop().await;
}

/// P2: a resend yields one message and always the same id; other content under the same name is a conflict.
#[tokio::test]
async fn a_resend_is_the_same_message() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    for _ in 0..5 {
        ada.chat("A_B", "once", "a-1").await;
    }
    let first = ada.expect("ACK").await;
    for _ in 1..5 {
        assert_eq!(ada.expect("ACK").await, first);
    }
    ada.chat("A_B", "twice", "a-1").await;
    let conflict = ada.expect("ERROR").await;
    assert_eq!((&conflict["code"], &conflict["clientMessageId"]), (&json!("CONFLICT"), &json!("a-1")));
    assert_eq!(ben.expect("CHAT").await["id"], first["id"]);
    assert_eq!(naru.http("A").history("A_B", "afterSeq=0").await.len(), 1);

    // The name is scoped to its room and its sender.
    ben.chat("A_B", "twice", "a-1").await;
    assert_eq!(ben.expect("ACK").await["seq"], 2);
    naru.stop().await;
}

/// Plain frames, which have no name to be answered by, are answered in the order they were sent.
#[tokio::test]
async fn plain_frames_are_answered_in_order() {
    let naru = Naru::start(&["--max-content-bytes", "100"]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    let long = "x".repeat(101);
    for content in ["one", &long, "two", "", "three"] {
        ada.send_json(&json!({"type": "CHAT", "chatRoomId": "A_B", "content": content})).await;
    }
    let mut answers = Vec::new();
    for wanted in ["ACK", "ERROR", "ACK", "ERROR", "ACK"] {
        let Some(naru_client::Incoming::Frame(frame)) = ada.next().await else { panic!("closed") };
        assert_eq!(frame["type"], wanted, "after {answers:?}");
        answers.push(frame);
    }
    assert_eq!(answers[1]["code"], "TOO_LARGE");
    assert_eq!(answers[3]["code"], "INVALID_FRAME");
    naru.stop().await;
}

/// The offline event of a recipient is enqueued before the message is published, whatever else is
/// online.
#[tokio::test]
async fn the_push_is_enqueued_before_the_publish() {
    let calls = Arc::new(Recorder::default());
    let interceptor = calls.clone();
    let changes = Changes {
        engines: Some(Box::new(move |engines| intercepted(engines, interceptor))),
        ..Changes::default()
    };
    let mut naru = Naru::start_with(&[], changes).await;
    let room = naru.http("A").create_room(&["A", "B", "C"]).await;
    let (mut ada, mut cleo) = (naru.phone("A").await, naru.phone("C").await);
    ada.chat(&room, "is Ben here?", "a-1").await;
    cleo.expect("CHAT").await;
    naru.backend.next().await;
    let room = RoomId::new(room).expect("a room id");
    assert!(calls.came_before(&room, "offline.send", "live.publish"), "{:?}", calls.log());
    naru.stop().await;
}

/// A device that connects again replaces its older connection; sessions without a device never do.
#[tokio::test]
async fn a_device_has_one_connection() {
    let naru = Naru::start(&[]).await;
    let device = || naru_client::Claims::user("A").device("phone");
    let token = naru_client::token(SECRET.as_bytes(), &device());
    let mut older = Client::connect(&naru.url, &token).await.expect("a welcome");
    older.welcome().await;
    let mut nameless = naru.phone("A").await;
    let mut newer = Client::connect(&naru.url, &token).await.expect("a welcome");
    newer.welcome().await;
    assert_eq!(older.closed().await.0, 4409);
    newer.quiet("ERROR").await;
    nameless.quiet("ERROR").await;
    naru.stop().await;
}

/// On shutdown unanswered messages are answered, then every client is sent away.
#[tokio::test]
async fn a_drain_answers_first() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    for number in 1..=50 {
        ada.chat("A_B", "before the drain", &format!("a-{number}")).await;
    }
    ada.expect("ACK").await;
    naru.stop().await;
    let (code, _) = ada.closed().await;
    assert_eq!(code, 1001);
}

/// A client that does not read is closed, delays no other client, and finds everything in the store when it comes back.
#[tokio::test]
async fn a_client_that_does_not_read_is_closed() {
    let naru = Naru::start(&["--session-queue", "64", "--rate-messages-per-second", "0"]).await;
    let room = naru.http("A").create_room(&["A", "B", "C"]).await;
    let (mut ada, mut ben, mut cleo) = (naru.phone("A").await, naru.phone("B").await, naru.phone("C").await);
    ben.reading(Reading::Paused);
    let content = "x".repeat(8192);
    let mut sent = 0;
    // As much as the system's buffers and the queue take; 64 MiB is more than any of them.
    while is_online(&naru, "B").await && sent < 8192 {
        for _ in 0..32 {
            ada.chat(&room, &content, &format!("a-{sent}")).await;
            sent += 1;
        }
        for _ in 0..32 {
            ada.expect("ACK").await;
            cleo.expect("CHAT").await;
        }
    }
    ben.reading(Reading::Answering);
    assert_eq!(ben.closed().await.0, 4408, "after {sent} messages");
    ada.quiet("ERROR").await;

    let mut ben = naru.phone("B").await;
    ben.send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": room, "afterSeq": sent - 1}]})).await;
    assert_eq!(ben.expect("CHAT").await["seq"], sent);
    naru.stop().await;
}

/// A client that asks for more than the buffers on its way hold, and does not read: what ends its session comes all the same.
#[tokio::test]
async fn a_sync_that_is_not_read_delays_no_end() {
    let [hour, soon] = ["1h", "300ms"].map(|interval| ["--ping-interval", interval]);
    for (flags, lasts, wanted) in [(hour, 3, 4401), (soon, 3600, 1008), (hour, 3600, 1001)] {
        let large =
            ["--session-queue", "8", "--max-content-bytes", "60000", "--rate-messages-per-second", "0"];
        let naru = Naru::start(&[&flags[..], &large].concat()).await;
        naru.http("A").create_room(&["A", "B"]).await;
        let mut ada = naru.phone("A").await;
        for number in 0..200 {
            ada.chat("A_B", &"x".repeat(60_000), &number.to_string()).await;
        }
        for _ in 0..200 {
            ada.expect("ACK").await;
        }
        let claims = Claims::user("B").expires_in(Duration::from_secs(lasts));
        let mut ben =
            Client::connect(&naru.url, &token(SECRET.as_bytes(), &claims)).await.expect("a session");
        ben.welcome().await;
        ben.send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": "A_B", "afterSeq": 0}]})).await;
        ben.expect("CHAT").await;
        ben.reading(Reading::Paused);
        if wanted != 1001 {
            wait_until_offline(&naru, "B").await;
            ben.reading(Reading::Answering);
            assert_eq!(ben.closed().await.0, wanted);
        }
        // It does not wait for a client that does not read.
        naru.stop().await;
    }
}

async fn is_online(naru: &Naru, person: &str) -> bool {
    let (_, seen) = naru.http("A").get(&format!("/api/presence?userIds={person}")).await;
    seen[0]["online"] == true
}

async fn wait_until_offline(naru: &Naru, person: &str) {
    let waiting = async { while is_online(naru, person).await {} };
    let waited = tokio::time::timeout(TEST_TIMEOUT, waiting).await;
    waited.unwrap_or_else(|_| panic!("{person} stays online"));
}
