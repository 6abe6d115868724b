//! `naru token`: a token for a user, for trials and for an app's own backend.

use std::time::Duration;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use jsonwebtoken::{EncodingKey, Header};
use naru_model::{DeviceId, Timestamp, UserId};
use naru_runtime::config::optional;
use naru_runtime::{Secret, Settings};
use serde::{Deserialize, Serialize};

/// A token's claims.
#[derive(Serialize)]
pub struct Claims<'a> {
    pub sub: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<&'a DeviceId>,
    /// Its further rights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<&'a str>,
    /// When it expires, in seconds since 1970.
    pub exp: i64,
}

/// Signs tokens that a Naru of this configuration accepts.
pub struct Signer {
    secret: Secret,
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "optional")]
    jwt_issuer: Option<String>,
    #[serde(deserialize_with = "optional")]
    jwt_audience: Option<String>,
}

impl Signer {
    /// # Errors
    /// When the configuration can't be read.
    pub fn new(settings: &Settings, secret: Secret) -> anyhow::Result<Self> {
        Ok(Self { secret, config: settings.pick()? })
    }

    /// Signs claims with HS256, for the configured issuer and audience.
    ///
    /// # Errors
    /// When the secret can't be used as a key.
    pub fn sign(&self, claims: &Claims<'_>) -> anyhow::Result<String> {
        #[derive(Serialize)]
        struct All<'a> {
            #[serde(flatten)]
            claims: &'a Claims<'a>,
            iat: i64,
            #[serde(skip_serializing_if = "Option::is_none")]
            iss: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            aud: Option<&'a str>,
        }
        let Config { jwt_issuer, jwt_audience } = &self.config;
        let iat = Timestamp::now().as_millis() / 1000;
        let all = All { claims, iat, iss: jwt_issuer.as_deref(), aud: jwt_audience.as_deref() };
        let key = EncodingKey::from_secret(self.secret.expose().as_bytes());
        Ok(jsonwebtoken::encode(&Header::default(), &all, &key)?)
    }
}

/// When a token made now expires.
pub fn expiry(ttl: Duration) -> Timestamp {
    Timestamp::now().after(ttl)
}

/// The subcommand.
pub fn command() -> Command {
    let arg =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("VALUE").help(help);
    Command::new("token")
        .about("Prints a token signed with the secret in force")
        .arg(arg("user", "The user id (sub)").required(true))
        .arg(arg("name", "The name that others see [default: the user id]"))
        .arg(arg("device", "The device id: a newer connection of a device replaces the older one"))
        .arg(arg("scope", "\"service\" for the app's own backend").value_parser(["service"]))
        .arg(arg("ttl", "How long it is good for").default_value("1h"))
}

/// The token that the arguments ask for.
///
/// # Errors
/// When an argument is no id or no duration.
pub fn print(wanted: &ArgMatches, signer: &Signer) -> anyhow::Result<String> {
    let text = |name: &str| wanted.get_one::<String>(name).map(String::as_str);
    let user: UserId = text("user").unwrap_or_default().parse().context("--user")?;
    let device: Option<DeviceId> = text("device").map(str::parse).transpose().context("--device")?;
    let ttl = humantime::parse_duration(text("ttl").unwrap_or_default()).context("--ttl")?;
    let claims = Claims {
        sub: &user,
        name: text("name"),
        device: device.as_ref(),
        scope: text("scope"),
        exp: expiry(ttl).as_millis() / 1000,
    };
    signer.sign(&claims)
}
