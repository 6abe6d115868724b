//! A push that was taken, as a phone gets it.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

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
    /// The device's token. FCM's other targets as they are: a topic, a condition, a Firebase installation.
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
    /// `apns-id`, as given or made, or the name that FCM gave.
    pub id: String,
    /// Whether a push with the same `apns-id`, or the same FCM token and tag, was taken before.
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
        let shown = match self.provider {
            Provider::Fcm => Shown::of_fcm(&self.json),
            Provider::Apns => Shown::of_apns(&self.json),
        };
        Push {
            number,
            provider: self.provider,
            token: self.token,
            title: shown.title,
            body: shown.body,
            loc_key: shown.loc_key,
            chat_room_id: shown.chat_room_id,
            message_id: shown.message_id,
            badge: shown.badge,
            id: self.id,
            repeated,
            headers: self.headers,
            json: self.json,
            received_at: now_millis(),
        }
    }
}

/// The fields that a phone reads from a payload.
struct Shown {
    title: Option<String>,
    body: Option<String>,
    loc_key: Option<String>,
    chat_room_id: Option<String>,
    message_id: Option<String>,
    badge: Option<u64>,
}

impl Shown {
    /// On an Android phone a field in `android` overrides the same beside it. Names may be in either of protobuf's cases.
    fn of_fcm(json: &Value) -> Self {
        let message = &json["message"];
        let android = &message["android"];
        let notification = |name: &str| {
            either(&android["notification"], name).or_else(|| either(&message["notification"], name))
        };
        let data = |name: &str| text(&android["data"][name]).or_else(|| text(&message["data"][name]));
        Self {
            title: notification("title"),
            body: notification("body"),
            loc_key: notification("body_loc_key").or_else(|| notification("title_loc_key")),
            chat_room_id: data("chatRoomId"),
            message_id: data("messageId"),
            badge: ["notification_count", "notificationCount"]
                .into_iter()
                .find_map(|name| android["notification"][name].as_u64()),
        }
    }

    fn of_apns(json: &Value) -> Self {
        let aps = &json["aps"];
        let alert = &aps["alert"];
        Self {
            title: text(&alert["title"]),
            body: text(alert).or_else(|| text(&alert["body"])),
            loc_key: text(&alert["loc-key"]).or_else(|| text(&alert["title-loc-key"])),
            chat_room_id: text(&json["chatRoomId"]),
            message_id: text(&json["messageId"]),
            badge: aps["badge"].as_u64(),
        }
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// A field by its name in snake_case, or by the same in lowerCamelCase.
fn either(object: &Value, name: &str) -> Option<String> {
    text(&object[name]).or_else(|| text(&object[crate::schema::camel_case(name)]))
}

pub(crate) fn now_millis() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
