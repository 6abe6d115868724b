//! One readable file of keys, four places to set them, and an error that names the key and the place.
//!
//! `defaults.toml` is the schema: the keys, their types, their help and their defaults exist there and nowhere else.
//! Flags win over the environment, the environment over the file, the file over a binary's own defaults ([`Program`]), and
//! those over `defaults.toml`. Each worker then [picks](Settings::pick) the keys it needs into a struct of its own.

mod schema;
mod values;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::de::value::{BorrowedStrDeserializer, MapAccessDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess};
use toml::{Table, Value};

use self::schema::{Key, SCHEMA};
use self::values::HIDDEN;
pub use self::values::{Secret, Span, optional};

const PREFIX: &str = "NARU_";
const CONFIG_VARIABLE: &str = "NARU_CONFIG";

/// One binary: its help, and its defaults that differ from `defaults.toml`.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// The binary's name, as typed.
    pub name: &'static str,
    /// One sentence for `--help`.
    pub about: &'static str,
    /// Defaults of its own, written as in the environment: `("engine", "embedded")`.
    pub overrides: &'static [(&'static str, &'static str)],
}

/// Where a value came from, weakest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `defaults.toml`.
    Default,
    /// [`Program::overrides`].
    Override,
    /// The file that `--config` or `NARU_CONFIG` names.
    File(PathBuf),
    /// The environment variable of the key.
    Environment,
    /// The flag of the key.
    Flag,
}

impl Source {
    /// Where to look for `key`, in words.
    fn describe(&self, key: &str) -> String {
        match self {
            Self::Default => "the defaults".into(),
            Self::Override => "this binary's defaults".into(),
            Self::File(path) => path.display().to_string(),
            Self::Environment => variable(key),
            Self::Flag => format!("--{}", flag(key)),
        }
    }
}

/// Why the configuration was refused. No text here holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration file {}", path.display())]
    Unreadable {
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not TOML. The offending line is counted, not quoted: it may hold a secret.
    #[error("{}, line {line}: {message}", path.display())]
    Syntax {
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The parser's message.
        message: String,
    },
    /// There is no such key.
    #[error("unknown key `{key}` in {place}{}", suggestion(*nearest))]
    UnknownKey {
        /// The key as written.
        key: String,
        /// Where it was found, in words.
        place: String,
        /// A key with a similar spelling.
        nearest: Option<&'static str>,
    },
    /// The key's value can't be used.
    #[error("`{key}` (from {place}): {message}")]
    Value {
        key: &'static str,
        /// Where its value came from, in words.
        place: String,
        /// Why it is refused.
        message: String,
    },
    /// A `Config` struct and `defaults.toml` do not fit together: a mistake in Naru itself.
    #[error("a Config struct does not match defaults.toml: {0}")]
    Mismatch(String),
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|key| format!("; did you mean `{key}`?")).unwrap_or_default()
}

/// The value of every key that is in force, and where it came from.
#[derive(Clone)]
pub struct Settings {
    values: BTreeMap<&'static str, (Value, Source)>,
    unknown_environment: Vec<String>,
}

impl Settings {
    /// The binary's command line: a flag for every key, `--config` and `--print-config`. Subcommands that the binary
    /// adds take the same flags.
    ///
    /// # Panics
    /// When an override of the program is no key or not of its key's type.
    pub fn command(program: &Program) -> Command {
        let defaults = Self::of_program(program).expect("a program's overrides are legal");
        let keys = SCHEMA.iter().map(|key| {
            let help = match defaults.shown(key).to_string().as_str() {
                "\"\"" | "[]" => key.about.clone(),
                default => format!("{} [default: {default}]", key.about),
            };
            Arg::new(key.name)
                .long(flag(key.name))
                .value_name("VALUE")
                .help(help)
                .help_heading(key.heading)
                .global(true)
        });
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .help("A TOML file with any of the keys below, or NARU_CONFIG")
            .global(true);
        let print = Arg::new("print_config")
            .long("print-config")
            .help("Print the configuration that is in force, secrets hidden, and leave")
            .action(ArgAction::SetTrue)
            .global(true);
        Command::new(program.name)
            .about(program.about)
            .after_help("Every flag can also be set in the environment: --data-dir is NARU_DATA_DIR.")
            .arg(config)
            .arg(print)
            .args(keys)
    }

