//! A restore from a backup: what it leaves beyond the last messages is cut, and an epoch begins.

use bson::{Document, doc};
use naru_engines::EngineError;
use naru_engines::store::{Advance, MemberSettings};
use naru_model::{DeviceId, Seq, StoreEpoch};
use naru_mongo::Restored;

use crate::fixtures::{Fresh, group, room, said, url, user};

async fn begin_epoch(fresh: &Fresh) -> StoreEpoch {
    Restored::open(url(), &fresh.name, 1).await.unwrap().begin_epoch().await.unwrap()
}

/// As a backup leaves it that was not taken at one moment.
#[tokio::test]
async fn what_lies_beyond_the_last_message_is_cut() {
    let fresh = Fresh::new();
    let store = fresh.store().await;
    let (ada, ben, here, phone) = (user("ada"), user("ben"), room("here"), DeviceId::new("phone").unwrap());
    store.rooms.create(group("here", &["ada", "ben"])).await.unwrap();
    let run: Vec<_> = (1..=6).map(|seq| said(&here, &ada, seq)).collect();
    assert_eq!(store.messages.append_run(&run).await.unwrap().stored, 6);
    store.messages.bump(&run[5..]).await.unwrap();
    let step = |device: &DeviceId, seq| Advance {
        room: here.clone(),
        user: ben.clone(),
        device: Some(device.clone()),
        received: seq,
        read: seq,
    };
    let tablet = DeviceId::new("tablet").unwrap();
    store.positions.advance(&[step(&tablet, Seq(2)), step(&phone, Seq(6))]).await.unwrap();
    let muted = MemberSettings { muted: true, muted_until: None };
    assert!(store.rooms.configure(&here, &ben, muted).await.unwrap());
    // More than are looked at in one step.
    let others =
        (0..2_500).map(|number| doc! { "userId": format!("u{number}"), "chatRoomId": "here", "read": 9_i64 });
    fresh.raw("members").await.insert_many(others).await.unwrap();
    fresh.raw("chat_messages").await.delete_many(doc! { "seq": { "$gt": 3 } }).await.unwrap();

    let epoch = begin_epoch(&fresh).await;
    assert!(epoch > StoreEpoch::FIRST);
    assert_eq!(store.epochs.get().await.unwrap(), epoch);
    let position = store.positions.get(&[(here.clone(), ben.clone(), Seq(1))]).await.unwrap().remove(0);
    assert_eq!((position.read, position.received, position.settings), (Seq(3), Seq(3), muted));
    for (device, seq) in [(&phone, 3), (&tablet, 2)] {
        let positions = store.positions.of_device(&ben, device).await.unwrap();
        assert_eq!(positions[0].received, Seq(seq), "{device}");
    }
    let beyond = doc! { "$or": [{ "read": { "$gt": 3_i64 } }, { "received": { "$gt": 3_i64 } }] };
    assert_eq!(fresh.raw("members").await.count_documents(beyond).await.unwrap(), 0);
    let last_seq = async || {
        let room = fresh.raw("chat_rooms").await.find_one(doc! {}).await.unwrap().unwrap();
        room.get_i64("lastSeq").unwrap()
    };
    assert_eq!(last_seq().await, 3);
    let next = [said(&here, &ada, 4)];
    store.messages.append_run(&next).await.unwrap();
    store.messages.bump(&next).await.unwrap();
    assert_eq!(last_seq().await, 4, "the room moves up with its next message");
    let summary = store.rooms.summary(&here, &ben).await.unwrap().unwrap();
    assert_eq!(summary.unread_count, 1);

    let again = begin_epoch(&fresh).await;
    assert!(again > epoch);
    assert_eq!(last_seq().await, 4);
}

#[tokio::test]
async fn data_of_before_there_were_epochs_has_the_first() {
    let fresh = Fresh::new();
    let store = fresh.store().await;
    fresh.raw("meta").await.update_one(doc! {}, doc! { "$unset": { "epoch": "" } }).await.unwrap();
    assert_eq!(store.epochs.get().await.unwrap(), StoreEpoch::FIRST);
    let epoch = store.epochs.restored().await.unwrap();
    assert_eq!(fresh.store().await.epochs.get().await.unwrap(), epoch);
}

/// A wrong name, for example.
#[tokio::test]
async fn a_database_without_data_is_refused_and_left_as_it_is() {
    let fresh = Fresh::new();
    let error = Restored::open(url(), &fresh.name, 1).await.err().unwrap();
    assert!(matches!(error, EngineError::Permanent { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        format!("mongodb refused: the database {} holds no data of Naru", fresh.name)
    );
    assert_eq!(fresh.raw("meta").await.find_one(Document::new()).await.unwrap(), None);
}
