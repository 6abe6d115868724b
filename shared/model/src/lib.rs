//! Naru's data types: ids, messages, frames, events, stages, hops.
//!
//! All types are plain data that depends on serde, not on a network, a database or a broker. Their JSON shapes
//! are the wire contract: a phone receives `frame` and `message` as they serialise, and a queue holds `event` as
//! it serialises. Both are pinned by snapshots.
//!
//! Read [`hops`] first: it lists what each worker hands to the next.

pub mod event;
pub mod frame;
pub mod hops;
mod id;
pub mod live;
pub mod message;
mod push_stage;
pub mod room;
mod time;

pub use event::{Event, EventId, StoreTime, Trace};
pub use id::{
    ClientMessageId, DeviceId, GatewayId, HolderId, InvalidId, MessageId, RoomId, Seq, SessionId, StoreEpoch,
    UserId, partition_of,
};
pub use message::{Message, Origin};
pub use push_stage::PushStage;
pub use room::{MemberVersion, Room, RoomKind};
pub use time::{InvalidTimestamp, Timestamp};
