//! What a fanout counts. All names are below `naru_fanout_`.

use naru_runtime::telemetry::Metrics;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

#[derive(Clone)]
pub(crate) struct Telemetry {
    pub(crate) published: Counter,
    pub(crate) offline: Counter,
    pub(crate) unproven: Gauge,
    pub(crate) proven: Counter,
    pub(crate) without_proof: Counter,
    pub(crate) presence_unknown: Counter,
    pub(crate) unpublished: Counter,
    pub(crate) retried: Counter,
    pub(crate) closed: Counter,
    pub(crate) batch: Histogram,
}

impl Telemetry {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let batch = Histogram::new(exponential_buckets(1.0, 2.0, 9));
        metrics.register("fanout", |registry| {
            let mut counter = |name, help| {
                let counter = Counter::default();
                registry.register(name, help, counter.clone());
                counter
            };
            let telemetry = Self {
                published: counter("published", "Messages given to the live layer"),
                offline: counter(
                    "offline",
                    "Recipients handed to the notifier: without a session, or without a proof",
                ),
                proven: counter("proven", "Recipients with a session who have proven to have their message"),
                without_proof: counter(
                    "without_proof",
                    "Recipients with a session who had not at the grace time",
                ),
                presence_unknown: counter(
                    "presence_unknown",
                    "Batches for which presence could not be asked",
                ),
                unpublished: counter(
                    "unpublished",
                    "Messages the live layer did not take; their recipients get pushes",
                ),
                retried: counter("retried", "Batches that failed and come again"),
                closed: counter("closed", "Intake entries closed"),
                unproven: Gauge::default(),
                batch,
            };
            let help = "Messages that some recipient has still to prove";
            registry.register("unproven", help, telemetry.unproven.clone());
            registry.register("batch", "Messages per batch", telemetry.batch.clone());
            telemetry
        })
    }
}
