//! APNs' provider API: `POST /3/device/{token}`.
//!
//! Source: Apple, "Sending notification requests to APNs" (path, headers, limits) and "Handling notification responses
//! from APNs" (statuses and reasons).

use hyper::Method;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::answer::ApnsReason;
use crate::auth::bearer;
use crate::keys::TOPIC;
use crate::provider::Provider;
use crate::provider_token::ProviderTokens;
use crate::push::{Draft, headers, now_millis};
use crate::record::Record;
use crate::reply::{self, Reply};

/// How many bytes a payload may have.
const MAX_BYTES: usize = 4_096;
/// How many bytes a collapse identifier may have.
const MAX_COLLAPSE_BYTES: usize = 64;
const ID: &str = "apns-id";

/// Gives a request the `apns-id` that it has not got, and returns it: the answer has it, whatever it is.
pub(crate) fn id(head: &mut Parts) -> HeaderValue {
    if let Some(id) = head.headers.get(ID) {
        return id.clone();
    }
    let made = Uuid::new_v4().hyphenated().to_string();
    let id = HeaderValue::from_str(&made).unwrap_or(HeaderValue::from_static(""));
    head.headers.insert(ID, id.clone());
    id
}

/// The same with `apns-id`.
pub(crate) fn with_id(mut reply: Reply, id: HeaderValue) -> Reply {
    reply.headers_mut().insert(ID, id);
    reply
}

/// Checks a request that has its [`id`].
pub(crate) fn check(
    head: &Parts,
    body: &[u8],
    tokens: &ProviderTokens,
    record: &Record,
) -> Result<Draft, ApnsReason> {
    let token = head.uri.path().strip_prefix("/3/device/").ok_or(ApnsReason::BadPath)?;
    if head.method != Method::POST {
        return Err(ApnsReason::MethodNotAllowed);
    }
    if head.headers.keys().any(|name| head.headers.get_all(name).iter().count() > 1) {
        return Err(ApnsReason::DuplicateHeaders);
    }
    let provider_token = bearer(&head.headers).ok_or(ApnsReason::MissingProviderToken)?;
    tokens.check(provider_token, record)?;
    let id = check_headers(&head.headers)?;
    check_token(token)?;
    Ok(Draft {
        provider: Provider::Apns,
        token: token.to_owned(),
        id: id.to_owned(),
        identity: Some(id.to_lowercase()),
        headers: headers(&head.headers),
        json: payload(body)?,
    })
}

/// Checks the headers that begin with `apns-`; returns the identifier.
fn check_headers(headers: &HeaderMap) -> Result<&str, ApnsReason> {
    // Where it is not text, it is wrong in any case.
    let value = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("\u{fffd}"));
    let id = value(ID).filter(|id| is_uuid(id)).ok_or(ApnsReason::BadMessageId)?;
    if value("apns-push-type") != Some("alert") {
        return Err(ApnsReason::InvalidPushType);
    }
    let is_moment =
        |text: &str| text.bytes().all(|digit| digit.is_ascii_digit()) && text.parse::<i64>().is_ok();
    if !value("apns-expiration").is_none_or(is_moment) {
        return Err(ApnsReason::BadExpirationDate);
    }
    if !matches!(value("apns-priority"), None | Some("1" | "5" | "10")) {
        return Err(ApnsReason::BadPriority);
    }
    if value("apns-collapse-id").is_some_and(|id| id.len() > MAX_COLLAPSE_BYTES) {
        return Err(ApnsReason::BadCollapseId);
    }
    match value("apns-topic") {
        Some(TOPIC) => Ok(id),
        None | Some("") => Err(ApnsReason::MissingTopic),
        Some(_) => Err(ApnsReason::DeviceTokenNotForTopic),
    }
}

/// 8-4-4-4-12 hexadecimal digits.
fn is_uuid(text: &str) -> bool {
    text.len() == 36 && Uuid::try_parse(text).is_ok()
}

/// Device tokens are bytes in hexadecimal digits. Apple advises not to rely on their length; none is shorter than 32
/// bytes or longer than 100.
fn check_token(token: &str) -> Result<(), ApnsReason> {
    let whole_bytes = token.len().is_multiple_of(2) && (64..=200).contains(&token.len());
    if whole_bytes && token.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        Ok(())
    } else {
        Err(ApnsReason::BadDeviceToken)
    }
}

fn payload(body: &[u8]) -> Result<Value, ApnsReason> {
    if body.len() > MAX_BYTES {
        return Err(ApnsReason::PayloadTooLarge);
    }
    let json: Value = serde_json::from_slice(body).map_err(|_| ApnsReason::PayloadEmpty)?;
    if json["aps"].is_object() { Ok(json) } else { Err(ApnsReason::PayloadEmpty) }
}

/// The answer to a push that was refused. A 410 has its `timestamp`, in milliseconds since 1970.
pub(crate) fn refused(reason: ApnsReason, timestamp: Option<u64>) -> Reply {
    let value = match reason.status() {
        410 => json!({"reason": reason.as_str(), "timestamp": timestamp.unwrap_or_else(now_millis)}),
        _ => json!({"reason": reason.as_str()}),
    };
    reply::json(reason.status(), &value)
}
