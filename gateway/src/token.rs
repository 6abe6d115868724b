//! Who is connected: a signed token says it. Naru keeps no passwords and no users of its own.

use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use naru_model::{DeviceId, Timestamp, UserId};
use naru_runtime::config::{Secret, Span, optional};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::refusal::Refusal;

/// A key set is asked for again, for a key it does not hold, at most this often.
const JWKS_REFRESH: Duration = Duration::from_secs(10);
/// How long a key set may take to arrive.
const JWKS_TIMEOUT: Duration = Duration::from_secs(5);

/// The keys of the configuration that say which tokens are good.
#[derive(Clone, Debug, Deserialize)]
pub struct TokenConfig {
    /// HS256's shared secret.
    #[serde(deserialize_with = "optional")]
    pub jwt_secret: Option<Secret>,
    /// The one algorithm that is accepted; by default the one the key is made for.
    #[serde(deserialize_with = "optional")]
    pub jwt_algorithm: Option<Algorithm>,
    /// A PEM file with a public key.
    #[serde(deserialize_with = "optional")]
    pub jwt_public_key_file: Option<PathBuf>,
    /// A file with a key set.
    #[serde(deserialize_with = "optional")]
    pub jwt_jwks_file: Option<PathBuf>,
    /// The address of a key set.
    #[serde(deserialize_with = "optional")]
    pub jwt_jwks_url: Option<String>,
    /// How wrong clocks may be.
    pub jwt_leeway: Span,
    /// A PEM file of roots trusted besides the system's.
    #[serde(deserialize_with = "optional")]
    pub extra_ca_file: Option<PathBuf>,
}

/// Why the keys of the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenConfigError {
    /// Nothing says which tokens are good.
    #[error("no key for tokens: set one of jwt_secret, jwt_public_key_file, jwt_jwks_file, jwt_jwks_url")]
    NoKey,
    /// It is not clear which one says it.
    #[error(
        "more than one key for tokens: set one of jwt_secret, jwt_public_key_file, jwt_jwks_file, jwt_jwks_url"
    )]
    TwoKeys,
    /// A file can't be read.
    #[error("can't read {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds no key that can be used, or one of another algorithm than configured.
    #[error(
        "{0} holds no public key for the algorithms EdDSA, ES256 or RS256 (or not for the configured one)"
    )]
    NoUsableKey(PathBuf),
    /// The client for key sets can't be made.
    #[error("can't make a client for the key set")]
    Client(#[from] reqwest::Error),
}

/// Who the caller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The token's `sub`.
    pub user: UserId,
    /// Their name.
    pub name: Arc<str>,
    /// Their device, if the token names one.
    pub device: Option<DeviceId>,
    /// Whether it is the app's own backend.
    pub is_service: bool,
    /// When the token ends.
    pub expires_at: Timestamp,
}

/// Checks tokens.
pub struct Verifier {
    keys: RwLock<Arc<[Key]>>,
    wanted: Option<Algorithm>,
    leeway: Duration,
    remote: Option<Remote>,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

struct Remote {
    url: String,
    client: reqwest::Client,
    asked: Mutex<Option<Instant>>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    name: Option<String>,
    device: Option<String>,
    scope: Option<String>,
    exp: f64,
}

impl Verifier {
    /// Reads the keys. A key set at a URL is asked for when the first token comes.
    ///
    /// # Errors
    /// When no key is configured, more than one, or one that can't be used.
    pub fn new(config: &TokenConfig) -> Result<Self, TokenConfigError> {
        let wanted = config.jwt_algorithm;
        let mut sources: Vec<(Vec<Key>, Option<Remote>)> = Vec::new();
        if let Some(secret) = &config.jwt_secret {
            let key = DecodingKey::from_secret(secret.expose().as_bytes());
            sources.push((vec![Key { id: None, algorithm: Algorithm::HS256, key }], None));
        }
        if let Some(path) = &config.jwt_public_key_file {
            sources.push((vec![public_key(path, wanted)?], None));
        }
        if let Some(path) = &config.jwt_jwks_file {
            let set = serde_json::from_slice(&read(path)?).ok();
            let keys = set.map(|set| keys_of(&set, wanted)).unwrap_or_default();
            if keys.is_empty() {
                return Err(TokenConfigError::NoUsableKey(path.clone()));
            }
            sources.push((keys, None));
        }
        if let Some(url) = &config.jwt_jwks_url {
            sources.push((Vec::new(), Some(Remote::new(url.clone(), config.extra_ca_file.as_ref())?)));
        }
        let Some((keys, remote)) = sources.pop() else {
            return Err(TokenConfigError::NoKey);
        };
        if !sources.is_empty() {
            return Err(TokenConfigError::TwoKeys);
        }
        Ok(Self { keys: RwLock::new(keys.into()), wanted, leeway: config.jwt_leeway.into(), remote })
    }

