//! The live layer forgets or reorders: only clients that may have missed something are asked to SYNC; a gap is filled.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use naru::pipeline::Changes;
use naru_client::Client;
use naru_engines::live::PresenceEntry;
use naru_engines::{Applied, EngineError, Engines};
use naru_faults::{Call, Only, Outage, intercepted};
use naru_model::live::{LiveEvent, News};
use naru_model::{ClientMessageId, GatewayId, Message, MessageId, RoomId, Seq, SessionId, Timestamp, UserId};
use serde_json::{Value, json};

use crate::support::{Before, Naru};

/// A Naru behind whose back messages can be stored and published.
struct Fixture {
    naru: Naru,
    engines: Engines,
    /// Whether the subscription is interrupted the next time it is listened to.
    interruption: Arc<AtomicBool>,
}

impl Fixture {
    async fn start(flags: &[&str]) -> Self {
        let (interruption, out) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let (due, sink) = (interruption.clone(), out.clone());
        let interrupt = move |call: &Call| {
            let failure = EngineError::unavailable("test", Applied::No, format!("{call} was interrupted"));
            let answer = if due.swap(false, Ordering::Relaxed) { Err(failure) } else { Ok(()) };
            async move { answer }.boxed()
        };
        let change = move |engines: Engines| {
            *sink.lock().expect("no panic under the lock") = Some(engines.clone());
            intercepted(engines, Arc::new(Only(&["live.next"], Before(interrupt))))
        };
        let changes = Changes { engines: Some(Box::new(change)), ..Changes::default() };
        let naru = Naru::start_with(flags, changes).await;
        let engines = out.lock().expect("no panic under the lock").take().expect("the engines were changed");
        Self { naru, engines, interruption }
    }

    /// A phone of this person that has said what it has of this room.
    async fn synced(&self, person: &str, room: &str) -> Client {
        let mut phone = self.naru.phone(person).await;
        phone.send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": room, "afterSeq": 0}]})).await;
        phone.expect("SYNCED").await;
        phone
    }

    /// A message of Ada's that is saved, and that no gateway has received.
    async fn saved(&self, room: &str, seq: u64) -> Message {
        let id = MessageId::generate();
        let message = Message {
            id,
            chat_room_id: RoomId::new(room).expect("a room id"),
            seq: Seq(seq),
            sender_id: user("A"),
            sender_name: "Ada".into(),
            content: format!("message {seq}").into(),
            timestamp: Timestamp::now(),
            client_message_id: ClientMessageId::from(id),
            deleted_at: None,
        };
        self.engines.store.messages.append_run(std::slice::from_ref(&message)).await.expect("it is saved");
        message
    }

    async fn published(&self, message: &Message) {
        let news = News::Chat(message.clone());
        self.publish(LiveEvent { recipients: [user("A"), user("B")].into(), origin: None, news }).await;
    }

    async fn publish(&self, event: LiveEvent) {
        self.engines.live.publish(vec![event]).await.expect("it is published");
    }

    /// The live layer is interrupted, and is back.
    async fn interrupted(&self) {
        self.interruption.store(true, Ordering::Relaxed);
        // The subscription is asked again when it has brought something.
        let news =
            News::Typing { chat_room_id: RoomId::new("nowhere").expect("a room id"), user_id: user("A") };
        self.publish(LiveEvent { recipients: [user("A")].into(), origin: None, news }).await;
    }
}

fn user(id: &str) -> UserId {
    UserId::new(id).expect("a user id")
}

async fn received(phone: &mut Client, count: usize) -> Vec<Value> {
    let mut places = Vec::new();
    while places.len() < count {
        places.push(phone.expect("CHAT").await["seq"].clone());
    }
    places
}

