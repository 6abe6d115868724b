//! The values with which a process could start and not work: each is refused, with the reason, whichever program reads the
//! key.

use std::time::Duration;

use toml::Value;

use super::Span;

/// The values that a key may have.
#[derive(Debug)]
pub(super) enum Bound {
    /// An integer from the first to the second, both included.
    Count(i64, i64),
    /// A duration from the first to the second, both included.
    Time(Duration, Duration),
    /// The same, or empty: not set.
    TimeIfSet(Duration, Duration),
    /// A text that is not empty.
    Set,
    /// A URL that begins with one of these.
    Url(&'static [&'static str]),
    /// The same, or empty: not set.
    UrlIfSet(&'static [&'static str]),
}

const HTTP: &[&str] = &["http://", "https://"];
const MOMENT: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// A longer time is a typing error, and would overflow moments.
const YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// What MongoDB takes in one document, and RabbitMQ in one message: 16 MiB.
const MAX_DOCUMENT: i64 = 16 << 20;
/// Queues of this many entries are memory that no machine has.
const MAX_ENTRIES: i64 = 10_000_000;

/// Each key with a bound, and why. The schema's test holds that every number and every duration is here.
pub(super) const BOUNDS: &[(&str, Bound, &str)] = &[
    ("data_dir", Bound::Set, "the data needs a directory"),
    ("mongodb_url", Bound::Url(&["mongodb://", "mongodb+srv://"]), "it is the address of a service"),
    ("mongodb_database", Bound::Set, "the data needs a database"),
    ("amqp_url", Bound::Url(&["amqp://", "amqps://"]), "it is the address of a service"),
    (
        "partitions",
        Bound::Count(1, 64),
        "each partition is two queues, and each process subscribes to all queues of its hop",
    ),
    ("redis_url", Bound::Url(&["redis://", "rediss://"]), "it is the address of a service"),
    ("jwt_jwks_url", Bound::UrlIfSet(HTTP), "no key could be fetched"),
    (
        "jwt_jwks_refresh",
        Bound::Time(SECOND, DAY),
        "the set would be fetched without a pause, or a removed key still count",
    ),
    ("jwt_jwks_max_age", Bound::Time(SECOND, YEARS), "no fetched key would count"),
    ("jwt_leeway", Bound::Time(Duration::ZERO, DAY), "a token would be accepted long after its end"),
    (
        "max_content_bytes",
        Bound::Count(1, MAX_DOCUMENT),
        "no message could be sent, or none of that length stored",
    ),
    (
        "max_frame_bytes",
        Bound::Count(64, MAX_DOCUMENT),
        "no frame could be sent, or none of that length stored",
    ),
    (
        "max_room_members",
        Bound::Count(2, 100_000),
        "a direct room has two members, and a list of members is one document",
    ),
    ("rate_messages_per_second", Bound::Count(0, u32::MAX as i64), "it is a number of messages"),
    ("rate_burst", Bound::Count(0, u32::MAX as i64), "it is a number of messages"),
    ("rate_frames_per_second", Bound::Count(0, u32::MAX as i64), "it is a number of frames"),
    ("rate_frames_burst", Bound::Count(0, u32::MAX as i64), "it is a number of frames"),
    ("rate_calls_per_second", Bound::Count(0, u32::MAX as i64), "it is a number of calls"),
    ("rate_calls_burst", Bound::Count(0, u32::MAX as i64), "it is a number of calls"),
    ("rate_connects_per_second", Bound::Count(0, u32::MAX as i64), "it is a number of connections"),
    ("rate_connects_per_address", Bound::Count(0, u32::MAX as i64), "it is a number of connections"),
    ("max_sessions_per_user", Bound::Count(1, MAX_ENTRIES), "no client could connect"),
    ("max_rooms_per_user", Bound::Count(0, MAX_ENTRIES), "it is a number of rooms"),
    ("max_devices_per_user", Bound::Count(1, MAX_ENTRIES), "no device could be registered"),
    ("max_connections", Bound::Count(1, MAX_ENTRIES), "no client could connect"),
    (
        "session_queue",
        Bound::Count(1, MAX_ENTRIES),
        "no frame could be queued for a client: each would be closed at its first message",
    ),
    (
        "session_queue_bytes",
        Bound::Count(1024, i64::MAX),
        "no frame could be queued for a client: each would be closed at its second message",
    ),
    ("max_queued_bytes", Bound::Count(65_536, i64::MAX), "all new work would be refused as OVERLOADED"),
    ("max_pending_sends", Bound::Count(1, MAX_ENTRIES), "every message would be refused as OVERLOADED"),
    (
        "message_ttl",
        Bound::TimeIfSet(HOUR, YEARS),
        "messages would be gone before their recipients connect again",
    ),
    ("intake_keep", Bound::TimeIfSet(DAY, YEARS), "a message that is still under way would lose its content"),
    (
        "last_seen_keep",
        Bound::Time(SECOND, YEARS),
        "it would not be known of any user when they were last seen",
    ),
    (
        "parked_keep",
        Bound::TimeIfSet(HOUR, YEARS),
        "pushes would be gone before anyone could send them again",
    ),
    ("delivery_grace", Bound::Time(Duration::ZERO, DAY), "a push would come too late to be of use"),
    ("drain_deadline", Bound::Time(MOMENT, DAY), "every stop would cut off the work in hand"),
    (
        "http_keep_alive",
        Bound::Time(SECOND, DAY),
        "every connection would be closed before its request could be read",
    ),
    ("ping_interval", Bound::Time(MOMENT, DAY), "connections would be pinged without a pause"),
    (
        "push_concurrency",
        Bound::Count(1, u16::MAX as i64),
        "no push could be sent; a broker's channel holds 65,535 deliveries",
    ),
    ("push_ttl", Bound::Time(MOMENT, YEARS), "every push would be parked as expired"),
    ("push_loc_key", Bound::Set, "a phone would show nothing in place of hidden content"),
    (
        "push_device_ttl",
        Bound::Time(SECOND, YEARS),
        "devices would be removed before their apps register again",
    ),
    ("push_webhook_url", Bound::UrlIfSet(HTTP), "no push could be sent there"),
    ("fcm_base_url", Bound::UrlIfSet(HTTP), "no push could be sent there"),
    ("apns_base_url", Bound::UrlIfSet(HTTP), "no push could be sent there"),
    (
        "push_webhook_timeout",
        Bound::Time(Duration::from_millis(10), Duration::from_secs(600)),
        "every call would fail, or hold up its push for too long",
    ),
];

