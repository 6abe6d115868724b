//! The delay before the next attempt: doubling up to a cap, spread by full jitter so that callers that failed together
//! do not retry together.
//!
//! Full jitter (any wait between nothing and the doubled one) clears a contended service soonest with the fewest calls:
//! <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// The delays of one series of attempts. Pure: it never sleeps and reads no clock.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
    rng: StdRng,
}

impl Backoff {
    /// Delays of up to `base`, 2 × `base`, 4 × `base` …, and never more than `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self::seeded(base, cap, rand::random())
    }

    /// The same delays for the same seed, for a test that prints it.
    pub fn seeded(base: Duration, cap: Duration, seed: u64) -> Self {
        Self { base, cap, attempt: 0, rng: StdRng::seed_from_u64(seed) }
    }

    /// The delay after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let delay = full_jitter(self.base, self.cap, self.attempt, &mut self.rng);
        self.attempt = self.attempt.saturating_add(1);
        delay
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// The delay after failure number `attempt` (the first is 0), for a caller that keeps the count elsewhere, as a
/// message on a queue does.
pub fn full_jitter(base: Duration, cap: Duration, attempt: u32, rng: &mut impl Rng) -> Duration {
    rng.random_range(Duration::ZERO..=ceiling(base, cap, attempt))
}

/// `base` × 2^`attempt`, at most `cap`.
fn ceiling(base: Duration, cap: Duration, attempt: u32) -> Duration {
    let factor = 2_u32.checked_pow(attempt).unwrap_or(u32::MAX);
    base.saturating_mul(factor).min(cap)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_ceiling_doubles_up_to_the_cap() {
        let ceilings: Vec<_> = (0..6).map(|attempt| ceiling(100 * MS, 1000 * MS, attempt) / 100).collect();
        assert_eq!(ceilings, [MS, 2 * MS, 4 * MS, 8 * MS, 10 * MS, 10 * MS]);
    }

    #[test]
    fn a_reset_starts_over() {
        let mut backoff = Backoff::seeded(MS, Duration::from_secs(3600), 7);
        for _ in 0..40 {
            backoff.next_delay();
        }
        backoff.reset();
        assert!(backoff.next_delay() <= MS);
    }

    #[test]
    fn jitter_uses_the_whole_range() {
        let mut rng = StdRng::seed_from_u64(7);
        let delays: Vec<_> = (0..1000).map(|_| full_jitter(100 * MS, 100 * MS, 0, &mut rng)).collect();
        assert!(delays.iter().any(|delay| *delay < 10 * MS) && delays.iter().any(|delay| *delay > 90 * MS));
    }

    proptest! {
        #[test]
        fn no_delay_is_above_its_ceiling(
            base in 0_u32..100_000, cap in 0_u32..10_000_000, attempts in 1_u32..70, seed: u64,
        ) {
            let (base, cap) = (base * MS, cap * MS);
            let mut backoff = Backoff::seeded(base, cap, seed);
            for attempt in 0..attempts {
                let doubled = base.as_millis() << attempt;
                prop_assert!(backoff.next_delay().as_millis() <= doubled.min(cap.as_millis()));
            }
        }

        #[test]
        fn no_attempt_count_overflows(attempt: u32, base: Duration, cap: Duration, seed: u64) {
            let delay = full_jitter(base, cap, attempt, &mut StdRng::seed_from_u64(seed));
            prop_assert!(delay <= cap);
        }

        #[test]
        fn the_same_seed_waits_the_same(seed: u64) {
            let delays = |mut backoff: Backoff| (0..20).map(|_| backoff.next_delay()).collect::<Vec<_>>();
            let made = || Backoff::seeded(MS, Duration::from_secs(60), seed);
            prop_assert_eq!(delays(made()), delays(made()));
        }
    }
}
