//! FCM's HTTP v1 API: `POST /v1/projects/{project}/messages:send`.
//!
//! Source: FCM REST reference (`projects.messages`, `projects.messages.send`, `ErrorCode`), FCM's guide "FCM error codes",
//! and observed answers of Google.

use std::collections::BTreeMap;

use hyper::Method;
use hyper::header::{AUTHORIZATION, USER_AGENT};
use hyper::http::request::Parts;
use serde_json::{Value, json};

use crate::google::{self, Refusal, bad_request, invalid, no_permission, not_a_token, unreadable};
use crate::keys::PROJECT;
use crate::oauth::{Access, Authority};
use crate::provider::Provider;
use crate::push::{Draft, now_millis};
use crate::reply::{self, Reply};
use crate::schema::{self, Violation, get};

/// The most bytes of notification and data together, keys and values.
const MAX_BYTES: usize = 4_096;
/// The same, to a topic.
const MAX_BYTES_TOPIC: usize = 2_048;
/// The longest time to live, in seconds: four weeks.
const LONGEST_TTL: i64 = 28 * 86_400;
/// The targets that a message may have.
const TARGETS: [&str; 4] = ["token", "fid", "topic", "condition"];
/// Keys that FCM uses itself, and prefixes of such keys.
const RESERVED: [&str; 3] = ["from", "gcm", "message_type"];
const RESERVED_STARTS: [&str; 2] = ["google", "gcm"];

/// A valid message.
pub(crate) struct Checked {
    pub(crate) draft: Draft,
    /// The message is only checked, and not delivered.
    pub(crate) validate_only: bool,
}

/// Checks a request, all but its device's answer; an error is the answer to it.
pub(crate) fn check(head: &Parts, body: &[u8], authority: &Authority) -> Result<Checked, Refusal> {
    let project =
        head.uri.path().strip_prefix("/v1/projects/").and_then(|rest| rest.strip_suffix("/messages:send"));
    let Some(project) = project.filter(|project| head.method == Method::POST && !project.contains('/'))
    else {
        return Err(google::not_found());
    };
    authorize(head, authority)?;
    if project != PROJECT {
        return Err(no_permission(project));
    }
    let request: Value = serde_json::from_slice(body).map_err(|_| unreadable())?;
    let mut violations = schema::violations(&request, schema::REQUEST);
    if !request.is_object() {
        return Err(unreadable());
    }
    let message = get(&request, "message").cloned().unwrap_or_default();
    if violations.is_empty() {
        violations.extend(target_is_set_twice(&message));
    }
    if !violations.is_empty() {
        return Err(bad_request(&violations));
    }
    judge_message(&message)?;
    let validate_only = get(&request, "validate_only") == Some(&Value::Bool(true));
    Ok(Checked { draft: draft(head, request, &message), validate_only })
}

/// The kind of a message's target, and its value.
fn target(message: &Value) -> Option<(&'static str, &str)> {
    TARGETS.into_iter().find_map(|name| Some((name, get(message, name)?.as_str()?)))
}

/// FCM's name of the push of this number.
fn name(number: &str) -> String {
    format!("projects/{PROJECT}/messages/{number}")
}

fn draft(head: &Parts, request: Value, message: &Value) -> Draft {
    let token = target(message).map_or_else(String::new, |(_, target)| target.to_owned());
    let notification = get(message, "android").and_then(|android| get(android, "notification"));
    let tag = notification.and_then(|notification| get(notification, "tag")).and_then(Value::as_str);
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let user_agent = head.headers.get(USER_AGENT).and_then(|value| value.to_str().ok());
    Draft {
        provider: Provider::Fcm,
        id: name(&format!("0:{}%{}", now_millis(), &unique[..16])),
        // A token has no line break, so it ends at the first one.
        identity: tag.map(|tag| format!("fcm {token}\n{tag}")),
        token,
        headers: user_agent.map(|value| ("user-agent".to_owned(), value.to_owned())).into_iter().collect(),
        json: request,
    }
}

fn authorize(head: &Parts, authority: &Authority) -> Result<(), Refusal> {
    let value = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    match value.and_then(|value| value.split_once(' ')) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            match authority.access(token.trim()) {
                Access::Good => Ok(()),
                Access::Expired => Err(google::unauthenticated(google::EXPIRED)),
                Access::Unknown => Err(google::unauthenticated(google::UNKNOWN)),
            }
        }
        _ => Err(google::unauthenticated(google::MISSING)),
    }
}

