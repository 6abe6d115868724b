//! Accepts what phones send, forwards what the live layer brings, serves the HTTP API.
//!
//! A phone speaks: `connect` → `session` → `accept` (→ the intake, then the persister). A phone hears:
//! `deliver` ← the live layer. What it missed: `sync` ← the store. Who hears that it is there: presence, by one
//! lease for the whole gateway. That it has what was written to it: `proof`, by what it confirms and by pings. When the
//! live layer was interrupted: `recover`.
//!
//! WebSocket pings are of one kind, each with a number as its payload. At most one a second asks for proof of what was
//! delivered; one goes to a connection that was quiet for `ping_interval`. The pong of the last ping proves everything
//! that was written before it.
//!
//! The gateway acts on nothing that it has not stored: what it has taken, the intake holds, and what it has
//! confirmed, the persister has saved.

mod accept;
mod api;
mod batches;
mod connect;
mod deliver;
mod gap;
mod heard;
mod limit;
mod pending;
mod positions;
mod proof;
mod recover;
pub mod refusal;
mod rooms;
mod server;
mod session;
mod sessions;
mod sync;
mod telemetry;
pub mod token;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use naru_engines::live::{Attachment, IsHere};
use naru_engines::{EngineError, Engines};
use naru_model::live::Confirmation;
use naru_model::message::Outcome;
use naru_model::{GatewayId, MessageId, SessionId};
use naru_runtime::config::Span;
use naru_runtime::telemetry::Metrics;
use naru_runtime::{Health, Policy, Supervisor};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use warp::filters::BoxedFilter;

use crate::accept::{Submission, Submissions};
use crate::heard::Heard;
use crate::limit::Limiter;
use crate::pending::Pending;
use crate::positions::Taken;
pub use crate::proof::DeliveryProof;
use crate::proof::{Asking, Proven};
use crate::refusal::Close;
use crate::rooms::RoomCache;
use crate::sessions::{Session, Sessions};
use crate::telemetry::Telemetry;
use crate::token::{TokenConfig, TokenConfigError, Verifier};

/// A gateway's lease on the presence of its sessions is renewed this often …
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// … and lapses after this: three renewals.
const LEASE: Duration = Duration::from_secs(6);
/// Overdue confirmations are looked for this often.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The keys of the configuration that a gateway reads; `defaults.toml` says what they mean.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "each field is the key of the same name, documented in defaults.toml")]
pub struct Config {
    pub listen: SocketAddr,
    pub allowed_origins: Vec<String>,
    pub max_content_bytes: usize,
    pub max_frame_bytes: usize,
    pub max_room_members: usize,
    pub max_connections: usize,
    pub max_pending_sends: usize,
    pub session_queue: usize,
    pub rate_messages_per_second: u32,
    pub rate_burst: u32,
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
    /// The address can't be had.
    #[error("can't listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// An engine does not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// More routes, tried before the gateway's own: the all-in-one's demo page.
pub type Routes = BoxedFilter<(warp::reply::Response,)>;

/// What all of a gateway's tasks share.
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
    pub(crate) steps: mpsc::Sender<Taken>,
    pub(crate) asking: Arc<Asking>,
    pub(crate) proofs: mpsc::Sender<Proven>,
    pub(crate) heard: Heard,
    /// Counts the interruptions of the live layer that are over.
    pub(crate) restored: watch::Sender<u64>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) health: Health,
    pub(crate) metrics: Metrics,
    /// Sessions and HTTP connections.
    pub(crate) connections: TaskTracker,
    /// Cancelled when nothing new is taken any more.
    pub(crate) draining: CancellationToken,
    pub(crate) drain_barrier: DrainBarrier,
}

/// How a gateway leaves so that nothing is published to sessions that are about to close: it leaves presence, then waits
/// until what was published before that has been forwarded. What is published later finds its sessions gone.
pub(crate) struct DrainBarrier {
    /// Cancelled when the gateway is to leave presence.
    leaving: CancellationToken,
    /// Cancelled when it has.
    left: CancellationToken,
    /// No session: an eviction of it, sent to oneself, comes after everything that was published before.
    marker: SessionId,
    /// Cancelled when that eviction has come.
    passed: CancellationToken,
}

