//! The meaning of a provider's answer for a push.
//!
//! Each provider has one table here; `docs/PUSH_VERDICTS.md` is made from them.

pub(crate) mod apns;
pub(crate) mod fcm;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use naru_model::Timestamp;

/// A reason in words for an operator. It holds no content and no token.
pub type Reason = Cow<'static, str>;

/// The wait after an answer that asks to slow down and names no time (Google's documentation of `QUOTA_EXCEEDED`).
const SLOW_DOWN: Duration = Duration::from_secs(60);
/// The shortest wait after a server's error (Google's documentation of `INTERNAL` and `UNAVAILABLE`).
pub(crate) const SERVER_ERROR: Duration = Duration::from_secs(10);

/// A provider's answer, by what follows from it.
///
/// | verdict | the push | the token | the breaker |
/// |---|---|---|---|
/// | `Delivered` | recorded, done | stays | closes |
/// | `TokenDead` | parked | forgotten, unless registered again since | closes |
/// | `TooBig`, `Refused` | parked | stays | closes |
/// | `SlowDown` | again, at that moment | stays | counts, unless it is this device's |
/// | `TryLater` | again, after its next step | stays | counts |
/// | `OurConfiguration` | again, after its next step; an alarm | stays | counts, unless it is this device's |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The provider took it.
    Delivered {
        /// The provider's own id for it, or, where it gives none, its answer.
        provider_id: String,
    },
    /// The app is gone from the device.
    TokenDead {
        /// A token registered at or after this moment is a new one, and stays.
        since: Timestamp,
    },
    /// Our key, topic or account is wrong: an operator can correct it, so the push waits and the token stays.
    OurConfiguration {
        reason: Reason,
        /// Which pushes fail by it.
        scope: Scope,
    },
    /// Not before `until`.
    SlowDown {
        until: Timestamp,
        /// Which pushes are too many.
        scope: Scope,
    },
    /// Not now: there is no answer, or one that another try may change.
    TryLater {
        reason: Reason,
        /// Not sooner than after this.
        at_least: Duration,
    },
    /// No try of the same push will be short enough.
    TooBig,
    /// No try of the same push will be taken.
    Refused(Reason),
}

/// Which pushes an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All pushes to this provider.
    Provider,
    /// The pushes to the device that this one was for.
    Device,
}

impl Verdict {
    /// Whether it means that the next push will fail, too: the breaker counts these.
    pub const fn is_failing(&self) -> bool {
        match self {
            Self::TryLater { .. } => true,
            Self::OurConfiguration { scope, .. } | Self::SlowDown { scope, .. } => {
                matches!(scope, Scope::Provider)
            }
            Self::Delivered { .. } | Self::TokenDead { .. } | Self::TooBig | Self::Refused(_) => false,
        }
    }
}

/// Retries after the push's next step.
pub(crate) fn try_later(reason: String) -> Verdict {
    Verdict::TryLater { reason: reason.into(), at_least: Duration::ZERO }
}

/// Retries at the time in `Retry-After`, or after the next step; never sooner than after `at_least`.
pub(crate) fn later(
    reason: String,
    at_least: Duration,
    retry_after: Option<&str>,
    now: Timestamp,
) -> Verdict {
    match retry_after.and_then(|value| retry_moment(value, now)) {
        Some(until) => Verdict::SlowDown { until: until.max(now.after(at_least)), scope: Scope::Provider },
        None => Verdict::TryLater { reason: reason.into(), at_least },
    }
}

/// The meaning of an answer, apart from the times that came with it: the rows of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    TokenDead,
    OurConfiguration(Scope),
    /// `Retry-After`, else 60 s.
    SlowDown(Scope),
    /// Not sooner than after this; `Retry-After` counts where there is one.
    TryLater(Duration),
    TooBig,
    Refused,
}

impl Meaning {
    /// The verdict on an answer to a call made at `called_at`.
    fn verdict(
        self,
        reason: String,
        retry_after: Option<&str>,
        called_at: Timestamp,
        now: Timestamp,
    ) -> Verdict {
        match self {
            Self::TokenDead => Verdict::TokenDead { since: called_at },
            Self::OurConfiguration(scope) => Verdict::OurConfiguration { reason: reason.into(), scope },
            Self::SlowDown(scope) => {
                let asked = retry_after.and_then(|value| retry_moment(value, now));
                Verdict::SlowDown { until: asked.unwrap_or(now.after(SLOW_DOWN)), scope }
            }
            Self::TryLater(at_least) => later(reason, at_least, retry_after, now),
            Self::TooBig => Verdict::TooBig,
            Self::Refused => Verdict::Refused(reason.into()),
        }
    }
}

/// The meaning of an answer without a known code, at FCM and APNs alike. No status alone means that a token is dead.
const fn by_status(status: u16) -> Meaning {
    match status {
        401 | 403 | 404 | 405 => Meaning::OurConfiguration(Scope::Provider),
        408 | 425 => Meaning::TryLater(Duration::ZERO),
        413 => Meaning::TooBig,
        429 => Meaning::SlowDown(Scope::Provider),
        500..=599 => Meaning::TryLater(SERVER_ERROR),
        // A proxy that redirects or an address that is not the provider's.
        300..=399 => Meaning::OurConfiguration(Scope::Provider),
        _ => Meaning::Refused,
    }
}

/// The webhook's table. 2xx: the push is delivered. 408, 425, 429 and 5xx: it is retried (at `Retry-After`, if given). Every
/// other status is a refusal, 3xx included: following a redirect would sign a push for an unknown server.
pub fn of_webhook(status: u16, retry_after: Option<&str>, now: Timestamp) -> Verdict {
    match status {
        200..=299 => Verdict::Delivered { provider_id: format!("status {status}") },
        408 | 425 | 429 | 500..=599 => later(format!("status {status}"), Duration::ZERO, retry_after, now),
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
