//! What this process has seen of a gateway's lease, by its own monotonic clock. Where that is enough to judge whether the
//! lease runs, Redis's clock is not asked: it may be set forward or back at any time.

use std::time::{Duration, Instant};

/// What the look-ups of a lease have shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    /// How often the lease was renewed.
    renewals: u64,
    /// The last renewal came after this; none: no look-up has seen an earlier one.
    after: Option<Instant>,
    /// The last renewal came before this.
    before: Instant,
    /// When the last look-up began.
    last: Instant,
}

/// When a look-up began and ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LookUp {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
}

impl Sighting {
    /// A look-up has found that the lease was renewed that often.
    pub(crate) fn next(previous: Option<Self>, renewals: u64, at: LookUp) -> Self {
        match previous {
            // Two look-ups at the same time: the one that began later counts.
            Some(previous) if previous.last > at.began => previous,
            Some(previous) if previous.renewals == renewals => Self { last: at.began, ..previous },
            _ => Self {
                renewals,
                after: previous.map(|previous| previous.last),
                before: at.ended,
                last: at.began,
            },
        }
    }

    /// Whether the lease ran during a look-up, if these times tell.
    pub(crate) fn runs(&self, ttl: Duration, at: LookUp) -> Option<bool> {
        if self.after.is_some_and(|after| at.ended.saturating_duration_since(after) < ttl) {
            Some(true)
        } else if at.began.saturating_duration_since(self.before) > ttl {
            Some(false)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(6);

    #[test]
    fn a_lease_is_judged_by_the_renewals_that_were_seen() {
        let zero = Instant::now();
        let at = |seconds| LookUp {
            began: zero + Duration::from_secs(seconds),
            ended: zero + Duration::from_secs(seconds),
        };
        let mut seen = None;
        // When a look-up takes place, how often the lease was renewed by then, and whether it runs.
        for (seconds, renewals, runs) in [
            (0, 5, None),
            (5, 5, None),
            (7, 5, Some(false)),
            (8, 6, Some(true)),
            (12, 6, Some(true)),
            // It was renewed in second 7 or 8.
            (13, 6, None),
            (15, 6, Some(false)),
            // The renewal may have been at any time since the last look-up.
            (60, 7, None),
            (61, 8, Some(true)),
            // The engine has lost the lease, and its count began again.
            (62, 1, Some(true)),
        ] {
            let sighting = Sighting::next(seen, renewals, at(seconds));
            assert_eq!(sighting.runs(TTL, at(seconds)), runs, "in second {seconds}");
            seen = Some(sighting);
        }
    }

    #[test]
    fn of_two_look_ups_at_once_the_later_counts() {
        let zero = Instant::now();
        let at = |began, ended| LookUp {
            began: zero + Duration::from_secs(began),
            ended: zero + Duration::from_secs(ended),
        };
        let later = Sighting::next(None, 6, at(1, 2));
        assert_eq!(Sighting::next(Some(later), 5, at(0, 3)), later);
    }
}
