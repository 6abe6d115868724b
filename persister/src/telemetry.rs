//! The persister's metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Removed {
    kind: &'static str,
}

impl Removed {
    /// Members of rooms at versions that were left long ago.
    pub(crate) const ROOM_VERSIONS: Self = Self { kind: "room_versions" };
    /// Messages older than `message_ttl`.
    pub(crate) const MESSAGES: Self = Self { kind: "messages" };
    /// Contents of intake entries older than `intake_keep`.
    pub(crate) const INTAKE_CONTENTS: Self = Self { kind: "intake_contents" };
}

naru_runtime::metrics! {
    pub struct Telemetry("persister") {
        saved: Counter, "Messages that got their place";
        rejected: Counter, "Messages of a sender who is no member";
        seen_again: Counter, "Messages that were saved before";
        contended: Counter, "Runs that met another persister's";
        retried: Counter, "Batches that failed and come again";
        swept: Counter, "Open intake entries that were resent";
        removed: Family<Removed, Counter>, "Records that were kept for long enough and removed, by kind";
        batch: Histogram = Histogram::new(exponential_buckets(1.0, 2.0, 9)), "Messages per batch";
        accepted_to_saved_seconds: Histogram = Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
            "From the gateway's clock at acceptance to saved";
    }
}

impl Telemetry {
    pub(crate) fn removed(&self, kind: Removed, count: u64) {
        if count > 0 {
            self.removed.get_or_create(&kind).inc_by(count);
        }
    }
}
