//! What goes over the channels, as other systems see it and as they may disturb it.

use std::sync::Arc;

use futures_util::StreamExt;
use naru_engines::live::{HasSession, Signal};
use naru_model::live::{Confirmation, LiveEvent, News, Position};
use naru_model::message::Outcome;
use naru_model::{GatewayId, MessageId, RoomId, Seq, SessionId, Timestamp};
use naru_redis::{Options, Redis};
use naru_services::{Kind, Service};
use tokio::time::timeout;

use crate::{
    TEST_TIMEOUT, chat_event, layer, new_room, next, next_seq, open, other_client, publish, subscribe, until,
    user,
};

#[tokio::test]
async fn a_plain_subscriber_of_chat_receives_messages_and_nothing_else() {
    let service = Service::start(Kind::Redis);
    let naru = open(&service.url()).await;
    let mut plain = redis::Client::open(service.url()).unwrap().get_async_pubsub().await.unwrap();
    plain.psubscribe("chat:*").await.unwrap();

    let room = RoomId::new("ada_ben").unwrap();
    let position = Position {
        chat_room_id: room.clone(),
        user_id: user("ben"),
        seq: Seq(7),
        timestamp: Timestamp::now(),
    };
    let news = [
        News::Typing { chat_room_id: room.clone(), user_id: user("ada") },
        News::Received(position.clone()),
        News::Read(position),
    ];
    let mut events: Vec<LiveEvent> =
        news.map(|news| LiveEvent { recipients: [user("ada")].into(), origin: None, news }).into();
    events.insert(1, chat_event(&room, 7));
    events.push(LiveEvent { origin: None, ..chat_event(&room, 8) });
    let gateway = GatewayId::generate();
    let mut subscription = subscribe(&naru, &gateway).await;
    let confirmation = Confirmation { id: MessageId::generate(), outcome: Outcome::Saved { seq: Seq(7) } };
    naru.live.confirm(&gateway, vec![confirmation]).await.unwrap();
    naru.live.evict(&gateway, &SessionId::generate()).await.unwrap();
    naru.live.publish(events.clone()).await.unwrap();

    let mut received = plain.on_message();
    let mut payloads = String::new();
    for _ in 0..2 {
        let message = timeout(TEST_TIMEOUT, received.next()).await.unwrap().unwrap();
        assert_eq!(message.get_channel_name(), "chat:ada_ben");
        payloads += &message.get_payload::<String>().unwrap();
        payloads.push('\n');
    }
    insta::assert_snapshot!(payloads, @r#"
    {"recipients":["ben","eve"],"origin":"ada's phone","type":"CHAT","id":"010101010101010101010101","chatRoomId":"ada_ben","seq":7,"senderId":"ada","senderName":"Ada 러브레이스","content":"\"안녕\" 👋","timestamp":"2026-11-22T09:30:00.042Z","clientMessageId":"c-1"}
    {"recipients":["ben","eve"],"type":"CHAT","id":"010101010101010101010101","chatRoomId":"ada_ben","seq":8,"senderId":"ada","senderName":"Ada 러브레이스","content":"\"안녕\" 👋","timestamp":"2026-11-22T09:30:00.042Z","clientMessageId":"c-1"}
    "#);

    // A gateway receives all of it, in the order in which it was published.
    let mut signals = Vec::new();
    while signals.len() < 7 {
        signals.push(next(&mut subscription).await);
    }
    assert!(matches!(signals[..2], [Signal::Confirmed(_), Signal::Evict(_)]), "{signals:?}");
    let events: Vec<_> = events.into_iter().map(|event| Signal::Event(Arc::new(event))).collect();
    assert_eq!(signals[2..], events);
}

#[tokio::test]
async fn a_gateway_on_which_no_recipient_is_receives_only_a_messages_place() {
    let service = Service::start(Kind::Redis);
    let naru = open(&service.url()).await;
    let only_eve: HasSession = Arc::new(|user| user == "eve");
    let mut subscription = naru.live.subscribe(&GatewayId::generate(), only_eve).await.unwrap();
    let (room, other_room) = (new_room(), new_room());
    let typing = |recipients: &[&str]| LiveEvent {
        recipients: recipients.iter().map(|name| user(name)).collect(),
        origin: None,
        news: News::Typing { chat_room_id: room.clone(), user_id: user("ada") },
    };
    let to = |recipients: &[&str], seq| LiveEvent {
        recipients: recipients.iter().map(|name| user(name)).collect(),
        ..chat_event(&other_room, seq)
    };
    let events = vec![
        to(&["ben", "ada"], 1),
        typing(&["ben"]),
        to(&["ben", "eve"], 2),
        to(&[], 3),
        typing(&[]),
        typing(&["eve"]),
    ];
    naru.live.publish(events.clone()).await.unwrap();
    let event = |place: usize| Signal::Event(events[place].clone().into());
    let seq_only = |seq| Signal::SeqOnly { room: other_room.clone(), seq: Seq(seq) };
    for expected in [seq_only(1), event(2), seq_only(3), event(5)] {
        assert_eq!(next(&mut subscription).await, expected);
    }
}

#[tokio::test]
async fn what_can_not_be_read_is_skipped() {
    let service = Service::start(Kind::Redis);
    let naru = open(&service.url()).await;
    let (gateway, room) = (GatewayId::generate(), new_room());
    let mut subscription = subscribe(&naru, &gateway).await;
    let mut other = other_client(&service.url()).await;
    let own = format!("naru:gateway:{gateway}");
    let chat = format!("chat:{room}");
    let seq_only = serde_json::to_string(&chat_event(&new_room(), 1)).unwrap();
    for channel in ["chat:", "chat:nobody", &chat, "naru:news", &own] {
        let deep = "[".repeat(100_000);
        let payloads: [&[u8]; 7] = [
            b"",
            b"nonsense",
            b"\xff\xfe",
            b"{}",
            br#"{"version":9,"type":"HEARTBEAT"}"#,
            deep.as_bytes(),
            b"null",
        ];
        for payload in payloads {
            redis::cmd("PUBLISH").arg(channel).arg(payload).exec_async(&mut other).await.unwrap();
        }
    }
    redis::cmd("PUBLISH").arg(&chat).arg(seq_only).exec_async(&mut other).await.unwrap();
    redis::cmd("PUBLISH").arg("chat:\u{ff}").arg("not a room").exec_async(&mut other).await.unwrap();
    publish(&naru, &room, 1..2).await.unwrap();
    assert_eq!(next(&mut subscription).await, Signal::Event(chat_event(&room, 1).into()));
}

#[tokio::test]
async fn a_subscriber_that_takes_nothing_costs_a_bounded_buffer_here_and_none_at_the_server() {
    const BACKLOG: usize = 100;
    let service = Service::start(Kind::Redis);
    let options = Options { live_backlog: BACKLOG, ..Options::default() };
    let naru = layer(&Redis::open(&service.url(), options).await.unwrap());
    let room = new_room();
    let mut slow = subscribe(&naru, &GatewayId::generate()).await;
    for part in 0..20 {
        publish(&naru, &room, part * 1_000..(part + 1) * 1_000).await.unwrap();
    }
    // Everything was read from the connection: the server holds nothing back for it.
    let mut other = other_client(&service.url()).await;
    timeout(TEST_TIMEOUT, async {
        loop {
            let list: String = redis::cmd("CLIENT")
                .arg("LIST")
                .arg("TYPE")
                .arg("pubsub")
                .query_async(&mut other)
                .await
                .unwrap();
            assert_eq!(list.lines().count(), 1, "it is still subscribed: {list}");
            if list.contains(" omem=0 ") {
                break;
            }
        }
    })
    .await
    .expect("the server's buffer runs empty");
    for seq in 0..BACKLOG as u64 {
        assert_eq!(next_seq(&mut slow, &room).await, seq);
    }
    assert_eq!([next(&mut slow).await, next(&mut slow).await], [Signal::Interrupted, Signal::Restored]);
}

#[tokio::test]
async fn a_batch_that_is_written_in_many_parts_keeps_its_order() {
    const EVENTS: u64 = 40_000;
    let service = Service::start(Kind::Redis);
    let options = Options { live_backlog: EVENTS as usize, ..Options::default() };
    let naru = layer(&Redis::open(&service.url(), options).await.unwrap());
    let room = new_room();
    let mut subscription = subscribe(&naru, &GatewayId::generate()).await;
    publish(&naru, &room, 0..EVENTS).await.unwrap();
    for seq in 0..EVENTS {
        assert_eq!(next_seq(&mut subscription, &room).await, seq);
    }
}

#[tokio::test]
async fn a_subscriber_that_is_cut_off_subscribes_again() {
    let service = Service::start(Kind::Redis);
    let naru = open(&service.url()).await;
    let room = new_room();
    let mut subscription = subscribe(&naru, &GatewayId::generate()).await;
    let mut other = other_client(&service.url()).await;
    for round in 0..3 {
        publish(&naru, &room, round..round + 1).await.unwrap();
        assert_eq!(next_seq(&mut subscription, &room).await, round);
        let killed: u64 =
            redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").query_async(&mut other).await.unwrap();
        assert_eq!(killed, 1);
        assert_eq!(next(&mut subscription).await, Signal::Interrupted);
        until(&mut subscription, Signal::Restored).await;
    }
}

#[tokio::test]
async fn a_dropped_subscription_leaves_the_server() {
    let service = Service::start(Kind::Redis);
    let naru = open(&service.url()).await;
    let subscription = subscribe(&naru, &GatewayId::generate()).await;
    drop(subscription);
    let mut other = other_client(&service.url()).await;
    timeout(TEST_TIMEOUT, async {
        let subscribed = async |other: &mut redis::aio::MultiplexedConnection| {
            redis::cmd("PUBSUB").arg("NUMPAT").query_async::<u64>(other).await.unwrap()
        };
        while subscribed(&mut other).await > 0 {}
    })
    .await
    .expect("no gateway is subscribed");
}
