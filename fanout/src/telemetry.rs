//! What a fanout counts. All names are below `naru_fanout_`.

use naru_runtime::telemetry::Metrics;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

#[derive(Clone)]
pub(crate) struct Telemetry {
    pub(crate) published: Counter,
    pub(crate) offline: Counter,
    pub(crate) owed: Counter,
    pub(crate) presence_unknown: Counter,
    pub(crate) unpublished: Counter,
    pub(crate) retried: Counter,
    pub(crate) settled: Counter,
    pub(crate) batch: Histogram,
}

impl Telemetry {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let telemetry = Self {
            published: Counter::default(),
            offline: Counter::default(),
            owed: Counter::default(),
            presence_unknown: Counter::default(),
            unpublished: Counter::default(),
            retried: Counter::default(),
            settled: Counter::default(),
            batch: Histogram::new(exponential_buckets(1.0, 2.0, 9)),
        };
        metrics.register("fanout", |registry| {
            registry.register("published", "Messages given to the live layer", telemetry.published.clone());
            registry.register("offline", "Recipients without a session", telemetry.offline.clone());
            registry.register(
                "owed",
                "Recipients with a session, who get a push unless they prove to have the message",
                telemetry.owed.clone(),
            );
            registry.register(
                "presence_unknown",
                "Batches for which presence could not be asked",
                telemetry.presence_unknown.clone(),
            );
            registry.register(
                "unpublished",
                "Messages the live layer did not take; their recipients get pushes",
                telemetry.unpublished.clone(),
            );
            registry.register("retried", "Batches given back after a failure", telemetry.retried.clone());
            registry.register("settled", "Intake entries closed", telemetry.settled.clone());
            registry.register("batch", "Messages per batch", telemetry.batch.clone());
        });
        telemetry
    }
}
