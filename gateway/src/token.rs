//! A signed token identifies a client. Naru keeps no passwords and no users of its own.

mod key;
mod key_set;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use naru_engines::store::UserRecord;
use naru_model::{DeviceId, Timestamp, UserId};
use naru_runtime::config::{Secret, Span, optional};
use serde::Deserialize;

use crate::refusal::Refusal;
use crate::token::key::{Key, MIN_SECRET_BYTES, Set};
use crate::token::key_set::KeySet;

/// The longest display name of a user, in bytes.
pub(crate) const LONGEST_NAME: usize = 256;

/// The keys of the configuration for checking tokens; `defaults.toml` explains them.
#[derive(Clone, Debug, Deserialize)]
pub struct TokenConfig {
    #[serde(deserialize_with = "optional")]
    pub jwt_secret: Option<Secret>,
    #[serde(deserialize_with = "optional")]
    pub jwt_algorithm: Option<Algorithm>,
    #[serde(deserialize_with = "optional")]
    pub jwt_public_key_file: Option<PathBuf>,
    #[serde(deserialize_with = "optional")]
    pub jwt_jwks_file: Option<PathBuf>,
    #[serde(deserialize_with = "optional")]
    pub jwt_jwks_url: Option<String>,
    pub jwt_jwks_refresh: Span,
    pub jwt_jwks_max_age: Span,
    #[serde(deserialize_with = "optional")]
    pub jwt_issuer: Option<String>,
    #[serde(deserialize_with = "optional")]
    pub jwt_audience: Option<String>,
    pub jwt_leeway: Span,
    #[serde(deserialize_with = "optional")]
    pub extra_ca_file: Option<PathBuf>,
}

/// Why the keys of the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenConfigError {
    /// No key for tokens is configured.
    #[error("no key for tokens: set one of jwt_secret, jwt_public_key_file, jwt_jwks_file, jwt_jwks_url")]
    NoKey,
    /// More than one is configured.
    #[error(
        "more than one key for tokens: set one of jwt_secret, jwt_public_key_file, jwt_jwks_file, jwt_jwks_url"
    )]
    TwoKeys,
    /// The secret could be guessed.
    #[error(
        "jwt_secret is {0} bytes long, and HS256 needs at least {MIN_SECRET_BYTES}: make one with `openssl rand -hex 32`"
    )]
    ShortSecret(usize),
    /// `jwt_algorithm` is for another kind of key than the configured one, or for none.
    #[error("jwt_algorithm = {wanted:?} does not fit the configured key: {allowed}")]
    WrongAlgorithm { wanted: Algorithm, allowed: &'static str },
    /// A file can't be read.
    #[error("can't read {path}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// A file is empty.
    #[error("{0} is empty")]
    Empty(PathBuf),
    /// A file holds no key that can be used.
    #[error("{path} holds no public key that can check tokens: {reason}")]
    NoUsableKey { path: PathBuf, reason: String },
    /// The address of the key set can't be used.
    #[error("jwt_jwks_url is not an http or https URL")]
    KeySetUrl,
    /// The client for key sets can't be made.
    #[error("can't make a client for the key set")]
    Client(#[from] reqwest::Error),
}

/// The caller of a request or a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The token's `sub`.
    pub user: UserId,
    pub name: Arc<str>,
    /// The user's device, if the token names one.
    pub device: Option<DeviceId>,
    /// Whether the caller is the app's own backend.
    pub is_service: bool,
    /// When the token was made, if it says so (`iat`).
    pub issued_at: Option<Timestamp>,
    /// When the token expires, with the leeway.
    pub expires_at: Timestamp,
}

impl Identity {
    /// Whether the token was not ended by this record of its user. One that does not say when it was made may be as old as
    /// any.
    pub(crate) fn counts_by(&self, record: &UserRecord) -> bool {
        let not_before = record.tokens_not_before;
        not_before.is_none_or(|start| self.issued_at.is_some_and(|issued_at| issued_at >= start))
    }
}

pub struct Verifier {
    keys: Keys,
    rules: Rules,
}

enum Keys {
    /// From the configuration or a file: the same for the whole run.
    Fixed(Arc<[Key]>),
    Remote(KeySet),
}

/// What the claims of a token must be.
struct Rules {
    issuer: Option<String>,
    audience: Option<String>,
    leeway: Duration,
}