/// Checks the rules that no field's type expresses.
fn judge_message(message: &Value) -> Result<(), Refusal> {
    if message.is_null() {
        return Err(invalid("Recipient of the message is not set.", "message"));
    }
    let Some((kind, value)) = target(message) else {
        return Err(invalid("Recipient of the message is not set.", "message"));
    };
    judge_target(kind, value)?;
    let android = get(message, "android");
    if android.is_some() && get(message, "android_v2").is_some() {
        return Err(invalid("Only one of android and android_v2 may be set.", "message.android_v2"));
    }
    judge_keys(get(message, "data"), "message.data")?;
    if let Some(android) = android {
        judge_keys(get(android, "data"), "message.android.data")?;
        if let Some(ttl) = get(android, "ttl").and_then(Value::as_str).and_then(schema::duration_seconds)
            && !(0..=LONGEST_TTL).contains(&ttl)
        {
            let text = format!("Invalid TTL: {ttl} seconds. It must be from 0 to {LONGEST_TTL} seconds.");
            return Err(invalid(&text, "message.android.ttl"));
        }
    }
    let max = if kind == "topic" { MAX_BYTES_TOPIC } else { MAX_BYTES };
    if size(message) > max {
        return Err(invalid("Android message is too big", "message"));
    }
    Ok(())
}

fn judge_target(kind: &str, value: &str) -> Result<(), Refusal> {
    let topic_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~%".contains(&byte);
    let printable = |byte: u8| byte.is_ascii_graphic();
    match kind {
        "topic" if value.is_empty() || !value.bytes().all(topic_byte) => {
            Err(invalid("Malformed topic name", "message.topic"))
        }
        "condition" if value.is_empty() => Err(invalid("Invalid condition expression", "message.condition")),
        "token" | "fid" if value.is_empty() || !value.bytes().all(printable) => Err(not_a_token()),
        _ => Ok(()),
    }
}

fn judge_keys(data: Option<&Value>, path: &str) -> Result<(), Refusal> {
    let keys = data.and_then(Value::as_object).into_iter().flat_map(|entries| entries.keys());
    for (index, key) in keys.enumerate() {
        if RESERVED.contains(&key.as_str()) || RESERVED_STARTS.iter().any(|start| key.starts_with(start)) {
            return Err(invalid(
                &format!("Invalid data payload key: {key}"),
                &format!("{path}[{index}].key"),
            ));
        }
    }
    Ok(())
}

/// The violation where a message has two targets.
fn target_is_set_twice(message: &Value) -> Option<Violation> {
    let second = TARGETS.into_iter().filter(|name| get(message, name).is_some()).nth(1)?;
    let description = format!(
        "Invalid value at 'message' (oneof), oneof field 'target' is already set. Cannot set '{second}'"
    );
    Some(Violation { field: "message".to_owned(), description })
}

/// The bytes of notification and data as an Android phone gets them: a field in `android` replaces the same field beside
/// it.
fn size(message: &Value) -> usize {
    let android = get(message, "android");
    let mut fields: BTreeMap<&str, &Value> = BTreeMap::new();
    for part in [Some(message), android].into_iter().flatten() {
        for (name, value) in get(part, "notification").and_then(Value::as_object).into_iter().flatten() {
            fields.insert(name, value);
        }
    }
    let data = android.and_then(|android| get(android, "data")).or_else(|| get(message, "data"));
    let entries = data.and_then(Value::as_object).into_iter().flatten();
    let bytes = |value: &Value| value.as_str().map_or_else(|| value.to_string().len(), str::len);
    fields.into_iter().map(|(name, value)| name.len() + bytes(value)).sum::<usize>()
        + entries.map(|(key, value)| key.len() + bytes(value)).sum::<usize>()
}

/// The answer to a push that was taken.
pub(crate) fn taken(name: &str) -> Reply {
    reply::json(200, &json!({"name": name}))
}

/// The answer to a message that was only to be checked.
pub(crate) fn checked() -> Reply {
    taken(&name("fake_message_id"))
}
