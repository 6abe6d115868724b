//! The notifier's metrics, `naru_notifier_…`. The words of `outcome` are those of `PushStage` where there is one.

use std::time::Duration;

use naru_engines::EngineResult;
use naru_model::PushStage;
use naru_model::hops::Lane;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfLane {
    lane: &'static str,
}

impl From<Lane> for OfLane {
    fn from(lane: Lane) -> Self {
        Self { lane: lane.as_str() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Pushed {
    lane: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Spared {
    reason: &'static str,
}

/// From a backend close by (5 ms) to one that takes the default timeout (10 s).
const ANSWER_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

naru_runtime::metrics! {
    pub(crate) struct Telemetry("notifier") {
        offline_events: Counter, "Offline events turned into pushes";
        spared: Family<Spared, Counter>, "Recipients not pushed to: muted, received, read, deleted, not in the room or not at the device any more";
        no_provider: Family<OfLane, Counter>, "Pushes parked because their provider is not configured";
        pushes: Family<Pushed, Counter>, "Pushes that ended, by how";
        retries: Family<OfLane, Counter>, "Pushes put off to a later try";
        answer_seconds: Family<OfLane, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(ANSWER_SECONDS)), "From a push taken off its lane to the verdict";
        lane_paused: Family<OfLane, Gauge>, "1 while a failing provider's lane does not read";
        configuration_refused: Family<OfLane, Counter>, "Answers that say our key, topic or account is wrong: an operator has to act";
        tokens_removed: Family<OfLane, Counter>, "Tokens a provider said are dead";
        devices_forgotten: Counter, "Devices unseen for too long";
        parked: Gauge, "Pushes that are parked, as counted once an hour by one of the notifiers";
        parked_forgotten: Counter, "Pushes that were parked for longer than parked_keep";
        engine_failures: Counter, "Failures of a store or bus";
    }
}

impl Telemetry {
    pub(crate) fn offline(&self, events: usize) {
        self.offline_events.inc_by(events as u64);
    }

    pub(crate) fn count_spared(&self, reason: &'static str) {
        self.spared.get_or_create(&Spared { reason }).inc();
    }

    pub(crate) fn count_no_provider(&self, lane: Lane) {
        self.no_provider.get_or_create(&lane.into()).inc();
    }

    /// A push ended as pushed, expired or parked.
    pub(crate) fn ended(&self, lane: Lane, stage: PushStage) {
        self.outcome(lane, stage.as_str(), 1);
    }

    /// Pushes that a provider has already taken came again.
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
        self.answer_seconds.get_or_create(&lane.into()).observe(after.as_secs_f64());
    }

    pub(crate) fn paused(&self, lane: Lane, paused: bool) {
        self.lane_paused.get_or_create(&lane.into()).set(paused.into());
    }

    /// A provider answered that our key, topic or account is wrong.
    pub(crate) fn misconfigured(&self, lane: Lane) {
        self.configuration_refused.get_or_create(&lane.into()).inc();
    }

    pub(crate) fn token_removed(&self, lane: Lane) {
        self.tokens_removed.get_or_create(&lane.into()).inc();
    }

    pub(crate) fn count_devices_forgotten(&self, devices: u64) {
        self.devices_forgotten.inc_by(devices);
    }

    /// How many pushes are parked.
    pub(crate) fn parked(&self, count: u64) {
        self.parked.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn count_parked_forgotten(&self, pushes: u64) {
        self.parked_forgotten.inc_by(pushes);
    }

    pub(crate) fn engine_failed(&self) {
        self.engine_failures.inc();
    }

    /// Logs and counts an engine's failure after which the worker goes on.
    pub(crate) fn log_failure(&self, result: EngineResult<()>, consequence: &'static str) {
        if let Err(error) = result {
            tracing::warn!(%error, "{consequence}");
            self.engine_failed();
        }
    }
}
