//! A look-up of rooms that is not to be older than an append says so to the server, which then does not answer when it is behind.

use std::slice::from_ref;

use naru_engines::{Applied, EngineError};
use naru_model::hops::Accepted;
use naru_model::{ClientMessageId, MessageId, StoreTime, Timestamp, Trace};

use crate::fixtures::{Fresh, group, room, user};

#[tokio::test]
async fn a_server_that_has_not_come_so_far_does_not_answer() {
    let fresh = Fresh::new();
    let (store, other) = (fresh.store().await, fresh.store().await);
    let here = room("here");
    other.rooms.create(group("here", &["ada", "ben"])).await.unwrap();
    let before = store.clock.latest().expect("opening has asked");
    let id = MessageId::generate();
    let entry = Accepted {
        id,
        chat_room_id: here.clone(),
        sender_id: user("ada"),
        sender_name: "Ada".into(),
        content: "hello".into(),
        timestamp: Timestamp::now(),
        client_message_id: ClientMessageId::from(id),
        after: None,
        origin: None,
        trace: Trace::start(),
    };
    store.intake.append(&[entry]).await.unwrap();
    let appended = store.clock.latest().expect("the server tells the time");
    assert!(appended > before, "{appended:?} after {before:?}");
    // Another process, which has been told the time, and the one server there is, which has come so far.
    let rooms = other.rooms.current_since(from_ref(&here), Some(appended)).await.unwrap();
    assert!(rooms[0].is_some());

    // What a server that is behind has not seen yet.
    let hour = 3600_u64 << 32;
    let ahead = StoreTime(appended.0 + hour);
    let error = other.rooms.current_since(from_ref(&here), Some(ahead)).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { applied: Applied::No, .. }), "{error:?}");
    assert!(other.rooms.current_since(from_ref(&here), None).await.unwrap()[0].is_some());
    assert!(other.clock.latest() < Some(ahead), "what was asked for is not the time");

    let open = other.intake.open(None, None, 10).await.unwrap();
    assert_eq!(open.entries.len(), 1);
    assert!(other.clock.latest() >= Some(appended), "who has read the entry is not before it");
}
