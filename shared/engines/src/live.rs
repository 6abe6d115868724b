//! What reaches those who are connected now, and what is known of who that is. Nothing here needs to last: when it
//! is lost, the store and the offline events make up for it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use naru_model::live::{Confirmation, LiveEvent};
use naru_model::{DeviceId, GatewayId, MessageId, RoomId, Seq, SessionId, Timestamp, UserId};

use crate::EngineResult;

/// What a gateway is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Something happened in a room.
    Event(Arc<LiveEvent>),
    /// A message got this place in a room, and none of those it goes to is here: see [`IsHere`].
    Elsewhere { room: RoomId, seq: Seq },
    /// Messages that this gateway accepted have ended.
    Confirmed(Arc<[Confirmation]>),
    /// This session's device has connected elsewhere: close it (4409).
    Evict(SessionId),
    /// Some signals may have been lost from here on.
    Interrupted,
    /// From here on none are lost again.
    Restored,
}

/// Whether a user has a session with the gateway that subscribes. Asked for each recipient of an event before the rest of
/// it is read: so what concerns no user here costs next to nothing.
pub type IsHere = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Publish and subscribe.
///
/// - **L1 to every gateway** – an event published after a subscription was made comes to it, or else
///   `Interrupted` (then `Restored`) does in its place. Nothing is lost in silence. An engine may answer `Elsewhere` in place
///   of a message none of whose recipients [is here](IsHere), and nothing in place of other events of that kind.
/// - **L2 order** – events of one publisher come in the order they were published.
/// - **L3 never blocked** – a subscription that is not read delays neither publishers nor other subscribers.
/// - **L4 addressed** – confirmations and evictions go to the gateway they name and to no other; a gateway
///   that is not there is no error.
#[async_trait]
pub trait Live: Send + Sync {
    /// Tells every gateway: see L1 to L3.
    async fn publish(&self, events: Vec<LiveEvent>) -> EngineResult<()>;

    /// Tells one gateway how messages ended: see L4.
    async fn confirm(&self, gateway: &GatewayId, confirmations: Vec<Confirmation>) -> EngineResult<()>;

    /// Tells one gateway to close a session: see L4.
    async fn evict(&self, gateway: &GatewayId, session: &SessionId) -> EngineResult<()>;

    async fn subscribe(&self, gateway: &GatewayId, is_here: IsHere) -> EngineResult<Box<dyn Subscription>>;
}

/// What one gateway is told.
#[async_trait]
pub trait Subscription: Send {
    /// The next signal; waits for it. None when the engine has closed for good. Cancelling loses nothing.
    async fn next(&mut self) -> Option<Signal>;
}

/// A live session, as presence knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attachment {
    pub user: UserId,
    /// On which device; sessions without one never replace each other.
    pub device: Option<DeviceId>,
    pub session: SessionId,
    pub gateway: GatewayId,
}

/// What others may know of a user's presence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Connected now.
    pub online: bool,
    /// When they were last connected; none: never.
    pub last_seen_at: Option<Timestamp>,
}

/// Who is connected. **Unknown is not offline**: when it can't be told, the call fails.
///
/// - **E1 lease** – a session counts only while its gateway's lease does: `ttl` from its last renewal. A gateway that
///   dies takes its sessions with it, without any other traffic.
/// - **E2 at once** – `attach` and `detach` show in the next `online`.
/// - **E3 own session only** – `detach` of a session leaves the user's other sessions; detaching twice is harmless.
/// - **E4 replaced** – attaching a device that is attached answers the session it replaces, which no longer counts.
/// - **E5 last seen** – is now while a user is connected, else when their last session was detached or its gateway's
///   lease last renewed.
#[async_trait]
pub trait Presence: Send + Sync {
    /// Renews a gateway's lease: see E1. Called every few seconds, long before `ttl` is over.
    async fn renew(&self, gateway: &GatewayId, ttl: Duration) -> EngineResult<()>;

    /// A gateway leaves in order: its lease ends now.
    async fn resign(&self, gateway: &GatewayId) -> EngineResult<()>;

    /// A session has connected: see E2, E4.
    async fn attach(&self, session: &Attachment) -> EngineResult<Option<Attachment>>;

    /// A session has gone: see E3.
    async fn detach(&self, session: &Attachment) -> EngineResult<()>;

    /// Which of these users have a live session, in their order; one look-up for all.
    async fn online(&self, users: &[UserId]) -> EngineResult<Vec<bool>>;

    /// What may be known of these users, in their order: see E5.
    async fn seen(&self, users: &[UserId]) -> EngineResult<Vec<Seen>>;
}

/// What was proven to have arrived on a live session: by a `RECEIVED`, or by a pong that came after it.
///
/// - **O1 short-lived** – a proof is kept for at least `keep`; a lost one costs a push too many, never a message.
/// - **O2 in bulk** – however many messages are recorded or asked about, it is one round trip.
#[async_trait]
pub trait Proofs: Send + Sync {
    /// These users have these messages.
    async fn record(&self, proofs: &[(MessageId, UserId)], keep: Duration) -> EngineResult<()>;

    /// Which of these users have proven to have these messages, in their order.
    async fn proven(&self, asked: &[(MessageId, UserId)]) -> EngineResult<Vec<bool>>;
}

/// Who does what only one should do. Advisory: two holders at once cost work, never correctness.
///
/// - **A1 one holder** – while a lease runs, only its holder is answered `true`; after `ttl` any holder may take it.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Takes or renews a lease; whether `holder` has it now.
    async fn hold(&self, name: &str, holder: &str, ttl: Duration) -> EngineResult<bool>;
}
