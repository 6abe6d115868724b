//! What a worker does when an engine fails: it gives back what it holds, to come again later, and takes nothing more
//! until then.

use std::time::Duration;

use naru_engines::bus::{self, Receipt, Verdict};
use naru_engines::{EngineError, EngineResult};
use naru_runtime::Backoff;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// The wait after the first failure, at most, doubling …
const BASE: Duration = Duration::from_millis(100);
/// … up to this: so late are pushes at most when an engine is back.
const CAP: Duration = Duration::from_secs(5);

/// One worker's dealings with failing engines.
pub(crate) struct Trouble {
    /// The worker, in words.
    worker: &'static str,
    backoff: Backoff,
    telemetry: Telemetry,
}

impl Trouble {
    pub(crate) fn new(worker: &'static str, telemetry: Telemetry) -> Self {
        Self { worker, backoff: Backoff::new(BASE, CAP), telemetry }
    }

    /// Gives these back and waits, as long for both.
    pub(crate) async fn give_back(
        &mut self,
        receipts: Vec<Receipt>,
        error: EngineError,
        stop: &CancellationToken,
    ) {
        let delay = self.backoff.next_delay();
        tracing::warn!(worker = self.worker, %error, ?delay, given_back = receipts.len(), "an engine failed");
        self.telemetry.engine_failed();
        settle(receipts, Verdict::RetryAfter(delay), &self.telemetry).await;
        stop.run_until_cancelled(tokio::time::sleep(delay)).await;
    }

    /// Nothing failed this time.
    pub(crate) fn is_over(&mut self) {
        self.backoff.reset();
    }
}

/// Settles, and lets what can't be settled come again.
pub(crate) async fn settle(receipts: Vec<Receipt>, verdict: Verdict, telemetry: &Telemetry) {
    note(bus::settle(receipts, verdict).await, "could not settle; the deliveries come again", telemetry);
}

/// For a failure that needs no more than to be known.
pub(crate) fn note(result: EngineResult<()>, consequence: &'static str, telemetry: &Telemetry) {
    if let Err(error) = result {
        tracing::warn!(%error, "{consequence}");
        telemetry.engine_failed();
    }
}