/// What some keys say of a token.
enum Judged {
    By(Claims),
    /// The token is signed with none of these keys. Other keys may say otherwise.
    NotByThese(&'static str),
    Refused(&'static str),
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    name: Option<String>,
    device: Option<String>,
    scope: Option<String>,
    exp: f64,
    nbf: Option<f64>,
    /// Tokens whose `iat` is no number were always accepted.
    iat: Option<serde_json::Value>,
}

impl Verifier {
    /// Reads the keys. A key set at a URL is fetched by [`Verifier::run`].
    ///
    /// # Errors
    /// When no key is configured, more than one, or one that can't be used or is too weak.
    pub fn new(config: &TokenConfig) -> Result<Self, TokenConfigError> {
        let wanted = config.jwt_algorithm;
        let mut sources: Vec<Keys> = Vec::new();
        if let Some(secret) = &config.jwt_secret {
            if let Some(wanted) = wanted.filter(|wanted| *wanted != Algorithm::HS256) {
                return Err(TokenConfigError::WrongAlgorithm { wanted, allowed: "jwt_secret is for HS256" });
            }
            let secret = secret.expose().as_bytes();
            let key = Key::of_secret(secret).ok_or(TokenConfigError::ShortSecret(secret.len()))?;
            sources.push(Keys::Fixed([key].into()));
        }
        if let Some(path) = &config.jwt_public_key_file {
            let key = Key::of_pem(&read(path)?, wanted);
            sources.push(Keys::Fixed([key.map_err(|reason| unusable(path, reason.to_owned()))?].into()));
        }
        if let Some(path) = &config.jwt_jwks_file {
            let set = Set::read(&read(path)?, wanted).map_err(|reason| unusable(path, reason))?;
            if set.keys.is_empty() {
                let reason = if set.unused.is_empty() { "it is an empty set".to_owned() } else { set.unused };
                return Err(unusable(path, reason));
            }
            sources.push(Keys::Fixed(set.keys));
        }
        if config.jwt_jwks_url.is_some() {
            if let Some(wanted) = wanted.filter(|wanted| !Key::PUBLIC.contains(wanted)) {
                let allowed = "a public key is for EdDSA, ES256 or RS256";
                return Err(TokenConfigError::WrongAlgorithm { wanted, allowed });
            }
            sources.push(Keys::Remote(KeySet::new(config)?));
        }
        let keys = sources.pop().ok_or(TokenConfigError::NoKey)?;
        if !sources.is_empty() {
            return Err(TokenConfigError::TwoKeys);
        }
        let rules = Rules {
            issuer: config.jwt_issuer.clone(),
            audience: config.jwt_audience.clone(),
            leeway: config.jwt_leeway.into(),
        };
        Ok(Self { keys, rules })
    }

    /// A sentence about a configuration that works and is risky.
    pub fn warning(&self) -> Option<&'static str> {
        let any_app = matches!(self.keys, Keys::Remote(_))
            && (self.rules.issuer.is_none() || self.rules.audience.is_none());
        any_app.then_some(
            "jwt_jwks_url is set without jwt_issuer and jwt_audience: a token that its keys sign for any other \
             application is accepted here",
        )
    }

    /// Keeps a key set at a URL up to date; ends at once when there is none.
    pub async fn run(&self) {
        if let Keys::Remote(set) = &self.keys {
            set.run().await;
        }
    }

    /// Whether tokens can be checked, for `/readyz`.
    ///
    /// # Errors
    /// When there are no keys that can be trusted, with a sentence.
    pub fn check(&self) -> Result<(), &'static str> {
        match &self.keys {
            Keys::Fixed(_) => Ok(()),
            Keys::Remote(set) => set.check(),
        }
    }

    /// What is wrong with the key set while the keys of before still count, for `/readyz`.
    pub fn degradation(&self) -> Option<String> {
        match &self.keys {
            Keys::Fixed(_) => None,
            Keys::Remote(set) => set.degradation(),
        }
    }

    /// Checks a token.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with the reason: the token is not of the configured key and algorithm, is expired or not yet
    /// valid, is for another application, or its `sub` or `device` is no id. `UNAVAILABLE`: the keys that would decide
    /// can't be fetched.
    pub async fn verify(&self, token: &str) -> Result<Identity, Refusal> {
        let judged = match &self.keys {
            Keys::Fixed(keys) => self.judge(token, keys),
            Keys::Remote(set) => match self.judge(token, &set.current().await?) {
                Judged::NotByThese(_) if may_be_signed(token) => self.judge(token, &set.renewed().await?),
                judged => judged,
            },
        };
        match judged {
            Judged::By(claims) => identity(claims, self.rules.leeway),
            Judged::NotByThese(reason) | Judged::Refused(reason) => Err(Refusal::Unauthenticated(reason)),
        }
    }

