//! Redis, as it is: real servers, some of which die.

mod channels;
mod cluster;
mod conformance;
mod cost;
mod outages;
mod presence;

use std::sync::Arc;
use std::time::Duration;

use naru_conformance::LiveLayer;
use naru_engines::EngineResult;
use naru_engines::live::{HasSession, Signal, Subscription};
use naru_model::live::{LiveEvent, News};
use naru_model::{ClientMessageId, GatewayId, Message, MessageId, RoomId, Seq, SessionId, Timestamp, UserId};
use naru_redis::{Options, Redis};
use tokio::time::timeout;

/// How long a test waits for what must happen, before it has failed.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Another process of the deployment.
async fn open(url: &str) -> LiveLayer {
    layer(&Redis::open(url, Options::default()).await.unwrap())
}

fn layer(redis: &Redis) -> LiveLayer {
    LiveLayer {
        live: redis.live(),
        presence: redis.presence(),
        proofs: redis.proofs(),
        leases: redis.leases(),
    }
}

/// A connection that is not Naru's.
async fn other_client(url: &str) -> redis::aio::MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn new_room() -> RoomId {
    RoomId::new(format!("방 {{*}}:%[a] {}", MessageId::generate())).unwrap()
}

/// The message at this place in a room.
fn chat_event(room: &RoomId, seq: u64) -> LiveEvent {
    LiveEvent {
        recipients: [user("ben"), user("eve")].into(),
        origin: Some(SessionId::new("ada's phone").unwrap()),
        news: News::Chat(Message {
            id: MessageId::from_bytes([1; 12]),
            chat_room_id: room.clone(),
            seq: Seq(seq),
            sender_id: user("ada"),
            sender_name: "Ada 러브레이스".into(),
            content: "\"안녕\" 👋".into(),
            timestamp: Timestamp::from_millis(1_795_339_800_042),
            client_message_id: ClientMessageId::new("c-1").unwrap(),
            deleted_at: None,
        }),
    }
}

async fn publish(layer: &LiveLayer, room: &RoomId, seqs: std::ops::Range<u64>) -> EngineResult<()> {
    layer.live.publish(seqs.map(|seq| chat_event(room, seq)).collect()).await
}

/// Subscribes as a gateway on which every user is.
async fn subscribe(layer: &LiveLayer, gateway: &GatewayId) -> Box<dyn Subscription> {
    let all_users: HasSession = Arc::new(|_| true);
    layer.live.subscribe(gateway, all_users).await.unwrap()
}

async fn next(subscription: &mut Box<dyn Subscription>) -> Signal {
    timeout(TEST_TIMEOUT, subscription.next()).await.expect("a signal comes in time").expect("open")
}

/// The place of the next message in this room; other signals are skipped.
async fn next_seq(subscription: &mut Box<dyn Subscription>, room: &RoomId) -> u64 {
    loop {
        match next(subscription).await {
            Signal::Event(event) if event.news.room() == room => match &event.news {
                News::Chat(message) => return message.seq.0,
                other => panic!("{other:?} was not published"),
            },
            Signal::Interrupted => panic!("interrupted before what was waited for"),
            _ => {}
        }
    }
}

/// Waits for a signal; others are skipped.
async fn until(subscription: &mut Box<dyn Subscription>, wanted: Signal) {
    while next(subscription).await != wanted {}
}