    /// Puts the layers together. `matches` come from [`Settings::command`], `environment` as a rule from
    /// [`environment`]; variables that do not start with `NARU_` are ignored.
    ///
    /// # Errors
    /// When the file can't be read or has an unknown key, or when a value is not of its key's type.
    pub fn load(
        program: &Program,
        matches: &ArgMatches,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut environment: BTreeMap<String, String> =
            environment.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        let mut settings = Self::of_program(program)?;

        let file = environment.remove(CONFIG_VARIABLE).filter(|path| !path.is_empty());
        if let Some(path) = matches.get_one::<String>("config").or(file.as_ref()) {
            settings.set_file(Path::new(path))?;
        }
        for key in SCHEMA.iter() {
            if let Some(text) = environment.remove(&variable(key.name)) {
                settings.set_text(key, &text, Source::Environment)?;
            }
        }
        for key in SCHEMA.iter() {
            if let Some(text) = matches.get_one::<String>(key.name) {
                settings.set_text(key, text, Source::Flag)?;
            }
        }
        settings.unknown_environment = environment.into_keys().collect();
        Ok(settings)
    }

    /// Whether `--print-config` was given.
    pub fn print_wanted(matches: &ArgMatches) -> bool {
        matches.get_flag("print_config")
    }

    /// `NARU_*` variables that are no key, for a warning: a typing error, or a variable that a platform injects (Kubernetes
    /// does, for a service named "naru"), for which a process should not refuse to start.
    pub fn unknown_environment(&self) -> &[String] {
        &self.unknown_environment
    }

    /// Reads the keys that are fields of `T`; the other keys are ignored. Pick a shared part by itself instead of
    /// `#[serde(flatten)]`, behind which an error can't be traced to its key.
    ///
    /// # Errors
    /// When a value is refused by its field's type; the error names the key and where the value came from.
    pub fn pick<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        let mut fields = Fields { rest: self.values.iter(), current: None };
        T::deserialize(MapAccessDeserializer::new(&mut fields)).map_err(|error| match fields.current {
            Some((key, (value, source))) => ConfigError::Value {
                key,
                place: source.describe(key),
                message: without_secret(key, value, error.message()),
            },
            None => ConfigError::Mismatch(error.message().to_owned()),
        })
    }

    /// The configuration in force, as TOML that can be saved and used, but for the secrets, which are hidden. A value that
    /// is not the default is followed by its source.
    pub fn print(&self) -> String {
        let mut text = String::new();
        let mut heading = "";
        for key in SCHEMA.iter() {
            if key.heading != heading {
                heading = key.heading;
                text += &format!("{}# {heading}\n", if text.is_empty() { "" } else { "\n" });
            }
            text += &format!("{} = {}", key.name, self.shown(key));
            match self.source(key.name) {
                Source::Default => text += "\n",
                source => text += &format!(" # from {}\n", source.describe(key.name)),
            }
        }
        text
    }

    /// Where the value of `key` came from.
    ///
    /// # Panics
    /// When there is no such key.
    pub fn source(&self, key: &str) -> Source {
        self.values[key].1.clone()
    }

    /// The two weakest layers.
    fn of_program(program: &Program) -> Result<Self, ConfigError> {
        let values = SCHEMA.iter().map(|key| (key.name, (key.default.clone(), Source::Default))).collect();
        let mut settings = Self { values, unknown_environment: Vec::new() };
        for (name, text) in program.overrides {
            let key = find(name, || Source::Override.describe(name))?;
            settings.set_text(key, text, Source::Override)?;
        }
        Ok(settings)
    }

    fn set_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let before = &text[..error.span().map_or(0, |span| span.start)];
            ConfigError::Syntax {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                message: error.message().to_owned(),
            }
        })?;
        for (name, value) in table {
            let source = Source::File(path.to_owned());
            let key = find(&name, || source.describe(&name))?;
            self.set(key, key.kind.of_file(value), source)?;
        }
        Ok(())
    }

    fn set_text(&mut self, key: &'static Key, text: &str, source: Source) -> Result<(), ConfigError> {
        self.set(key, key.kind.of_text(text), source)
    }

    fn set(&mut self, key: &'static Key, value: Option<Value>, source: Source) -> Result<(), ConfigError> {
        let Some(value) = value else {
            let (place, message) = (source.describe(key.name), format!("must be {}", key.kind));
            return Err(ConfigError::Value { key: key.name, place, message });
        };
        self.values.insert(key.name, (value, source));
        Ok(())
    }

    fn shown(&self, key: &Key) -> Value {
        shown(key.name, &self.values[key.name].0)
    }
}

