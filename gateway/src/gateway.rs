//! What the handlers of sessions and HTTP requests share: the parts of a gateway. It is plain data: each part owns its state
//! and its functions, and takes no other part than those that it needs.

use std::sync::Arc;

use naru_engines::Engines;
use naru_model::StoreEpoch;
use naru_runtime::Health;
use naru_runtime::telemetry::Metrics;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::accept::Acceptor;
use crate::budget::Budget;
use crate::config::Config;
use crate::drain::Drain;
use crate::erase::Eraser;
use crate::limit::Limits;
use crate::pending::Pending;
use crate::positions::Positions;
use crate::presence::Presence;
use crate::proof::Proofs;
use crate::registry::SessionRegistry;
use crate::room_heads::RoomHeads;
use crate::rooms::RoomCache;
use crate::session_state::QueueLimits;
use crate::telemetry::Telemetry;
use crate::tls::Tls;
use crate::token::Verifier;
use crate::turns::{ConnectTurns, Turns};
use crate::users::Users;

/// What the parts of one gateway share.
pub(crate) struct Gateway {
    pub(crate) config: Config,
    pub(crate) engines: Engines,
    /// The epoch of the store's data.
    pub(crate) epoch: StoreEpoch,
    pub(crate) verifier: Arc<Verifier>,
    /// None: connections are not encrypted by the gateway.
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) limits: Limits,
    pub(crate) turns: Turns,
    pub(crate) connect_turns: ConnectTurns,
    pub(crate) budget: Arc<Budget>,
    pub(crate) queue_limits: Arc<QueueLimits>,
    pub(crate) sessions: Arc<SessionRegistry>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) users: Users,
    pub(crate) eraser: Eraser,
    pub(crate) presence: Presence,
    pub(crate) acceptor: Acceptor,
    pub(crate) rooms: Arc<RoomCache>,
    pub(crate) room_heads: RoomHeads,
    pub(crate) positions: Positions,
    pub(crate) proofs: Proofs,
    pub(crate) drain: Drain,
    /// Counts the interruptions, of the live layer and of the lease on presence, that are over.
    pub(crate) interruptions: watch::Sender<u64>,
    /// Sessions and HTTP connections.
    pub(crate) connections: TaskTracker,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) health: Health,
    pub(crate) metrics: Metrics,
}
