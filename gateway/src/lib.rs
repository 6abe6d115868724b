//! Accepts the frames of clients, forwards live events to sessions, and serves the HTTP API.
//!
//! The path of a sent message is `connect` → `session` → `accept` → the intake, then the persister. A live message goes
//! from the live layer through `deliver` to the session. `sync` reads missed messages from the store. `presence` keeps
//! one lease for the whole gateway. `proof` records deliveries, by confirmations and by pings. `recover` acts after an
//! interruption of the live layer.
//!
//! WebSocket pings are of one kind, each with a number as its payload. At most one a second asks for proof of delivered
//! messages; one goes to a connection that was quiet for `ping_interval`. The pong of the last ping proves all messages
//! that were written before it.
//!
//! The gateway acts on no message that is not stored: the intake holds each message that the gateway has taken, and the
//! persister has saved each message that it has confirmed.

mod accept;
mod api;
mod batches;
mod connect;
mod deliver;
mod gap;
mod limit;
mod origin;
mod overdue;
mod pending;
mod positions;
mod presence;
mod proof;
mod proof_requests;
mod recover;
pub mod refusal;
mod room_heads;
mod rooms;
mod sending;
mod server;
mod session;
mod sessions;
mod sync;
mod telemetry;
pub mod token;
mod unproven;

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use naru_engines::live::IsHere;
use naru_engines::{EngineError, Engines};
use naru_model::GatewayId;
use naru_runtime::config::{Span, optional};
use naru_runtime::telemetry::Metrics;
use naru_runtime::{Health, Policy, Supervisor};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use warp::filters::BoxedFilter;

use crate::accept::{Submission, Submissions};
use crate::limit::Limiter;
pub use crate::origin::{AllowedOrigins, NotAnOrigin};
use crate::pending::Pending;
use crate::positions::PendingAdvance;
use crate::presence::{DrainBarrier, LEASE};
use crate::proof::Proven;
pub use crate::proof_requests::DeliveryProof;
use crate::proof_requests::ProofRequests;
use crate::room_heads::RoomHeads;
use crate::rooms::RoomCache;
use crate::sessions::{Session, Sessions};
use crate::telemetry::Telemetry;
use crate::token::{TokenConfig, TokenConfigError, Verifier};

/// The keys of the configuration that a gateway reads; `defaults.toml` explains them.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    pub listen: SocketAddr,
    #[serde(deserialize_with = "optional")]
    pub admin_listen: Option<SocketAddr>,
    pub allowed_origins: AllowedOrigins,
    pub max_content_bytes: usize,
    pub max_frame_bytes: usize,
    pub max_room_members: usize,
    pub max_connections: usize,
    pub max_pending_sends: usize,
    pub session_queue: usize,
    pub rate_messages_per_second: u32,
    pub rate_burst: u32,
    pub http_keep_alive: Span,
    pub ping_interval: Span,
    pub delivery_grace: Span,
    pub delivery_proof: DeliveryProof,
    pub push_ttl: Span,
    pub drain_deadline: Span,
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No client could connect.
    #[error(transparent)]
    Token(#[from] TokenConfigError),
    /// The address can't be bound.
    #[error("can't listen on {address}")]
    Bind { address: SocketAddr, source: std::io::Error },
    /// An engine does not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// More routes, tried before the gateway's own: the all-in-one's demo page.
pub type Routes = BoxedFilter<(warp::reply::Response,)>;

/// The state that all tasks of a gateway share.
pub(crate) struct Gateway {
    pub(crate) id: GatewayId,
    pub(crate) config: Config,
    pub(crate) engines: Engines,
    pub(crate) verifier: Verifier,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) submissions: Submissions,
    pub(crate) rooms: RoomCache,
    pub(crate) limiter: Limiter,
    pub(crate) positions: mpsc::Sender<PendingAdvance>,
    pub(crate) proof_requests: Arc<ProofRequests<Session>>,
    pub(crate) proofs: mpsc::Sender<Proven>,
    pub(crate) room_heads: RoomHeads,
    /// Counts the interruptions of the live layer that are over.
    pub(crate) restored: watch::Sender<u64>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) health: Health,
    pub(crate) metrics: Metrics,
    /// Sessions and HTTP connections.
    pub(crate) connections: TaskTracker,
    /// Cancelled when the gateway takes no new work any more.
    pub(crate) draining: CancellationToken,
    pub(crate) drain_barrier: DrainBarrier,
}

/// Refuses keys for tokens that can't be used, before any task is started.
///
/// # Errors
/// When no key is configured, more than one, or one that can't be used.
pub fn check(tokens: &TokenConfig) -> Result<(), TokenConfigError> {
    Verifier::new(tokens).map(drop)
}

/// A gateway that has bound its address and is ready to run.
pub struct Bound {
    gateway: Arc<Gateway>,
    listener: TcpListener,
    address: SocketAddr,
    submissions: mpsc::Receiver<Submission>,
    positions: mpsc::Receiver<PendingAdvance>,
    proofs: mpsc::Receiver<Proven>,
    drained: CancellationToken,
}

