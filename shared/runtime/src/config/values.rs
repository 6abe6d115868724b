//! Types for the fields of a worker's `Config`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::value::StringDeserializer;
use serde::{Deserialize, Deserializer, Serialize};

/// Shown in the place of a secret.
pub(super) const HIDDEN: &str = "***";

/// A duration written as `"10s"`, `"250ms"` or `"1h 30m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = humantime::DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text).map(Self)
    }
}

impl TryFrom<String> for Span {
    type Error = humantime::DurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

/// A string that no log line shows: it can be read with [`Secret::expose`] only.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The secret itself, for the one place that uses it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// For a field whose key may be `""`, "not set", which becomes `None`:
///
/// ```
/// # use std::path::PathBuf;
/// #[derive(serde::Deserialize)]
/// struct Config {
///     #[serde(deserialize_with = "naru_runtime::config::optional")]
///     apns_key_file: Option<PathBuf>,
/// }
/// ```
///
/// # Errors
/// When the text is not empty and `T` refuses it.
pub fn optional<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    T::deserialize(StringDeserializer::new(text)).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_read_and_written_as_people_write_it() {
        for (text, seconds) in [("10s", 10), ("1h 30m", 5400), ("0s", 0), ("1day", 86400)] {
            let span: Span = serde_json::from_value(text.into()).expect(text);
            assert_eq!(Duration::from(span), Duration::from_secs(seconds));
            assert_eq!(serde_json::to_value(span).expect("a string"), text);
        }
        assert!("10".parse::<Span>().is_err(), "a number without a unit could mean anything");
        assert!("-1s".parse::<Span>().is_err());
    }

    #[test]
    fn a_secret_is_hidden_in_debug_lines() {
        assert_eq!(format!("{:?}", Secret::from("hunter2".to_owned())), "***");
    }
}
