//! The words Naru is written in: ids, messages, frames, events, stages, hops.
//!
//! Everything here is plain data that knows serde and nothing of a network, a database or a broker. The JSON
//! shapes are the ones of the wire contract: what `frame` and `message` serialise to is what a phone sees,
//! what `event` serialises to is what lies in a queue. Both are pinned by snapshots.
//!
//! Read [`hops`] first: it is the map of who hands what to whom.

pub mod event;
pub mod frame;
pub mod hops;
mod id;
pub mod live;
pub mod message;
pub mod room;
mod stage;
mod time;

pub use event::{Event, EventId, Trace};
pub use id::{
    ClientMessageId, DeviceId, GatewayId, InvalidId, MessageId, RoomId, Seq, SessionId, UserId, partition_of,
};
pub use message::{Message, Origin};
pub use room::{MemberVersion, Room, RoomKind};
pub use stage::Stage;
pub use time::{InvalidTimestamp, Timestamp};
