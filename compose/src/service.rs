//! The common `main` of the four workers' programs.
//!
//! A service's `main` gives its name and the tasks it starts; [`main`] does the rest. It binds the admin address first and
//! answers there from then on, waits for MongoDB, RabbitMQ and Redis, starts the tasks, prints its address on stdout, runs
//! until it is told to stop, and exits by the deadline.

use std::convert::Infallible;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use naru_engines::Engines;
use naru_runtime::config::optional;
use naru_runtime::telemetry::{self, LogFormat};
use naru_runtime::{AdminServer, Health, Metrics, Program, Settings, Span, Supervisor};
use naru_runtime::{config, limits, output, signal};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::distributed::Distributed;
use crate::epoch;

/// The delay after a failed accept, as without free file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The parts that a service is started with.
pub struct Service {
    /// The configuration in force.
    pub settings: Settings,
    /// MongoDB, RabbitMQ and Redis.
    pub engines: Engines,
    pub metrics: Metrics,
    /// The checks of `/readyz`.
    pub health: Health,
    /// Runs the service's tasks.
    pub supervisor: Supervisor,
}

#[derive(Deserialize)]
struct Logs {
    log: String,
    log_format: LogFormat,
}

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "optional")]
    admin_listen: Option<SocketAddr>,
}

/// The configured admin address, bound; none where none is configured.
pub(crate) struct Admin(Option<(AdminServer, SocketAddr)>);

impl Admin {
    /// # Errors
    /// When the address can't be bound.
    pub(crate) async fn bind(
        settings: &Settings,
        health: &Health,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let Config { admin_listen } = settings.pick()?;
        let Some(wanted) = admin_listen else { return Ok(Self(None)) };
        let bound = AdminServer::bind(wanted, health.clone(), metrics.clone()).await;
        let (server, address) = bound.with_context(|| format!("can't listen on {wanted}"))?;
        tracing::info!(%address, "health and metrics are answered");
        Ok(Self(Some((server, address))))
    }

    fn address(&self) -> Option<SocketAddr> {
        self.0.as_ref().map(|(_, address)| *address)
    }

    /// Answers until `work` has ended, so that a probe sees a draining process and not a dead one.
    pub(crate) async fn answer_during<T>(self, work: impl Future<Output = T>) -> T {
        let answer = async {
            match self.0 {
                Some((server, _)) => answer(server).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = work => ended,
            never = answer => match never {},
        }
    }
}

#[derive(Deserialize)]
struct Deadline {
    drain_deadline: Span,
}

/// The whole `main` of a service: `check` refuses a configuration that can't work, before the wait for services; `start`
/// starts its tasks, and answers its own URL if it has one besides the admin address.
///
/// `threads`: how many threads run its tasks; none: one per core. A worker that mostly waits for services needs one, and
/// wakes no other thread for each answer (measured at 300 messages/s: a tenth less CPU).
pub fn main(
    program: &Program,
    threads: Option<usize>,
    check: impl FnOnce(&Settings) -> anyhow::Result<()>,
    start: impl AsyncFnOnce(&Service) -> anyhow::Result<Option<String>>,
) -> ExitCode {
    let outcome = (|| {
        let matches = Settings::command(program).get_matches();
        let settings = Settings::load(program, &matches, config::environment())?;
        if Settings::print_wanted(&matches) {
            return print(settings.print());
        }
        prepare(&settings)?;
        check(&settings)?;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        if let Some(threads) = threads {
            runtime.worker_threads(threads);
        }
        let runtime = runtime.enable_all().build()?;
        runtime.block_on(serve(program, settings, start))
    })();
    report(program, outcome)
}

/// The exit code of an outcome; an error is printed on stderr.
pub fn report(program: &Program, outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error_line(format_args!("{}: {error:#}", program.name));
            ExitCode::FAILURE
        }
    }
}

/// Prints what a command was asked for. Unlike `print!`, it does not panic where the reader of the pipe has ended.
///
/// # Errors
/// When stdout can't be written.
pub fn print(text: impl std::fmt::Display) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).context("stdout can't be written")
}

/// Sets up the log and raises the limit on open files, before the process runs any task.
///
/// # Errors
/// When the log's configuration can't be used.
pub fn prepare(settings: &Settings) -> anyhow::Result<()> {
    let logs: Logs = settings.pick()?;
    telemetry::init(&logs.log, logs.log_format)?;
    telemetry::log_panics();
    for name in settings.unknown_environment() {
        tracing::warn!(name, "an environment variable that no key has");
    }
    if let Err(error) = limits::raise_open_files() {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
    Ok(())
}

async fn serve(
    program: &Program,
    settings: Settings,
    start: impl AsyncFnOnce(&Service) -> anyhow::Result<Option<String>>,
) -> anyhow::Result<()> {
    let shutdown = signal::shutdown().context("signals can't be listened to")?;
    let metrics = Metrics::new();
    let health = Health::new(shutdown.clone());
    let admin = Admin::bind(&settings, &health, &metrics).await?;
    let address = admin.address();
    admin.answer_during(work(program, settings, metrics, health, shutdown, address, start)).await
}

/// Waits for the services, runs until told to stop, drains, and closes the connections.
async fn work(
    program: &Program,
    settings: Settings,
    metrics: Metrics,
    health: Health,
    shutdown: CancellationToken,
    admin: Option<SocketAddr>,
    start: impl AsyncFnOnce(&Service) -> anyhow::Result<Option<String>>,
) -> anyhow::Result<()> {
    let Some(distributed) = Distributed::wait_for(&settings, &health, &shutdown).await? else {
        return Ok(());
    };
    let Deadline { drain_deadline } = settings.pick()?;
    let (supervisor, engines) = (Supervisor::new(program.name, shutdown, &metrics), distributed.engines());
    epoch::watch(engines.store.epochs.clone(), engines.store.epochs.get().await?, &supervisor);
    let service = Service { settings, engines, metrics, health, supervisor };
    if let Some(url) = start(&service).await?.or_else(|| Some(format!("http://{}", admin?))) {
        output::line(format_args!("listening on {url}"));
    }
    let Service { supervisor, .. } = service;
    let ended = supervisor.run(drain_deadline.into()).await;
    distributed.close().await;
    Ok(ended?)
}

/// Answers `/healthz`, `/readyz` and `/metrics` for ever.
async fn answer(admin: AdminServer) -> Infallible {
    let never = CancellationToken::new();
    loop {
        if let Err(error) = admin.serve(never.clone()).await {
            tracing::warn!(%error, "the admin address does not accept; trying again");
        }
        tokio::time::sleep(ACCEPT_AGAIN).await;
    }
}
