//! The metrics of a gateway.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::refusal::{Close, Refusal};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Code {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    reason: &'static str,
}

naru_runtime::metrics! {
    pub(crate) struct Telemetry("gateway") {
        connections: Gauge, "Open WebSocket connections";
        accepted: Counter, "Messages written to the intake";
        live_messages: Counter, "Messages that the live layer brought";
        delivered: Counter, "CHAT frames given to sessions";
        proven: Counter, "Deliveries proven by a pong, a RECEIVED or a READ";
        unrecorded: Counter, "Proven deliveries that were not recorded; their recipients get pushes";
        fetched: Counter, "Messages that live ones had skipped, fetched from the store";
        asked_to_sync: Counter, "RESYNC frames given to sessions";
        pings: Counter, "Pings written";
        dropped_signals: Counter, "TYPING, RECEIVED and READ frames that a session had no place for";
        queued_bytes: Gauge, "Bytes that wait for clients to read them, in queues of sessions and answers over HTTP";
        intake_batch: Histogram = Histogram::new(exponential_buckets(1.0, 2.0, 9)), "Messages per write to the intake";
        enqueue_batch: Histogram = Histogram::new(exponential_buckets(1.0, 2.0, 9)), "Messages per batch that is enqueued for the persister";
        in_flight: Gauge, "Messages taken and not yet answered";
        refused: Family<Code, Counter>, "Frames and messages refused, by code";
        closed: Family<Reason, Counter>, "Connections that ended, by reason";
    }
}

impl Telemetry {
    pub(crate) fn count_refused(&self, refusal: &Refusal) {
        self.refused.get_or_create(&Code { code: refusal.row().code }).inc();
    }

    pub(crate) fn count_closed(&self, close: Close) {
        self.closed.get_or_create(&Reason { reason: close.as_str() }).inc();
    }
}
