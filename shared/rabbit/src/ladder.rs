//! The delays that the broker can keep: a wait queue for each, because a delay of a message's own would hold up every
//! shorter one behind it.

use std::time::Duration;

/// The rungs of one hop, shortest first.
#[derive(Clone, Debug)]
pub(crate) struct Ladder(Vec<Duration>);

impl Ladder {
    /// Of whole milliseconds, which is what the broker counts in; a rung of nothing is none.
    pub(crate) fn new(rungs: impl IntoIterator<Item = Duration>) -> Self {
        let mut rungs: Vec<_> = rungs
            .into_iter()
            .map(|rung| Duration::from_millis(millis(rung)))
            .filter(|rung| !rung.is_zero())
            .collect();
        rungs.sort_unstable();
        rungs.dedup();
        Self(rungs)
    }

    pub(crate) fn rungs(&self) -> &[Duration] {
        &self.0
    }

    /// The first rung at or above `delay`, or the last. None when nothing needs to be waited for, or there are no rungs.
    pub(crate) fn rung(&self, delay: Duration) -> Option<Duration> {
        if delay.is_zero() {
            return None;
        }
        self.0.iter().find(|rung| **rung >= delay).or(self.0.last()).copied()
    }
}

/// A rung's name: `150ms`, `5s`, `2m`, `1h`. Different rungs have different names.
pub(crate) fn name(rung: Duration) -> String {
    let millis = millis(rung);
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
    fn a_delay_is_rounded_up_to_its_rung() {
        let ladder = Ladder::new([30 * SECOND, 5 * SECOND, 5 * SECOND, Duration::ZERO]);
        assert_eq!(ladder.rungs(), [5 * SECOND, 30 * SECOND]);
        assert_eq!(ladder.rung(Duration::ZERO), None);
        assert_eq!(ladder.rung(Duration::from_nanos(1)), Some(5 * SECOND));
        assert_eq!(ladder.rung(5 * SECOND), Some(5 * SECOND));
        assert_eq!(ladder.rung(6 * SECOND), Some(30 * SECOND));
        assert_eq!(ladder.rung(90 * SECOND), Some(30 * SECOND), "it goes round again");
    }

    #[test]
    fn rungs_are_named_by_their_length() {
        let names = [150, 5_000, 90_000, 120_000, 1_800_000, 7_200_000].map(Duration::from_millis).map(name);
        assert_eq!(names, ["150ms", "5s", "90s", "2m", "30m", "2h"]);
    }
}
