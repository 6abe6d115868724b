//! The fixtures of cases: ids of their own, messages, rooms.

use std::array;

use naru_model::hops::Accepted;
use naru_model::room::sorted_members;
use naru_model::{
    ClientMessageId, DeviceId, GatewayId, Message, MessageId, Origin, RoomId, RoomKind, Seq, SessionId,
    Timestamp, Trace, UserId,
};

use naru_engines::store::{NewRoom, RunResult, Store};

/// A new user id, with all signs that one may hold.
pub(super) fn user() -> UserId {
    UserId::new(format!("$ada.{}@x:y~z_-|a+b*c'!(d),&e;f=", MessageId::generate())).expect("a user id")
}

/// A new room id, with the allowed characters that an engine may mishandle.
pub(super) fn room() -> RoomId {
    RoomId::new(format!("방 $'\"*.#:{{%}}/{}", MessageId::generate())).expect("a room id")
}

pub(super) fn device() -> DeviceId {
    DeviceId::new(format!("phone's $ 폰/{}", MessageId::generate())).expect("a device id")
}

/// A message that was not sent before.
pub(super) fn accepted(room: &RoomId, sender: &UserId) -> Accepted {
    let id = MessageId::generate();
    Accepted {
        id,
        chat_room_id: room.clone(),
        sender_id: sender.clone(),
        sender_name: "Ada 'O' 러브레이스".into(),
        content: "안녕하세요 👋 \"\\ $where '; --".into(),
        timestamp: Timestamp::now(),
        client_message_id: ClientMessageId::from(id),
        after: Some(MessageId::generate()),
        origin: Some(Origin { gateway: GatewayId::generate(), session: Some(SessionId::generate()) }),
        trace: Trace::start(),
    }
}

/// An id as if it had been made in that second since 1970: no other case's id is older.
pub(super) fn id_of_second(second: u32) -> MessageId {
    let mut bytes = MessageId::generate().bytes();
    bytes[..4].copy_from_slice(&second.to_be_bytes());
    MessageId::from_bytes(bytes)
}

pub(super) fn said(room: &RoomId, sender: &UserId, seq: u64) -> Message {
    accepted(room, sender).at(Seq(seq))
}

pub(super) fn new_group(members: impl IntoIterator<Item = UserId>) -> NewRoom {
    NewRoom {
        id: room(),
        kind: RoomKind::Group,
        name: Some("모임 '1'".into()),
        member_ids: sorted_members(members),
        maker_id: None,
    }
}

/// Creates a group of this many members.
pub(super) async fn group<const N: usize>(store: &Store) -> (RoomId, [UserId; N]) {
    let people: [UserId; N] = array::from_fn(|_| user());
    let room = new_group(people.clone());
    let id = room.id.clone();
    store.rooms.create(room).await.unwrap();
    (id, people)
}

/// Stores messages of one sender at these places.
pub(super) async fn filled(
    store: &Store,
    room: &RoomId,
    sender: &UserId,
    places: impl IntoIterator<Item = u64>,
) -> Vec<Message> {
    let run: Vec<_> = places.into_iter().map(|seq| said(room, sender, seq)).collect();
    assert_eq!(
        store.messages.append_run(&run).await.unwrap(),
        RunResult { stored: run.len(), stopped_by: None }
    );
    run
}
