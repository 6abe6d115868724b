//! What a persister counts. All names are below `naru_persister_`.

use naru_runtime::telemetry::Metrics;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// The handles.
#[derive(Clone)]
pub struct Telemetry {
    pub(crate) saved: Counter,
    pub(crate) rejected: Counter,
    pub(crate) seen_again: Counter,
    pub(crate) contended: Counter,
    pub(crate) retried: Counter,
    pub(crate) swept: Counter,
    pub(crate) batch: Histogram,
    pub(crate) accepted_to_saved: Histogram,
}

impl Telemetry {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let telemetry = Self {
            saved: Counter::default(),
            rejected: Counter::default(),
            seen_again: Counter::default(),
            contended: Counter::default(),
            retried: Counter::default(),
            swept: Counter::default(),
            batch: Histogram::new(exponential_buckets(1.0, 2.0, 9)),
            accepted_to_saved: Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
        };
        metrics.register("persister", |registry| {
            registry.register("saved", "Messages that got their place", telemetry.saved.clone());
            registry.register("rejected", "Messages of someone who is no member", telemetry.rejected.clone());
            registry.register("seen_again", "Messages that were saved before", telemetry.seen_again.clone());
            registry.register("contended", "Runs that met another persister's", telemetry.contended.clone());
            registry.register("retried", "Batches given back after a failure", telemetry.retried.clone());
            registry.register("swept", "Open intake entries handed on again", telemetry.swept.clone());
            registry.register("batch", "Messages per batch", telemetry.batch.clone());
            registry.register(
                "accepted_to_saved_seconds",
                "From the gateway's clock at acceptance to saved",
                telemetry.accepted_to_saved.clone(),
            );
        });
        telemetry
    }
}
