//! APNs: <https://developer.apple.com/documentation/usernotifications/handling-notification-responses-from-apns>. What counts
//! is the `reason`; an unknown one goes by its status.

use std::time::Duration;

use a2::response::{ErrorBody, ErrorReason};
use naru_model::Timestamp;
use serde::Deserialize;

use super::{Meaning, SERVER_ERROR, Verdict, Whose, by_status};
use crate::transport::Answer;

/// How long Apple's servers are left alone after an error of theirs.
const SERVER_ERROR_AT_APPLE: Duration = Duration::from_secs(15 * 60);

/// The verdict on an answer to a call made at `called_at`.
pub(crate) fn of_apns(answer: &Answer, called_at: Timestamp, now: Timestamp) -> Verdict {
    if answer.status == 200 {
        let id = answer.header("apns-id").unwrap_or("status 200");
        return Verdict::Delivered { provider_id: id.to_owned() };
    }
    let body: Option<ErrorBody> = serde_json::from_slice(&answer.body).ok();
    let (meaning, name) = match &body {
        Some(body) => (of_reason(&body.reason), format!("{:?}", body.reason)),
        None => (unknown(answer.status), unknown_name(&answer.body)),
    };
    // Apple says since when it knows.
    let since = body.and_then(|body| i64::try_from(body.timestamp?).ok()).map(Timestamp::from_millis);
    let reason = format!("APNs: status {} {name}", answer.status);
    meaning.verdict(reason.trim_end().to_owned(), answer.retry_after(), since.unwrap_or(called_at), now)
}

/// The table: every reason that Apple documents. A new one in the crate does not compile until it is decided on.
pub(super) fn of_reason(reason: &ErrorReason) -> Meaning {
    use ErrorReason as R;
    match reason {
        R::BadDeviceToken | R::Unregistered | R::ExpiredToken => Meaning::TokenDead,
        // The app that registered has another bundle id than `apns_topic`.
        R::DeviceTokenNotForTopic => Meaning::OurConfiguration(Whose::ThisDevice),
        R::BadTopic
        | R::MissingTopic
        | R::TopicDisallowed
        | R::BadCertificate
        | R::BadCertificateEnvironment
        | R::ExpiredProviderToken
        | R::Forbidden
        | R::InvalidProviderToken
        | R::MissingProviderToken
        | R::UnrelatedKeyIdInToken
        | R::BadEnvironmentKeyIdInToken
        | R::BadPath
        | R::MethodNotAllowed => Meaning::OurConfiguration(Whose::Everybody),
        R::BadCollapseId
        | R::BadExpirationDate
        | R::BadMessageId
        | R::BadPriority
        | R::DuplicateHeaders
        | R::InvalidPushType
        | R::MissingDeviceToken
        | R::PayloadEmpty => Meaning::Refused,
        R::PayloadTooLarge => Meaning::TooBig,
        R::TooManyRequests => Meaning::SlowDown(Whose::ThisDevice),
        R::TooManyProviderTokenUpdates => Meaning::SlowDown(Whose::Everybody),
        // Only this connection.
        R::IdleTimeout => Meaning::TryLater(Duration::ZERO),
        // Only this server: the next connection leads to another one.
        R::Shutdown => Meaning::TryLater(SERVER_ERROR),
        R::InternalServerError | R::ServiceUnavailable => Meaning::TryLater(SERVER_ERROR_AT_APPLE),
    }
}

pub(super) const fn unknown(status: u16) -> Meaning {
    match status {
        500..=599 => Meaning::TryLater(SERVER_ERROR_AT_APPLE),
        _ => by_status(status),
    }
}

/// A reason that is not documented.
fn unknown_name(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        reason: String,
    }
    let name = serde_json::from_slice(body).map_or_else(|_| String::new(), |Body { reason }| reason);
    name.chars().filter(char::is_ascii_alphanumeric).take(40).collect()
}

/// The rows of the page.
#[cfg(test)]
pub(super) fn rows() -> Vec<(String, Meaning)> {
    const REASONS: [&str; 32] = [
        "BadDeviceToken",
        "Unregistered",
        "ExpiredToken",
        "DeviceTokenNotForTopic",
        "BadTopic",
        "MissingTopic",
        "TopicDisallowed",
        "BadCertificate",
        "BadCertificateEnvironment",
        "ExpiredProviderToken",
        "Forbidden",
        "InvalidProviderToken",
        "MissingProviderToken",
        "UnrelatedKeyIdInToken",
        "BadEnvironmentKeyIdInToken",
        "BadPath",
        "MethodNotAllowed",
        "BadCollapseId",
        "BadExpirationDate",
        "BadMessageId",
        "BadPriority",
        "DuplicateHeaders",
        "InvalidPushType",
        "MissingDeviceToken",
        "PayloadEmpty",
        "PayloadTooLarge",
        "TooManyRequests",
        "TooManyProviderTokenUpdates",
        "IdleTimeout",
        "Shutdown",
        "InternalServerError",
        "ServiceUnavailable",
    ];
    let parsed = |name: &str| serde_json::from_value(name.into()).expect("a documented reason");
    REASONS.iter().map(|name| ((*name).to_owned(), of_reason(&parsed(name)))).collect()
}
