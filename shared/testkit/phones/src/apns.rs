//! APNs' provider API: `POST /3/device/{token}`.
//!
//! Source: Apple, "Sending notification requests to APNs" (path, headers, limits) and "Handling notification responses
//! from APNs" (statuses and reasons).

use std::collections::BTreeMap;

use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::http::request::Parts;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::answer::ApnsReason;
use crate::keys::TOPIC;
use crate::provider::Provider;
use crate::provider_token::ProviderTokens;
use crate::push::{Draft, now_millis};
use crate::record::Counters;
use crate::reply::{self, Reply};

/// The largest payload, in bytes.
pub(crate) const MAX_BYTES: usize = 4_096;
/// The largest payload of a call, in bytes.
const MAX_BYTES_VOIP: usize = 5_120;
/// The longest collapse identifier, in bytes.
const MAX_COLLAPSE_BYTES: usize = 64;

/// The headers that a request may have only once.
const HEADERS: [&str; 7] = [
    "authorization",
    "apns-id",
    "apns-push-type",
    "apns-expiration",
    "apns-priority",
    "apns-topic",
    "apns-collapse-id",
];

/// The push types, and the suffix of the bundle identifier in the topic of each.
const PUSH_TYPES: [(&str, &str); 10] = [
    ("alert", ""),
    ("background", ""),
    ("controls", ".push-type.controls"),
    ("location", ".location-query"),
    ("voip", ".voip"),
    ("complication", ".complication"),
    ("fileprovider", ".pushkit.fileprovider"),
    ("liveactivity", ".push-type.liveactivity"),
    ("pushtotalk", ".voip-ptt"),
    ("widgets", ".push-type.widgets"),
];

/// The `apns-id` of the request, or a new one where it has no valid one.
pub(crate) fn id(head: &Parts) -> String {
    match header(&head.headers, "apns-id") {
        Some(id) if is_uuid(id) => id.to_owned(),
        _ => Uuid::new_v4().hyphenated().to_string().to_uppercase(),
    }
}

/// Checks a request, all but its device's answer. `id` is the result of [`id`].
pub(crate) fn check(
    head: &Parts,
    body: &[u8],
    id: &str,
    tokens: &ProviderTokens,
    counters: &Counters,
) -> Result<Draft, ApnsReason> {
    let token = path(head)?;
    if head.method != Method::POST {
        return Err(ApnsReason::MethodNotAllowed);
    }
    if HEADERS.iter().any(|name| head.headers.get_all(*name).iter().count() > 1) {
        return Err(ApnsReason::DuplicateHeaders);
    }
    authorize(&head.headers, tokens, counters)?;
    let push_type = headers(&head.headers)?;
    device(token)?;
    let json = payload(body, push_type)?;
    Ok(Draft {
        provider: Provider::Apns,
        token: token.to_owned(),
        id: id.to_owned(),
        identity: header(&head.headers, "apns-id").map(|id| format!("apns {}", id.to_lowercase())),
        headers: of_interest(&head.headers),
        json,
    })
}

/// The device token of the path.
fn path(head: &Parts) -> Result<&str, ApnsReason> {
    match head.uri.path().strip_prefix("/3/device") {
        Some("" | "/") => Err(ApnsReason::MissingDeviceToken),
        Some(rest) => match rest.strip_prefix('/') {
            Some(token) if !token.contains('/') && head.uri.query().is_none() => Ok(token),
            _ => Err(ApnsReason::BadPath),
        },
        None => Err(ApnsReason::BadPath),
    }
}

fn authorize(headers: &HeaderMap, tokens: &ProviderTokens, counters: &Counters) -> Result<(), ApnsReason> {
    let value = headers.get(AUTHORIZATION).ok_or(ApnsReason::MissingProviderToken)?;
    let value = value.to_str().map_err(|_| ApnsReason::InvalidProviderToken)?;
    let token = match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => return Err(ApnsReason::MissingProviderToken),
    };
    if token.is_empty() {
        return Err(ApnsReason::MissingProviderToken);
    }
    tokens.check(token, counters)
}

