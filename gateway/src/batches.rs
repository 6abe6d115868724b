//! Work that comes one by one becomes batches: while one is in flight, the next one forms.
//!
//! Where a batch is done faster than another one can form, batches would shrink to one. So one that follows closely on
//! another waits a moment for more; work that comes after a pause waits for nothing.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

/// How large a batch may be and when it is taken.
pub(crate) struct Limits<T> {
    /// How many it holds at most.
    pub(crate) max: usize,
    /// A batch of this size takes no more. It may be larger by one item.
    pub(crate) max_size: usize,
    /// The size of one item: of a message, its bytes.
    pub(crate) size: fn(&T) -> usize,
    /// When it is taken though more may come.
    pub(crate) linger: Linger,
}

/// When a batch is taken though more may come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linger {
    /// Not sooner than this after the batch before it was done …
    pub(crate) span: Duration,
    /// … unless it holds this many: enough to be worth a round trip of its own.
    pub(crate) enough: usize,
}

impl Linger {
    /// A batch waits for nothing.
    pub(crate) const NONE: Linger = Linger { span: Duration::ZERO, enough: 0 };

    /// How long a batch of `waiting` waits for more. `idle`: since the last one was done; none for the first one.
    fn wait(self, waiting: usize, idle: Option<Duration>) -> Duration {
        match idle {
            Some(idle) if waiting < self.enough => self.span.saturating_sub(idle),
            _ => Duration::ZERO,
        }
    }
}

/// The receiving end of a queue, read in batches.
pub(crate) struct Batches<T> {
    queue: mpsc::Receiver<T>,
    limits: Limits<T>,
    /// A batch was handed out; the caller that asks for the next one is done with it.
    is_in_flight: bool,
    done_at: Option<Instant>,
}

impl<T> Batches<T> {
    pub(crate) fn new(queue: mpsc::Receiver<T>, limits: Limits<T>) -> Self {
        Self { queue, limits, is_in_flight: false, done_at: None }
    }

    /// Waits for the next batch and puts it into `batch`, which the caller has emptied; `false` when no more will come.
    /// Cancelled, it leaves in `batch` what it has taken from the queue.
    pub(crate) async fn next(&mut self, batch: &mut Vec<T>) -> bool {
        if std::mem::take(&mut self.is_in_flight) {
            self.done_at = Some(Instant::now());
        }
        if batch.is_empty() {
            match self.queue.recv().await {
                Some(first) => batch.push(first),
                None => return false,
            }
        }
        self.fill(batch);
        let idle = self.done_at.map(|done_at| done_at.elapsed());
        let wait = self.limits.linger.wait(batch.len(), idle);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
            self.fill(batch);
        }
        self.is_in_flight = true;
        true
    }

    /// Adds what is there, within the limits.
    pub(crate) fn fill(&mut self, batch: &mut Vec<T>) {
        let mut size: usize = batch.iter().map(self.limits.size).sum();
        while batch.len() < self.limits.max
            && size < self.limits.max_size
            && let Ok(next) = self.queue.try_recv()
        {
            size += (self.limits.size)(&next);
            batch.push(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINGER: Linger = Linger { span: Duration::from_millis(2), enough: 3 };

    fn batches(linger: Linger) -> (mpsc::Sender<usize>, Batches<usize>) {
        let (sender, queue) = mpsc::channel(16);
        (sender, Batches::new(queue, Limits { max: 4, max_size: 100, size: |size| *size, linger }))
    }

    #[test]
    fn only_a_small_batch_right_after_another_one_waits() {
        let wait = |waiting, idle| LINGER.wait(waiting, idle).as_micros();
        assert_eq!(wait(1, None), 0, "the first one waits for nothing");
        assert_eq!(wait(1, Some(Duration::ZERO)), 2_000);
        assert_eq!(wait(2, Some(Duration::from_micros(500))), 1_500);
        assert_eq!(wait(1, Some(Duration::from_millis(2))), 0, "after a pause nothing is waited for");
        assert_eq!(wait(1, Some(Duration::from_secs(9))), 0);
        assert_eq!(wait(3, Some(Duration::ZERO)), 0, "it is enough");
        assert_eq!(Linger::NONE.wait(1, Some(Duration::ZERO)), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_item_is_taken_at_once_and_what_follows_closely_is_taken_together() {
        let (sender, mut batches) = batches(LINGER);
        let (began, mut batch) = (Instant::now(), Vec::new());
        sender.send(1).await.unwrap();
        assert!(batches.next(&mut batch).await);
        assert_eq!((batch.len(), began.elapsed()), (1, Duration::ZERO));

        batch.clear();
        sender.send(1).await.unwrap();
        let later = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            sender.send(1).await.unwrap();
        };
        assert!(tokio::join!(batches.next(&mut batch), later).0);
        assert_eq!((batch.len(), began.elapsed()), (2, LINGER.span));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_limited_in_number_and_size_and_keeps_the_order() {
        let (sender, mut batches) = batches(Linger::NONE);
        for size in [1, 2, 3, 4, 60, 60, 60] {
            sender.send(size).await.unwrap();
        }
        drop(sender);
        let mut taken = Vec::new();
        let mut batch = Vec::new();
        while batches.next(&mut batch).await {
            taken.push(std::mem::take(&mut batch));
        }
        assert_eq!(taken, [vec![1, 2, 3, 4], vec![60, 60], vec![60]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_cancelled_loses_nothing() {
        let (sender, mut batches) = batches(LINGER);
        let mut batch = Vec::new();
        sender.send(1).await.unwrap();
        assert!(batches.next(&mut batch).await);
        batch.clear();
        sender.send(2).await.unwrap();
        let cancelled = tokio::time::timeout(Duration::from_micros(1), batches.next(&mut batch)).await;
        assert!(cancelled.is_err());
        sender.send(3).await.unwrap();
        assert!(batches.next(&mut batch).await);
        assert_eq!(batch, [2, 3]);
    }
}
