//! The notifier's metrics, `naru_notifier_…`. The words of `outcome` are those of `Stage` where there is one.

use std::time::Duration;

use naru_engines::EngineResult;
use naru_model::Stage;
use naru_model::hops::Lane;
use naru_runtime::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLane {
    lane: &'static str,
}

impl From<Lane> for OfLane {
    fn from(lane: Lane) -> Self {
        Self { lane: lane.as_str() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pushed {
    lane: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Spared {
    reason: &'static str,
}

/// What is counted. Clones count together.
#[derive(Clone)]
pub(crate) struct Telemetry {
    offline_events: Counter,
    spared: Family<Spared, Counter>,
    no_provider: Family<OfLane, Counter>,
    pushes: Family<Pushed, Counter>,
    retries: Family<OfLane, Counter>,
    answers: Family<OfLane, Histogram, fn() -> Histogram>,
    paused: Family<OfLane, Gauge>,
    misconfigured: Family<OfLane, Counter>,
    tokens_removed: Family<OfLane, Counter>,
    devices_forgotten: Counter,
    engine_failures: Counter,
}

/// From a backend beside us (5 ms) to one that meets the default timeout (10 s).
const ANSWER_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

impl Telemetry {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let telemetry = Self {
            offline_events: Counter::default(),
            spared: Family::default(),
            no_provider: Family::default(),
            pushes: Family::default(),
            retries: Family::default(),
            answers: Family::new_with_constructor(|| Histogram::new(ANSWER_SECONDS)),
            paused: Family::default(),
            misconfigured: Family::default(),
            tokens_removed: Family::default(),
            devices_forgotten: Counter::default(),
            engine_failures: Counter::default(),
        };
        let of = telemetry.clone();
        metrics.register("notifier", |registry| {
            registry.register("offline_events", "Offline events turned into pushes", of.offline_events);
            registry.register("spared", "Recipients not pushed to: muted, received or read", of.spared);
            registry.register("no_provider", "Devices whose provider is not configured", of.no_provider);
            registry.register("pushes", "Pushes that ended, by how", of.pushes);
            registry.register("retries", "Pushes put off to a later try", of.retries);
            registry.register("answer_seconds", "From a push taken off its lane to the verdict", of.answers);
            registry.register("lane_paused", "1 while a failing provider's lane does not read", of.paused);
            registry.register(
                "configuration_refused",
                "Answers that say our key, topic or account is wrong: an operator has to act",
                of.misconfigured,
            );
            registry.register("tokens_removed", "Tokens a provider said are dead", of.tokens_removed);
            registry.register("devices_forgotten", "Devices unseen for too long", of.devices_forgotten);
            registry.register("engine_failures", "Failures of a store or bus", of.engine_failures);
        });
        telemetry
    }

    pub(crate) fn offline(&self, events: usize) {
        self.offline_events.inc_by(events as u64);
    }

    pub(crate) fn spared(&self, reason: &'static str) {
        self.spared.get_or_create(&Spared { reason }).inc();
    }

    pub(crate) fn no_provider(&self, lane: Lane) {
        self.no_provider.get_or_create(&lane.into()).inc();
    }

    /// A push ended as pushed, expired or parked.
    pub(crate) fn ended(&self, lane: Lane, stage: Stage) {
        self.outcome(lane, stage.as_str(), 1);
    }

    /// Pushes came again that a provider has already taken.
    pub(crate) fn repeated(&self, lane: Lane, pushes: usize) {
        self.outcome(lane, "repeated", pushes as u64);
    }

    fn outcome(&self, lane: Lane, outcome: &'static str, pushes: u64) {
        self.pushes.get_or_create(&Pushed { lane: lane.as_str(), outcome }).inc_by(pushes);
    }

    pub(crate) fn retried(&self, lane: Lane, pushes: usize) {
        self.retries.get_or_create(&lane.into()).inc_by(pushes as u64);
    }

    pub(crate) fn answered(&self, lane: Lane, after: Duration) {
        self.answers.get_or_create(&lane.into()).observe(after.as_secs_f64());
    }

    pub(crate) fn paused(&self, lane: Lane, paused: bool) {
        self.paused.get_or_create(&lane.into()).set(paused.into());
    }

    /// A provider says that our key, topic or account is wrong.
    pub(crate) fn misconfigured(&self, lane: Lane) {
        self.misconfigured.get_or_create(&lane.into()).inc();
    }

    pub(crate) fn token_removed(&self, lane: Lane) {
        self.tokens_removed.get_or_create(&lane.into()).inc();
    }

    pub(crate) fn devices_forgotten(&self, devices: u64) {
        self.devices_forgotten.inc_by(devices);
    }

    pub(crate) fn engine_failed(&self) {
        self.engine_failures.inc();
    }

    /// For a failure of an engine after which the worker goes on.
    pub(crate) fn log_failure(&self, result: EngineResult<()>, consequence: &'static str) {
        if let Err(error) = result {
            tracing::warn!(%error, "{consequence}");
            self.engine_failed();
        }
    }
}