/// Secrets are as hidden in a debug line as in [`Settings::print`].
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(SCHEMA.iter().map(|key| (key.name, self.shown(key)))).finish()
    }
}

/// The process's `NARU_*` variables, for [`Settings::load`]. Unlike [`std::env::vars`] it does not panic because some
/// other variable is not Unicode.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
        Some((name, value.to_string_lossy().into_owned()))
    })
}

/// `data_dir` → `data-dir`.
fn flag(key: &str) -> String {
    key.replace('_', "-")
}

/// `data_dir` → `NARU_DATA_DIR`.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase())
}

fn find(name: &str, place: impl FnOnce() -> String) -> Result<&'static Key, ConfigError> {
    SCHEMA.iter().find(|key| key.name == name).ok_or_else(|| ConfigError::UnknownKey {
        key: name.to_owned(),
        place: place(),
        nearest: schema::nearest(name),
    })
}

/// `value` as it may be shown.
fn shown(key: &str, value: &Value) -> Value {
    match value {
        Value::String(text) if text.is_empty() => value.clone(),
        Value::String(_) if schema::is_secret(key) => HIDDEN.into(),
        Value::String(text) => without_password(text).into_owned().into(),
        _ => value.clone(),
    }
}

/// Hides the password of `scheme://user:password@host`. Everything up to the last `@` counts as such: a password that
/// was not percent-encoded may hold any character.
fn without_password(url: &str) -> Cow<'_, str> {
    let hidden = url.split_once("://").and_then(|(scheme, rest)| {
        let (user_and_password, host) = rest.rsplit_once('@')?;
        let (user, _password) = user_and_password.split_once(':')?;
        Some(format!("{scheme}://{user}:{HIDDEN}@{host}"))
    });
    hidden.map_or(Cow::Borrowed(url), Cow::Owned)
}

/// A type's complaint about `value`; a complaint may quote any part of it.
fn without_secret(key: &str, value: &Value, complaint: &str) -> String {
    let shown = shown(key, value);
    if shown == *value {
        complaint.to_owned()
    } else {
        format!("{shown} is refused; the reason may quote what is hidden here")
    }
}

type Field<'a> = (&'static str, &'a (Value, Source));

/// The settings as a map for serde, which remembers the field that it handed out last: the one an error is about.
struct Fields<'a> {
    rest: std::collections::btree_map::Iter<'a, &'static str, (Value, Source)>,
    current: Option<Field<'a>>,
}

impl<'de> MapAccess<'de> for &mut Fields<'_> {
    type Error = toml::de::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        self.current = self.rest.next().map(|(key, value)| (*key, value));
        self.current.map(|(key, _)| seed.deserialize(BorrowedStrDeserializer::new(key))).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        let (_, (value, _)) = self.current.expect("serde asks for a value after its key");
        seed.deserialize(value.clone().into_deserializer())
    }
}

#[cfg(test)]
mod tests;
