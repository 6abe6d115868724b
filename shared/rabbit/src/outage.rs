//! An operation that is retried until it works, and is logged twice: when it begins to fail, and when it works again.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// The wait before the next attempt: up to this, doubling with each failure in a row …
const BASE: Duration = Duration::from_millis(50);
/// … up to this: a broker that is back is found within it.
const CAP: Duration = Duration::from_secs(1);

/// The failures of one operation.
pub(crate) struct Outage {
    /// The operation, in words.
    what: String,
    since: Option<Instant>,
    failures: u32,
}

impl Outage {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), since: None, failures: 0 }
    }

    /// It failed. Logged the first time.
    pub(crate) fn began(&mut self, reason: &dyn std::fmt::Display) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            tracing::warn!(what = self.what, %reason, "failed; trying until it works again");
        }
    }

    /// It works. Logged if it had failed.
    pub(crate) fn ended(&mut self) {
        self.failures = 0;
        if let Some(since) = self.since.take() {
            tracing::info!(what = self.what, after = ?since.elapsed(), "works again");
        }
    }

    /// Waits before the next attempt, spread by full jitter so that operations that failed together are not retried together.
    pub(crate) async fn wait(&mut self) {
        let ceiling = BASE.saturating_mul(1 << self.failures.min(10)).min(CAP);
        self.failures += 1;
        sleep(rand::random_range(Duration::ZERO..=ceiling)).await;
    }
}