/// Checks the headers that begin with `apns-`; returns the push type.
fn headers(headers: &HeaderMap) -> Result<&'static str, ApnsReason> {
    let value = |name: &str| header(headers, name);
    if !value("apns-id").is_none_or(is_uuid) {
        return Err(ApnsReason::BadMessageId);
    }
    let (push_type, suffix) = value("apns-push-type")
        .and_then(|push_type| PUSH_TYPES.iter().find(|(name, _)| *name == push_type))
        .ok_or(ApnsReason::InvalidPushType)?;
    if !value("apns-expiration").is_none_or(|moment| is_number(moment) && moment.parse::<i64>().is_ok()) {
        return Err(ApnsReason::BadExpirationDate);
    }
    match value("apns-priority") {
        // Apple: sending it with 10 "is an error". For other types a missing priority means 10.
        Some("10") if *push_type == "background" => return Err(ApnsReason::BadPriority),
        None | Some("1" | "5" | "10") => {}
        Some(_) => return Err(ApnsReason::BadPriority),
    }
    if value("apns-collapse-id").is_some_and(|id| id.len() > MAX_COLLAPSE_BYTES) {
        return Err(ApnsReason::BadCollapseId);
    }
    let topic = value("apns-topic").filter(|topic| !topic.is_empty()).ok_or(ApnsReason::MissingTopic)?;
    if !topic.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte)) {
        return Err(ApnsReason::BadTopic);
    }
    if topic.strip_prefix(TOPIC) != Some(suffix) {
        return Err(ApnsReason::DeviceTokenNotForTopic);
    }
    Ok(push_type)
}

/// Device tokens are bytes in hexadecimal digits. Apple advises not to rely on their length; none is shorter than 32
/// bytes or longer than 100.
fn device(token: &str) -> Result<(), ApnsReason> {
    let whole_bytes = token.len().is_multiple_of(2) && (64..=200).contains(&token.len());
    if whole_bytes && token.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        Ok(())
    } else {
        Err(ApnsReason::BadDeviceToken)
    }
}

fn payload(body: &[u8], push_type: &str) -> Result<Value, ApnsReason> {
    let max = if push_type == "voip" { MAX_BYTES_VOIP } else { MAX_BYTES };
    if body.len() > max {
        return Err(ApnsReason::PayloadTooLarge);
    }
    let json: Value = serde_json::from_slice(body).map_err(|_| ApnsReason::PayloadEmpty)?;
    if json["aps"].is_object() { Ok(json) } else { Err(ApnsReason::PayloadEmpty) }
}

/// A header's value; an invalid value stands for one that is not text.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("\u{fffd}"))
}

/// 8-4-4-4-12 hexadecimal digits.
fn is_uuid(text: &str) -> bool {
    text.len() == 36 && Uuid::try_parse(text).is_ok()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit())
}

fn of_interest(headers: &HeaderMap) -> BTreeMap<String, String> {
    let wanted = |name: &HeaderName| name.as_str().starts_with("apns-") || name == USER_AGENT;
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers
        .iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect()
}

/// The answer to a push that was taken.
pub(crate) fn taken(id: &str) -> Reply {
    with_id(reply::bytes(200, ""), id)
}

/// The answer to a push that was refused. A 410 has its `timestamp`, in milliseconds since 1970.
pub(crate) fn refused(id: &str, reason: ApnsReason, timestamp: Option<u64>) -> Reply {
    let value = match reason.status() {
        410 => json!({"reason": reason.as_str(), "timestamp": timestamp.unwrap_or_else(now_millis)}),
        _ => json!({"reason": reason.as_str()}),
    };
    with_id(reply::json(reason.status(), &value), id)
}

/// The same with `apns-id`.
pub(crate) fn with_id(mut reply: Reply, id: &str) -> Reply {
    if let Ok(id) = HeaderValue::from_str(id) {
        reply.headers_mut().insert("apns-id", id);
    }
    reply
}