impl Bound {
    /// Binds the address and builds the gateway. No task runs yet, so clients that connect wait.
    ///
    /// # Errors
    /// When the address can't be bound or the keys for tokens can't be used.
    pub async fn new(
        config: Config,
        tokens: &TokenConfig,
        engines: Engines,
        metrics: Metrics,
        health: Health,
    ) -> Result<Self, StartError> {
        let verifier = Verifier::new(tokens)?;
        let bind = |source| StartError::Bind { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let (submission_sender, submissions) = Submissions::new(config.max_pending_sends);
        let telemetry = Arc::new(Telemetry::new(&metrics));
        let (position_sender, positions) = positions::channel();
        let (proof_sender, proofs) = proof::channel();
        let gateway = Gateway {
            id: GatewayId::generate(),
            verifier,
            sessions: Sessions::new(),
            pending: Pending::new(config.max_pending_sends),
            submissions: submission_sender,
            rooms: RoomCache::new(engines.store.rooms.clone()),
            limiter: Limiter::new(config.rate_messages_per_second, config.rate_burst),
            positions: position_sender,
            proof_requests: ProofRequests::new(
                config.delivery_proof,
                config.delivery_grace.0,
                telemetry.pings.clone(),
            ),
            proofs: proof_sender,
            room_heads: RoomHeads::new(),
            restored: watch::Sender::new(0),
            telemetry,
            connections: TaskTracker::new(),
            draining: CancellationToken::new(),
            drain_barrier: DrainBarrier::new(),
            engines,
            config,
            health,
            metrics,
        };
        let (gateway, drained) = (Arc::new(gateway), CancellationToken::new());
        Ok(Self { gateway, listener, address, submissions, positions, proofs, drained })
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cancelled when, after shutdown, the gateway has drained and every connection was closed: from then on this gateway
    /// needs no other worker.
    pub fn drained(&self) -> CancellationToken {
        self.drained.clone()
    }

    /// Starts the gateway's tasks. It subscribes to the live layer and takes its lease before it serves a client.
    ///
    /// Boxed, so that the gateway is compiled here, and not once more for each binary that awaits it.
    ///
    /// # Errors
    /// When an engine does not answer.
    pub fn run<'a>(
        self,
        supervisor: &'a Supervisor,
        routes: Option<Routes>,
    ) -> BoxFuture<'a, Result<(), StartError>> {
        self.start(supervisor, routes).boxed()
    }

    async fn start(self, supervisor: &Supervisor, routes: Option<Routes>) -> Result<(), StartError> {
        let Self { gateway, listener, submissions, positions, proofs, drained, .. } = self;
        let sessions = gateway.sessions.clone();
        let is_here: IsHere = Arc::new(move |user: &str| sessions.has(user));
        let mut subscription = gateway.engines.live.subscribe(&gateway.id, is_here).await?;
        gateway.engines.presence.renew(&gateway.id, LEASE).await?;

        let (intake, hand_over) = accept::steps(&gateway.engines, &gateway.pending, &gateway.telemetry);
        let owner = gateway.clone();
        supervisor.spawn_once("intake", async move {
            owner.until_drained(intake.run(submissions)).await;
        });
        let owner = gateway.clone();
        supervisor.spawn_once("hand-over", async move { owner.until_drained(hand_over.run()).await });
        let owner = gateway.clone();
        supervisor.spawn_once("positions", async move {
            positions::run(&owner, positions).await;
        });
        let owner = gateway.clone();
        supervisor.spawn_once("proofs", async move { proof::run(&owner, proofs).await });
        let owner = gateway.clone();
        supervisor.spawn_once("deliver", async move {
            owner.until_drained(deliver::listen(&owner, &mut *subscription)).await;
        });
        let owner = gateway.clone();
        supervisor.spawn_once("ask for proof", async move { proof::ask(&owner).await });
        let owner = gateway.clone();
        supervisor.spawn("presence", Policy::Restart, move |_| presence::renew(owner.clone()));
        let owner = gateway.clone();
        supervisor.spawn("look-up", Policy::Restart, move |_| overdue::look_up(owner.clone()));
        let owner = gateway.clone();
        supervisor.spawn("attach again", Policy::Restart, move |_| recover::attach_again(owner.clone()));
        let owner = gateway.clone();
        supervisor.spawn("ask to sync", Policy::Restart, move |_| recover::ask_who_missed(owner.clone()));
        supervisor.spawn_once(
            "serve",
            server::serve(gateway, listener, routes, supervisor.shutdown().clone(), drained),
        );
        Ok(())
    }
}

impl Gateway {
    /// Runs `work` until the gateway has drained: messages in hand at shutdown are finished first.
    async fn until_drained(&self, work: impl Future<Output = ()>) {
        tokio::select! {
            () = work => {}
            () = self.drained() => {}
        }
    }

    /// Waits until, after shutdown, every session has ended and every message in hand was answered.
    async fn drained(&self) {
        self.draining.cancelled().await;
        self.sessions.emptied().await;
        self.pending.emptied().await;
    }
}
