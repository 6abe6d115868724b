//! When a provider fails time after time, its lane stops reading, then probes with one push at a time.

use std::time::Duration;

use tokio::time::Instant;

use crate::decide::RetryPolicy;

/// This many failures in a row are the provider's, not the pushes'.
const FAILURES: u32 = 10;

/// Limits the pushes that a lane has in flight. It reads no clock.
#[derive(Debug)]
pub(crate) struct Breaker {
    retry_policy: RetryPolicy,
    /// In a row, since the last push that did not fail.
    failures: u32,
    /// Open: no push until then, and one at a time from then on.
    open_until: Option<Instant>,
}

impl Breaker {
    pub(crate) const fn new(retry_policy: RetryPolicy) -> Self {
        Self { retry_policy, failures: 0, open_until: None }
    }

    /// How many pushes may be under way: `max`, one probe or none.
    pub(crate) fn slots(&self, max: usize, now: Instant) -> usize {
        match self.open_until {
            None => max,
            Some(until) if now >= until => 1,
            Some(_) => 0,
        }
    }

    /// When the lane's present pause ends.
    pub(crate) fn pause(&self, now: Instant) -> Option<Instant> {
        self.open_until.filter(|until| now < *until)
    }

    /// The provider works: all pushes may pass.
    pub(crate) fn close(&mut self) {
        (self.failures, self.open_until) = (0, None);
    }

    /// Counts a failure of the provider, which may have `asked` for a pause; returns whether one began.
    pub(crate) fn fail(&mut self, now: Instant, asked: Duration) -> bool {
        if self.pause(now).is_some() {
            // This push was under way when the pause began.
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        let pauses = self.failures.saturating_sub(FAILURES - 1);
        if pauses > 0 {
            // No longer than the second step (30 s), unless the provider asks for longer: one call every 30 s is no load, and
            // pushes are at most that late when the provider comes back.
            let asked = asked.min(self.retry_policy.longest());
            self.open_until = Some(now + self.retry_policy.delay(pauses.min(2)).max(asked));
        }
        pauses > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 64;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn failing(times: u32, now: Instant) -> Breaker {
        let mut breaker = Breaker::new(RetryPolicy::STANDARD);
        for _ in 0..times {
            breaker.fail(now, Duration::ZERO);
        }
        breaker
    }

    #[test]
    fn nine_failures_change_nothing_and_the_tenth_pauses() {
        let now = Instant::now();
        assert_eq!(failing(9, now).slots(MAX, now), MAX);
        let open = failing(10, now);
        assert_eq!((open.slots(MAX, now), open.pause(now)), (0, Some(now + seconds(5))));
    }

    #[test]
    fn a_success_in_between_starts_the_count_over() {
        let now = Instant::now();
        let mut breaker = failing(9, now);
        breaker.close();
        breaker.fail(now, Duration::ZERO);
        assert_eq!(breaker.slots(MAX, now), MAX);
    }

    #[test]
    fn pushes_under_way_when_the_pause_began_do_not_lengthen_it() {
        let now = Instant::now();
        assert_eq!(failing(64, now).pause(now), Some(now + seconds(5)));
    }

    #[test]
    fn a_provider_that_asks_for_a_longer_pause_gets_it() {
        let now = Instant::now();
        let mut breaker = failing(9, now);
        assert!(breaker.fail(now, seconds(120)));
        assert_eq!(breaker.pause(now), Some(now + seconds(120)));
        let mut breaker = failing(9, now);
        assert!(breaker.fail(now, seconds(86_400)));
        assert_eq!(breaker.pause(now), Some(now + seconds(1800)), "but no longer than the longest step");
    }

    #[test]
    fn one_probe_decides() {
        let start = Instant::now();
        let mut breaker = failing(10, start);
        for pause in [5, 30, 30] {
            let now = breaker.pause(breaker.open_until.unwrap() - seconds(1)).unwrap();
            assert_eq!((breaker.slots(MAX, now), breaker.pause(now)), (1, None), "after {pause} s");
            assert!(breaker.fail(now, Duration::ZERO));
            assert_eq!(breaker.pause(now), Some(now + seconds(30)));
        }
        breaker.close();
        assert_eq!(breaker.slots(MAX, start), MAX);
    }
}
