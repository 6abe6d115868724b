//! FCM's HTTP v1 API: `POST /v1/projects/{project}/messages:send`.
//!
//! Source: FCM REST reference (`projects.messages`, `projects.messages.send`, `ErrorCode`), FCM's guide "FCM error codes",
//! and observed answers of Google.

use hyper::Method;
use hyper::http::request::Parts;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::auth::bearer;
use crate::google;
use crate::keys::PROJECT;
use crate::oauth::Authority;
use crate::provider::Provider;
use crate::push::{Draft, headers};
use crate::reply::{self, Refusal, Reply};
use crate::schema;

/// How many bytes notification and data may have together, keys and values.
const MAX_BYTES: usize = 4_096;
/// How long a message may live, in seconds: four weeks.
const MAX_TTL_SECONDS: i64 = 28 * 86_400;
/// A key of data that FCM uses itself, and the prefixes of others.
const RESERVED: [&str; 2] = ["from", "message_type"];
const RESERVED_STARTS: [&str; 2] = ["google", "gcm"];

/// Checks a request; an error is the answer to it.
pub(crate) fn check(head: &Parts, body: &[u8], authority: &Authority) -> Result<Draft, Refusal> {
    let path = head.uri.path();
    let project = path.strip_prefix("/v1/projects/").and_then(|rest| rest.strip_suffix("/messages:send"));
    let Some(project) = project.filter(|_| head.method == Method::POST) else {
        return Err(google::not_found());
    };
    if !bearer(&head.headers).is_some_and(|token| authority.is_valid(token)) {
        return Err(google::unauthenticated());
    }
    if project != PROJECT {
        return Err(google::no_permission());
    }
    // What is no JSON is refused as what is no object.
    let request: Value = serde_json::from_slice(body).unwrap_or_default();
    schema::check(&request).map_err(|violation| google::malformed(&violation))?;
    let token = check_message(&request["message"])?.to_owned();
    let tag = request.pointer("/message/android/notification/tag").and_then(Value::as_str);
    Ok(Draft {
        provider: Provider::Fcm,
        id: format!("projects/{PROJECT}/messages/0:{}", Uuid::new_v4().simple()),
        // A token has no line break, so it ends at the first one.
        identity: tag.map(|tag| format!("{token}\n{tag}")),
        token,
        headers: headers(&head.headers),
        json: request,
    })
}

/// Checks the rules that no field's type expresses; returns the registration token.
fn check_message(message: &Value) -> Result<&str, Refusal> {
    let Some(token) = message["token"].as_str() else {
        return Err(google::invalid("Recipient of the message is not set.", "message"));
    };
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(google::not_a_token());
    }
    for (index, key) in entries(&message["data"]).map(|(key, _)| key).enumerate() {
        if RESERVED.contains(&key.as_str()) || RESERVED_STARTS.iter().any(|start| key.starts_with(start)) {
            let text = format!("Invalid data payload key: {key}");
            return Err(google::invalid(&text, &format!("message.data[{index}].key")));
        }
    }
    let ttl = message["android"]["ttl"].as_str().and_then(schema::duration_seconds);
    if ttl.is_some_and(|seconds| !(0..=MAX_TTL_SECONDS).contains(&seconds)) {
        return Err(google::invalid("Invalid TTL.", "message.android.ttl"));
    }
    let parts = [&message["notification"], &message["android"]["notification"], &message["data"]];
    let fields = parts.into_iter().flat_map(entries);
    let bytes: usize = fields.map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes > MAX_BYTES {
        return Err(google::invalid("Android message is too big", "message"));
    }
    Ok(token)
}

fn entries(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flat_map(Map::iter)
}

/// The answer to a push that was taken.
pub(crate) fn taken(name: &str) -> Reply {
    reply::json(200, &json!({ "name": name }))
}
