//! Removing what has been kept for long enough: in small batches with pauses, so that it holds up no one who writes (the embedded
//! engine has one writer). Each batch stands by itself: after a crash or a failure the next pass goes on with what is left.

use std::time::Duration;

use naru_model::MessageId;
use tokio::time::{Instant, sleep};

use crate::EngineResult;
use crate::store::Walked;

/// How many records one batch looks at, or removes, at most.
pub const BATCH: usize = 200;
/// The shortest pause after a batch.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// A pause is at least this many times as long as the work before it, which is not to take more than a fifth of the store.
const PAUSE_FACTOR: u32 = 4;

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
        pause_after(began).await;
    }
}

/// Calls `step` with the place where the step before ended, until the walk has ended; answers how many records it has removed, and the
/// id at which the last step but one ended: a later walk may begin there.
///
/// # Errors
/// That of the first step that failed: those before it stand.
pub async fn walk<F: Future<Output = EngineResult<Walked>>>(
    mut after: Option<MessageId>,
    mut step: impl FnMut(Option<MessageId>) -> F,
) -> EngineResult<(u64, Option<MessageId>)> {
    let mut removed = 0;
    loop {
        let began = Instant::now();
        let walked = step(after).await?;
        removed += walked.removed;
        if walked.next.is_none() {
            return Ok((removed, after));
        }
        after = walked.next;
        pause_after(began).await;
    }
}

/// The pause after a batch that began then.
pub async fn pause_after(began: Instant) {
    sleep(pause(MIN_PAUSE, began)).await;
}

/// How long to pause, `min` at least, after work in the store that began then and others should not wait for.
pub fn pause(min: Duration, began: Instant) -> Duration {
    min.max(PAUSE_FACTOR * began.elapsed())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

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

    #[tokio::test(start_paused = true)]
    async fn a_walk_goes_on_where_its_steps_end_also_where_they_remove_nothing() {
        let id = |byte| MessageId::from_bytes([byte; 12]);
        let steps = RefCell::new(vec![
            (Some(id(3)), Walked { removed: 5, next: None }),
            (Some(id(2)), Walked { removed: 0, next: Some(id(3)) }),
            (None, Walked { removed: 7, next: Some(id(2)) }),
        ]);
        let walked = walk(None, |after| {
            let (expected, step) = steps.borrow_mut().pop().unwrap();
            assert_eq!(after, expected);
            async move { Ok(step) }
        });
        assert_eq!(walked.await.unwrap(), (12, Some(id(3))));
    }
}
