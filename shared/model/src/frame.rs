//! The frames of the WebSocket: one JSON object per text frame.
//!
//! A server's frame about a room ([`News`](crate::live::News)) is serialised once and shared by all sessions;
//! every other one is a [`ServerFrame`].

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{ClientMessageId, MessageId, RoomId, Seq, SessionId, StoreEpoch, Timestamp, UserId};

/// A `T` that is read from a JSON object only. By itself a derived struct is read from an array of its fields as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// A frame from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// A message for a room.
    Chat(Chat),
    /// A refused message will not be sent again.
    Drop(Dropped),
    /// Requests the messages that the client misses.
    Sync(Sync),
    /// All messages up to here are on this device.
    Received(RoomPosition),
    /// All messages up to here were read.
    Read(RoomPosition),
    /// The user is typing.
    Typing { chat_room_id: RoomId },
    /// Requests a `PONG`.
    Ping,
}

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Chat {
    pub chat_room_id: RoomId,
    pub content: Arc<str>,
    /// The client's own name for it, kept for resends.
    pub client_message_id: Option<ClientMessageId>,
    /// If given, it must be the token's `sub`.
    pub sender_id: Option<Box<str>>,
}

/// A refused message that the client will not send again: it holds back no other one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dropped {
    pub chat_room_id: RoomId,
    pub client_message_id: ClientMessageId,
}

/// A request for the messages that a client misses.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sync {
    /// Per room, the position of the client; absent: every room, from this device's stored received position.
    pub rooms: Option<Vec<Object<SyncFrom>>>,
}

/// A client's position in one room.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncFrom {
    pub chat_room_id: RoomId,
    /// The client has all messages up to here.
    pub after_seq: Seq,
}

/// A position in a room.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoomPosition {
    pub chat_room_id: RoomId,
    /// All messages up to here.
    pub seq: Seq,
}

#[derive(Deserialize)]
struct Typing {
    #[serde(rename = "chatRoomId")]
    chat_room_id: RoomId,
}

/// A frame that is refused. Nothing of it was kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadFrame {
    /// The error, in words for the client's developer.
    pub reason: String,
    /// Whether its type is `CHAT`: its answer then keeps its place among the answers.
    pub is_chat: bool,
    /// The name the client gave it, as far as it could be read.
    pub client_message_id: Option<ClientMessageId>,
}

impl ClientFrame {
    /// Reads one text frame. The type is read first, so that fields of other types are unknown fields, which are ignored
    /// whatever they hold.
    ///
    /// # Errors
    /// When it is not one JSON object of a known type with that type's fields.
    pub fn parse(text: &str) -> Result<Self, BadFrame> {
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(rename = "type", borrow)]
            kind: Cow<'a, str>,
        }
        fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, BadFrame> {
            let read = serde_json::from_str(text).map(|Object(frame)| frame);
            read.map_err(|error| BadFrame::new(error.to_string()))
        }

        match &*read::<Kind<'_>>(text)?.kind {
            "CHAT" => read(text).map(Self::Chat).map_err(|bad| bad.of_chat(text)),
            "DROP" => read(text).map(Self::Drop),
            "SYNC" => read(text).map(Self::Sync),
            "RECEIVED" => read(text).map(Self::Received),
            "READ" => read(text).map(Self::Read),
            "TYPING" => read::<Typing>(text).map(|frame| Self::Typing { chat_room_id: frame.chat_room_id }),
            "PING" => Ok(Self::Ping),
            other => {
                let shown: String = other.chars().take(32).collect();
                Err(BadFrame::new(format!("unknown type {shown:?}")))
            }
        }
    }
}

impl BadFrame {
    /// A frame that is refused for `reason`.
    pub fn new(reason: String) -> Self {
        Self { reason, is_chat: false, client_message_id: None }
    }

    fn of_chat(self, text: &str) -> Self {
        #[derive(Deserialize)]
        struct Named {
            #[serde(rename = "clientMessageId")]
            client_message_id: Option<ClientMessageId>,
        }
        let named = serde_json::from_str::<Named>(text).ok();
        Self { is_chat: true, client_message_id: named.and_then(|named| named.client_message_id), ..self }
    }
}

