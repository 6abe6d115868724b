//! FCM's message as a protobuf schema, and the rules by which Google reads JSON into one: unknown fields are refused, and
//! each value must have its field's type.
//!
//! Source: FCM REST reference, `projects.messages`; the descriptions of errors are those that Google has been seen to
//! give. Names may be in snake_case or in lowerCamelCase (protobuf, "ProtoJSON Format").

use serde_json::{Map, Value, json};

/// The type of a field.
pub(crate) enum Kind {
    /// A string.
    Text,
    /// True or false.
    Bool,
    /// A whole number of 32 bits.
    Int32,
    /// A number.
    Float,
    /// Seconds with a suffix: `"3.5s"`.
    Duration,
    /// A moment in RFC 3339.
    Timestamp,
    /// One of these words: protobuf's name of the type, and the words.
    Word(&'static str, &'static [&'static str]),
    /// Strings by key.
    Texts,
    /// Any JSON object.
    Any,
    /// A list of a kind.
    List(&'static Kind),
    Message(&'static [Field]),
}

/// A field's name in snake_case, and its type.
pub(crate) type Field = (&'static str, Kind);

use Kind::{Any, Bool, Duration, Float, Int32, List, Message, Text, Texts, Timestamp, Word};

/// The body of `messages:send`.
pub(crate) const REQUEST: &[Field] = &[("validate_only", Bool), ("message", Message(MESSAGE))];

const MESSAGE: &[Field] = &[
    ("name", Text),
    ("data", Texts),
    ("notification", Message(&[("title", Text), ("body", Text), ("image", Text)])),
    ("android", Message(ANDROID)),
    // New in 2026. Its content is not checked.
    ("android_v2", Any),
    ("webpush", Message(WEBPUSH)),
    ("apns", Message(APNS)),
    ("fcm_options", Message(FCM_OPTIONS)),
    ("token", Text),
    ("fid", Text),
    ("topic", Text),
    ("condition", Text),
];

const FCM_OPTIONS: &[Field] = &[("analytics_label", Text)];

const ANDROID: &[Field] = &[
    ("collapse_key", Text),
    ("priority", Word("google.firebase.fcm.v1.AndroidConfig.MessagePriority", &["NORMAL", "HIGH"])),
    ("ttl", Duration),
    ("restricted_package_name", Text),
    ("data", Texts),
    ("notification", Message(ANDROID_NOTIFICATION)),
    ("fcm_options", Message(FCM_OPTIONS)),
    ("direct_boot_ok", Bool),
    ("bandwidth_constrained_ok", Bool),
    ("restricted_satellite_ok", Bool),
];

const ANDROID_NOTIFICATION: &[Field] = &[
    ("title", Text),
    ("body", Text),
    ("icon", Text),
    ("color", Text),
    ("sound", Text),
    ("tag", Text),
    ("click_action", Text),
    ("body_loc_key", Text),
    ("body_loc_args", List(&Text)),
    ("title_loc_key", Text),
    ("title_loc_args", List(&Text)),
    ("channel_id", Text),
    ("ticker", Text),
    ("sticky", Bool),
    ("event_time", Timestamp),
    ("local_only", Bool),
    (
        "notification_priority",
        Word(
            "google.firebase.fcm.v1.AndroidNotification.NotificationPriority",
            &[
                "PRIORITY_UNSPECIFIED",
                "PRIORITY_MIN",
                "PRIORITY_LOW",
                "PRIORITY_DEFAULT",
                "PRIORITY_HIGH",
                "PRIORITY_MAX",
            ],
        ),
    ),
    ("default_sound", Bool),
    ("default_vibrate_timings", Bool),
    ("default_light_settings", Bool),
    ("vibrate_timings", List(&Duration)),
    (
        "visibility",
        Word(
            "google.firebase.fcm.v1.AndroidNotification.Visibility",
            &["VISIBILITY_UNSPECIFIED", "PRIVATE", "PUBLIC", "SECRET"],
        ),
    ),
    ("notification_count", Int32),
    (
        "light_settings",
        Message(&[
            ("color", Message(&[("red", Float), ("green", Float), ("blue", Float), ("alpha", Float)])),
            ("light_on_duration", Duration),
            ("light_off_duration", Duration),
        ]),
    ),
    ("image", Text),
    ("bypass_proxy_notification", Bool),
    (
        "proxy",
        Word(
            "google.firebase.fcm.v1.AndroidNotification.Proxy",
            &["PROXY_UNSPECIFIED", "ALLOW", "DENY", "IF_PRIORITY_LOWERED"],
        ),
    ),
];

const WEBPUSH: &[Field] = &[
    ("headers", Texts),
    ("data", Texts),
    ("notification", Any),
    ("fcm_options", Message(&[("link", Text), ("analytics_label", Text)])),
];

const APNS: &[Field] = &[
    ("headers", Texts),
    ("payload", Any),
    ("fcm_options", Message(&[("analytics_label", Text), ("image", Text)])),
    ("live_activity_token", Text),
];

/// A `fieldViolations` entry: the field and the violation. A field of the request itself has no name of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) field: String,
    pub(crate) description: String,
}

impl Violation {
    pub(crate) fn json(&self) -> Value {
        match self.field.as_str() {
            "" => json!({"description": self.description}),
            field => json!({"field": field, "description": self.description}),
        }
    }
}

/// A field by its name in snake_case, or by the same in lowerCamelCase; `None` if it is `null`.
pub(crate) fn get<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.get(name).or_else(|| object.get(camel_case(name))).filter(|value| !value.is_null())
}

/// `body_loc_key` is `bodyLocKey`.
pub(crate) fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let mut camel = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (first, rest) = part.split_at(part.len().min(1));
        camel.push_str(&first.to_ascii_uppercase());
        camel.push_str(rest);
    }
    camel
}

/// All violations of the schema in a message.
pub(crate) fn violations(message: &Value, fields: &'static [Field]) -> Vec<Violation> {
    let mut found = Vec::new();
    check_message(message, fields, "", &mut found);
    found
}

fn check_message(value: &Value, fields: &'static [Field], path: &str, found: &mut Vec<Violation>) {
    let Some(object) = value.as_object() else {
        return found.push(mismatch(path, "message", value));
    };
    for (name, value) in object {
        let field = fields.iter().find(|(field, _)| field == name || camel_case(field) == *name);
        match field {
            // In protobuf's JSON `null` is the same as no field.
            Some(_) if value.is_null() => {}
            Some((field, kind)) => check(value, kind, &join(path, field), found),
            None => found.push(unknown(name, path)),
        }
    }
}

fn check(value: &Value, kind: &'static Kind, path: &str, found: &mut Vec<Violation>) {
    let type_name = match kind {
        Message(fields) => return check_message(value, fields, path, found),
        List(kind) => return check_list(value, kind, path, found),
        Texts => return check_texts(value.as_object(), value, path, found),
        Any if value.is_object() => return,
        Text if value.is_string() => return,
        Bool if value.is_boolean() => return,
        Float if value.is_number() => return,
        Int32 if is_int32(value) => return,
        Duration if value.as_str().is_some_and(|text| duration_seconds(text).is_some()) => return,
        Timestamp if value.as_str().is_some_and(is_timestamp) => return,
        // Google takes a word in either case: its own guides write "high" where the reference has HIGH.
        Word(_, words)
            if value
                .as_str()
                .is_some_and(|text| words.iter().any(|word| word.eq_ignore_ascii_case(text))) =>
        {
            return;
        }
        Any => "type.googleapis.com/google.protobuf.Struct",
        Text => "TYPE_STRING",
        Bool => "TYPE_BOOL",
        Float => "TYPE_FLOAT",
        Int32 => "TYPE_INT32",
        Duration => "type.googleapis.com/google.protobuf.Duration",
        Timestamp => "type.googleapis.com/google.protobuf.Timestamp",
        Word(name, _) => {
            return found.push(mismatch(path, &format!("type.googleapis.com/{name}"), value));
        }
    };
    found.push(mismatch(path, type_name, value));
}

fn check_list(value: &Value, kind: &'static Kind, path: &str, found: &mut Vec<Violation>) {
    let Some(items) = value.as_array() else {
        return found.push(mismatch(path, "repeated", value));
    };
    for (index, item) in items.iter().enumerate() {
        check(item, kind, &format!("{path}[{index}]"), found);
    }
}

fn check_texts(entries: Option<&Map<String, Value>>, value: &Value, path: &str, found: &mut Vec<Violation>) {
    let Some(entries) = entries else {
        return found.push(mismatch(path, "map", value));
    };
    for (index, value) in entries.values().enumerate() {
        if !value.is_string() {
            found.push(mismatch(&format!("{path}[{index}].value"), "TYPE_STRING", value));
        }
    }
}

fn mismatch(path: &str, type_name: &str, value: &Value) -> Violation {
    Violation {
        field: path.to_owned(),
        description: format!("Invalid value at '{path}' ({type_name}), {value}"),
    }
}

fn unknown(name: &str, path: &str) -> Violation {
    let place = if path.is_empty() { String::new() } else { format!(" at '{path}'") };
    Violation {
        field: path.to_owned(),
        description: format!(
            "Invalid JSON payload received. Unknown name \"{name}\"{place}: Cannot find field."
        ),
    }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// A number, or the same as a string.
fn is_int32(value: &Value) -> bool {
    let number = value.as_i64().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
    number.is_some_and(|number| i32::try_from(number).is_ok())
}

/// The seconds of a duration, rounded down, with its sign; `None` if it is not valid. It has at most nine places after
/// the point.
pub(crate) fn duration_seconds(text: &str) -> Option<i64> {
    let number = text.strip_suffix('s')?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    let is_duration = digits(whole.strip_prefix('-').unwrap_or(whole)) && digits(fraction);
    if is_duration && fraction.len() <= 9 { whole.parse().ok() } else { None }
}

/// Whether a text has the form of RFC 3339: `2026-11-22T09:30:00.5Z`, or an offset in the place of the `Z`.
fn is_timestamp(text: &str) -> bool {
    let Some((date, time)) = text.split_once('T') else {
        return false;
    };
    let has_form = |text: &str, form: &str| {
        text.len() == form.len()
            && text.bytes().zip(form.bytes()).all(|(byte, form)| match form {
                b'0' => byte.is_ascii_digit(),
                form => byte == form,
            })
    };
    let (time, zone_is_right) = match time.strip_suffix('Z') {
        Some(time) => (time, true),
        None => match time.rfind(['+', '-']) {
            Some(sign) => (&time[..sign], has_form(&time[sign + 1..], "00:00")),
            None => (time, false),
        },
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let fraction_is_right =
        (1..=9).contains(&fraction.len()) && fraction.bytes().all(|digit| digit.is_ascii_digit());
    has_form(date, "0000-00-00") && has_form(time, "00:00:00") && zone_is_right && fraction_is_right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_camel_case() {
        assert_eq!(camel_case("body_loc_key"), "bodyLocKey");
        assert_eq!(camel_case("title"), "title");
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("0s", 0), ("3s", 3), ("3.5s", 3), ("3.000000001s", 3), ("-1s", -1)] {
            assert_eq!(duration_seconds(text), Some(seconds), "{text}");
        }
        for text in ["", "s", "3", "3 s", "3.s", ".5s", "3.0000000001s", "3m", "+3s", "3.5.5s", "--3s"] {
            assert_eq!(duration_seconds(text), None, "{text}");
        }
    }

    #[test]
    fn timestamps() {
        for text in ["2026-11-22T09:30:00Z", "2026-11-22T09:30:00.123456789Z", "2026-11-22T09:30:00+09:00"] {
            assert!(is_timestamp(text), "{text}");
        }
        for text in
            ["", "2026-11-22", "2026-11-22T09:30:00", "2026-11-22T09:30Z", "2026-11-22 09:30:00Z", "T-é"]
        {
            assert!(!is_timestamp(text), "{text}");
        }
    }

    #[test]
    fn descriptions_are_googles() {
        let of = |request: Value| {
            let found = violations(&request, REQUEST);
            found.into_iter().map(|violation| (violation.field, violation.description)).collect::<Vec<_>>()
        };
        let pair = |field: &str, text: &str| vec![(field.to_owned(), text.to_owned())];
        // Both as seen from Google: AGProjects/sylk-pushserver#16, and FCM's guide on error codes.
        assert_eq!(
            of(json!({"to": "A"})),
            pair("", "Invalid JSON payload received. Unknown name \"to\": Cannot find field.")
        );
        assert_eq!(
            of(json!({"message": {"data": {"count": 12}}})),
            pair("message.data[0].value", "Invalid value at 'message.data[0].value' (TYPE_STRING), 12")
        );
        assert_eq!(
            of(json!({"message": {"notification": {"clickAction": "A"}}})),
            pair(
                "message.notification",
                "Invalid JSON payload received. Unknown name \"clickAction\" at 'message.notification': \
                 Cannot find field."
            )
        );
        assert_eq!(of(json!({"message": {"token": null, "android": {"bodyLocKey": 1}}})).len(), 1);
        assert_eq!(of(json!({"message": {"android": {"collapseKey": "A", "directBootOk": true}}})), []);
    }
}
