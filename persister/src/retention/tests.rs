use naru_embedded::{Embedded, Options};
use naru_engines::store::{Closing, NewRoom, Window};
use naru_model::hops::Accepted;
use naru_model::message::Outcome;
use naru_model::room::{RoomKind, sorted_members};
use naru_model::{RoomId, Seq, Trace, UserId};
use naru_runtime::Span;
use naru_runtime::telemetry::Metrics;

use super::*;
use crate::Persister;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn config(message_ttl: Option<Duration>, intake_keep: Option<Duration>) -> Config {
    Config {
        delivery_grace: Span(Duration::ZERO),
        message_ttl: message_ttl.map(Span),
        intake_keep: intake_keep.map(Span),
        parked_keep: None,
    }
}

struct World {
    retention: Retention,
    persister: Persister,
    room: RoomId,
    ada: UserId,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new(message_ttl: Option<Duration>, intake_keep: Option<Duration>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let engines = Embedded::open(directory.path(), Options::default()).unwrap().engines();
        let [ada, ben] = ["ada", "ben"].map(|name| UserId::new(name).unwrap());
        let room = RoomId::direct(&ada, &ben);
        let new = NewRoom {
            id: room.clone(),
            kind: RoomKind::Direct,
            name: None,
            member_ids: sorted_members([ada.clone(), ben]),
            maker_id: None,
        };
        engines.store.rooms.create(new).await.unwrap();
        let config = config(message_ttl, intake_keep);
        let telemetry = Telemetry::new(&Metrics::new());
        let retention = Retention::new(&config, engines.clone(), telemetry.clone());
        let persister = Persister::new(&config, engines, telemetry);
        Self { retention, persister, room, ada, _directory: directory }
    }

    /// A message that was accepted this many days ago, in the intake.
    async fn accept(&self, days: u32) -> Accepted {
        let timestamp = Timestamp::now().before(DAY * days);
        let mut id = MessageId::generate().bytes();
        id[..4].copy_from_slice(&MessageId::first_at(timestamp).bytes()[..4]);
        let id = MessageId::from_bytes(id);
        let accepted = Accepted {
            id,
            chat_room_id: self.room.clone(),
            sender_id: self.ada.clone(),
            sender_name: "Ada".into(),
            content: "x".into(),
            timestamp,
            client_message_id: id.into(),
            after: None,
            origin: None,
            trace: Trace::start(),
        };
        self.retention.engines.store.intake.append(std::slice::from_ref(&accepted)).await.unwrap();
        accepted
    }

    async fn close(&self, accepted: &Accepted, seq: u64) {
        let closing = Closing { id: accepted.id, outcome: Outcome::Saved { seq: Seq(seq) } };
        self.retention.engines.store.intake.close(&[closing]).await.unwrap();
    }

    async fn places(&self) -> Vec<u64> {
        let messages = &self.retention.engines.store.messages;
        let (all, _) = messages.range(&self.room, Window::After(Seq::ZERO), 1_000).await.unwrap();
        all.iter().map(|message| message.seq.0).collect()
    }

    async fn has_content(&self, accepted: &Accepted) -> bool {
        let record = self.retention.engines.store.intake.get(&[accepted.id]).await.unwrap().remove(0);
        !record.expect("it is there").accepted.content.is_empty()
    }

    fn removed(&self, kind: Removed) -> u64 {
        self.retention.telemetry.removed.get_or_create(&kind).get()
    }
}

#[tokio::test]
async fn each_thing_is_kept_for_its_own_time() {
    let mut world = World::new(Some(DAY * 10 + DAY / 2), Some(DAY * 20 + DAY / 2)).await;
    let mut accepted = Vec::new();
    for days in (0..500).rev() {
        accepted.push(world.accept(days / 10).await);
    }
    world.persister.persist(accepted.clone(), None).await.unwrap();
    for (message, seq) in accepted.iter().zip(1..) {
        world.close(message, seq).await;
    }
    world.retention.pass().await;
    assert_eq!(world.places().await, (391..=500).collect::<Vec<_>>());
    let first_kept = accepted.len() - 210;
    assert!(!world.has_content(&accepted[first_kept - 1]).await);
    assert!(world.has_content(&accepted[first_kept]).await);
    let removed = [Removed::MESSAGES, Removed::INTAKE_CONTENTS].map(|kind| world.removed(kind));
    assert_eq!(removed, [390, 290]);
    world.retention.pass().await;
    assert_eq!([Removed::MESSAGES, Removed::INTAKE_CONTENTS].map(|kind| world.removed(kind)), removed);
}

#[tokio::test]
async fn by_default_all_messages_and_contents_are_kept() {
    let mut world = World::new(None, None).await;
    let old = world.accept(9_999).await;
    world.persister.persist(vec![old.clone()], None).await.unwrap();
    world.close(&old, 1).await;
    world.retention.pass().await;
    assert_eq!(world.places().await, [1]);
    let messages = &world.retention.engines.store.messages;
    assert_eq!(messages.find(&[old.id]).await.unwrap(), [Some(old.at(Seq(1)))]);
    assert!(world.has_content(&old).await);
}

/// A broker may deliver an event again however late.
#[tokio::test]
async fn what_has_expired_is_not_saved_again() {
    let mut world = World::new(Some(DAY), None).await;
    let (old, lost) = (world.accept(3).await, world.accept(2).await);
    let young = world.accept(0).await;
    world.persister.persist(vec![old.clone(), young], None).await.unwrap();
    world.retention.pass().await;
    assert_eq!(world.places().await, [1, 2], "it is not closed");
    world.close(&old, 1).await;
    world.retention.pass().await;
    assert_eq!(world.places().await, [2]);

    // Another process: nothing is known of what was saved lately.
    let config = config(Some(DAY), None);
    let telemetry = Telemetry::new(&Metrics::new());
    let other = Persister::new(&config, world.retention.engines.clone(), telemetry);
    other.persist(vec![old, lost], None).await.unwrap();
    assert_eq!(world.places().await, [2, 3], "what was not saved is saved, however late");
}
