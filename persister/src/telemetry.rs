//! The persister's metrics.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

naru_runtime::metrics! {
    pub struct Telemetry("persister") {
        saved: Counter, "Messages that got their place";
        rejected: Counter, "Messages of a sender who is no member";
        seen_again: Counter, "Messages that were saved before";
        contended: Counter, "Runs that met another persister's";
        retried: Counter, "Batches that failed and come again";
        swept: Counter, "Open intake entries that were resent";
        batch: Histogram = Histogram::new(exponential_buckets(1.0, 2.0, 9)), "Messages per batch";
        accepted_to_saved_seconds: Histogram = Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
            "From the gateway's clock at acceptance to saved";
    }
}
