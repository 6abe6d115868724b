//! `naru token`: a token for a user, for trials and for an app's own backend.

use std::time::Duration;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use jsonwebtoken::{EncodingKey, Header};
use naru_model::{DeviceId, Timestamp, UserId};
use naru_runtime::Secret;
use serde::Serialize;

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

/// Signs claims with HS256.
///
/// # Errors
/// When the secret can't be used as a key.
pub fn sign(claims: &Claims<'_>, secret: &Secret) -> anyhow::Result<String> {
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    Ok(jsonwebtoken::encode(&Header::default(), claims, &key)?)
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
pub fn print(wanted: &ArgMatches, secret: &Secret) -> anyhow::Result<String> {
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
    sign(&claims, secret)
}