#[tokio::test]
async fn only_clients_that_may_have_missed_a_message_are_asked_to_sync() {
    let fixture = Fixture::start(&[]).await;
    for members in [["A", "B"], ["C", "D"]] {
        fixture.naru.http(members[0]).create_room(&members).await;
    }
    let mut ben = fixture.synced("B", "A_B").await;
    let mut cleo = fixture.synced("C", "C_D").await;
    let mut dan = fixture.naru.phone("D").await;

    // Interrupted in silence: only a client that never said what it has is asked.
    fixture.interrupted().await;
    assert!(dan.expect("RESYNC").await.get("rooms").is_none(), "any of his rooms may have moved");
    for phone in [&mut ben, &mut cleo] {
        phone.quiet("RESYNC").await;
    }

    // Interrupted while Ada wrote.
    fixture.saved("A_B", 1).await;
    fixture.interrupted().await;
    let resync = ben.expect("RESYNC").await;
    assert_eq!(resync["rooms"], json!(["A_B"]));
    assert!(resync["retryAfterMs"].as_u64().expect("a moment") < 2_000);
    cleo.quiet("RESYNC").await;

    // Ben was told, so the next interruption does not concern him; and what comes next is no gap.
    let next = fixture.saved("A_B", 2).await;
    fixture.published(&next).await;
    assert_eq!(ben.expect("CHAT").await["seq"], 2);
    fixture.interrupted().await;
    dan.expect("RESYNC").await;
    dan.expect("RESYNC").await;
    ben.quiet("RESYNC").await;
    ben.quiet("CHAT").await;
    fixture.naru.stop().await;
}

/// What `message_ttl` has removed is in no store: a client learns that from `firstSeq`, and asks no further.
#[tokio::test]
async fn what_has_expired_is_told_and_not_waited_for() {
    let fixture = Fixture::start(&[]).await;
    fixture.naru.http("A").create_room(&["A", "B"]).await;
    let mut ben = fixture.synced("B", "A_B").await;
    for seq in 1..=5 {
        fixture.saved("A_B", seq).await;
    }
    let later = Timestamp::now().after(std::time::Duration::from_secs(3_600));
    let walked = fixture.engines.store.messages.expire(None, later, 100).await.expect("it walks");
    assert_eq!((walked.removed, walked.next), (4, None), "the newest one's place stays");

    // This one skips them all. They are asked for once.
    let next = fixture.saved("A_B", 6).await;
    fixture.published(&next).await;
    let tombstone = ben.expect("CHAT").await;
    assert_eq!((&tombstone["seq"], &tombstone["content"]), (&json!(5), &json!("")));
    assert!(tombstone["deletedAt"].is_string(), "{tombstone}");
    assert_eq!(received(&mut ben, 1).await, [6]);
    assert_eq!(ben.expect("RESYNC").await["rooms"], json!(["A_B"]));
    for (after, first) in [(0, json!(5)), (3, json!(5)), (4, Value::Null), (6, Value::Null)] {
        ben.send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": "A_B", "afterSeq": after}]})).await;
        let synced = ben.expect("SYNCED").await["rooms"][0].clone();
        assert_eq!(
            (&synced["seq"], &synced["complete"], &synced["firstSeq"]),
            (&json!(6), &json!(true), &first)
        );
    }
    let next = fixture.saved("A_B", 7).await;
    fixture.published(&next).await;
    assert_eq!(ben.expect_where("CHAT", |chat| chat["seq"] == 7).await["content"], "message 7");
    ben.quiet("RESYNC").await;
    let room = RoomId::new("A_B").expect("a room id");
    let summary = fixture.engines.store.rooms.summary(&room, &user("B")).await.expect("an answer");
    assert_eq!(summary.expect("a member").unread_count, 2, "of seven messages two are left");
    fixture.naru.stop().await;
}

/// Where nothing else would tell of what can't be seen from here, every client is asked.
#[tokio::test]
async fn without_proof_of_delivery_every_client_is_asked_to_sync() {
    let fixture = Fixture::start(&["--delivery-grace", "0s"]).await;
    fixture.naru.http("A").create_room(&["A", "B"]).await;
    let mut ben = fixture.synced("B", "A_B").await;
    fixture.interrupted().await;
    assert!(ben.expect("RESYNC").await.get("rooms").is_none());
    fixture.naru.stop().await;
}

