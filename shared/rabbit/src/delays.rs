//! The delays that the broker can keep: a wait queue for each, because a message's own time to live would hold up every
//! shorter one behind it. A retry whose delay is none of these goes through several wait queues, one after the other.

use std::time::Duration;

/// How much later than requested an event may be delivered, if that saves a wait queue.
const TOLERANCE: Duration = Duration::from_millis(500);

/// The delays of each durable hop's wait queues, shortest first.
#[derive(Clone, Debug)]
pub(crate) struct WaitDelays(Vec<Duration>);

impl WaitDelays {
    /// Rounds to whole milliseconds, the broker's unit; a delay of zero is left out.
    pub(crate) fn new(delays: &[Duration]) -> Self {
        let whole = delays.iter().map(|delay| Duration::from_millis(millis(*delay)));
        let mut delays: Vec<_> = whole.filter(|delay| !delay.is_zero()).collect();
        delays.sort_unstable();
        delays.dedup();
        Self(delays)
    }

    pub(crate) fn all(&self) -> &[Duration] {
        &self.0
    }

    /// The longest one that ends before the rest of a retry's delay, or hardly after it. None when the rest is so short that a
    /// receiver holds the event.
    pub(crate) fn next(&self, remaining: Duration) -> Option<Duration> {
        let fits = |delay: &&Duration| remaining + TOLERANCE.min(**delay / 2) >= **delay;
        self.0.iter().rev().find(fits).copied()
    }
}

/// The name in a wait queue's name: `150ms`, `5s`, `2m`, `1h`. Different delays have different names.
pub(crate) fn name(delay: Duration) -> String {
    let millis = millis(delay);
    match millis {
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1_000) => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

/// In whole milliseconds, rounded up.
pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_longest_delay_that_fits_is_next() {
        let delays = WaitDelays::new(&[30 * SECOND, 5 * SECOND, SECOND, SECOND, Duration::ZERO]);
        assert_eq!(delays.all(), [SECOND, 5 * SECOND, 30 * SECOND]);
        assert_eq!(delays.next(Duration::ZERO), None);
        assert_eq!(delays.next(SECOND / 2 - Duration::from_millis(1)), None, "a receiver holds it");
        assert_eq!(delays.next(SECOND / 2), Some(SECOND));
        assert_eq!(delays.next(5 * SECOND - Duration::from_millis(20)), Some(5 * SECOND));
        assert_eq!(delays.next(29 * SECOND), Some(5 * SECOND));
        assert_eq!(delays.next(100 * SECOND), Some(30 * SECOND));
    }

    #[test]
    fn every_delay_is_kept_within_the_tolerance() {
        let delays = WaitDelays::new(&[1, 5, 30, 120, 600, 1_800].map(Duration::from_secs));
        for millis in (0..7_200_000).step_by(333) {
            let delay = Duration::from_millis(millis);
            let (mut waited, mut rounds) = (Duration::ZERO, 0);
            while let Some(wait) = delays.next(delay.saturating_sub(waited)).filter(|_| waited < delay) {
                waited += wait;
                rounds += 1;
            }
            assert!(waited <= delay + TOLERANCE && rounds <= 24, "{delay:?}: {waited:?} in {rounds}");
            assert!(
                delay.saturating_sub(waited) < TOLERANCE,
                "{delay:?}: a receiver holds it after {waited:?}"
            );
        }
    }

    #[test]
    fn delays_are_named_by_their_length() {
        let names = [150, 5_000, 90_000, 120_000, 1_800_000, 7_200_000].map(Duration::from_millis).map(name);
        assert_eq!(names, ["150ms", "5s", "90s", "2m", "30m", "2h"]);
    }
}
