//! Groups items that come one by one into batches: while one batch is in flight, the next one forms.
//!
//! Where a batch is done faster than another one can form, batches would shrink to one item. So a batch that follows
//! closely on another waits a moment for more items; an item that comes after a pause does not wait.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

/// How large a batch may be and when it is taken.
pub(crate) struct Limits<T> {
    /// How many items it holds at most.
    pub(crate) max: usize,
    /// A batch of this size takes no more items. It may be larger by one item.
    pub(crate) max_size: usize,
    /// The size of one item: of a message, its bytes.
    pub(crate) size: fn(&T) -> usize,
    /// When it is taken though more items may come.
    pub(crate) linger: Linger,
}

/// When a batch is taken though more items may come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linger {
    /// Not sooner than this after the batch before it was taken …
    pub(crate) span: Duration,
    /// … unless it holds this many items: enough to be worth a round trip of its own, …
    pub(crate) enough: usize,
    /// … or fewer than this many came in the last [`WINDOW`]: then latency counts more than the saving of a batch.
    pub(crate) busy_from: usize,
}

/// The items of the last whole window predict how many are coming.
pub(crate) const WINDOW: Duration = Duration::from_millis(100);

impl Linger {
    /// How long a batch of `waiting` items waits for more. `since_last`: since the last batch was taken; none for the first.
    /// `came`: the items of the last window.
    fn wait(self, waiting: usize, since_last: Option<Duration>, came: usize) -> Duration {
        match since_last {
            Some(since_last) if waiting < self.enough && came >= self.busy_from => {
                self.span.saturating_sub(since_last)
            }
            _ => Duration::ZERO,
        }
    }
}

/// Counts the items of the last window. It reads no clock.
#[derive(Debug, Default)]
struct Recent {
    began: Option<Instant>,
    count: usize,
    last: usize,
}

impl Recent {
    fn add(&mut self, count: usize, now: Instant) {
        let age = self.began.map(|began| now.duration_since(began));
        match age {
            Some(age) if age < WINDOW => self.count += count,
            // After a pause the window before was empty.
            _ => {
                self.last = if age.is_some_and(|age| age < 2 * WINDOW) { self.count } else { 0 };
                (self.began, self.count) = (Some(now), count);
            }
        }
    }
}

/// The receiving end of a queue, read in batches.
pub(crate) struct Batches<T> {
    queue: mpsc::Receiver<T>,
    limits: Limits<T>,
    /// When the last batch was taken.
    last: Option<Instant>,
    recent: Recent,
}

impl<T> Batches<T> {
    pub(crate) fn new(queue: mpsc::Receiver<T>, limits: Limits<T>) -> Self {
        Self { queue, limits, last: None, recent: Recent::default() }
    }

    /// Waits for the next batch and puts it into `batch`, which the caller has emptied; `false` when no more will come.
    /// Cancelled, it leaves in `batch` the items that it has taken from the queue.
    pub(crate) async fn next(&mut self, batch: &mut Vec<T>) -> bool {
        if batch.is_empty() {
            match self.queue.recv().await {
                Some(first) => batch.push(first),
                None => return false,
            }
        }
        self.fill(batch);
        let since_last = self.last.map(|last| last.elapsed());
        let wait = self.limits.linger.wait(batch.len(), since_last, self.recent.last);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
            self.fill(batch);
        }
        let now = Instant::now();
        self.recent.add(batch.len(), now);
        self.last = Some(now);
        true
    }

    /// Adds the items of the queue, within the limits.
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

    const LINGER: Linger = Linger { span: Duration::from_millis(2), enough: 3, busy_from: 0 };

    fn batches(linger: Linger) -> (mpsc::Sender<usize>, Batches<usize>) {
        let (sender, queue) = mpsc::channel(16);
        (sender, Batches::new(queue, Limits { max: 4, max_size: 100, size: |size| *size, linger }))
    }

    #[test]
    fn only_a_small_batch_right_after_another_one_waits() {
        let wait = |waiting, since_last| LINGER.wait(waiting, since_last, 0).as_micros();
        assert_eq!(wait(1, None), 0, "the first one waits for nothing");
        assert_eq!(wait(1, Some(Duration::ZERO)), 2_000);
        assert_eq!(wait(2, Some(Duration::from_micros(500))), 1_500);
        assert_eq!(wait(1, Some(Duration::from_millis(2))), 0, "after a pause nothing is waited for");
        assert_eq!(wait(1, Some(Duration::from_secs(9))), 0);
        assert_eq!(wait(3, Some(Duration::ZERO)), 0, "it is enough");
    }

    #[test]
    fn where_little_comes_nothing_waits() {
        let linger = Linger { busy_from: 100, ..LINGER };
        let (start, mut recent) = (Instant::now(), Recent::default());
        let mut came = |millis, count| {
            recent.add(count, start + Duration::from_millis(millis));
            recent.last
        };
        assert_eq!([came(0, 40), came(50, 60), came(99, 1)], [0, 0, 0], "the first window is not over");
        assert_eq!([came(100, 7), came(199, 8)], [101, 101]);
        assert_eq!(came(200, 1), 15);
        assert_eq!(came(1_000, 1), 0, "after a pause");
        assert_eq!(linger.wait(1, Some(Duration::ZERO), 99), Duration::ZERO);
        assert_eq!(linger.wait(1, Some(Duration::ZERO), 100), LINGER.span);
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
        let (sender, mut batches) = batches(Linger { span: Duration::ZERO, ..LINGER });
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