/// A live layer that was restarted has forgotten the sessions.
#[tokio::test]
async fn all_sessions_are_attached_to_presence_again() {
    let fixture = Fixture::start(&[]).await;
    let mut ben =
        Client::connect(&fixture.naru.url, &crate::support::token_of("B")).await.expect("a welcome");
    let session = ben.welcome().await["sessionId"].as_str().expect("an id").to_owned();
    let presence = &fixture.engines.presence;
    let gateway = GatewayId::generate();
    let session = SessionId::new(session).expect("an id");
    let attachment = PresenceEntry { user: user("B"), device: None, session, gateway };
    presence.detach(&attachment).await.expect("an answer");
    assert!(!presence.online(&[user("B")]).await.expect("an answer")[0]);

    fixture.interrupted().await;
    let back = async {
        while !presence.online(&[user("B")]).await.expect("an answer")[0] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(naru_client::TEST_TIMEOUT, back).await.expect("presence is told");
    fixture.naru.stop().await;
}

/// A reassignment between fanouts may reorder; what comes late by little is waited for.
#[tokio::test]
async fn what_overtook_another_waits_for_it() {
    let fixture = Fixture::start(&[]).await;
    fixture.naru.http("A").create_room(&["A", "B"]).await;
    let mut ben = fixture.synced("B", "A_B").await;
    let mut messages = Vec::new();
    for seq in 1..=4 {
        messages.push(fixture.saved("A_B", seq).await);
    }
    for place in [0, 3, 2, 1] {
        fixture.published(&messages[place]).await;
    }
    assert_eq!(received(&mut ben, 4).await, [1, 2, 3, 4]);
    ben.quiet("CHAT").await;
    ben.quiet("RESYNC").await;

    // Once more, as after a redelivery: it may come twice, and never not at all.
    fixture.published(&messages[1]).await;
    assert_eq!(received(&mut ben, 1).await, [2]);
    fixture.naru.stop().await;
}

/// What does not come is fetched, and goes out in its place. Its own sender is not sent it as news.
#[tokio::test]
async fn what_never_came_is_fetched() {
    let fixture = Fixture::start(&[]).await;
    fixture.naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (fixture.synced("A", "A_B").await, fixture.synced("B", "A_B").await);
    for seq in 1..=3 {
        fixture.saved("A_B", seq).await;
    }
    let last = fixture.saved("A_B", 4).await;
    fixture.published(&last).await;
    assert_eq!(received(&mut ben, 4).await, [1, 2, 3, 4]);
    fixture.naru.counts("naru_gateway_fetched_total 3").await;
    assert_eq!(ada.expect("RESYNC").await["rooms"], json!(["A_B"]));
    assert_eq!(received(&mut ada, 1).await, [4]);
    ada.quiet("CHAT").await;
    fixture.naru.stop().await;
}

/// Presence does not answer when a phone connects: it is served, and as soon as presence knows of it, it receives messages.
#[tokio::test]
async fn a_client_that_connects_while_presence_is_away_is_found_when_it_is_back() {
    let outage = Arc::new(Outage::default());
    let presence = outage.clone();
    let change = move |engines: Engines| intercepted(engines, Arc::new(Only(&["presence.attach"], presence)));
    let changes = Changes { engines: Some(Box::new(change)), ..Changes::default() };
    let naru = Naru::start_with(&["--delivery-grace", "0s"], changes).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;

    outage.cut(true);
    let mut ben = naru.phone("B").await;
    ada.chat("A_B", "unheard", "a-1").await;
    ada.expect("ACK").await;
    outage.cut(false);
    let asked = ben.expect("RESYNC").await;
    assert!(asked.get("rooms").is_none() && asked["retryAfterMs"].is_u64(), "{asked}");
    ada.chat("A_B", "live", "a-2").await;
    assert_eq!(ben.expect("CHAT").await["content"], "live");
    naru.stop().await;
}
