//! The last of the four workers turns offline events into pushes, and retries each until a provider has taken it.
//!
//! ```text
//!                    ┌─ push.fcm ─────▶ lane ──▶ FCM
//! offline ──▶ push ──┼─ push.apns ────▶ lane ──▶ APNs
//!                    └─ push.webhook ─▶ lane ──▶ the app's main backend
//! ```
//!
//! - `push` checks once more whether the recipient needs the push (not if the room is muted, or the message was received or
//!   read meanwhile), and puts one job per device, and one for the backend, on their lanes.
//! - A lane checks right before each send that its device is still its recipient's, its recipient still in the room, and the
//!   message still unread and unmuted, and hands it to its [`Provider`]. The [`Verdict`] decides: ack, retry
//!   or park (`docs/PUSH_VERDICTS.md` has every answer). The queue keeps a time that the provider named exactly. A lane whose
//!   provider keeps failing pauses; the other lanes are not affected.
//!
//! **No push is lost.** A job is acknowledged only after its effect: taken by the provider, or parked in the store.
//! **One push is sent once**, unless the process dies, or the store fails, between the provider's answer and its record.
//! The second call then carries the same event id, by which the provider or the backend can recognise it.
//!
//! A push whose provider is missing here, and wanted, is parked and counted in `naru_notifier_no_provider_total`; it goes out
//! once a notifier has the provider (`unprovided.rs`). `docs/PUSHES.md` shows what each provider is sent.

mod apns;
mod aps;
mod breaker;
mod decide;
mod deleted;
mod ended;
mod fcm;
mod fit;
mod google;
mod lane;
#[cfg(test)]
mod payloads;
mod provider;
mod push;
mod render;
mod retention;
mod telemetry;
mod transport;
mod unprovided;
mod verdict;
mod webhook;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use naru_engines::{BoxError, Engines};
use naru_model::hops;
use naru_runtime::config::optional;
use naru_runtime::{Health, Metrics, Policy, Secret, Span, Supervisor};
use serde::Deserialize;

use crate::apns::Apns;
pub use crate::aps::InterruptionLevel;
pub use crate::decide::RetryPolicy;
use crate::fcm::Fcm;
use crate::lane::LaneWorker;
pub use crate::provider::Provider;
use crate::push::Push;
use crate::telemetry::Telemetry;
use crate::unprovided::Unprovided;
pub use crate::verdict::{Reason, Scope, Verdict};
use crate::webhook::Webhook;

/// The keys that this worker reads; the runtime's `defaults.toml` explains them.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// The webhook's URL. It is hidden in logs, because it may hold a password.
    #[serde(deserialize_with = "optional")]
    pub push_webhook_url: Option<Secret>,
    /// The key that signs its calls.
    #[serde(deserialize_with = "optional")]
    pub push_webhook_secret: Option<Secret>,
    /// How long one call may take, from connecting to the answer.
    pub push_webhook_timeout: Span,
    /// How many pushes one lane has in flight.
    pub push_concurrency: NonZeroUsize,
    /// How long after the message was accepted a push is of use.
    pub push_ttl: Span,
    /// How long the message is kept; none: for ever.
    #[serde(deserialize_with = "optional")]
    pub message_ttl: Option<Span>,
    /// Whether pushes hide content and sender from all phones.
    pub push_hide_content: bool,
    /// The key, in the app's own strings, of the text that a phone shows instead.
    pub push_loc_key: String,
    /// The sound that a phone plays; none: it stays silent.
    #[serde(deserialize_with = "optional")]
    pub push_sound: Option<String>,
    /// Whether the notification service extension of an app on an iPhone runs.
    pub push_mutable_content: bool,
    /// How far a push interrupts the owner of an iPhone; none: Apple's default.
    #[serde(deserialize_with = "optional")]
    pub push_interruption_level: Option<InterruptionLevel>,
    /// The notification channel on Android; none: the one in the app's manifest.
    #[serde(deserialize_with = "optional")]
    pub push_android_channel: Option<String>,
    /// The title, in groups with a name, where a push has no line of its own for the group.
    pub push_group_title: String,
    /// A device that was not registered again for so long is forgotten.
    pub push_device_ttl: Span,
    /// A push that was parked for so long is forgotten; none: it never is.
    #[serde(deserialize_with = "optional")]
    pub parked_keep: Option<Span>,
    /// The service account whose project's apps FCM reaches.
    #[serde(deserialize_with = "optional")]
    pub fcm_service_account_file: Option<PathBuf>,
    /// FCM's base URL, if not Google's.
    #[serde(deserialize_with = "optional")]
    pub fcm_base_url: Option<String>,
    /// The key that signs APNs' provider tokens.
    #[serde(deserialize_with = "optional")]
    pub apns_key_file: Option<PathBuf>,
    #[serde(deserialize_with = "optional")]
    pub apns_key_id: Option<String>,
    /// The developer team's id.
    #[serde(deserialize_with = "optional")]
    pub apns_team_id: Option<String>,
    /// The app's bundle id.
    #[serde(deserialize_with = "optional")]
    pub apns_topic: Option<String>,
    /// APNs' base URL, if not Apple's; for both environments.
    #[serde(deserialize_with = "optional")]
    pub apns_base_url: Option<String>,
    /// Roots trusted in addition to the usual ones.
    #[serde(deserialize_with = "optional")]
    pub extra_ca_file: Option<PathBuf>,
}

