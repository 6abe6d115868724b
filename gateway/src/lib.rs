//! Accepts the frames of clients, forwards live events to sessions, and serves the HTTP API.
//!
//! The path of a sent message is `connect` → `session` → `accept` → the intake, then the persister. A live message goes
//! from the live layer through `deliver` to the queue of a session. `sync` reads missed messages from the store. `presence` tells
//! where sessions are, and `lease` keeps one lease on it for the whole gateway. `proof` records deliveries, by confirmations
//! and by pings. `recover` acts after an interruption of the live layer or of the lease.
//!
//! WebSocket pings are of one kind, each with a number as its payload. About once a second one asks for proof of delivered
//! messages (at once where 256 wait); one goes to a connection that was quiet for `ping_interval`. The pong of the last ping proves all messages
//! that were written before it.
//!
//! The gateway acts on no message that is not stored: the intake holds each message that the gateway has taken, and the
//! persister has saved each message that it has confirmed.

mod accept;
mod answer_body;
mod api;
mod batches;
mod budget;
mod client_address;
mod config;
mod connect;
mod deliver;
mod drain;
mod erase;
mod gap;
mod gateway;
mod lease;
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
mod registry;
mod room_heads;
mod rooms;
mod sending;
mod server;
mod session;
mod session_state;
mod stall;
mod sync;
mod telemetry;
mod tls;
pub mod token;
mod turns;
mod unproven;
mod users;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use naru_engines::live::HasSession;
use naru_engines::{EngineError, Engines};
use naru_model::GatewayId;
use naru_runtime::telemetry::Metrics;
use naru_runtime::{Health, Policy, Supervisor};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::{Acceptor, Submission, Submissions};
use crate::budget::Budget;
pub use crate::config::Config;
use crate::deliver::Deliver;
use crate::drain::Drain;
use crate::erase::Eraser;
use crate::gateway::Gateway;
use crate::lease::LeaseKeeper;
use crate::limit::{Limiter, Limits};
pub use crate::origin::{AllowedOrigins, NotAnOrigin};
use crate::pending::Pending;
use crate::positions::{PositionWriter, Positions};
use crate::presence::Presence;
use crate::proof::{ProofRecorder, Proofs};
pub use crate::proof_requests::DeliveryProof;
use crate::recover::Recover;
use crate::registry::SessionRegistry;
use crate::room_heads::RoomHeads;
use crate::rooms::RoomCache;
pub use crate::server::Routes;
use crate::session_state::QueueLimits;
use crate::telemetry::Telemetry;
use crate::tls::{Tls, TlsError};
use crate::token::{TokenConfig, TokenConfigError, Verifier};
use crate::turns::{ConnectTurns, Turns};
use crate::users::Users;

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No client could connect.
    #[error(transparent)]
    Token(#[from] TokenConfigError),
    /// TLS can't be served.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address can't be bound.
    #[error("can't listen on {address}")]
    Bind { address: SocketAddr, source: std::io::Error },
    /// An engine does not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Refuses keys for tokens and files for TLS that can't be used, before any task is started.
///
/// # Errors
/// When no key for tokens is configured, more than one, or one that can't be used; when TLS can't be served.
pub fn check(config: &Config, tokens: &TokenConfig) -> Result<(), StartError> {
    tls_of(config)?;
    Ok(Verifier::new(tokens).map(drop)?)
}

fn tls_of(config: &Config) -> Result<Option<Tls>, TlsError> {
    Tls::configured(config.tls_certificate.as_deref(), config.tls_key.as_deref())
}

/// A gateway that has bound its address and is ready to run.
pub struct Bound {
    gateway: Arc<Gateway>,
    listener: TcpListener,
    address: SocketAddr,
    submissions: mpsc::Receiver<Submission>,
    position_writer: PositionWriter,
    proof_recorder: ProofRecorder,
    drained: CancellationToken,
}

impl Bound {
    /// Binds the address and builds the gateway. No task runs yet, so clients that connect wait.
    ///
    /// # Errors
    /// When the address can't be bound, the store does not answer, or the keys for tokens or the files for TLS can't be used.
    pub async fn new(
        config: Config,
        tokens: &TokenConfig,
        engines: Engines,
        metrics: Metrics,
        health: Health,
    ) -> Result<Self, StartError> {
        let (verifier, tls) = (Arc::new(Verifier::new(tokens)?), tls_of(&config)?.map(Arc::new));
        if let Some(warning) = verifier.warning() {
            tracing::warn!("{warning}");
        }
        let (checked, watched) = (verifier.clone(), verifier.clone());
        health.register("token keys", move || {
            std::future::ready(checked.check().map_err(str::to_owned)).boxed()
        });
        health.register_degraded("token keys", move || watched.degradation());
        let bind = |source| StartError::Bind { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let epoch = engines.store.epochs.get().await?;
        let telemetry = Arc::new(Telemetry::new(&metrics));
        let id = GatewayId::generate();
        let sessions = SessionRegistry::new();
        let pending = Pending::new(config.max_pending_sends);
        let rooms = Arc::new(RoomCache::new(engines.store.rooms.clone()));
        let budget = Budget::new(config.max_queued_bytes, telemetry.queued_bytes.clone());
        let (submission_sender, submissions) = Submissions::new(config.max_pending_sends);
        let acceptor = Acceptor {
            gateway: id.clone(),
            max_content_bytes: config.max_content_bytes,
            limiter: Limiter::new(config.rate_messages_per_second, config.rate_burst),
            budget: budget.clone(),
            rooms: rooms.clone(),
            pending: pending.clone(),
            submissions: submission_sender,
            telemetry: telemetry.clone(),
        };
        let (positions, position_writer) = Positions::new(&engines, &rooms);
        let (proofs, proof_recorder) =
            Proofs::new(&engines, config.delivery_proof, config.delivery_grace.0, &telemetry);
        let gateway = Gateway {
            verifier,
            tls,
            users: Users::new(&engines, &sessions),
            eraser: Eraser::new(),
            presence: Presence::new(id, &engines, &sessions),
            drain: Drain::new(&sessions, &pending),
            limits: Limits::new(&config),
            turns: Turns::new(),
            connect_turns: ConnectTurns::new(config.rate_connects_per_second),
            queue_limits: QueueLimits::new(
                config.session_queue,
                config.session_queue_bytes,
                config.max_content_bytes,
                &budget,
            ),
            budget,
            sessions,
            pending,
            acceptor,
            rooms,
            room_heads: RoomHeads::new(),
            positions,
            proofs,
            interruptions: watch::Sender::new(0),
            connections: TaskTracker::new(),
            telemetry,
            engines,
            epoch,
            config,
            health,
            metrics,
        };
        let (gateway, drained) = (Arc::new(gateway), CancellationToken::new());
        Ok(Self { gateway, listener, address, submissions, position_writer, proof_recorder, drained })
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where clients connect, as an `http` or `https` URL.
    pub fn url(&self) -> String {
        let scheme = if self.gateway.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
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
        let Self { gateway, listener, submissions, position_writer, proof_recorder, drained, .. } = self;
        let sessions = gateway.sessions.clone();
        let has_session: HasSession = Arc::new(move |user: &str| sessions.has(user));
        let mut subscription = gateway.presence.subscribe(has_session).await?;
        gateway.presence.renew_lease(&gateway.room_heads).await?;
        // The lease was not there before, and neither was a session.
        gateway.room_heads.recovered_from(gateway.room_heads.interruptions());

        let (intake, enqueue) = accept::steps(&gateway.engines, &gateway.pending, &gateway.telemetry);
        let owner = gateway.clone();
        supervisor.spawn_once("intake", async move {
            owner.drain.until_done(intake.run(submissions)).await;
        });
        let owner = gateway.clone();
        supervisor.spawn_once("enqueue", async move { owner.drain.until_done(enqueue.run()).await });
        let owner = gateway.clone();
        supervisor.spawn_once("positions", async move { position_writer.run(&owner.drain).await });
        let owner = gateway.clone();
        supervisor.spawn_once("proofs", async move { proof_recorder.run(&owner.connections).await });
        let owner = gateway.clone();
        supervisor.spawn_once("deliver", async move {
            let deliver = Deliver {
                sessions: &owner.sessions,
                pending: &owner.pending,
                users: &owner.users,
                presence: &owner.presence,
                proofs: &owner.proofs,
                room_heads: &owner.room_heads,
                messages: &owner.engines.store.messages,
                interruptions: &owner.interruptions,
                budget: &owner.budget,
                telemetry: &owner.telemetry,
            };
            owner.drain.until_done(deliver.run(&mut *subscription)).await;
        });
        let owner = gateway.clone();
        supervisor.spawn_once("ask for proof", async move { owner.proofs.ask(&owner.connections).await });
        let owner = gateway.clone();
        supervisor.spawn("presence", Policy::Restart, move |_| {
            let owner = owner.clone();
            async move {
                let keeper = LeaseKeeper {
                    presence: &owner.presence,
                    sessions: &owner.sessions,
                    room_heads: &owner.room_heads,
                    interruptions: &owner.interruptions,
                    telemetry: &owner.telemetry,
                };
                keeper.run().await
            }
        });
        let owner = gateway.clone();
        supervisor.spawn("look-up", Policy::Restart, move |_| {
            let owner = owner.clone();
            async move {
                let Gateway { engines, pending, telemetry, .. } = &*owner;
                owner.drain.until_done(overdue::look_up(engines, pending, telemetry)).await;
                Ok::<_, Infallible>(())
            }
        });
        let owner = gateway.clone();
        supervisor.spawn("recover", Policy::Restart, move |_| {
            let owner = owner.clone();
            async move {
                let recover = Recover {
                    presence: &owner.presence,
                    sessions: &owner.sessions,
                    room_heads: &owner.room_heads,
                    store: &owner.engines.store,
                    proofs: &owner.proofs,
                    telemetry: &owner.telemetry,
                };
                let asking = recover.run(owner.interruptions.subscribe());
                owner.drain.until_done(asking).await;
                Ok::<_, Infallible>(())
            }
        });
        let owner = gateway.clone();
        supervisor.spawn("relieve", Policy::Restart, move |_| {
            let owner = owner.clone();
            async move {
                owner.drain.until_done(owner.budget.relieve(&owner.sessions)).await;
                Ok::<_, Infallible>(())
            }
        });
        let owner = gateway.clone();
        supervisor.spawn("users", Policy::Restart, move |_| {
            let owner = owner.clone();
            async move {
                owner.drain.until_done(owner.users.run()).await;
                Ok::<_, Infallible>(())
            }
        });
        let owner = gateway.clone();
        supervisor.spawn("erase", Policy::Restart, move |stop| {
            let owner = owner.clone();
            async move {
                stop.run_until_cancelled(owner.eraser.run(&owner)).await;
                Ok::<_, Infallible>(())
            }
        });
        let owner = gateway.clone();
        supervisor.spawn("token keys", Policy::Restart, move |stop| {
            let owner = owner.clone();
            async move {
                stop.run_until_cancelled(owner.verifier.run()).await;
                Ok::<_, Infallible>(())
            }
        });
        if let Some(tls) = gateway.tls.clone() {
            supervisor.spawn("TLS files", Policy::Restart, move |stop| {
                let tls = tls.clone();
                async move {
                    stop.run_until_cancelled(tls.reload()).await;
                    Ok::<_, Infallible>(())
                }
            });
        }
        supervisor.spawn_once(
            "serve",
            server::serve(gateway, listener, routes, supervisor.shutdown().clone(), drained),
        );
        Ok(())
    }
}
