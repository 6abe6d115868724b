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
    /// … unless it holds this many: enough to be worth a round trip of its own, …
    pub(crate) enough: usize,
    /// … or fewer than this many came in the last [`WINDOW`]: then latency is worth more than what a batch saves.
    pub(crate) busy_from: usize,
    /// Where a batch takes milliseconds, the next one begins no sooner than as long after it, and than this at most.
    pub(crate) max_costly: Duration,
}

/// What came in the last whole one says how much is coming.
const WINDOW: Duration = Duration::from_millis(100);

impl Linger {
    /// A batch waits for nothing.
    pub(crate) const NONE: Linger =
        Linger { span: Duration::ZERO, enough: 0, busy_from: 0, max_costly: Duration::ZERO };

    /// How long a batch of `waiting` waits for more. `done`: how long ago the last one was done, and how long it took; none for
    /// the first one. `came`: in the last window.
    fn wait(self, waiting: usize, done: Option<(Duration, Duration)>, came: usize) -> Duration {
        let Some((idle, took)) = done.filter(|_| waiting < self.enough) else { return Duration::ZERO };
        let span = if came >= self.busy_from { self.span } else { Duration::ZERO };
        // Less than a timer can tell is nothing.
        let costly = Some(took.min(self.max_costly)).filter(|span| *span >= Duration::from_millis(1));
        span.max(costly.unwrap_or_default()).saturating_sub(idle)
    }
}

/// How many came in the last window. It reads no clock.
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
    /// Since when a batch is handed out; the caller that asks for the next one is done with it.
    in_flight: Option<Instant>,
    /// When the last one was done, and how long it took.
    done: Option<(Instant, Duration)>,
    recent: Recent,
}

impl<T> Batches<T> {
    pub(crate) fn new(queue: mpsc::Receiver<T>, limits: Limits<T>) -> Self {
        Self { queue, limits, in_flight: None, done: None, recent: Recent::default() }
    }

    /// Waits for the next batch and puts it into `batch`, which the caller has emptied; `false` when no more will come.
    /// Cancelled, it leaves in `batch` what it has taken from the queue.
    pub(crate) async fn next(&mut self, batch: &mut Vec<T>) -> bool {
        if let Some(began) = self.in_flight.take() {
            self.done = Some((Instant::now(), began.elapsed()));
        }
        if batch.is_empty() {
            match self.queue.recv().await {
                Some(first) => batch.push(first),
                None => return false,
            }
        }
        self.fill(batch);
        let done = self.done.map(|(at, took)| (at.elapsed(), took));
        let wait = self.limits.linger.wait(batch.len(), done, self.recent.last);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
            self.fill(batch);
        }
        self.recent.add(batch.len(), Instant::now());
        self.in_flight = Some(Instant::now());
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

    const LINGER: Linger =
        Linger { span: Duration::from_millis(2), enough: 3, busy_from: 0, max_costly: Duration::ZERO };

    fn batches(linger: Linger) -> (mpsc::Sender<usize>, Batches<usize>) {
        let (sender, queue) = mpsc::channel(16);
        (sender, Batches::new(queue, Limits { max: 4, max_size: 100, size: |size| *size, linger }))
    }

    #[test]
    fn only_a_small_batch_right_after_another_one_waits() {
        let quick = Duration::from_micros(100);
        let wait = |waiting, idle: Option<Duration>| {
            LINGER.wait(waiting, idle.map(|idle| (idle, quick)), 0).as_micros()
        };
        assert_eq!(wait(1, None), 0, "the first one waits for nothing");
        assert_eq!(wait(1, Some(Duration::ZERO)), 2_000);
        assert_eq!(wait(2, Some(Duration::from_micros(500))), 1_500);
        assert_eq!(wait(1, Some(Duration::from_millis(2))), 0, "after a pause nothing is waited for");
        assert_eq!(wait(1, Some(Duration::from_secs(9))), 0);
        assert_eq!(wait(3, Some(Duration::ZERO)), 0, "it is enough");
        assert_eq!(Linger::NONE.wait(1, Some((Duration::ZERO, quick)), 9), Duration::ZERO);
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
        let just_done = |took| Some((Duration::ZERO, Duration::from_micros(took)));
        assert_eq!(linger.wait(1, just_done(100), 99), Duration::ZERO);
        assert_eq!(linger.wait(1, just_done(100), 100), LINGER.span);
        let linger = Linger { max_costly: Duration::from_millis(5), ..linger };
        assert_eq!(linger.wait(1, just_done(900), 1), Duration::ZERO, "less than a timer can tell");
        assert_eq!(linger.wait(1, just_done(3_000), 1), Duration::from_millis(3));
        assert_eq!(linger.wait(1, just_done(30_000), 1), Duration::from_millis(5));
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
