//! What is done with a push: pure, so that its whole behaviour is in one table and its properties can be tested.

use std::time::Duration;

use naru_model::hops::PushJob;
use naru_model::{Stage, Timestamp};

use crate::verdict::{Reason, Verdict};

/// What follows for the push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing is left to do.
    Done,
    /// Again, after this long.
    RetryAfter(Duration),
    /// Again, after this long, and even then not before that moment, which is further off than any rung.
    Postpone(Duration, Timestamp),
    /// Never again by itself: it is kept where it can be listed and replayed.
    Park(Stage, Reason),
}

impl Action {
    const EXPIRED: Self = Self::Park(Stage::Expired, Reason::Borrowed("expired"));
}

/// How long a push waits before its next try, by how often it was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ladder(pub [Duration; 5]);

impl Ladder {
    /// 5 s, 30 s, 2 m, 10 m, 30 m: DESIGN.md, "notifier". The distributed engine has a wait queue for each.
    pub const STANDARD: Self = Self([
        Duration::from_secs(5),
        Duration::from_secs(30),
        Duration::from_secs(2 * 60),
        Duration::from_secs(10 * 60),
        Duration::from_secs(30 * 60),
    ]);

    /// The wait after try number `attempt`, counted from 1; beyond the top it stays at the top.
    pub fn rung(&self, attempt: u32) -> Duration {
        let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        self.0.get(index).copied().unwrap_or(self.top())
    }

    /// The longest wait.
    pub const fn top(&self) -> Duration {
        self.0[self.0.len() - 1]
    }

    /// The first rung that is no shorter than `wait`, else the top.
    fn at_or_above(&self, wait: Duration) -> Duration {
        self.0.into_iter().find(|rung| *rung >= wait).unwrap_or(self.top())
    }
}

/// What is to be done with a push instead of sending it, if anything.
pub fn before_sending(job: &PushJob, now: Timestamp) -> Option<Action> {
    if now >= job.expires_at {
        return Some(Action::EXPIRED);
    }
    let not_before = job.not_before.filter(|moment| *moment > now)?;
    Some(Action::RetryAfter(not_before.since(now)))
}

