//! Removing what has been kept for long enough: in small batches with pauses, so that it holds up no one who writes (the embedded
//! engine has one writer). Each batch stands by itself: after a crash or a failure the next pass goes on with what is left.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::EngineResult;

/// How many records one batch removes at most.
pub const BATCH: usize = 200;
/// The shortest pause after a batch.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// A pause is at least this many times as long as its batch: removing is not to take more than a fifth of the store.
const PAUSE: u32 = 4;

/// Calls `remove` until it has removed nothing; answers how many it has removed in all.
///
/// # Errors
/// That of the first batch that failed: those before it stand.
pub async fn in_batches<F: Future<Output = EngineResult<u64>>>(
    mut remove: impl FnMut() -> F,
) -> EngineResult<u64> {
    let mut removed = 0;
    loop {
        let began = Instant::now();
        match remove().await? {
            0 => return Ok(removed),
            batch => removed += batch,
        }
        sleep(MIN_PAUSE.max(PAUSE * began.elapsed())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_batch_takes_no_more_than_a_fifth_of_the_time() {
        let (began, mut left) = (Instant::now(), vec![1, 100, 200]);
        let removed = in_batches(|| {
            let batch = left.pop().unwrap_or(0);
            async move {
                sleep(Duration::from_millis(batch)).await;
                Ok(batch)
            }
        });
        assert_eq!(removed.await.unwrap(), 301);
        assert_eq!(began.elapsed(), Duration::from_millis(200 + 800 + 100 + 400 + 1 + 20));
    }
}
