//! Every key and channel, in one place. Operators and other services may rely on these names.
//!
//! Ids are inserted as they are: names are built from them and never parsed, except for the room of `chat:`, which
//! is all that follows.

use naru_model::{GatewayId, RoomId, UserId};

/// The pattern of all channels for messages.
pub(crate) const CHAT_PATTERN: &str = "chat:*";
/// The channel for messages to every gateway.
pub(crate) const GATEWAYS_CHANNEL: &str = "naru:gateways";
/// The channel of all other news of rooms.
pub(crate) const NEWS_CHANNEL: &str = "naru:news";

const CHAT: &str = "chat:";

/// The channel of a room's messages.
pub(crate) fn chat_channel(room: &RoomId) -> String {
    format!("{CHAT}{room}")
}

/// The room that a channel is for, if it is one for messages.
pub(crate) fn room_of(channel: &str) -> Option<&str> {
    channel.strip_prefix(CHAT)
}

/// The channel for messages to one gateway.
pub(crate) fn gateway_channel(gateway: &GatewayId) -> String {
    format!("naru:gateway:{gateway}")
}

/// A gateway's lease: a hash of `renewed`, `until` and `renewals`, `lapsed` while a look-up has found so, and `resigned` once it has
/// left.
pub(crate) fn gateway_key(gateway: &GatewayId) -> String {
    format!("naru:gateway:{gateway}")
}

/// A user's presence: a string.
pub(crate) fn user_key(user: &UserId) -> String {
    format!("naru:presence:{user}")
}

/// The proofs for the messages of one bucket: a set.
pub(crate) fn proofs_key(bucket: u32, shard: u8) -> String {
    format!("naru:proofs:{bucket}:{shard}")
}

/// A lease's holder: a string.
pub(crate) fn lease_key(name: &str) -> String {
    format!("naru:lease:{name}")
}
