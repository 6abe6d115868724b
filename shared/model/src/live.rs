//! The events that the live layer carries to gateways. None needs to last, because the store has all that matters.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::message::Outcome;
use crate::{Message, MessageId, RoomId, Seq, SessionId, Timestamp, UserId};

/// An event in a room that is of interest to the members who are connected now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveEvent {
    /// The members to whom it goes. First in the JSON: a gateway that has none of them does not read the rest.
    pub recipients: Arc<[UserId]>,
    /// The session that caused it and does not receive it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<SessionId>,
    #[serde(flatten)]
    pub news: News,
}

/// The content of an event. Its JSON is the frame that a phone gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "UPPERCASE", rename_all_fields = "camelCase")]
pub enum News {
    /// A message was saved.
    Chat(Message),
    /// A device has received all messages up to a place.
    Received(Position),
    /// A user has read all messages up to a place.
    Read(Position),
    /// A user is typing.
    Typing { chat_room_id: RoomId, user_id: UserId },
}

impl News {
    /// The room it happened in.
    pub fn room(&self) -> &RoomId {
        match self {
            News::Chat(message) => &message.chat_room_id,
            News::Received(position) | News::Read(position) => &position.chat_room_id,
            News::Typing { chat_room_id, .. } => chat_room_id,
        }
    }
}

/// How far a user is in a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    pub chat_room_id: RoomId,
    pub user_id: UserId,
    /// All messages up to here.
    pub seq: Seq,
    /// When it was reported.
    pub timestamp: Timestamp,
}

/// The outcome of a message that a gateway accepted; `ACK` and late `ERROR` are made from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Confirmation {
    pub id: MessageId,
    #[serde(flatten)]
    pub outcome: Outcome,
}