impl DrainBarrier {
    fn new() -> Self {
        let [leaving, left, passed] = std::array::from_fn(|_| CancellationToken::new());
        Self { leaving, left, marker: SessionId::generate(), passed }
    }
}

/// Refuses keys for tokens that can't be used, before anything is started.
///
/// # Errors
/// When no key is configured, more than one, or one that can't be used.
pub fn check(tokens: &TokenConfig) -> Result<(), TokenConfigError> {
    Verifier::new(tokens).map(drop)
}

/// A gateway that has its address and is ready to run.
pub struct Bound {
    gateway: Arc<Gateway>,
    listener: TcpListener,
    address: SocketAddr,
    submissions: mpsc::Receiver<Submission>,
    steps: mpsc::Receiver<Taken>,
    proofs: mpsc::Receiver<Proven>,
    drained: CancellationToken,
}

impl Bound {
    /// Takes the address and puts everything together; nothing runs yet, and clients that connect wait.
    ///
    /// # Errors
    /// When the address can't be had or the keys for tokens can't be used.
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
        let (step_sender, steps) = positions::channel();
        let (proof_sender, proofs) = proof::channel();
        let gateway = Gateway {
            id: GatewayId::generate(),
            verifier,
            sessions: Sessions::new(),
            pending: Pending::new(config.max_pending_sends),
            submissions: submission_sender,
            rooms: RoomCache::new(engines.store.rooms.clone()),
            limiter: Limiter::new(config.rate_messages_per_second, config.rate_burst),
            steps: step_sender,
            asking: Asking::new(config.delivery_proof, config.delivery_grace.0, telemetry.pings.clone()),
            proofs: proof_sender,
            heard: Heard::new(),
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
        Ok(Self { gateway, listener, address, submissions, steps, proofs, drained })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cancelled when, after shutdown, every message in hand was answered and every client was told to go: from then on
    /// this gateway needs no other worker.
    pub fn drained(&self) -> CancellationToken {
        self.drained.clone()
    }

    /// Starts its tasks. Listens to the live layer and holds its lease before the first client is served.
    ///
    /// Boxed: so all of a gateway is compiled here, and not once more for each binary that awaits it.
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
        let Self { gateway, listener, submissions, steps, proofs, drained, .. } = self;
        let sessions = gateway.sessions.clone();
        let is_here: IsHere = Arc::new(move |user: &str| sessions.has(user));
        let mut subscription = gateway.engines.live.subscribe(&gateway.id, is_here).await?;
        gateway.engines.presence.renew(&gateway.id, LEASE).await?;

        let (intake, hand_over) = accept::steps(&gateway.engines, &gateway.pending, &gateway.telemetry);
        let owner = gateway.clone();
        spawn_owning(supervisor, "intake", async move {
            owner.until_drained(intake.run(submissions)).await;
        });
        let owner = gateway.clone();
        spawn_owning(supervisor, "hand-over", async move { owner.until_drained(hand_over.run()).await });
        let owner = gateway.clone();
        spawn_owning(supervisor, "positions", async move {
            positions::run(&owner, steps).await;
        });
        let owner = gateway.clone();
        spawn_owning(supervisor, "proofs", async move { proof::run(&owner, proofs).await });
        let owner = gateway.clone();
        spawn_owning(supervisor, "deliver", async move {
            owner.until_drained(deliver::listen(&owner, &mut *subscription)).await;
        });
        let owner = gateway.clone();
        spawn_owning(supervisor, "ask for proof", async move { proof::ask(&owner).await });
        let owner = gateway.clone();
        supervisor.spawn("presence", Policy::Restart, move |_| renew(owner.clone()));
        let owner = gateway.clone();
        supervisor.spawn("look-up", Policy::Restart, move |_| look_up(owner.clone()));
        let owner = gateway.clone();
        supervisor.spawn("attach again", Policy::Restart, move |_| recover::attach_again(owner.clone()));
        let owner = gateway.clone();
        supervisor.spawn("ask to sync", Policy::Restart, move |_| recover::ask_who_missed(owner.clone()));
        spawn_owning(
            supervisor,
            "serve",
            server::serve(gateway, listener, routes, supervisor.shutdown().clone(), drained),
        );
        Ok(())
    }
}

