//! APNs: <https://developer.apple.com/documentation/usernotifications/handling-notification-responses-from-apns>. The
//! `reason` decides; for an unknown one, the status does.

use std::time::Duration;

use naru_model::Timestamp;
use serde::Deserialize;

use super::{Meaning, SERVER_ERROR, Scope, Verdict, by_status};
use crate::transport::Answer;

/// The shortest wait after an error of Apple's servers.
const SERVER_ERROR_AT_APPLE: Duration = Duration::from_secs(15 * 60);

/// The verdict on an answer to a call made at `called_at`.
pub(crate) fn of_apns(answer: &Answer, called_at: Timestamp, now: Timestamp) -> Verdict {
    if answer.status == 200 {
        let id = answer.header("apns-id").unwrap_or("status 200");
        return Verdict::Delivered { provider_id: id.to_owned() };
    }
    #[derive(Deserialize)]
    struct Body {
        reason: String,
        /// When Apple found the token dead, in milliseconds since 1970. Anything else here leaves the reason as it is.
        #[serde(default)]
        timestamp: serde_json::Value,
    }
    let body = serde_json::from_slice::<Body>(&answer.body).ok();
    let (name, since) = body.map_or((String::new(), None), |body| (body.reason, body.timestamp.as_i64()));
    let meaning = of_reason(&name).unwrap_or(unknown(answer.status));
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    let reason = format!("APNs: status {} {name}", answer.status);
    let since = since.map_or(called_at, Timestamp::from_millis);
    meaning.verdict(reason.trim_end().to_owned(), answer.retry_after(), since, now)
}

/// The table: every reason that Apple documents. None: by the status.
pub(super) fn of_reason(name: &str) -> Option<Meaning> {
    REASONS.iter().find(|(reason, _)| *reason == name).map(|(_, meaning)| *meaning)
}

pub(super) const REASONS: &[(&str, Meaning)] = &[
    ("BadDeviceToken", Meaning::TokenDead),
    ("Unregistered", Meaning::TokenDead),
    ("ExpiredToken", Meaning::TokenDead),
    // The app that registered has another bundle id than `apns_topic`.
    ("DeviceTokenNotForTopic", Meaning::OurConfiguration(Scope::Device)),
    ("BadTopic", Meaning::OurConfiguration(Scope::Provider)),
    ("MissingTopic", Meaning::OurConfiguration(Scope::Provider)),
    ("TopicDisallowed", Meaning::OurConfiguration(Scope::Provider)),
    ("BadCertificate", Meaning::OurConfiguration(Scope::Provider)),
    ("BadCertificateEnvironment", Meaning::OurConfiguration(Scope::Provider)),
    ("ExpiredProviderToken", Meaning::OurConfiguration(Scope::Provider)),
    ("Forbidden", Meaning::OurConfiguration(Scope::Provider)),
    ("InvalidProviderToken", Meaning::OurConfiguration(Scope::Provider)),
    ("MissingProviderToken", Meaning::OurConfiguration(Scope::Provider)),
    ("UnrelatedKeyIdInToken", Meaning::OurConfiguration(Scope::Provider)),
    ("BadEnvironmentKeyIdInToken", Meaning::OurConfiguration(Scope::Provider)),
    ("BadPath", Meaning::OurConfiguration(Scope::Provider)),
    ("MethodNotAllowed", Meaning::OurConfiguration(Scope::Provider)),
    ("BadCollapseId", Meaning::Refused),
    ("BadExpirationDate", Meaning::Refused),
    ("BadMessageId", Meaning::Refused),
    ("BadPriority", Meaning::Refused),
    ("DuplicateHeaders", Meaning::Refused),
    ("InvalidPushType", Meaning::Refused),
    ("MissingDeviceToken", Meaning::Refused),
    ("PayloadEmpty", Meaning::Refused),
    ("PayloadTooLarge", Meaning::TooBig),
    ("TooManyRequests", Meaning::SlowDown(Scope::Device)),
    ("TooManyProviderTokenUpdates", Meaning::SlowDown(Scope::Provider)),
    // Only this connection ends.
    ("IdleTimeout", Meaning::TryLater(Duration::ZERO)),
    // Only this server ends: the next connection leads to another one.
    ("Shutdown", Meaning::TryLater(SERVER_ERROR)),
    ("InternalServerError", Meaning::TryLater(SERVER_ERROR_AT_APPLE)),
    ("ServiceUnavailable", Meaning::TryLater(SERVER_ERROR_AT_APPLE)),
];

pub(super) const fn unknown(status: u16) -> Meaning {
    match status {
        500..=599 => Meaning::TryLater(SERVER_ERROR_AT_APPLE),
        _ => by_status(status),
    }
}
