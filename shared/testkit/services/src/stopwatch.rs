//! Time as a test's bound counts it.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often the time is counted.
const TICK: Duration = Duration::from_millis(5);
/// What a tick counts at most, however late it comes.
const MAX_TICK: Duration = Duration::from_millis(50);

/// The time since a moment, without what the machine gave to others: where it stands still, or lets this process wait, a
/// bound that allows for a busy machine would still be too short. It is at most a tick behind.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    /// What was counted then.
    start: u64,
}

/// What this process has counted, in nanoseconds.
static COUNTED: AtomicU64 = AtomicU64::new(0);

impl Stopwatch {
    pub fn start() -> Self {
        static COUNTS: Once = Once::new();
        COUNTS.call_once(|| drop(thread::spawn(count)));
        Self { start: COUNTED.load(Ordering::Relaxed) }
    }

    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(COUNTED.load(Ordering::Relaxed) - self.start)
    }
}

fn count() {
    let mut last = Instant::now();
    loop {
        thread::sleep(TICK);
        let now = Instant::now();
        COUNTED.fetch_add(tick(now - last), Ordering::Relaxed);
        last = now;
    }
}

fn tick(took: Duration) -> u64 {
    u64::try_from(took.min(MAX_TICK).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_counts_as_one_tick() {
        assert_eq!(tick(Duration::from_secs(3)), tick(MAX_TICK));
        assert_eq!(tick(TICK), 5_000_000);
    }

    #[test]
    fn time_that_passes_is_counted() {
        let (watch, began) = (Stopwatch::start(), Instant::now());
        while watch.elapsed() < Duration::from_millis(200) {
            thread::sleep(TICK);
        }
        assert!(began.elapsed() + MAX_TICK >= Duration::from_millis(200), "{:?}", began.elapsed());
    }
}
