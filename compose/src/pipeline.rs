//! Four workers on one set of engines. The gateway starts after the other workers and stops before them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gateway::token::TokenConfig;
use naru_embedded::{Disk, Embedded, Options};
use naru_engines::Engines;
use naru_model::MessageId;
use naru_runtime::{Health, Metrics, Policy, Settings, Span, Supervisor};
use notifier::Notifier;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::demo::{self, Demo};
use crate::distributed::Distributed;
use crate::service::Admin;
use crate::{PROGRAM, epoch, secret};

/// How often the intake is read while the pipeline drains.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    Embedded,
    Distributed,
}

#[derive(Deserialize)]
struct Config {
    engine: Engine,
    data_dir: PathBuf,
    drain_deadline: Span,
    last_seen_keep: Span,
}

/// The workers' engines.
enum EngineSet {
    Embedded(Embedded),
    Distributed(Distributed),
}

impl EngineSet {
    /// None when shutdown came before the services answered.
    async fn on(
        engine: Engine,
        data_dir: &Path,
        last_seen_keep: Duration,
        settings: &Settings,
        health: &Health,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        match engine {
            Engine::Embedded => {
                let options = Options { last_seen_keep, ..Options::default() };
                let embedded = Embedded::open(data_dir, options)
                    .with_context(|| format!("the data in {} can't be opened", data_dir.display()))?;
                Ok(Some(Self::Embedded(embedded)))
            }
            Engine::Distributed => {
                Ok(Distributed::wait_for(settings, health, shutdown).await?.map(Self::Distributed))
            }
        }
    }

    fn engines(&self) -> Engines {
        match self {
            Self::Embedded(embedded) => embedded.engines(),
            Self::Distributed(distributed) => distributed.engines(),
        }
    }

    async fn close(self) {
        match self {
            Self::Embedded(embedded) => embedded.close().await,
            Self::Distributed(distributed) => distributed.close().await,
        }
    }
}

/// All of Naru, running.
pub struct Pipeline {
    url: String,
    admin: Admin,
    supervisor: Supervisor,
    engine_set: EngineSet,
    drain_deadline: Duration,
}

/// Receives the embedded engine.
pub type SeesEmbedded = dyn FnOnce(&Embedded) + Send;

/// Replacements by a test.
#[derive(Default)]
pub struct Changes {
    /// Wraps the engines, before any worker gets them.
    pub engines: Option<Box<dyn FnOnce(Engines) -> Engines + Send>>,
    /// Receives the embedded engine, before any worker does.
    pub embedded: Option<Box<SeesEmbedded>>,
    /// See `gateway::Config::erase_delay`.
    pub erase_delay: Option<Duration>,
    /// Changes the notifier, before it starts.
    pub notifier: Option<Box<dyn FnOnce(Notifier) -> Notifier + Send>>,
}

impl Pipeline {
    /// Starts all workers; when this returns, clients are served. None: shutdown came before the services answered.
    ///
    /// # Errors
    /// When the configuration can't work, the data can't be opened or the address can't be bound.
    pub async fn start(settings: &Settings, shutdown: CancellationToken) -> anyhow::Result<Option<Self>> {
        Self::start_with(settings, shutdown, Changes::default()).await
    }

