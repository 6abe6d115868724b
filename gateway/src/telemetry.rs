//! What a gateway counts. All names are below `naru_gateway_`.

use naru_runtime::telemetry::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::refusal::{Close, Refusal};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

pub(crate) struct Telemetry {
    pub(crate) connections: Gauge,
    pub(crate) accepted: Counter,
    pub(crate) live_messages: Counter,
    pub(crate) delivered: Counter,
    pub(crate) proven: Counter,
    pub(crate) unrecorded: Counter,
    pub(crate) fetched: Counter,
    pub(crate) asked_to_sync: Counter,
    pub(crate) pings: Counter,
    pub(crate) intake_batch: Histogram,
    pub(crate) hand_over_batch: Histogram,
    pub(crate) in_hand: Gauge,
    refused: Family<Code, Counter>,
    closed: Family<Reason, Counter>,
}

impl Telemetry {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let telemetry = Self {
            connections: Gauge::default(),
            accepted: Counter::default(),
            live_messages: Counter::default(),
            delivered: Counter::default(),
            proven: Counter::default(),
            unrecorded: Counter::default(),
            fetched: Counter::default(),
            asked_to_sync: Counter::default(),
            pings: Counter::default(),
            intake_batch: Histogram::new(exponential_buckets(1.0, 2.0, 9)),
            hand_over_batch: Histogram::new(exponential_buckets(1.0, 2.0, 9)),
            in_hand: Gauge::default(),
            refused: Family::default(),
            closed: Family::default(),
        };
        metrics.register("gateway", |registry| {
            registry.register("connections", "Open WebSocket connections", telemetry.connections.clone());
            registry.register("accepted", "Messages written to the intake", telemetry.accepted.clone());
            registry.register("live_messages", "Messages that the live layer brought", telemetry.live_messages.clone());
            registry.register("delivered", "CHAT frames given to sessions", telemetry.delivered.clone());
            registry.register(
                "proven",
                "Deliveries proven by a pong, a RECEIVED or a READ",
                telemetry.proven.clone(),
            );
            registry.register(
                "unrecorded",
                "Proven deliveries that were not recorded; their recipients get pushes",
                telemetry.unrecorded.clone(),
            );
            registry.register(
                "fetched",
                "Messages that live ones had skipped, fetched from the store",
                telemetry.fetched.clone(),
            );
            registry.register(
                "asked_to_sync",
                "RESYNC frames given to sessions",
                telemetry.asked_to_sync.clone(),
            );
            registry.register(
                "intake_batch",
                "Messages per write to the intake",
                telemetry.intake_batch.clone(),
            );
            registry.register(
                "hand_over_batch",
                "Messages per hand-over to the persister",
                telemetry.hand_over_batch.clone(),
            );
            registry.register("pings", "Pings written", telemetry.pings.clone());
            registry.register("in_hand", "Messages taken and not yet answered", telemetry.in_hand.clone());
            registry.register("refused", "Frames and messages refused, by code", telemetry.refused.clone());
            registry.register("closed", "Connections that ended, by reason", telemetry.closed.clone());
        });
        telemetry
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.refused.get_or_create(&Code { code: refusal.row().code }).inc();
    }

    pub(crate) fn closed(&self, close: Close) {
        self.closed.get_or_create(&Reason { reason: close.as_str() }).inc();
    }
}
