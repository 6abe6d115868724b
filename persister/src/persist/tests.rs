use std::sync::Arc;

use naru_embedded::{Embedded, Options};
use naru_engines::bus::{Delivery, ack};
use naru_engines::store::{MemberChange, NewRoom};
use naru_faults::{Counted, intercepted};
use naru_model::room::{RoomKind, sorted_members};
use naru_model::{ClientMessageId, Trace, UserId};
use naru_runtime::Span;
use naru_runtime::telemetry::Metrics;

use super::*;

const KEEPS_ALL: Config = Config {
    delivery_grace: Span(Duration::from_secs(10)),
    message_ttl: None,
    intake_keep: None,
    parked_keep: None,
};

fn message(room: &RoomId, sender: &UserId, number: u8) -> Accepted {
    let id = MessageId::from_bytes([number; 12]);
    Accepted {
        id,
        chat_room_id: room.clone(),
        sender_id: sender.clone(),
        sender_name: "Ada".into(),
        content: "x".into(),
        timestamp: Timestamp::from_millis(0),
        client_message_id: ClientMessageId::from(id),
        after: None,
        origin: None,
        trace: Trace::start(),
    }
}

/// The sweep resends messages that take long: it must not make slow services slower.
#[tokio::test]
async fn what_was_saved_and_enqueued_lately_costs_nothing_when_it_comes_again() {
    let directory = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(directory.path(), Options::default()).unwrap();
    let counted = Arc::new(Counted::default());
    let engines = intercepted(embedded.engines(), counted.clone());
    let [ada, ben] = ["ada", "ben"].map(|name| UserId::new(name).unwrap());
    let room = RoomId::new("ada_ben").unwrap();
    let new_room = NewRoom {
        id: room.clone(),
        kind: RoomKind::Direct,
        name: None,
        member_ids: sorted_members([ada.clone(), ben]),
        maker_id: Some(ada.clone()),
    };
    engines.store.rooms.create(new_room).await.unwrap();
    let persister = Persister::new(&KEEPS_ALL, engines.clone(), Telemetry::new(&Metrics::new()));
    let message = |number| message(&room, &ada, number);
    persister.persist(vec![message(1), message(2)], None).await.unwrap();

    counted.reset();
    persister.persist(vec![message(2), message(1)], None).await.unwrap();
    assert_eq!(counted.count("messages"), 0, "{:?}", counted.all());
    assert_eq!(counted.count("saved.send"), 0, "the bus has it");

    // A new message with it is saved in one run, at its place.
    counted.reset();
    persister.persist(vec![message(2), message(3)], None).await.unwrap();
    assert_eq!((counted.count("messages"), counted.count("messages.append_run")), (1, 1));

    // Another persister does not know that the bus has it.
    let persister = Persister::new(&KEEPS_ALL, engines.clone(), Telemetry::new(&Metrics::new()));
    counted.reset();
    persister.persist(vec![message(1)], None).await.unwrap();
    assert_eq!(counted.count("saved.send"), 1);
    assert_eq!(engines.store.messages.heads(&[room]).await.unwrap(), [Seq(3)]);
}

/// So the members at older versions may be forgotten, however long a message takes.
#[tokio::test]
async fn what_comes_again_is_routed_by_the_version_of_now() {
    let directory = tempfile::tempdir().unwrap();
    let engines = Embedded::open(directory.path(), Options::default()).unwrap().engines();
    let [ada, ben, cleo] = ["ada", "ben", "cleo"].map(|name| UserId::new(name).unwrap());
    let room = RoomId::new("group").unwrap();
    let new_room = NewRoom {
        id: room.clone(),
        kind: RoomKind::Group,
        name: None,
        member_ids: sorted_members([ada.clone(), ben.clone()]),
        maker_id: Some(ada.clone()),
    };
    engines.store.rooms.create(new_room).await.unwrap();
    let add = MemberChange::Add(cleo.clone());
    engines.store.rooms.change(&room, add, 9).await.unwrap();
    let mut saved = engines.bus.saved.receiver().await.unwrap();
    let mut version_of = async || {
        let persister = Persister::new(&KEEPS_ALL, engines.clone(), Telemetry::new(&Metrics::new()));
        persister.persist(vec![message(&room, &ada, 1)], None).await.unwrap();
        let mut batch = saved.receive(9).await.unwrap();
        let Delivery { event, ack_handle, .. } = batch.pop().unwrap();
        ack([ack_handle]).await.unwrap();
        event.payload.member_version
    };
    assert_eq!(version_of().await, MemberVersion(2));
    for change in [MemberChange::Remove(cleo.clone()), MemberChange::Add(cleo)] {
        engines.store.rooms.change(&room, change, 9).await.unwrap();
    }
    let later = Timestamp::now().after(Duration::from_secs(60));
    while engines.store.rooms.forget_versions(later, 9).await.unwrap() > 0 {}
    assert_eq!(engines.store.rooms.members_at(&room, MemberVersion(2)).await.unwrap(), None);
    assert_eq!(version_of().await, MemberVersion(4));
}
