//! Decides on a push by a pure function: its whole behaviour is in one table and its properties can be tested.

use std::time::Duration;

use naru_model::{PushStage, Timestamp};

use crate::verdict::{Reason, Verdict};

/// The next step of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is finished: the provider took it, and gave it this id.
    Ack { provider_id: String },
    /// It is tried again, after exactly this long.
    RetryAfter(Duration),
    /// It is not tried again by itself: it is kept where it can be listed and replayed.
    Park(PushStage, Reason),
}

impl Action {
    pub(crate) const EXPIRED: Self = Self::Park(PushStage::Expired, Reason::Borrowed("expired"));
}

/// How long a push waits before its next try, by how often it was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy(pub [Duration; 5]);

impl RetryPolicy {
    /// 5 s, 30 s, 2 m, 10 m, 30 m.
    pub const STANDARD: Self = Self([
        Duration::from_secs(5),
        Duration::from_secs(30),
        Duration::from_secs(2 * 60),
        Duration::from_secs(10 * 60),
        Duration::from_secs(30 * 60),
    ]);

    /// The wait after try number `attempt`, counted from 1; after the last step it stays the longest.
    pub fn delay(&self, attempt: u32) -> Duration {
        let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        self.0.get(index).copied().unwrap_or(self.longest())
    }

    /// The last step.
    pub const fn longest(&self) -> Duration {
        self.0[self.0.len() - 1]
    }
}

