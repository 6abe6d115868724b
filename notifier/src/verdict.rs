//! What a provider's answer means for a push.

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use naru_model::Timestamp;

/// Why, in words for an operator. It holds no content and no token.
pub type Reason = Cow<'static, str>;

/// A provider's answer, by what follows from it.
///
/// | verdict | the push | the token | the breaker |
/// |---|---|---|---|
/// | `Delivered` | recorded, done | stays | closes |
/// | `TokenDead` | parked | forgotten, unless registered again since | closes |
/// | `TooBig`, `Refused` | parked | stays | closes |
/// | `SlowDown` | again, not before that moment | stays | counts |
/// | `TryLater`, `OurConfiguration` | again, at its next rung | stays | counts |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The provider took it.
    Delivered {
        /// The provider's own name for it, or, where it gives none, its answer.
        provider_id: String,
    },
    /// The app is gone from the device.
    TokenDead {
        /// A token registered at or after this moment is a new one, and stays.
        since: Timestamp,
    },
    /// Our key, our topic, our account: an operator can mend it, so the push waits and the token stays.
    OurConfiguration(Reason),
    /// Not before then.
    SlowDown(Timestamp),
    /// Not now: no answer, or one that another try may change.
    TryLater(Reason),
    /// No try of the same push will be short enough.
    TooBig,
    /// No try of the same push will be taken.
    Refused(Reason),
}

impl Verdict {
    /// Whether it says that the next push will fare no better: what the breaker counts.
    pub const fn is_failing(&self) -> bool {
        matches!(self, Self::OurConfiguration(_) | Self::SlowDown(_) | Self::TryLater(_))
    }
}

/// The webhook's table. 2xx takes the push; 408, 425, 429 and 5xx are for later (when, if `Retry-After` says so);
/// every other status is a refusal, 3xx included: following a redirect would sign a push for whoever is there.
pub fn of_webhook(status: u16, retry_after: Option<&str>, now: Timestamp) -> Verdict {
    match status {
        200..=299 => Verdict::Delivered { provider_id: format!("status {status}") },
        408 | 425 | 429 | 500..=599 => match retry_after.and_then(|value| retry_moment(value, now)) {
            Some(until) => Verdict::SlowDown(until),
            None => Verdict::TryLater(format!("status {status}").into()),
        },
        _ => Verdict::Refused(format!("status {status}").into()),
    }
}

/// `Retry-After`: whole seconds from now, or an HTTP date (RFC 9110, section 10.2.3). None when it is neither.
fn retry_moment(value: &str, now: Timestamp) -> Option<Timestamp> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit()) {
        // More seconds than a number holds are as good as for ever.
        return Some(now.after(Duration::from_secs(value.parse().unwrap_or(u64::MAX))));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(Timestamp::from_millis(0).after(date.duration_since(UNIX_EPOCH).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22T09:30:00Z.
    const NOW: Timestamp = Timestamp::from_millis(1_795_339_800_000);

    fn in_seconds(seconds: u64) -> Timestamp {
        NOW.after(Duration::from_secs(seconds))
    }

    fn delivered(status: u16) -> Verdict {
        Verdict::Delivered { provider_id: format!("status {status}") }
    }

    fn later(status: u16) -> Verdict {
        Verdict::TryLater(format!("status {status}").into())
    }

    fn refused(status: u16) -> Verdict {
        Verdict::Refused(format!("status {status}").into())
    }

    #[test]
    fn the_webhooks_table() {
        let slow = |seconds| Verdict::SlowDown(in_seconds(seconds));
        let rows: [(u16, Option<&str>, Verdict); 25] = [
            (200, None, delivered(200)),
            (202, None, delivered(202)),
            (204, Some("60"), delivered(204)),
            (299, None, delivered(299)),
            (408, None, later(408)),
            (425, None, later(425)),
            (429, None, later(429)),
            (429, Some("0"), slow(0)),
            (429, Some(" 120 "), slow(120)),
            (429, Some("Sun, 22 Nov 2026 09:30:07 GMT"), slow(7)),
            (429, Some("-1"), later(429)),
            (429, Some("soon"), later(429)),
            (429, Some(""), later(429)),
            (500, None, later(500)),
            (503, Some("30"), slow(30)),
            (599, None, later(599)),
            (301, None, refused(301)),
            (304, None, refused(304)),
            (307, Some("5"), refused(307)),
            (400, None, refused(400)),
            (401, None, refused(401)),
            (404, Some("5"), refused(404)),
            (410, None, refused(410)),
            (413, None, refused(413)),
            (600, None, refused(600)),
        ];
        for (status, retry_after, verdict) in rows {
            assert_eq!(of_webhook(status, retry_after, NOW), verdict, "{status} {retry_after:?}");
        }
    }

    #[test]
    fn a_moment_that_has_passed_is_now_and_one_beyond_all_numbers_is_far() {
        let past = retry_moment("Sat, 21 Nov 2026 09:30:00 GMT", NOW).unwrap();
        assert_eq!(past.since(NOW), Duration::ZERO);
        let far = retry_moment("99999999999999999999999999", NOW).unwrap();
        assert!(far > in_seconds(u64::from(u32::MAX)));
    }
}
