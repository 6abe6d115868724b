//! The fanout's metrics.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

naru_runtime::metrics! {
    pub(crate) struct Telemetry("fanout") {
        published: Counter, "Messages given to the live layer";
        offline: Counter, "Recipients in offline events: without a session, or without a proof";
        unproven: Gauge, "Messages that some recipient has not proven to have";
        proven: Counter, "Recipients with a session that have proven to have their message";
        without_proof: Counter, "Recipients with a session and no proof of delivery at the end of the grace time";
        presence_unknown: Counter, "Batches for which presence could not be asked";
        unpublished: Counter, "Messages the live layer did not take; their recipients get pushes";
        retried: Counter, "Batches that failed and come again";
        closed: Counter, "Intake entries closed";
        batch: Histogram = Histogram::new(exponential_buckets(1.0, 2.0, 9)), "Messages per batch";
    }
}
