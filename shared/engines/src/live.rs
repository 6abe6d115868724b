//! Events for the clients that are connected now, and the record of which clients those are. Nothing here needs to
//! last: when it is lost, the store and the offline events replace it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use naru_model::live::{Confirmation, LiveEvent};
use naru_model::{DeviceId, GatewayId, MessageId, RoomId, Seq, SessionId, Timestamp, UserId};

use crate::EngineResult;

/// A signal to a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// An event in a room.
    Event(Arc<LiveEvent>),
    /// A message got this place in a room, and none of its recipients is here: see [`HasSession`].
    SeqOnly { room: RoomId, seq: Seq },
    /// The outcomes of messages that this gateway accepted.
    Confirmed(Arc<[Confirmation]>),
    /// This session's device has connected seq_only: close it (4409).
    Evict(SessionId),
    /// What the store keeps of this user ([`UserRecord`](crate::store::UserRecord)) has changed.
    UserChanged(UserId),
    /// Some signals may have been lost from here on.
    Interrupted,
    /// From here on, signals are not lost.
    Restored,
}

/// Whether a user has a session with the subscribing gateway. It is called for each recipient of an event before the rest
/// of the event is read: so an event for no user of this gateway costs next to nothing.
pub type HasSession = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Publish and subscribe.
///
/// - **L1 to every gateway** – a subscription receives each event that is published after it was made, or else
///   `Interrupted` (then `Restored`) in its place; no loss goes unreported. An engine may answer `SeqOnly` in place of a
///   message none of whose recipients [is here](HasSession), and nothing in place of other events without a recipient here.
/// - **L2 order** – events of one publisher arrive in the order they were published.
/// - **L3 never blocked** – a subscription that is not read delays neither publishers nor other subscribers.
/// - **L4 addressed** – confirmations and evictions go to the gateway they name and to no other; a gateway that does not
///   exist is no error.
/// - **L5 of users** – `user_changed` reaches each subscription as an event does (L1), also where the user is not here.
#[async_trait]
pub trait Live: Send + Sync {
    /// Publishes to every gateway: see L1 to L3.
    async fn publish(&self, events: Vec<LiveEvent>) -> EngineResult<()>;

    /// Sends the outcomes of messages to one gateway: see L4.
    async fn confirm(&self, gateway: &GatewayId, confirmations: Vec<Confirmation>) -> EngineResult<()>;

    /// Makes one gateway close a session: see L4.
    async fn evict(&self, gateway: &GatewayId, session: &SessionId) -> EngineResult<()>;

    /// Tells every gateway that a user's record has changed: see L5.
    async fn user_changed(&self, user: &UserId) -> EngineResult<()>;

    async fn subscribe(
        &self,
        gateway: &GatewayId,
        has_session: HasSession,
    ) -> EngineResult<Box<dyn Subscription>>;
}

/// One gateway's signals.
#[async_trait]
pub trait Subscription: Send {
    /// Waits for the next signal. None when the engine has closed for good. Cancelling loses nothing.
    async fn next(&mut self) -> Option<Signal>;
}

/// A live session, as presence records it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PresenceEntry {
    pub user: UserId,
    /// The session's device; sessions without one never replace each other.
    pub device: Option<DeviceId>,
    pub session: SessionId,
    pub gateway: GatewayId,
}

/// A user's presence, as other users may see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Connected now.
    pub online: bool,
    /// When the user was last connected; none: never.
    pub last_seen_at: Option<Timestamp>,
}

/// Whether a gateway's lease has run since the renewal that was answered before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It has: every look-up in between counted the gateway's attached sessions.
    Unbroken,
    /// Look-ups in between may have missed the gateway's sessions: the lease is new, or had lapsed, or the engine had lost
    /// it, and perhaps sessions as well.
    Lapsed,
}

/// Which users are connected.
///
/// - **E0 unknown is not offline** – when presence can't be read, the call fails.
/// - **E1 lease** – a session counts only while its gateway's lease does: `ttl` from its last renewal. When a gateway
///   dies, its sessions end with its lease, without any other traffic.
/// - **E2 at once** – the next `online` shows an `attach` or `detach`.
/// - **E3 own session only** – `detach` of a session leaves the user's other sessions; detaching twice is harmless.
/// - **E4 replaced** – attaching a device that is attached answers the session it replaces, which no longer counts.
/// - **E5 last seen** – is now while a user is connected, else when their last session was detached or its gateway's
///   lease was last renewed. It is kept for as long as the engine was opened with (`last_seen_keep`); then the user counts as never
///   seen, and nothing is kept of them.
/// - **E6 a lapse is told** – the first renewal answers `Lapsed`, and so does one that finds that the engine had lost the
///   lease, or that a look-up found it not running since the renewal that was answered before, whatever the clocks did
///   meanwhile. It may answer so needlessly.
/// - **E7 single sessions** – `attached` shows which sessions are recorded, whether or not their gateways' leases run: an
///   engine may lose single ones, and no renewal tells of that.
/// - **E8 forgotten** – `forget` of a user of whom no session is recorded leaves nothing of the user, who then was never seen, and
///   answers `true`. Of one with a session it keeps all.
#[async_trait]
pub trait Presence: Send + Sync {
    /// Renews a gateway's lease: see E1, E6. Called every few seconds, long before `ttl` is over.
    async fn renew(&self, gateway: &GatewayId, ttl: Duration) -> EngineResult<Renewal>;

    /// Ends a gateway's lease, at its orderly stop.
    async fn resign(&self, gateway: &GatewayId) -> EngineResult<()>;

    /// Records that a session has connected: see E2, E4.
    async fn attach(&self, session: &PresenceEntry) -> EngineResult<Option<PresenceEntry>>;

    /// Records that a session has ended: see E3.
    async fn detach(&self, session: &PresenceEntry) -> EngineResult<()>;

    /// Which of these sessions are recorded, in their order: see E7.
    async fn attached(&self, sessions: &[PresenceEntry]) -> EngineResult<Vec<bool>>;

    /// Which of these users have a live session, in their order; one look-up for all.
    async fn online(&self, users: &[UserId]) -> EngineResult<Vec<bool>>;

    /// The visible presence of these users, in their order: see E5.
    async fn seen(&self, users: &[UserId]) -> EngineResult<Vec<Seen>>;

    /// Forgets when a user was seen; whether nothing of the user is left. See E8.
    async fn forget(&self, user: &UserId) -> EngineResult<bool>;
}

/// Which messages were proven to have arrived on a live session: by a `RECEIVED` or `READ`, or by a later pong.
///
/// - **O1 short-lived** – a proof is kept for at least `keep`; a lost one costs an unneeded push, never a message.
/// - **O2 in bulk** – any number of messages is recorded or asked about in one round trip.
#[async_trait]
pub trait Proofs: Send + Sync {
    /// Records that these users have these messages.
    async fn record(&self, proofs: &[(MessageId, UserId)], keep: Duration) -> EngineResult<()>;

    /// Whether each of these users has proven to have its message, in their order.
    async fn proven(&self, asked: &[(MessageId, UserId)]) -> EngineResult<Vec<bool>>;
}

/// Which process does work that only one should do. Advisory: two holders at once cost work, never correctness.
///
/// - **A1 one holder** – while a lease runs, only its holder is answered `true`; after `ttl` any holder may take it.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Takes or renews a lease; answers whether `holder` has it now.
    async fn hold(&self, name: &str, holder: &str, ttl: Duration) -> EngineResult<bool>;
}
