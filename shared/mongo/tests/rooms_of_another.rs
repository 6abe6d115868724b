//! Rooms that another system writes, replaces and fills with fields of its own.

use std::slice::from_ref;

use bson::{Document, doc};
use naru_engines::EngineError;
use naru_engines::store::{Created, NewRoom, Store};
use naru_model::room::sorted_members;
use naru_model::{RoomId, RoomKind, Seq, UserId};

use crate::fixtures::{Fresh, group, room, said, user};

fn written_by_another() -> Document {
    doc! { "_id": "ada_ben", "user1Id": "ben", "user2Id": "ada" }
}

async fn listed(store: &Store, user: &UserId) -> Vec<(RoomId, Seq, u64)> {
    let (rooms, end) = store.rooms.of_user(user, None, 10).await.unwrap();
    assert_eq!(end, None);
    rooms
        .into_iter()
        .map(|summary| (summary.room.id.clone(), summary.last_seq, summary.unread_count))
        .collect()
}

#[tokio::test]
async fn a_room_that_its_system_replaces_stays_in_its_place() {
    let fresh = Fresh::new();
    let (store, raw) = (fresh.store().await, fresh.raw("chat_rooms").await);
    let (ada, ben, id) = (user("ada"), user("ben"), room("ada_ben"));
    raw.insert_one(written_by_another()).await.unwrap();
    store.messages.append_run(&[said(&id, &ada, 1)]).await.unwrap();
    assert_eq!(listed(&store, &ben).await, [(id.clone(), Seq(1), 1)]);

    // Made and filled later, so above it in the list; then the other one is replaced, and speaks again.
    store.rooms.create(group("later", &["ada", "ben", "eve"])).await.unwrap();
    store.messages.append_run(&[said(&room("later"), &ada, 1)]).await.unwrap();
    for extra in [doc! {}, doc! { "createdAt": "yesterday", "name": 7, "activity": "high", "kind": "x" }] {
        let replacement: Document = written_by_another().into_iter().chain(extra).collect();
        raw.replace_one(doc! { "_id": "ada_ben" }, replacement).await.unwrap();
        let current = store.rooms.current(from_ref(&id)).await.unwrap().remove(0).expect("it is there");
        assert_eq!(
            (current.kind, &current.member_ids),
            (RoomKind::Direct, &sorted_members([ada.clone(), ben.clone()]))
        );
        assert_eq!(listed(&store, &ben).await, [(room("later"), Seq(1), 1), (id.clone(), Seq(1), 1)]);
        assert_eq!(listed(&store, &ada).await.len(), 2);
    }
    raw.replace_one(doc! { "_id": "ada_ben" }, written_by_another()).await.unwrap();
    store.messages.append_run(&[said(&id, &ada, 2)]).await.unwrap();
    assert_eq!(listed(&store, &ben).await, [(id.clone(), Seq(2), 2), (room("later"), Seq(1), 1)]);
}

#[tokio::test]
async fn reading_a_room_writes_nothing() {
    let fresh = Fresh::new();
    let (store, raw) = (fresh.store().await, fresh.raw("chat_rooms").await);
    let (ada, ben, id) = (user("ada"), user("ben"), room("ada_ben"));
    raw.insert_one(written_by_another()).await.unwrap();
    let current = store.rooms.current(from_ref(&id)).await.unwrap().remove(0).expect("it is there");
    store.rooms.summary(&id, &ada).await.unwrap().expect("a member");
    assert_eq!(store.rooms.share_a_room(&ada, from_ref(&ben)).await.unwrap(), [true]);
    let device = naru_model::DeviceId::new("phone").unwrap();
    assert_eq!(store.positions.of_device(&ben, &device).await.unwrap().len(), 1);
    let members = sorted_members([ada, ben]);
    let new = NewRoom { id, kind: RoomKind::Direct, name: None, member_ids: members, maker_id: None };
    assert_eq!(store.rooms.create(new).await.unwrap(), Created::Existing(current));
    assert_eq!(raw.find_one(doc! {}).await.unwrap(), Some(written_by_another()));
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_not_quoted() {
    let fresh = Fresh::new();
    let (store, raw) = (fresh.store().await, fresh.raw("chat_rooms").await);
    for document in [
        doc! { "_id": "odd", "user1Id": "a secret", "user2Id": "ben" },
        doc! { "_id": "odd", "user1Id": "secret" },
        doc! { "_id": "odd", "memberIds": "secret" },
        doc! { "_id": "odd" },
    ] {
        raw.delete_many(doc! {}).await.unwrap();
        raw.insert_one(document).await.unwrap();
        let error = store.rooms.current(&[room("odd")]).await.unwrap_err();
        assert!(matches!(error, EngineError::Poison { .. }), "{error:?}");
        assert!(error.to_string().contains("chat_rooms, document String(\"odd\")"), "{error}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}

/// Of two users who are both in very many rooms, the latest rooms of either are searched.
#[tokio::test]
async fn whether_two_users_share_a_room_is_found_in_many_rooms() {
    let fresh = Fresh::new();
    let (store, raw) = (fresh.store().await, fresh.raw("chat_rooms").await);
    // Each has rooms of their own, and shares one with Ada that is the last of her list, and the first or the last of theirs.
    let mut rooms = Vec::new();
    for (name, count) in [("ada", 1_500), ("few", 10), ("many", 1_500)] {
        rooms.extend((0..count).map(|number| {
            let activity = bson::DateTime::from_millis(1_000_000 + number);
            doc! { "_id": format!("{name}-{number}"), "memberIds": [name], "memberVersion": 1, "activity": activity }
        }));
    }
    for (other, activity) in [("few", 1), ("many", 9_000_000)] {
        let activity = bson::DateTime::from_millis(activity);
        let members = ["ada", other].to_vec();
        rooms.push(doc! { "_id": format!("shared-{other}"), "memberIds": members, "memberVersion": 1, "activity": activity });
    }
    raw.insert_many(rooms).await.unwrap();
    let others = ["few", "many", "nobody", "ada"].map(user);
    assert_eq!(store.rooms.share_a_room(&user("ada"), &others).await.unwrap(), [true, true, false, true]);
}