impl Config {
    /// No push tells what a message said that is not kept any more.
    fn ttl(&self) -> Duration {
        self.message_ttl.map_or(self.push_ttl, |ttl| self.push_ttl.min(ttl)).into()
    }
}

/// Why the notifier can't start. No text here holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The webhook's URL can't be called.
    #[error("`push_webhook_url` is not an http or https URL")]
    WebhookUrl,
    /// The file of additional roots can't be used.
    #[error("`extra_ca_file`: can't use {}", path.display())]
    ExtraCa { path: PathBuf, source: BoxError },
    /// A provider's base URL can't be called.
    #[error("`{key}` is not an http or https URL")]
    BaseUrl {
        /// The key that has it.
        key: &'static str,
    },
    /// The file of FCM's service account can't be used.
    #[error("`fcm_service_account_file`: can't use {}", path.display())]
    ServiceAccount { path: PathBuf, source: BoxError },
    /// The file of the APNs key can't be used.
    #[error("`apns_key_file`: can't use {}", path.display())]
    ApnsKey { path: PathBuf, source: BoxError },
    /// A key is set without another that it needs.
    #[error("`{key}` is not set, which `{with}` needs")]
    Missing {
        /// The missing key.
        key: &'static str,
        /// The key that needs it.
        with: &'static str,
    },
    /// TLS can't be set up.
    #[error("can't make an HTTP client")]
    Client(#[source] reqwest::Error),
}

/// Refuses a configuration that can't work, before anything is started.
///
/// # Errors
/// As [`Notifier::new`].
pub fn check(config: &Config) -> Result<(), BuildError> {
    configured(config).map(drop)
}

fn configured(config: &Config) -> Result<Vec<Arc<dyn Provider>>, BuildError> {
    let all: [Option<Arc<dyn Provider>>; 3] = [
        Fcm::configured(config)?.map(|fcm| Arc::new(fcm) as _),
        Apns::configured(config)?.map(|apns| Arc::new(apns) as _),
        Webhook::configured(config)?.map(|webhook| Arc::new(webhook) as _),
    ];
    Ok(all.into_iter().flatten().collect())
}

/// The worker, ready to run.
pub struct Notifier {
    engines: Engines,
    config: Config,
    telemetry: Telemetry,
    providers: BTreeMap<hops::Lane, Arc<dyn Provider>>,
    retry_policy: RetryPolicy,
}

impl Notifier {
    /// The worker with the providers that are configured.
    ///
    /// # Errors
    /// When the configuration can't work, whatever the network does.
    pub fn new(config: Config, engines: Engines, metrics: &Metrics) -> Result<Self, BuildError> {
        let providers = configured(&config)?;
        if config.push_webhook_url.is_some() && config.push_webhook_secret.is_none() {
            tracing::warn!(
                "`push_webhook_secret` is not set: the backend can't tell Naru's pushes from another's"
            );
        }
        if config.push_webhook_secret.as_ref().is_some_and(|secret| secret.expose().len() < 32) {
            tracing::warn!(
                "`push_webhook_secret` has fewer than 32 bytes: it could be guessed from one call"
            );
        }
        let (telemetry, retry_policy) = (Telemetry::new(metrics), RetryPolicy::STANDARD);
        let notifier = Self { engines, config, telemetry, providers: BTreeMap::new(), retry_policy };
        Ok(providers.into_iter().fold(notifier, Self::with_provider))
    }

    /// Puts this provider on its lane, in place of the configured one.
    #[must_use]
    pub fn with_provider(mut self, provider: Arc<dyn Provider>) -> Self {
        self.providers.insert(provider.lane(), provider);
        self
    }

    /// Sets other waits between the tries of a push, for faster tests.
    #[must_use]
    pub fn with_retry_policy(self, retry_policy: RetryPolicy) -> Self {
        Self { retry_policy, ..self }
    }