    /// The same, with changes.
    ///
    /// # Errors
    /// As [`Pipeline::start`].
    pub fn start_with(
        settings: &Settings,
        shutdown: CancellationToken,
        changes: Changes,
    ) -> BoxFuture<'_, anyhow::Result<Option<Self>>> {
        Self::put_together(settings, shutdown, changes).boxed()
    }

    async fn put_together(
        settings: &Settings,
        shutdown: CancellationToken,
        changes: Changes,
    ) -> anyhow::Result<Option<Self>> {
        let Config { engine, data_dir, drain_deadline, last_seen_keep } = settings.pick()?;
        let mut tokens: TokenConfig = settings.pick()?;
        let has_own_key = tokens.jwt_secret.is_none()
            && tokens.jwt_public_key_file.is_none()
            && tokens.jwt_jwks_file.is_none()
            && tokens.jwt_jwks_url.is_none();
        if has_own_key {
            tokens.jwt_secret = Some(secret::of(settings)?);
        }
        gateway::check(&settings.pick()?, &tokens)?;

        let metrics = Metrics::new();
        let health = Health::new(shutdown.clone());
        let admin = Admin::bind(settings, &health, &metrics).await?;
        let opening = EngineSet::on(engine, &data_dir, last_seen_keep.into(), settings, &health, &shutdown);
        let Some(engine_set) = opening.await? else { return Ok(None) };
        if let (EngineSet::Embedded(embedded), Some(see)) = (&engine_set, changes.embedded) {
            see(embedded);
        }
        let mut engines = engine_set.engines();
        if let Some(change) = changes.engines {
            engines = change(engines);
        }
        if let EngineSet::Embedded(embedded) = &engine_set {
            register_checks(&health, &engines, embedded.disk());
        }
        let supervisor = Supervisor::new(PROGRAM.name, shutdown, &metrics);
        if let EngineSet::Distributed(_) = engine_set {
            epoch::watch(engines.store.epochs.clone(), engines.store.epochs.get().await?, &supervisor);
        }

        let mut gateway_config: gateway::Config = settings.pick()?;
        gateway_config.erase_delay = changes.erase_delay.unwrap_or(gateway_config.erase_delay);
        let bound =
            gateway::Bound::new(gateway_config, &tokens, engines.clone(), metrics.clone(), health.clone())
                .await?;
        let url = bound.url();
        let mut demo = Demo::wanted(settings, bound.address(), tokens.jwt_secret.as_ref(), has_own_key)?;

        // The other workers run until the gateway has drained: they answer its pending sends.
        let later = CancellationToken::new();
        let workers = supervisor.stopped_by(later.clone());
        persister::run(&settings.pick()?, engines.clone(), &metrics, &workers.for_owner("persister"));
        let no_more_proofs = CancellationToken::new();
        fanout::run(
            &settings.pick()?,
            engines.clone(),
            &metrics,
            &workers.for_owner("fanout"),
            no_more_proofs.clone(),
        );
        let mut notifier_config: notifier::Config = settings.pick()?;
        if let Some(demo) = &mut demo {
            demo.put_phones_on_the_desk(&mut notifier_config, &data_dir).await?;
        }
        let mut notifier = Notifier::new(notifier_config, engines.clone(), &metrics)?;
        if let Some(change) = changes.notifier {
            notifier = change(notifier);
        }
        notifier.spawn_on(&workers, &health);
        let recovered = persister::recover(&engines).await.context("the intake can't be read")?;
        if recovered > 0 {
            tracing::info!(
                recovered,
                "messages that were accepted before the last stop go on from where they were"
            );
        }

        let (drained, running) = (bound.drained(), engines.clone());
        let routes = demo.map(|demo| demo::routes(demo, supervisor.shutdown().clone()));
        bound.run(&supervisor.for_owner("gateway"), routes).await?;
        supervisor.spawn("stop in order", Policy::StopAll, move |_| {
            let (drained, later, engines) = (drained.clone(), later.clone(), running.clone());
            let no_more_proofs = no_more_proofs.clone();
            async move {
                drained.cancelled().await;
                // Every client has been disconnected: no further proof can come.
                no_more_proofs.cancel();
                // Messages left over are resent at the next start, but their recipients would wait until then.
                let _out_of_time = tokio::time::timeout(drain_deadline.0 / 4, run_empty(&engines)).await;
                later.cancel();
                Ok::<_, std::convert::Infallible>(())
            }
        });
        Ok(Some(Self { url, admin, supervisor, engine_set, drain_deadline: drain_deadline.into() }))
    }

    /// Where clients connect.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Runs until shutdown, drains, and closes the data.
    ///
    /// # Errors
    /// When a [`Policy::StopAll`] task failed, or tasks did not finish by the deadline.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self { admin, supervisor, engine_set, drain_deadline, .. } = self;
        let work = async {
            let ended = supervisor.run(drain_deadline).await;
            engine_set.close().await;
            Ok(ended?)
        };
        admin.answer_during(work).await
    }
}

/// Waits until every intake entry is closed, or the store does not answer.
async fn run_empty(engines: &Engines) {
    let mut checks = tokio::time::interval(CHECK_INTERVAL);
    while let Ok(Some(_)) = engines.store.intake.newest_open().await {
        checks.tick().await;
    }
}

fn register_checks(health: &Health, engines: &Engines, disk: Disk) {
    let store = engines.store.intake.clone();
    health.register("store", move || {
        let store = store.clone();
        async move {
            let no_message = [MessageId::from_bytes([0; 12])];
            store.get(&no_message).await.map(drop).map_err(|_| "the store does not answer".to_owned())
        }
        .boxed()
    });
    health.register("disk", move || {
        let disk = disk.clone();
        async move { disk.check().await.map_err(str::to_owned) }.boxed()
    });
    let presence = engines.presence.clone();
    health.register("presence", move || {
        let presence = presence.clone();
        async move { presence.online(&[]).await.map(drop).map_err(|_| "presence does not answer".to_owned()) }
            .boxed()
    });
}