    fn judge(&self, token: &str, keys: &[Key]) -> Judged {
        let Ok(header) = decode_header(token) else {
            return Judged::Refused("the token is not a JWT");
        };
        // RFC 7515, section 4.1.11: what `crit` names must be understood, and Naru understands no extension.
        if header.crit.is_some() {
            return Judged::Refused("the token's crit names what is not understood here");
        }
        let mut reason = "no key fits the token's algorithm and kid";
        for key in keys.iter().filter(|key| key.fits(&header)) {
            match decode::<Claims>(token, key.decoding(), &self.rules.of(header.alg)) {
                Ok(token) => return Judged::By(token.claims),
                Err(error) if *error.kind() == jsonwebtoken::errors::ErrorKind::InvalidSignature => {
                    reason = "the token's signature is not good";
                }
                Err(error) => return Judged::Refused(why(error.kind())),
            }
        }
        Judged::NotByThese(reason)
    }
}

/// Whether a key set may come to hold a token's key: a token of any other algorithm causes no fetch.
fn may_be_signed(token: &str) -> bool {
    decode_header(token).is_ok_and(|header| Key::PUBLIC.contains(&header.alg))
}

impl Rules {
    /// What the library checks besides the signature. The times are checked in [`identity`]: the library counts in whole
    /// seconds.
    fn of(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        let mut required = vec!["exp", "sub"];
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.validate_aud = self.audience.is_some();
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TokenConfigError> {
    let content = std::fs::read(path)
        .map_err(|source| TokenConfigError::Unreadable { path: path.to_owned(), source })?;
    if content.trim_ascii().is_empty() {
        return Err(TokenConfigError::Empty(path.to_owned()));
    }
    Ok(content)
}

fn unusable(path: &Path, reason: String) -> TokenConfigError {
    TokenConfigError::NoUsableKey { path: path.to_owned(), reason }
}

/// A time of a claim, in seconds since 1970 and possibly with a fraction.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a time beyond 64 bits saturates, which is early or late enough"
)]
fn time(seconds: f64) -> Timestamp {
    Timestamp::from_millis((seconds * 1000.0) as i64)
}

/// A name goes into every message of its user, so a longer one is cut.
fn within_limit(mut name: String) -> Arc<str> {
    name.truncate(name.floor_char_boundary(LONGEST_NAME));
    name.into()
}

fn identity(claims: Claims, leeway: Duration) -> Result<Identity, Refusal> {
    let (now, expires_at) = (Timestamp::now(), time(claims.exp).after(leeway));
    if expires_at <= now {
        return Err(Refusal::Unauthenticated("the token has expired"));
    }
    if claims.nbf.is_some_and(|start| time(start) > now.after(leeway)) {
        return Err(Refusal::Unauthenticated("the token is not valid yet"));
    }
    let user =
        UserId::new(claims.sub).map_err(|_| Refusal::Unauthenticated("the token's sub is no user id"))?;
    let device = claims.device.map(DeviceId::new).transpose();
    Ok(Identity {
        name: claims.name.filter(|name| !name.is_empty()).map_or_else(|| user.as_str().into(), within_limit),
        device: device.map_err(|_| Refusal::Unauthenticated("the token's device is no device id"))?,
        is_service: claims.scope.is_some_and(|scope| scope.split(' ').any(|word| word == "service")),
        user,
        issued_at: claims.iat.and_then(|iat| iat.as_f64()).map(time),
        expires_at,
    })
}

fn why(kind: &jsonwebtoken::errors::ErrorKind) -> &'static str {
    use jsonwebtoken::errors::ErrorKind;
    match kind {
        ErrorKind::InvalidIssuer => "the token is of another issuer",
        ErrorKind::InvalidAudience => "the token is for another audience",
        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => "the token names no issuer",
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => "the token names no audience",
        ErrorKind::MissingRequiredClaim(_) => "the token lacks sub or exp",
        _ => "the token can't be used",
    }
}

/// The token of the `Authorization` header. Of two, a proxy in front may have checked the other one.
pub(crate) fn bearer(headers: &http::HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(http::header::AUTHORIZATION).iter();
    let value = values.next().filter(|_| values.next().is_none())?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