/// The action for the verdict on try number `attempt`, counted from 1. A push that would expire before its next try expires
/// now.
///
/// A time that the provider named is kept to the millisecond. `chance`, from 0 to 1, takes up to a fifth off any other wait,
/// or adds as much to the shortest wait that its provider documents, so that pushes that failed at the same time do not come
/// back at the same time.
pub(crate) fn decide(
    verdict: &Verdict,
    attempt: u32,
    now: Timestamp,
    expires_at: Timestamp,
    policy: &RetryPolicy,
    chance: f64,
) -> Action {
    let park = |reason: &Reason| Action::Park(PushStage::Parked, reason.clone());
    let fifth = chance.clamp(0.0, 1.0) / 5.0;
    let spread = |delay: Duration| delay.mul_f64(1.0 - fifth);
    let next_step = policy.delay(attempt);
    let delay = match verdict {
        Verdict::Delivered { provider_id } => return Action::Ack { provider_id: provider_id.clone() },
        Verdict::TokenDead { .. } => return park(&"the token is dead".into()),
        Verdict::TooBig => return park(&"too big for the provider".into()),
        Verdict::Refused(reason) => return park(reason),
        Verdict::OurConfiguration { .. } => spread(next_step),
        Verdict::TryLater { at_least, .. } => {
            let at_least = policy.longest().min(*at_least);
            if next_step <= at_least {
                at_least.mul_f64(1.0 + fifth)
            } else {
                spread(next_step).max(at_least)
            }
        }
        Verdict::SlowDown { until, .. } => match until.since(now) {
            // It asks for no wait, which would make an endless loop.
            Duration::ZERO => spread(next_step),
            asked => asked,
        },
    };
    if now.after(delay) >= expires_at { Action::EXPIRED } else { Action::RetryAfter(delay) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::verdict::Scope;

    const NOW: Timestamp = Timestamp::from_millis(1_795_339_800_000);
    const NEVER: Timestamp = Timestamp::from_millis(i64::MAX);
    const POLICY: RetryPolicy = RetryPolicy::STANDARD;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn slow_down(until: Timestamp) -> Verdict {
        Verdict::SlowDown { until, scope: Scope::Provider }
    }

    fn try_later(at_least: Duration) -> Verdict {
        Verdict::TryLater { reason: "status 503".into(), at_least }
    }

    #[test]
    fn each_verdict_has_its_action() {
        let parked = |reason: &'static str| Action::Park(PushStage::Parked, reason.into());
        let rows = [
            (Verdict::Delivered { provider_id: "7".into() }, Action::Ack { provider_id: "7".into() }),
            (Verdict::TokenDead { since: NOW }, parked("the token is dead")),
            (
                Verdict::OurConfiguration { reason: "key".into(), scope: Scope::Device },
                Action::RetryAfter(seconds(5)),
            ),
            (slow_down(NOW.after(seconds(6))), Action::RetryAfter(seconds(6))),
            (slow_down(NOW.after(seconds(7200))), Action::RetryAfter(seconds(7200))),
            (slow_down(NOW), Action::RetryAfter(seconds(5))),
            (slow_down(NOW.before(seconds(60))), Action::RetryAfter(seconds(5))),
            (try_later(seconds(0)), Action::RetryAfter(seconds(5))),
            (try_later(seconds(10)), Action::RetryAfter(seconds(10))),
            (try_later(seconds(900)), Action::RetryAfter(seconds(900))),
            (try_later(seconds(3600)), Action::RetryAfter(seconds(1800))),
            (Verdict::TooBig, parked("too big for the provider")),
            (Verdict::Refused("status 400".into()), parked("status 400")),
        ];
        for (verdict, action) in rows {
            assert_eq!(decide(&verdict, 1, NOW, NEVER, &POLICY, 0.0), action, "{verdict:?}");
        }
    }

    #[test]
    fn chance_changes_a_wait_by_a_fifth_at_most_and_never_below_what_was_asked_for() {
        let wait = |verdict: &Verdict, chance| decide(verdict, 1, NOW, NEVER, &POLICY, chance);
        assert_eq!(wait(&try_later(seconds(0)), 1.0), Action::RetryAfter(seconds(4)));
        assert_eq!(wait(&try_later(seconds(10)), 1.0), Action::RetryAfter(seconds(12)));
        assert_eq!(
            decide(&try_later(seconds(10)), 2, NOW, NEVER, &POLICY, 1.0),
            Action::RetryAfter(seconds(24))
        );
        assert_eq!(
            decide(&try_later(seconds(29)), 2, NOW, NEVER, &POLICY, 1.0),
            Action::RetryAfter(seconds(29))
        );
        assert_eq!(wait(&slow_down(NOW), 1.0), Action::RetryAfter(seconds(4)));
        assert_eq!(wait(&slow_down(NOW.after(seconds(30))), 1.0), Action::RetryAfter(seconds(30)));
    }

    #[test]
    fn the_waits_grow_up_to_the_longest() {
        let delays: Vec<_> = (1..=7).map(|attempt| POLICY.delay(attempt).as_secs()).collect();
        assert_eq!(delays, [5, 30, 120, 600, 1800, 1800, 1800]);
    }

    #[test]
    fn a_push_whose_next_try_would_come_too_late_has_expired() {
        let expires_at = NOW.after(seconds(600));
        let try_later = try_later(Duration::ZERO);
        let decide = |verdict, attempt, expires_at| decide(verdict, attempt, NOW, expires_at, &POLICY, 0.0);
        assert_eq!(decide(&try_later, 3, expires_at), Action::RetryAfter(seconds(120)));
        assert_eq!(decide(&try_later, 4, expires_at), Action::EXPIRED);
        let slow_down = slow_down(NOW.after(seconds(86400)));
        assert_eq!(decide(&slow_down, 1, NOW.after(seconds(7200))), Action::EXPIRED);
    }

    proptest! {
        #[test]
        fn a_wait_is_exactly_what_was_asked_for_or_within_a_fifth_of_a_step(
            wait_ms in 1_u64..10_000_000, attempt in 0_u32..100, asked: bool, chance in 0.0..1.0,
        ) {
            let wait = Duration::from_millis(wait_ms);
            let verdict = if asked { slow_down(NOW.after(wait)) } else { try_later(wait) };
            let Action::RetryAfter(delay) = decide(&verdict, attempt, NOW, NEVER, &POLICY, chance) else {
                panic!("it is tried again")
            };
            let at_least = wait.min(POLICY.longest());
            let is_its_step = delay <= POLICY.delay(attempt) && delay * 5 >= POLICY.delay(attempt) * 4;
            // A nanosecond for the rounding.
            let is_the_least = delay <= at_least.mul_f64(1.2) + Duration::from_nanos(1);
            prop_assert!(if asked { delay == wait } else { is_its_step || is_the_least }, "{:?}", delay);
            prop_assert!(asked || delay >= at_least, "{:?}", delay);
        }

        #[test]
        fn a_push_is_never_tried_after_it_expired(
            wait_ms in 0_u64..100_000_000, attempt in 1_u32..10, ttl_ms in -1000_i64..100_000_000, asked: bool,
            chance in 0.0..1.0,
        ) {
            let wait = Duration::from_millis(wait_ms);
            let verdict = if asked { slow_down(NOW.after(wait)) } else { try_later(wait) };
            let expires_at = Timestamp::from_millis(NOW.as_millis() + ttl_ms);
            match decide(&verdict, attempt, NOW, expires_at, &POLICY, chance) {
                Action::RetryAfter(delay) => prop_assert!(NOW.after(delay) < expires_at),
                action => prop_assert_eq!(action, Action::EXPIRED),
            }
        }
    }
}
