//! A message, as `chat_messages` stores it and as every reader of a room receives it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{ClientMessageId, GatewayId, MessageId, RoomId, Seq, SessionId, Timestamp, Trace, UserId};

/// A saved message. Its JSON is the body of a `CHAT` frame and an entry of a room's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// Assigned when it was accepted.
    pub id: MessageId,
    pub chat_room_id: RoomId,
    /// Its place in the room.
    pub seq: Seq,
    pub sender_id: UserId,
    /// The sender's name when they wrote it; empty in a tombstone.
    pub sender_name: Arc<str>,
    /// The text: empty in a tombstone, and only there.
    pub content: Arc<str>,
    /// When the gateway accepted it.
    pub timestamp: Timestamp,
    /// The sender's own name for it.
    pub client_message_id: ClientMessageId,
    /// When it was deleted. It is a *tombstone* then: its content and its sender's name are gone, and it keeps its place, so that
    /// no place is ever missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Timestamp>,
}

impl Message {
    /// Makes it a tombstone. The moment of an earlier deletion stays.
    pub fn delete(&mut self, at: Timestamp) {
        (self.sender_name, self.content) = Default::default();
        self.deleted_at.get_or_insert(at);
    }
}

/// The session that sent a message: it gets the answer, and does not receive its own message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The gateway that holds the session.
    pub gateway: GatewayId,
    /// The session; none for a send over HTTP, which only waits for an answer.
    pub session: Option<SessionId>,
}

/// A message as the intake holds it from the moment it is accepted: everything but its place in the room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Accepted {
    /// Made by the gateway; the message's id for life.
    pub id: MessageId,
    pub chat_room_id: RoomId,
    /// The author: the token's `sub`, or the user that a service names.
    pub sender_id: UserId,
    pub sender_name: Arc<str>,
    pub content: Arc<str>,
    /// When the gateway accepted it.
    pub timestamp: Timestamp,
    /// The sender's own name for it; the key under which a resend is recognised.
    pub client_message_id: ClientMessageId,
    /// The same session's message in this room that was not yet acknowledged when this one came, if any: it must
    /// get its place first, whatever order the bus delivers in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<MessageId>,
    /// The session that waits for the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The trace it belongs to.
    pub trace: Trace,
}

impl Accepted {
    /// The saved message, at a place in its room.
    pub fn at(&self, seq: Seq) -> Message {
        Message {
            id: self.id,
            chat_room_id: self.chat_room_id.clone(),
            seq,
            sender_id: self.sender_id.clone(),
            sender_name: self.sender_name.clone(),
            content: self.content.clone(),
            timestamp: self.timestamp,
            client_message_id: self.client_message_id.clone(),
            deleted_at: None,
        }
    }
}

/// Why an accepted message was not saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rejection {
    /// The sender is not a member of the room (any more), or there is no such room.
    NotAMember,
}

/// The outcome of an accepted message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "outcome")]
pub enum Outcome {
    /// In `chat_messages`, at this place.
    Saved { seq: Seq },
    /// Not saved, and never will be unless its sender sends it again.
    Rejected { reason: Rejection },
}