/// Why a value can't be used; none if it can.
pub(super) fn violation(key: &str, value: &Value) -> Option<String> {
    let (_, bound, why) = BOUNDS.iter().find(|(name, ..)| *name == key)?;
    let (is_within, wanted) = match bound {
        Bound::Count(min, max) => (
            value.as_integer().is_some_and(|count| (*min..=*max).contains(&count)),
            format!("be from {min} to {max}"),
        ),
        Bound::TimeIfSet(..) if value.as_str() == Some("") => return None,
        Bound::Time(min, max) | Bound::TimeIfSet(min, max) => {
            let span = match value.as_str().unwrap_or_default().parse::<Span>() {
                Ok(span) => span,
                Err(error) => return Some(format!("must be a duration like \"10s\" or \"1h 30m\": {error}")),
            };
            ((*min..=*max).contains(&span.0), format!("be from {} to {}", Span(*min), Span(*max)))
        }
        Bound::Url(schemes) => url(value, schemes),
        Bound::UrlIfSet(_) if value.as_str() == Some("") => return None,
        Bound::UrlIfSet(schemes) => url(value, schemes),
        Bound::Set => (value.as_str().is_some_and(|text| !text.trim().is_empty()), "not be empty".to_owned()),
    };
    (!is_within).then(|| format!("must {wanted}: {why}"))
}

fn url(value: &Value, schemes: &[&str]) -> (bool, String) {
    let has_scheme = |text: &str| {
        schemes.iter().any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
    };
    (value.as_str().is_some_and(has_scheme), format!("be a URL that begins with {}", schemes.join(" or ")))
}

/// Keys of which the first must be less than the second.
pub(super) const ORDERED: &[(&str, &str, &str)] = &[(
    "jwt_jwks_refresh",
    "jwt_jwks_max_age",
    "the keys would no longer count when the set is fetched again",
)];

/// The same, but only where the first was set: the second alone may be lowered, and is then the one that limits.
pub(super) const ORDERED_IF_SET: &[(&str, &str, &str)] =
    &[("max_content_bytes", "max_frame_bytes", "the frame holds the content and its other fields")];

/// A value as a number, to compare two of one unit.
pub(super) fn measure(value: &Value) -> Option<u128> {
    match value {
        Value::Integer(count) => u128::try_from(*count).ok(),
        Value::String(text) => text.parse::<Span>().ok().map(|span| span.0.as_nanos()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::SCHEMA;
    use super::*;

    #[test]
    fn every_number_and_every_duration_has_a_bound_that_its_default_keeps() {
        for key in SCHEMA.iter() {
            let is_duration = measure(&key.default).is_some();
            let is_bounded = BOUNDS.iter().any(|(name, ..)| *name == key.name);
            assert!(is_bounded || !is_duration, "{} has no row in BOUNDS", key.name);
            assert_eq!(violation(key.name, &key.default), None, "{}", key.name);
        }
        for (name, ..) in BOUNDS {
            assert!(SCHEMA.iter().any(|key| key.name == *name), "{name} is no key");
        }
        for (less, more, _) in ORDERED.iter().chain(ORDERED_IF_SET) {
            let default = |name| SCHEMA.iter().find(|key| key.name == name).map(|key| measure(&key.default));
            assert!(default(*less) < default(*more), "{less} and {more}");
        }
    }
}