    /// Starts a task each for offline events, for what is kept no longer, for pushes parked without a provider, and for each lane that
    /// has a provider. When stopped, they take no more and finish their work; work that the supervisor's deadline
    /// cuts off comes again. `health` is told of a provider that is missing.
    pub fn spawn_on(self, supervisor: &Supervisor, health: &Health) {
        let Self { engines, config, telemetry, providers, retry_policy } = self;
        if providers.is_empty() {
            tracing::warn!("no push provider is configured: users who are offline are not told of messages");
        }
        let supervisor = supervisor.for_owner("notifier");
        let lanes: BTreeSet<_> = providers.keys().copied().collect();
        let unprovided = Arc::new(Unprovided {
            engines: engines.clone(),
            lanes: lanes.clone(),
            // Two minutes.
            every: retry_policy.delay(3),
            health: health.clone(),
            telemetry: telemetry.clone(),
            reported: Mutex::default(),
            webhook: Default::default(),
        });
        let push = Arc::new(Push {
            engines: engines.clone(),
            lanes,
            unprovided: unprovided.clone(),
            ttl: config.ttl(),
            hides_content: config.push_hide_content,
            telemetry: telemetry.clone(),
        });
        supervisor.spawn("push", Policy::Restart, move |stop| push.clone().run(stop));
        supervisor.spawn("parked pushes", Policy::Restart, move |stop| {
            let unprovided = unprovided.clone();
            async move { unprovided.replay(stop).await }
        });
        let keep = retention::Keep {
            devices: config.push_device_ttl.into(),
            parked: config.parked_keep.map(Duration::from),
        };
        let kept = (engines.clone(), telemetry.clone());
        supervisor.spawn("retention", Policy::Restart, move |stop| {
            let (engines, telemetry) = kept.clone();
            retention::run(engines, keep, telemetry, stop)
        });
        for (name, provider) in providers {
            let lane = Arc::new(LaneWorker {
                provider,
                queue: engines.bus.push(name).clone(),
                store: engines.store.clone(),
                concurrency: config.push_concurrency,
                retry_policy,
                hides_content: config.push_hide_content,
                telemetry: telemetry.clone(),
            });
            supervisor.spawn(name.hop().name, Policy::Restart, move |stop| lane.clone().run(stop));
        }
    }
}

#[cfg(test)]
mod tests {
    use naru_runtime::{Program, Settings};

    use super::*;

    pub(crate) fn configured(environment: &[(&str, &str)]) -> Result<Config, naru_runtime::ConfigError> {
        const PROGRAM: Program = Program { name: "notifier", about: "", overrides: &[] };
        let matches = Settings::command(&PROGRAM).get_matches_from(["notifier"]);
        let environment = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        Settings::load(&PROGRAM, &matches, environment)?.pick()
    }

    #[test]
    fn the_keys_are_those_of_the_schema() {
        let config = configured(&[("NARU_PUSH_WEBHOOK_URL", "http://u:hunter2@backend/push")]).unwrap();
        assert!(config.push_webhook_url.is_some() && config.push_webhook_secret.is_none());
        assert_eq!(config.push_webhook_timeout, Span(Duration::from_secs(10)));
        assert_eq!(config.push_ttl, Span(Duration::from_secs(24 * 3600)));
        assert_eq!(config.push_concurrency.get(), 64);
        assert_eq!(config.push_device_ttl, Span(Duration::from_secs(270 * 24 * 3600)));
        assert_eq!(config.parked_keep, None);
        assert_eq!(config.ttl(), Duration::from_secs(24 * 3600));
        let forgetful = configured(&[("NARU_MESSAGE_TTL", "3h")]).unwrap();
        assert_eq!(forgetful.ttl(), Duration::from_secs(3 * 3600));
        assert_eq!((config.push_sound.as_deref(), config.push_mutable_content), (Some("default"), true));
        assert_eq!(config.push_android_channel.as_deref(), Some("messages"));
        let quiet = [("NARU_PUSH_SOUND", ""), ("NARU_PUSH_INTERRUPTION_LEVEL", "time-sensitive")];
        let quiet = configured(&quiet).unwrap();
        assert_eq!(quiet.push_sound, None);
        assert_eq!(quiet.push_interruption_level, Some(InterruptionLevel::TimeSensitive));
        assert!(configured(&[("NARU_PUSH_INTERRUPTION_LEVEL", "loud")]).is_err());
        assert!(!config.push_hide_content && config.fcm_service_account_file.is_none());
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(configured(&[("NARU_PUSH_CONCURRENCY", "0")]).is_err());
    }
}
