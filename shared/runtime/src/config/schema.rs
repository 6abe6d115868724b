//! `defaults.toml`, read once: the keys in their order, with type, help and default.

use std::fmt;
use std::sync::LazyLock;

use toml::{Table, Value};

/// Every key, in the file's order.
pub static SCHEMA: LazyLock<Vec<Key>> = LazyLock::new(|| parse(include_str!("../../defaults.toml")));

/// One key of `defaults.toml`.
pub struct Key {
    pub name: &'static str,
    /// The comment above the key, in one line.
    pub about: String,
    /// The `##` comment above the group.
    pub heading: &'static str,
    pub default: Value,
    pub kind: Kind,
}

/// A rule instead of a list, so that a new secret is hidden without a further change.
pub fn is_secret(key: &str) -> bool {
    key.ends_with("_secret")
}

/// The type of a key's values: the type that its default has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Integer,
    Boolean,
    Float,
    List,
}

impl Kind {
    fn of(default: &Value) -> Self {
        match default {
            Value::String(_) => Self::Text,
            Value::Integer(_) => Self::Integer,
            Value::Boolean(_) => Self::Boolean,
            Value::Float(_) => Self::Float,
            Value::Array(_) => Self::List,
            Value::Table(_) | Value::Datetime(_) => panic!("defaults.toml has a table or a time: {default}"),
        }
    }

    /// A value written in the environment or as a flag; `None` if it can't be one of this kind.
    pub fn of_text(self, text: &str) -> Option<Value> {
        match self {
            Self::Text => Some(text.into()),
            Self::Integer => text.parse().ok().map(Value::Integer),
            Self::Boolean => match text {
                "true" | "1" => Some(true.into()),
                "false" | "0" => Some(false.into()),
                _ => None,
            },
            Self::Float => text.parse().ok().map(Value::Float),
            Self::List => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Some(Value::Array(parts.map(Value::from).collect()))
            }
        }
    }

    /// A value of a TOML file; `None` if it is not of this kind.
    pub fn of_file(self, value: Value) -> Option<Value> {
        let fits = match (self, &value) {
            (Self::Text, Value::String(_))
            | (Self::Integer, Value::Integer(_))
            | (Self::Boolean, Value::Boolean(_))
            | (Self::Float, Value::Float(_)) => true,
            (Self::List, Value::Array(parts)) => parts.iter().all(Value::is_str),
            _ => false,
        };
        fits.then_some(value)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "a string",
            Self::Integer => "an integer",
            Self::Boolean => "true or false",
            Self::Float => "a number with a decimal point",
            Self::List => "a list of strings",
        })
    }
}

/// The key with the spelling nearest to `name`, if it is near enough to be the one meant.
pub fn nearest(name: &str) -> Option<&'static str> {
    /// clap's own threshold for "a similar argument exists".
    const NEAR: f64 = 0.7;
    SCHEMA
        .iter()
        .map(|key| (strsim::jaro(name, key.name), key.name))
        .filter(|(likeness, _)| *likeness > NEAR)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, name)| name)
}

/// A TOML parser reads the values; the comments, which it drops, are read line by line.
fn parse(file: &'static str) -> Vec<Key> {
    let mut values: Table = file.parse().expect("defaults.toml is TOML");
    let mut heading = "";
    let mut about: Vec<&str> = Vec::new();
    let mut keys = Vec::new();
    for line in file.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title;
        } else if let Some(comment) = line.strip_prefix('#') {
            about.push(comment.trim());
        } else if let Some((name, _)) = line.split_once(" = ") {
            let default = values.remove(name).expect("a line `name = value` is a top-level key");
            let kind = Kind::of(&default);
            keys.push(Key { name, about: std::mem::take(&mut about).join(" "), heading, default, kind });
        } else {
            about.clear();
        }
    }
    assert!(values.is_empty(), "keys of defaults.toml that are not on one line each: {values}");
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_sentences_a_heading_and_a_plain_name() {
        for key in SCHEMA.iter() {
            let (name, about) = (key.name, &key.about);
            let sentences = about.matches(". ").count() + 1;
            assert!(about.ends_with('.') && sentences <= 3, "{name}: {about:?}");
            assert!(!key.heading.is_empty(), "{name} is in no group");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name} is not snake_case");
        }
    }

    #[test]
    fn text_becomes_the_kind_that_the_default_has() {
        let list = |parts: &[&str]| Some(Value::Array(parts.iter().copied().map(Value::from).collect()));
        assert_eq!(Kind::Text.of_text("7"), Some("7".into()));
        assert_eq!(Kind::Integer.of_text("7"), Some(7.into()));
        assert_eq!(Kind::Integer.of_text("seven"), None);
        assert_eq!(Kind::Integer.of_text(""), None);
        for (text, value) in [("true", true), ("1", true), ("false", false), ("0", false)] {
            assert_eq!(Kind::Boolean.of_text(text), Some(value.into()));
        }
        assert_eq!(Kind::Boolean.of_text("yes"), None);
        assert_eq!(Kind::Float.of_text("0.5"), Some(0.5.into()));
        assert_eq!(Kind::List.of_text(""), list(&[]));
        assert_eq!(Kind::List.of_text("a, b"), list(&["a", "b"]));
    }

    #[test]
    fn a_file_must_use_the_type_itself() {
        assert_eq!(Kind::Integer.of_file("7".into()), None);
        assert_eq!(Kind::Text.of_file(7.into()), None);
        assert_eq!(Kind::List.of_file(vec![Value::from(7)].into()), None);
        assert_eq!(Kind::Boolean.of_file(true.into()), Some(true.into()));
    }

    #[test]
    fn a_near_miss_finds_the_key_and_nonsense_does_not() {
        assert_eq!(nearest("datadir"), Some("data_dir"));
        assert_eq!(nearest("rate_messages_per_sec"), Some("rate_messages_per_second"));
        assert_eq!(nearest("xyzzy"), None);
    }
}