/// A frame from the server to one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "UPPERCASE", rename_all_fields = "camelCase")]
pub enum ServerFrame<'a> {
    /// The connection is open and its user is authenticated.
    Welcome {
        /// The user that the token names.
        user_id: &'a UserId,
        session_id: &'a SessionId,
        server_time: Timestamp,
        /// The longest content, in UTF-8 bytes.
        max_content_bytes: usize,
        /// The longest frame, in bytes.
        max_frame_bytes: usize,
        /// How often the server pings, in seconds.
        ping_seconds: u64,
        /// What a client has of another epoch, it forgets.
        epoch: StoreEpoch,
    },
    /// A message is saved.
    Ack(&'a Ack),
    /// The end of an answer to `SYNC`.
    Synced {
        /// Per room, how far the answer went.
        rooms: &'a [SyncedRoom],
    },
    /// Live delivery was interrupted.
    Resync {
        reason: &'a str,
        /// The rooms that have new messages; absent: any room may have.
        #[serde(skip_serializing_if = "Option::is_none")]
        rooms: Option<&'a [RoomId]>,
        /// When to sync, in milliseconds: clients are spread over time.
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
    /// Answers `PING`.
    Pong,
    /// A frame was refused, or a message's outcome is unknown.
    Error {
        /// The kind of refusal, from the table in the gateway's `refusal.rs`.
        code: &'a str,
        /// A sentence for the developer.
        message: &'a str,
        /// The message it is about.
        #[serde(skip_serializing_if = "Option::is_none")]
        client_message_id: Option<&'a ClientMessageId>,
        /// When to retry, in milliseconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}

/// The confirmation of a saved message to its sender, by `ACK` and by the answer to a send over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ack {
    /// The sender's name for it.
    pub client_message_id: ClientMessageId,
    /// The saved id.
    pub id: MessageId,
    pub chat_room_id: RoomId,
    pub seq: Seq,
    /// When it was accepted.
    pub timestamp: Timestamp,
}

/// How far an answer to `SYNC` went in one room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncedRoom {
    pub chat_room_id: RoomId,
    /// The last place that was sent, or that the client already had.
    pub seq: Seq,
    /// Whether the client now has all messages.
    pub complete: bool,
    /// The epoch of the room's places.
    pub epoch: StoreEpoch,
    /// The first of these messages, where those between it and the client's place are not kept any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_seq: Option<Seq>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_frame_of_the_specification_is_read() {
        let text = r#"{"type":"CHAT","chatRoomId":"A_B","senderId":"A","content":"안녕하세요"}"#;
        let ClientFrame::Chat(chat) = ClientFrame::parse(text).unwrap() else { panic!("not a CHAT") };
        assert_eq!(chat.chat_room_id.as_str(), "A_B");
        assert_eq!(chat.sender_id.as_deref(), Some("A"));
        assert_eq!(&*chat.content, "안녕하세요");
        assert_eq!(chat.client_message_id, None);
    }

    #[test]
    fn fields_of_other_types_are_unknown_fields() {
        for text in [
            r#"{"type":"PING","content":5,"rooms":"x"}"#,
            r#" { "rooms": [[[]]], "type": "PING" }"#,
            r#"{"type":"PING","type2":null}"#,
        ] {
            assert_eq!(ClientFrame::parse(text), Ok(ClientFrame::Ping), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_frame_is_refused() {
        let deep = "[".repeat(60_000);
        let bad = [
            "",
            "x",
            "[]",
            r#"["PING"]"#,
            "null",
            "5",
            "{}",
            r#"{"type":5}"#,
            r#"{"type":"PING"}{"type":"PING"}"#,
            r#"{"type":"ping"}"#,
            r#"{"type":"CHAT"}"#,
            r#"{"type":"CHAT","chatRoomId":"r","content":5}"#,
            r#"{"type":"CHAT","chatRoomId":"","content":"x"}"#,
            r#"{"type":"CHAT","chatRoomId":"r","content":"\ud800"}"#,
            r#"{"type":"READ","chatRoomId":"r","seq":-1}"#,
            r#"{"type":"READ","chatRoomId":"r","seq":1.5}"#,
            r#"{"type":"SYNC","rooms":{}}"#,
            r#"{"type":"SYNC","rooms":[["r",0]]}"#,
            &deep,
        ];
        for text in bad {
            assert!(ClientFrame::parse(text).is_err(), "{}", &text[..text.len().min(80)]);
        }
    }

    #[test]
    fn a_bad_chat_is_answered_under_its_own_name() {
        let bad = ClientFrame::parse(r#"{"type":"CHAT","clientMessageId":"c1","content":5}"#).unwrap_err();
        assert!(bad.is_chat);
        assert_eq!(bad.client_message_id.unwrap().as_str(), "c1");
        let long = "c".repeat(65);
        let text = format!(r#"{{"type":"CHAT","chatRoomId":"r","content":"x","clientMessageId":"{long}"}}"#);
        assert_eq!(ClientFrame::parse(&text).unwrap_err().client_message_id, None);
    }
}
