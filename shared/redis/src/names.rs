//! Every key and channel, in one place. Operators and other services may rely on these names.
//!
//! Ids go in as they are: a name is only ever built from one and never taken apart, but for the room of `chat:`,
//! which is all that follows.

use naru_model::{GatewayId, RoomId, UserId};

/// Every channel on which messages are published.
pub(crate) const CHAT_PATTERN: &str = "chat:*";
/// The channel of all other news of rooms.
pub(crate) const NEWS_CHANNEL: &str = "naru:news";

const CHAT: &str = "chat:";

/// The channel of a room's messages.
pub(crate) fn chat_channel(room: &RoomId) -> String {
    format!("{CHAT}{room}")
}

/// Whose messages a channel is for, if it is one for messages.
pub(crate) fn room_of(channel: &str) -> Option<&str> {
    channel.strip_prefix(CHAT)
}

/// The channel for what concerns one gateway only.
pub(crate) fn gateway_channel(gateway: &GatewayId) -> String {
    format!("naru:gateway:{gateway}")
}

/// A gateway's lease: a hash of `renewed` and `until`, and `resigned` once it has left.
pub(crate) fn gateway_key(gateway: &GatewayId) -> String {
    format!("naru:gateway:{gateway}")
}

/// A user's presence: a string.
pub(crate) fn user_key(user: &UserId) -> String {
    format!("naru:presence:{user}")
}

/// Who has proven to have which messages of one bucket: a set.
pub(crate) fn proofs_key(bucket: u32, shard: u8) -> String {
    format!("naru:proofs:{bucket}:{shard}")
}

/// Who holds a lease: a string.
pub(crate) fn lease_key(name: &str) -> String {
    format!("naru:lease:{name}")
}
