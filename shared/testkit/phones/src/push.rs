//! A push that was taken, as a phone gets it.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::header::{HeaderMap, USER_AGENT};
use serde::Serialize;
use serde_json::Value;

use crate::provider::Provider;

/// A push that a provider has taken. As JSON its names are in camelCase.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Push {
    /// Its place among all pushes that were taken, of both providers: 1, 2, 3 …
    pub number: u64,
    pub provider: Provider,
    /// The device's token.
    pub token: String,
    /// The title that is shown.
    pub title: Option<String>,
    /// The text that is shown.
    pub body: Option<String>,
    /// The key of a text that the app has in the phone's language.
    pub loc_key: Option<String>,
    /// `chatRoomId` of its data.
    pub chat_room_id: Option<String>,
    /// `messageId` of its data.
    pub message_id: Option<String>,
    /// The number on the app's icon.
    pub badge: Option<u64>,
    /// `apns-id`, or the name that FCM gave.
    pub id: String,
    /// Whether a push with the same `apns-id`, or the same FCM token and tag, was taken before and is still kept.
    pub repeated: bool,
    /// The headers that begin with `apns-`, and `user-agent`.
    pub headers: BTreeMap<String, String>,
    /// The whole payload.
    pub json: Value,
    /// When it was taken, in milliseconds since 1970.
    pub received_at: u64,
}

/// A push before it has a number.
pub(crate) struct Draft {
    pub(crate) provider: Provider,
    pub(crate) token: String,
    pub(crate) id: String,
    /// The key by which a repetition is recognised, if any.
    pub(crate) identity: Option<String>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) json: Value,
}

impl Draft {
    pub(crate) fn into_push(self, number: u64, repeated: bool) -> Push {
        let text = |path: &str| self.json.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let [title, body, loc_key, chat_room_id, message_id] = match self.provider {
            Provider::Fcm => [
                text("/message/notification/title"),
                text("/message/notification/body"),
                text("/message/android/notification/body_loc_key"),
                text("/message/data/chatRoomId"),
                text("/message/data/messageId"),
            ],
            Provider::Apns => [
                text("/aps/alert/title"),
                text("/aps/alert/body"),
                text("/aps/alert/loc-key"),
                text("/chatRoomId"),
                text("/messageId"),
            ],
        };
        Push {
            number,
            provider: self.provider,
            token: self.token,
            title,
            body,
            loc_key,
            chat_room_id,
            message_id,
            badge: self.json["aps"]["badge"].as_u64(),
            id: self.id,
            repeated,
            headers: self.headers,
            json: self.json,
            received_at: now_millis(),
        }
    }
}

/// The headers that are recorded.
pub(crate) fn headers(all: &HeaderMap) -> BTreeMap<String, String> {
    let recorded = all.iter().filter(|(name, _)| name.as_str().starts_with("apns-") || *name == USER_AGENT);
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    recorded.map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect()
}

pub(crate) fn now_millis() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