    /// Checks a token.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with the reason: the token is not of the configured key and algorithm, is expired or not yet
    /// valid, or its `sub` or `device` is no id.
    pub async fn verify(&self, token: &str) -> Result<Identity, Refusal> {
        const MALFORMED: Refusal = Refusal::Unauthenticated("the token is not a JWT");
        let header = decode_header(token).map_err(|_| MALFORMED)?;
        let mut keys = self.keys();
        let fits = |key: &Key| {
            key.algorithm == header.alg && (key.id.is_none() || header.kid.is_none() || key.id == header.kid)
        };
        if !keys.iter().any(fits) {
            self.refresh().await;
            keys = self.keys();
        }
        let mut refusal = Refusal::Unauthenticated("no key fits the token's algorithm and kid");
        for key in keys.iter().filter(|key| fits(key)) {
            match decode::<Claims>(token, &key.key, &self.validation(key.algorithm)) {
                Ok(token) => return identity(token.claims, self.leeway),
                Err(error) => refusal = Refusal::Unauthenticated(reason(error.kind())),
            }
        }
        Err(refusal)
    }

    fn keys(&self) -> Arc<[Key]> {
        self.keys.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.leeway.as_secs();
        validation.validate_nbf = true;
        // The audience is the app's own matter; a token that names one is as good as one that does not.
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp", "sub"]);
        validation
    }

    async fn refresh(&self) {
        let Some(remote) = &self.remote else { return };
        let mut asked = remote.asked.lock().await;
        if asked.is_some_and(|before| before.elapsed() < JWKS_REFRESH) {
            return;
        }
        *asked = Some(Instant::now());
        match remote.fetch().await {
            Ok(set) => {
                let keys = keys_of(&set, self.wanted).into();
                *self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner) = keys;
            }
            Err(error) => tracing::warn!(%error, "the key set for tokens can't be had"),
        }
    }
}

impl Remote {
    fn new(url: String, extra_ca: Option<&PathBuf>) -> Result<Self, TokenConfigError> {
        let mut client = reqwest::Client::builder().timeout(JWKS_TIMEOUT);
        if let Some(path) = extra_ca {
            client = client.tls_certs_merge(reqwest::Certificate::from_pem_bundle(&read(path)?)?);
        }
        Ok(Self { url, client: client.build()?, asked: Mutex::default() })
    }

    async fn fetch(&self) -> Result<JwkSet, reqwest::Error> {
        self.client.get(&self.url).send().await?.error_for_status()?.json().await
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, TokenConfigError> {
    std::fs::read(path).map_err(|source| TokenConfigError::Unreadable { path: path.clone(), source })
}

fn public_key(path: &PathBuf, wanted: Option<Algorithm>) -> Result<Key, TokenConfigError> {
    let pem = read(path)?;
    let candidates = [
        (Algorithm::EdDSA, DecodingKey::from_ed_pem(&pem)),
        (Algorithm::ES256, DecodingKey::from_ec_pem(&pem)),
        (Algorithm::RS256, DecodingKey::from_rsa_pem(&pem)),
    ];
    candidates
        .into_iter()
        .filter(|(algorithm, _)| wanted.is_none_or(|wanted| wanted == *algorithm))
        .find_map(|(algorithm, key)| Some(Key { id: None, algorithm, key: key.ok()? }))
        .ok_or_else(|| TokenConfigError::NoUsableKey(path.clone()))
}

/// The public keys of a set. A symmetric key in a public place is no key.
fn keys_of(set: &JwkSet, wanted: Option<Algorithm>) -> Vec<Key> {
    let usable = set.keys.iter().filter_map(|jwk| {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::OctetKeyPair(_) => Algorithm::EdDSA,
            AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            _ => return None,
        };
        let key = DecodingKey::from_jwk(jwk).ok()?;
        Some(Key { id: jwk.common.key_id.clone(), algorithm, key })
    });
    usable.filter(|key| wanted.is_none_or(|wanted| wanted == key.algorithm)).collect()
}

fn identity(claims: Claims, leeway: Duration) -> Result<Identity, Refusal> {
    let user =
        UserId::new(claims.sub).map_err(|_| Refusal::Unauthenticated("the token's sub is no user id"))?;
    let device = claims.device.map(DeviceId::new).transpose();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a time beyond 64 bits saturates, which is late enough"
    )]
    let expires_at = Timestamp::from_millis((claims.exp * 1000.0) as i64).after(leeway);
    // The library still takes a token in the second in which it ends; a session would end at once.
    if expires_at <= Timestamp::now() {
        return Err(Refusal::Unauthenticated("the token has expired"));
    }
    Ok(Identity {
        name: claims.name.filter(|name| !name.is_empty()).map_or_else(|| user.as_str().into(), Into::into),
        device: device.map_err(|_| Refusal::Unauthenticated("the token's device is no device id"))?,
        is_service: claims.scope.is_some_and(|scope| scope.split(' ').any(|word| word == "service")),
        user,
        expires_at,
    })
}

fn reason(kind: &jsonwebtoken::errors::ErrorKind) -> &'static str {
    use jsonwebtoken::errors::ErrorKind;
    match kind {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidSignature => "the token's signature is not good",
        ErrorKind::MissingRequiredClaim(_) => "the token lacks sub or exp",
        _ => "the token can't be used",
    }
}
