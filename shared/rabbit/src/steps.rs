//! The delays that the broker can keep: a wait queue for each, because a message's own time to live would hold up every
//! shorter one behind it. A delay between two steps goes through several wait queues, one after the other.

use std::time::Duration;

/// How much later than requested an event may be delivered, if that saves a wait queue.
const TOLERANCE: Duration = Duration::from_millis(500);

/// The steps of all hops, shortest first.
#[derive(Clone, Debug)]
pub(crate) struct Steps(Vec<Duration>);

impl Steps {
    /// Rounds to whole milliseconds, the broker's unit; a step of zero is left out.
    pub(crate) fn new(steps: &[Duration]) -> Self {
        let whole = steps.iter().map(|step| Duration::from_millis(millis(*step)));
        let mut steps: Vec<_> = whole.filter(|step| !step.is_zero()).collect();
        steps.sort_unstable();
        steps.dedup();
        Self(steps)
    }

    pub(crate) fn all(&self) -> &[Duration] {
        &self.0
    }

    /// The longest step that ends before the rest of a delay, or hardly after it. None when the rest is so short that a
    /// receiver holds the event.
    pub(crate) fn next(&self, remaining: Duration) -> Option<Duration> {
        let fits = |step: &&Duration| remaining + TOLERANCE.min(**step / 2) >= **step;
        self.0.iter().rev().find(fits).copied()
    }
}

/// A step's name: `150ms`, `5s`, `2m`, `1h`. Different steps have different names.
pub(crate) fn name(step: Duration) -> String {
    let millis = millis(step);
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
    fn the_longest_step_that_fits_is_next() {
        let steps = Steps::new(&[30 * SECOND, 5 * SECOND, SECOND, SECOND, Duration::ZERO]);
        assert_eq!(steps.all(), [SECOND, 5 * SECOND, 30 * SECOND]);
        assert_eq!(steps.next(Duration::ZERO), None);
        assert_eq!(steps.next(SECOND / 2 - Duration::from_millis(1)), None, "a receiver holds it");
        assert_eq!(steps.next(SECOND / 2), Some(SECOND));
        assert_eq!(steps.next(5 * SECOND - Duration::from_millis(20)), Some(5 * SECOND));
        assert_eq!(steps.next(29 * SECOND), Some(5 * SECOND));
        assert_eq!(steps.next(100 * SECOND), Some(30 * SECOND));
    }

    #[test]
    fn every_delay_is_kept_within_the_tolerance() {
        let steps = Steps::new(&[1, 5, 30, 120, 600, 1_800].map(Duration::from_secs));
        for millis in (0..7_200_000).step_by(333) {
            let delay = Duration::from_millis(millis);
            let (mut waited, mut rounds) = (Duration::ZERO, 0);
            while let Some(step) = steps.next(delay.saturating_sub(waited)).filter(|_| waited < delay) {
                waited += step;
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
    fn steps_are_named_by_their_length() {
        let names = [150, 5_000, 90_000, 120_000, 1_800_000, 7_200_000].map(Duration::from_millis).map(name);
        assert_eq!(names, ["150ms", "5s", "90s", "2m", "30m", "2h"]);
    }
}
