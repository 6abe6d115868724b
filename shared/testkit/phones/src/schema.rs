//! The part of FCM's message that Naru sends, as a protobuf schema, and the rules by which Google reads JSON into it: other
//! fields are refused, and each value must have its field's type.
//!
//! Source: FCM REST reference, `projects.messages`; the descriptions of errors are those that Google has been seen to give.

use serde_json::{Map, Value};

/// A field's name, and its type.
type Field = (&'static str, Kind);

enum Kind {
    Text,
    Bool,
    /// Seconds with a suffix: `"3.5s"`.
    Duration,
    Priority,
    /// Strings by key.
    Texts,
    /// Any JSON object.
    Any,
    Message(&'static [Field]),
}

use Kind::{Any, Bool, Duration, Message, Priority, Text, Texts};

/// The body of `messages:send`.
const REQUEST: &[Field] = &[(
    "message",
    Message(&[
        ("token", Text),
        ("notification", Message(&[("title", Text), ("body", Text)])),
        ("data", Texts),
        (
            "android",
            Message(&[
                ("priority", Priority),
                ("ttl", Duration),
                (
                    "notification",
                    Message(&[
                        ("tag", Text),
                        ("channel_id", Text),
                        ("default_sound", Bool),
                        ("body_loc_key", Text),
                    ]),
                ),
            ]),
        ),
        ("apns", Message(&[("headers", Texts), ("payload", Any)])),
    ]),
)];

/// A `fieldViolations` entry. A field of the request itself has no name of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) field: String,
    pub(crate) description: String,
}

/// Checks the body of `messages:send`.
pub(crate) fn check(request: &Value) -> Result<(), Violation> {
    check_message(request, REQUEST, "")
}

fn check_message(value: &Value, fields: &[Field], path: &str) -> Result<(), Violation> {
    for (name, value) in object(value, path, "message")? {
        let Some((_, kind)) = fields.iter().find(|(field, _)| field == name) else {
            let place = if path.is_empty() { String::new() } else { format!(" at '{path}'") };
            let description =
                format!("Invalid JSON payload received. Unknown name \"{name}\"{place}: Cannot find field.");
            return Err(Violation { field: path.to_owned(), description });
        };
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        check_field(value, kind, &path)?;
    }
    Ok(())
}

fn check_field(value: &Value, kind: &Kind, path: &str) -> Result<(), Violation> {
    let text = value.as_str();
    let (is_right, type_name) = match kind {
        Message(fields) => return check_message(value, fields, path),
        Texts => {
            for (index, value) in object(value, path, "map")?.values().enumerate() {
                check_field(value, &Text, &format!("{path}[{index}].value"))?;
            }
            return Ok(());
        }
        Any => (value.is_object(), "type.googleapis.com/google.protobuf.Struct"),
        Text => (text.is_some(), "TYPE_STRING"),
        Bool => (value.is_boolean(), "TYPE_BOOL"),
        Duration => {
            (text.and_then(duration_seconds).is_some(), "type.googleapis.com/google.protobuf.Duration")
        }
        Priority => (
            matches!(text, Some("NORMAL" | "HIGH")),
            "type.googleapis.com/google.firebase.fcm.v1.AndroidConfig.MessagePriority",
        ),
    };
    if is_right { Ok(()) } else { Err(mismatch(path, type_name, value)) }
}

fn object<'a>(value: &'a Value, path: &str, type_name: &str) -> Result<&'a Map<String, Value>, Violation> {
    value.as_object().ok_or_else(|| mismatch(path, type_name, value))
}

fn mismatch(path: &str, type_name: &str, value: &Value) -> Violation {
    let description = format!("Invalid value at '{path}' ({type_name}), {value}");
    Violation { field: path.to_owned(), description }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
    fn descriptions_are_googles() {
        // The first two as seen from Google: AGProjects/sylk-pushserver#16, and FCM's guide on error codes.
        let cases = [
            (
                json!({"to": "A"}),
                "",
                "Invalid JSON payload received. Unknown name \"to\": Cannot find field.",
            ),
            (
                json!({"message": {"data": {"count": 12}}}),
                "message.data[0].value",
                "Invalid value at 'message.data[0].value' (TYPE_STRING), 12",
            ),
            (
                json!({"message": {"notification": {"badge": 1}}}),
                "message.notification",
                "Invalid JSON payload received. Unknown name \"badge\" at 'message.notification': Cannot find field.",
            ),
        ];
        for (request, field, description) in cases {
            let violation = Violation { field: field.to_owned(), description: description.to_owned() };
            assert_eq!(check(&request), Err(violation));
        }
    }
}