/// What follows from the verdict on try number `attempt`, counted from 1. A push that would expire before its next
/// try has had its last one.
///
/// `chance`, from 0 to 1, takes up to a fifth off a wait that nobody asked for, so that what failed at the same moment does
/// not come back at the same moment. (An engine that keeps waits in rungs rounds it up again: there each push comes as long
/// after its failure as all others, and those were spread by the provider's answers.)
pub fn decide(
    verdict: &Verdict,
    attempt: u32,
    now: Timestamp,
    expires_at: Timestamp,
    ladder: &Ladder,
    chance: f64,
) -> Action {
    let park = |reason: &Reason| Action::Park(Stage::Parked, reason.clone());
    let spread = |delay: Duration| delay.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 5.0);
    let (delay, not_before) = match verdict {
        Verdict::Delivered { .. } => return Action::Done,
        Verdict::TokenDead { .. } => return park(&"the token is dead".into()),
        Verdict::TooBig => return park(&"too big for the provider".into()),
        Verdict::Refused(reason) => return park(reason),
        Verdict::OurConfiguration { .. } => (spread(ladder.rung(attempt)), now),
        Verdict::TryLater { at_least, .. } => {
            let rung = ladder.rung(attempt).max(ladder.at_or_above(*at_least));
            (spread(rung).max((*at_least).min(rung)), now)
        }
        Verdict::SlowDown { until, .. } => (ladder.at_or_above(until.since(now)), *until),
    };
    let next = now.after(delay);
    if next.max(not_before) >= expires_at {
        Action::EXPIRED
    } else if next < not_before {
        Action::Postpone(delay, not_before)
    } else {
        Action::RetryAfter(delay)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::verdict::Whose;

    const NOW: Timestamp = Timestamp::from_millis(1_795_339_800_000);
    const NEVER: Timestamp = Timestamp::from_millis(i64::MAX);
    const LADDER: Ladder = Ladder::STANDARD;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn slow_down(until: Timestamp) -> Verdict {
        Verdict::SlowDown { until, whose: Whose::Everybody }
    }

    fn try_later(at_least: Duration) -> Verdict {
        Verdict::TryLater { reason: "status 503".into(), at_least }
    }

    #[test]
    fn each_verdict_has_its_action() {
        let parked = |reason: &'static str| Action::Park(Stage::Parked, reason.into());
        let rows = [
            (Verdict::Delivered { provider_id: "7".into() }, Action::Done),
            (Verdict::TokenDead { since: NOW }, parked("the token is dead")),
            (
                Verdict::OurConfiguration { reason: "key".into(), whose: Whose::ThisDevice },
                Action::RetryAfter(seconds(5)),
            ),
            (slow_down(NOW.after(seconds(6))), Action::RetryAfter(seconds(30))),
            (slow_down(NOW.after(seconds(7200))), Action::Postpone(seconds(1800), NOW.after(seconds(7200)))),
            (try_later(seconds(0)), Action::RetryAfter(seconds(5))),
            (try_later(seconds(10)), Action::RetryAfter(seconds(30))),
            (try_later(seconds(900)), Action::RetryAfter(seconds(1800))),
            (Verdict::TooBig, parked("too big for the provider")),
            (Verdict::Refused("status 400".into()), parked("status 400")),
        ];
        for (verdict, action) in rows {
            assert_eq!(decide(&verdict, 1, NOW, NEVER, &LADDER, 0.0), action, "{verdict:?}");
        }
    }

    #[test]
    fn chance_shortens_a_wait_by_a_fifth_at_most_and_never_below_what_was_asked_for() {
        let wait = |verdict: &Verdict, chance| decide(verdict, 1, NOW, NEVER, &LADDER, chance);
        assert_eq!(wait(&try_later(seconds(0)), 1.0), Action::RetryAfter(seconds(4)));
        assert_eq!(wait(&try_later(seconds(10)), 1.0), Action::RetryAfter(seconds(24)));
        assert_eq!(wait(&try_later(seconds(29)), 1.0), Action::RetryAfter(seconds(29)));
        assert_eq!(wait(&slow_down(NOW.after(seconds(30))), 1.0), Action::RetryAfter(seconds(30)));
    }

    #[test]
    fn the_ladder_is_climbed_and_not_left() {
        let delays: Vec<_> = (1..=7).map(|attempt| LADDER.rung(attempt).as_secs()).collect();
        assert_eq!(delays, [5, 30, 120, 600, 1800, 1800, 1800]);
    }

    #[test]
    fn a_push_whose_next_try_would_come_too_late_has_expired() {
        let expires_at = NOW.after(seconds(600));
        let try_later = try_later(Duration::ZERO);
        let decide = |verdict, attempt, expires_at| decide(verdict, attempt, NOW, expires_at, &LADDER, 0.0);
        assert_eq!(decide(&try_later, 3, expires_at), Action::RetryAfter(seconds(120)));
        assert_eq!(decide(&try_later, 4, expires_at), Action::EXPIRED);
        let slow_down = slow_down(NOW.after(seconds(86400)));
        assert_eq!(decide(&slow_down, 1, NOW.after(seconds(7200))), Action::EXPIRED);
    }

    proptest! {
        #[test]
        fn a_wait_is_as_long_as_was_asked_for_and_within_a_fifth_of_a_rung(
            wait_ms in 0_u64..10_000_000, attempt in 0_u32..100, asked: bool, chance in 0.0..1.0,
        ) {
            let wait = Duration::from_millis(wait_ms);
            let until = NOW.after(wait);
            let verdict = if asked { slow_down(until) } else { try_later(wait) };
            let delay = match decide(&verdict, attempt, NOW, NEVER, &LADDER, chance) {
                Action::RetryAfter(delay) => delay,
                Action::Postpone(delay, not_before) => {
                    prop_assert_eq!((delay, not_before), (LADDER.top(), until));
                    delay
                }
                other => panic!("{other:?}"),
            };
            prop_assert!(LADDER.0.iter().any(|rung| delay <= *rung && delay * 5 >= *rung * 4));
            prop_assert!(delay >= wait.min(LADDER.top()));
        }

        #[test]
        fn a_push_is_never_tried_after_it_expired(
            wait_ms in 0_u64..100_000_000, attempt in 1_u32..10, ttl_ms in -1000_i64..100_000_000, asked: bool,
            chance in 0.0..1.0,
        ) {
            let wait = Duration::from_millis(wait_ms);
            let verdict = if asked { slow_down(NOW.after(wait)) } else { try_later(wait) };
            let expires_at = Timestamp::from_millis(NOW.as_millis() + ttl_ms);
            match decide(&verdict, attempt, NOW, expires_at, &LADDER, chance) {
                Action::RetryAfter(delay) => prop_assert!(NOW.after(delay) < expires_at),
                Action::Postpone(_, not_before) => prop_assert!(not_before < expires_at),
                action => prop_assert_eq!(action, Action::EXPIRED),
            }
        }
    }
}