/// Spawns a task that owns the end of a channel and so can't be made a second time: its failure stops the process,
/// which starts again whole.
fn spawn_owning(
    supervisor: &Supervisor,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let task = Mutex::new(Some(Box::pin(task)));
    supervisor.spawn(name, Policy::StopAll, move |_| {
        let task = task.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            if let Some(task) = task {
                task.await;
            }
            Ok::<_, Infallible>(())
        }
    });
}

impl Gateway {
    /// Works until the gateway has drained: what is in hand when shutdown comes is finished first.
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

    /// Leaves presence, and waits until everything published before has been forwarded: see [`DrainBarrier`].
    pub(crate) async fn pass_drain_barrier(&self) -> Result<(), EngineError> {
        self.drain_barrier.leaving.cancel();
        self.drain_barrier.left.cancelled().await;
        let mut restored = self.restored.subscribe();
        self.engines.live.evict(&self.id, &self.drain_barrier.marker).await?;
        // The marker may be lost in an interruption, and without sessions nothing is forwarded any more.
        tokio::select! {
            () = self.drain_barrier.passed.cancelled() => {}
            () = self.sessions.emptied() => {}
            _ = restored.changed() => {}
        }
        Ok(())
    }

    /// An eviction has come.
    pub(crate) fn evicted(&self, session: &SessionId) {
        if *session == self.drain_barrier.marker {
            self.drain_barrier.passed.cancel();
        }
        for known in self.sessions.all().iter().filter(|known| known.id == *session) {
            known.close(Close::Replaced);
        }
    }

    /// How presence knows a session.
    pub(crate) fn attachment(&self, session: &Session) -> Attachment {
        Attachment {
            user: session.identity.user.clone(),
            device: session.identity.device.clone(),
            session: session.id.clone(),
            gateway: self.id.clone(),
        }
    }

    /// Ends a session whose device has connected here, wherever it is.
    pub(crate) async fn evict(&self, replaced: &Attachment) {
        if replaced.gateway != self.id {
            if let Err(error) = self.engines.live.evict(&replaced.gateway, &replaced.session).await {
                tracing::warn!(%error, "a replaced session was not told");
            }
            return;
        }
        self.sessions.each_of(&replaced.user, |session| {
            if session.id == replaced.session {
                session.close(Close::Replaced);
            }
        });
    }
}

/// Keeps the gateway's lease until it leaves presence.
async fn renew(gateway: Arc<Gateway>) -> Result<(), EngineError> {
    let DrainBarrier { leaving, left, .. } = &gateway.drain_barrier;
    let mut ticks = tokio::time::interval(RENEW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A renewal under way is finished first: it might take effect after the resignation.
    while leaving.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Err(error) = gateway.engines.presence.renew(&gateway.id, LEASE).await {
            tracing::warn!(%error, "the lease on presence was not renewed");
        }
    }
    let resigned = gateway.engines.presence.resign(&gateway.id).await;
    left.cancel();
    resigned
}

/// Looks up, in groups, what became of messages whose confirmation is overdue.
async fn look_up(gateway: Arc<Gateway>) -> Result<(), EngineError> {
    let looking = async {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            gateway.telemetry.in_hand.set(i64::try_from(gateway.pending.in_hand()).unwrap_or(i64::MAX));
            let overdue = gateway.pending.overdue();
            if overdue.is_empty() {
                continue;
            }
            match outcomes(&gateway.engines, &overdue).await {
                Ok(found) => gateway.pending.resolve(&found),
                Err(error) => {
                    tracing::warn!(%error, count = overdue.len(), "overdue messages can't be looked up")
                }
            }
        }
    };
    gateway.until_drained(looking).await;
    Ok(())
}

async fn outcomes(engines: &Engines, ids: &[MessageId]) -> Result<Vec<Confirmation>, EngineError> {
    let saved = engines.store.messages.find(ids).await?;
    let (mut found, mut unsaved) = (Vec::new(), Vec::new());
    for (id, message) in ids.iter().zip(saved) {
        match message {
            Some(message) => {
                found.push(Confirmation { id: *id, outcome: Outcome::Saved { seq: message.seq } });
            }
            None => unsaved.push(*id),
        }
    }
    if !unsaved.is_empty() {
        let records = engines.store.intake.get(&unsaved).await?;
        let ended = records.into_iter().flatten();
        found
            .extend(ended.filter_map(|record| {
                Some(Confirmation { id: record.accepted.id, outcome: record.outcome? })
            }));
    }
    Ok(found)
}
