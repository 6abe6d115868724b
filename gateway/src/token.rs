//! A signed token identifies a client. Naru keeps no passwords and no users of its own.

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

/// A key set is fetched again, for a key it does not hold, at most this often.
const JWKS_REFRESH: Duration = Duration::from_secs(10);
/// How long a key set may take to arrive.
const JWKS_TIMEOUT: Duration = Duration::from_secs(5);

/// The keys of the configuration for checking tokens.
#[derive(Clone, Debug, Deserialize)]
pub struct TokenConfig {
    /// HS256's shared secret.
    #[serde(deserialize_with = "optional")]
    pub jwt_secret: Option<Secret>,
    /// The one algorithm that is accepted; by default the key's own.
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
    /// No key for tokens is configured.
    #[error("no key for tokens: set one of jwt_secret, jwt_public_key_file, jwt_jwks_file, jwt_jwks_url")]
    NoKey,
    /// More than one is configured.
    #[error(
        "more than one key for tokens: set one of jwt_secret, jwt_public_key_file, jwt_jwks_file, jwt_jwks_url"
    )]
    TwoKeys,
    /// A file can't be read.
    #[error("can't read {path}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// The file holds no key that can be used, or one of another algorithm than configured.
    #[error(
        "{0} holds no public key for the algorithms EdDSA, ES256 or RS256 (or not for the configured one)"
    )]
    NoUsableKey(PathBuf),
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
    /// When the token expires, with the leeway.
    pub expires_at: Timestamp,
}

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
    /// Reads the keys. A key set at a URL is fetched when the first token comes.
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
        // The audience is for the app alone; a token is valid with or without one.
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

/// The public keys of a set. A symmetric key is ignored, because a set is public.
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
    // The library still takes a token in the second in which it expires; a session would end at once.
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

/// The token of an `Authorization` header.
pub(crate) fn bearer(headers: &http::HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
    use aws_lc_rs::rsa::{self, KeySize};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
    use jsonwebtoken::jwk::Jwk;
    use jsonwebtoken::{EncodingKey, Header};
    use naru_client::{Answer, Webhook};

    use super::*;

    /// A signer and its public key as PEM.
    struct Signer {
        algorithm: Algorithm,
        key: EncodingKey,
        public: String,
    }

    impl Signer {
        fn new(algorithm: Algorithm) -> Self {
            let pem = |tag: &str, der: &[u8]| pem::encode(&pem::Pem::new(tag, der));
            let (private, public) = match algorithm {
                Algorithm::EdDSA => {
                    let pair = Ed25519KeyPair::generate().unwrap();
                    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
                    (pair.to_pkcs8v1().unwrap().as_ref().to_vec(), public.as_ref().to_vec())
                }
                Algorithm::ES256 => {
                    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
                    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
                    (pair.to_pkcs8v1().unwrap().as_ref().to_vec(), public.as_ref().to_vec())
                }
                _ => {
                    let pair = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
                    let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
                    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
                    (private.as_ref().to_vec(), public.as_ref().to_vec())
                }
            };
            let private = pem("PRIVATE KEY", &private);
            let key = match algorithm {
                Algorithm::EdDSA => EncodingKey::from_ed_pem(private.as_bytes()),
                Algorithm::ES256 => EncodingKey::from_ec_pem(private.as_bytes()),
                _ => EncodingKey::from_rsa_pem(private.as_bytes()),
            };
            Self { algorithm, key: key.unwrap(), public: pem("PUBLIC KEY", &public) }
        }

        fn token(&self, kid: Option<&str>) -> String {
            let header = Header { kid: kid.map(str::to_owned), ..Header::new(self.algorithm) };
            let exp = Timestamp::now().as_millis() / 1000 + 60;
            jsonwebtoken::encode(&header, &serde_json::json!({ "sub": "ada", "exp": exp }), &self.key)
                .unwrap()
        }

        fn jwk(&self, kid: &str) -> Jwk {
            let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
            jwk.common.key_id = Some(kid.to_owned());
            jwk
        }
    }

    fn config() -> TokenConfig {
        TokenConfig {
            jwt_secret: None,
            jwt_algorithm: None,
            jwt_public_key_file: None,
            jwt_jwks_file: None,
            jwt_jwks_url: None,
            jwt_leeway: Span(Duration::ZERO),
            extra_ca_file: None,
        }
    }

    fn file(dir: &Path, content: &str) -> Option<PathBuf> {
        let path = dir.join(format!("{:p}", content));
        std::fs::write(&path, content).unwrap();
        Some(path)
    }

    const PUBLIC: [Algorithm; 3] = [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256];

    #[tokio::test]
    async fn a_public_key_takes_the_tokens_of_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        for algorithm in PUBLIC {
            let (owner, other) = (Signer::new(algorithm), Signer::new(algorithm));
            let config = TokenConfig { jwt_public_key_file: file(dir.path(), &owner.public), ..config() };
            let verifier = Verifier::new(&config).unwrap();
            assert_eq!(verifier.verify(&owner.token(None)).await.unwrap().user.as_str(), "ada");
            assert!(verifier.verify(&other.token(None)).await.is_err(), "{algorithm:?}");

            // A common attack: the public key as an HS256 secret.
            let forged = Signer {
                algorithm: Algorithm::HS256,
                key: EncodingKey::from_secret(owner.public.as_bytes()),
                public: String::new(),
            };
            assert!(verifier.verify(&forged.token(None)).await.is_err(), "{algorithm:?}");

            let mismatched = PUBLIC.into_iter().find(|other| *other != algorithm);
            let refused = Verifier::new(&TokenConfig { jwt_algorithm: mismatched, ..config });
            assert!(matches!(refused, Err(TokenConfigError::NoUsableKey(_))), "{algorithm:?}");
        }
    }

    #[tokio::test]
    async fn a_key_set_is_searched_by_kid() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (Signer::new(Algorithm::EdDSA), Signer::new(Algorithm::EdDSA));
        let set = serde_json::to_string(&JwkSet { keys: vec![one.jwk("one"), two.jwk("two")] }).unwrap();
        let config = TokenConfig { jwt_jwks_file: file(dir.path(), &set), ..config() };
        let verifier = Verifier::new(&config).unwrap();
        for token in [one.token(Some("one")), two.token(Some("two")), two.token(None)] {
            verifier.verify(&token).await.unwrap();
        }
        assert!(verifier.verify(&one.token(Some("two"))).await.is_err());
        assert!(verifier.verify(&one.token(Some("three"))).await.is_err());
    }

    #[tokio::test]
    async fn a_key_set_at_a_url_is_asked_for_again_when_its_keys_rotate() {
        let (old, new) = (Signer::new(Algorithm::EdDSA), Signer::new(Algorithm::ES256));
        let set = |keys: Vec<Jwk>| Answer::body(200, &serde_json::to_string(&JwkSet { keys }).unwrap());
        let server = Webhook::start().await;
        server.script([set(vec![old.jwk("old")]), set(vec![new.jwk("new")])]);
        let config = TokenConfig { jwt_jwks_url: Some(server.url("/jwks")), ..config() };
        let verifier = Verifier::new(&config).unwrap();
        verifier.verify(&old.token(Some("old"))).await.unwrap();
        assert!(
            verifier.verify(&new.token(Some("new"))).await.is_err(),
            "asked for twice within ten seconds"
        );
        tokio::time::pause();
        tokio::time::advance(JWKS_REFRESH).await;
        tokio::time::resume();
        verifier.verify(&new.token(Some("new"))).await.unwrap();
        assert!(verifier.verify(&old.token(Some("old"))).await.is_err(), "the old key is gone");
    }

    #[test]
    fn one_key_must_be_configured() {
        assert!(matches!(Verifier::new(&config()), Err(TokenConfigError::NoKey)));
        let two = TokenConfig {
            jwt_secret: Some("a".to_owned().into()),
            jwt_jwks_url: Some("http://localhost/".to_owned()),
            ..config()
        };
        assert!(matches!(Verifier::new(&two), Err(TokenConfigError::TwoKeys)));
    }
}
