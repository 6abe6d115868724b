//! Keys that check tokens: which ones are taken, and for which algorithm.
//!
//! A key belongs to one algorithm, so a token can't choose how it is checked ("algorithm confusion").

use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::PublicEncryptingKey;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Header};
use serde::Deserialize;

/// RFC 7518, section 3.2: a key of HS256 has at least the size of its hash.
pub(super) const MIN_SECRET_BYTES: usize = 32;
/// How many keys a set may hold. Providers publish two to ten.
const MAX_KEYS: usize = 100;

pub(super) struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Key {
    /// The algorithms of public keys.
    pub(super) const PUBLIC: [Algorithm; 3] = [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256];

    /// None when the secret is too short.
    pub(super) fn of_secret(secret: &[u8]) -> Option<Self> {
        let key = DecodingKey::from_secret(secret);
        (secret.len() >= MIN_SECRET_BYTES).then_some(Self { id: None, algorithm: Algorithm::HS256, key })
    }

    /// # Errors
    /// When there is no public key in it, of the wanted algorithm if there is one, or one that is not strong enough.
    pub(super) fn of_pem(pem: &[u8], wanted: Option<Algorithm>) -> Result<Self, &'static str> {
        let candidates = [
            (Algorithm::EdDSA, DecodingKey::from_ed_pem(pem)),
            (Algorithm::ES256, DecodingKey::from_ec_pem(pem)),
            (Algorithm::RS256, DecodingKey::from_rsa_pem(pem)),
        ];
        let found = candidates.into_iter().find_map(|(algorithm, key)| Some((algorithm, key.ok()?)));
        let (algorithm, key) = found.ok_or("it is no PEM file of an Ed25519, P-256 or RSA key")?;
        Self { id: None, algorithm, key }.checked(wanted)
    }

    /// # Errors
    /// When the key is for another purpose or another algorithm, or is not strong enough.
    fn of_jwk(jwk: &Jwk, wanted: Option<Algorithm>) -> Result<Self, &'static str> {
        let (common, curve) =
            (&jwk.common, |is_it: bool| is_it.then_some(()).ok_or("its curve is not taken"));
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::OctetKeyPair(pair) => {
                curve(pair.curve == EllipticCurve::Ed25519)?;
                Algorithm::EdDSA
            }
            AlgorithmParameters::EllipticCurve(point) => {
                curve(point.curve == EllipticCurve::P256)?;
                Algorithm::ES256
            }
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            // A symmetric key in a set is known to every reader of the set.
            _ => return Err("its type is none of EC, RSA and OKP"),
        };
        if common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
            return Err("its `use` is not sig");
        }
        if common.key_operations.as_ref().is_some_and(|uses| !uses.contains(&KeyOperations::Verify)) {
            return Err("its `key_ops` lack verify");
        }
        if common.key_algorithm.is_some_and(|named| named != algorithm.into()) {
            return Err("its `alg` is none of EdDSA, ES256 and RS256");
        }
        let key = DecodingKey::from_jwk(jwk).map_err(|_| "it is not well formed")?;
        Self { id: common.key_id.clone(), algorithm, key }.checked(wanted)
    }

    fn checked(self, wanted: Option<Algorithm>) -> Result<Self, &'static str> {
        if wanted.is_some_and(|wanted| wanted != self.algorithm) {
            return Err("its algorithm is not jwt_algorithm");
        }
        let parsed = match (self.algorithm, self.key.kind()) {
            (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(bytes)) => ParsedPublicKey::new(&ED25519, bytes),
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(bytes)) => {
                ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, bytes)
            }
            (_, DecodingKeyKind::SecretOrDer(bytes)) => {
                ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, bytes)
            }
            (_, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
            }
        };
        let parsed = parsed.map_err(|_| "it is not a public key on Ed25519 or P-256, or of RSA")?;
        if self.algorithm == Algorithm::RS256 {
            let der: PublicKeyX509Der<'_> = parsed.as_der().map_err(|_| "it is not well formed")?;
            // Takes the same sizes as the check of a signature does.
            PublicEncryptingKey::from_der(der.as_ref())
                .map_err(|_| "an RSA key must have 2048 to 8192 bits")?;
        }
        Ok(self)
    }

    /// Whether a token with this header may be signed with this key.
    pub(super) fn fits(&self, header: &Header) -> bool {
        self.algorithm == header.alg && (self.id.is_none() || header.kid.is_none() || self.id == header.kid)
    }

    pub(super) fn decoding(&self) -> &DecodingKey {
        &self.key
    }
}

/// The keys of a set that can be used, and why others are not: a key of another kind or purpose is left out (RFC 7517,
/// section 5).
pub(super) struct Set {
    pub(super) keys: Arc<[Key]>,
    pub(super) unused: String,
}

impl Set {
    /// # Errors
    /// When it is no key set, or has too many keys.
    pub(super) fn read(json: &[u8], wanted: Option<Algorithm>) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Json {
            keys: Vec<serde_json::Value>,
        }
        let read = serde_json::from_slice(json).map_err(|_| "it is not a JSON Web Key Set".to_owned());
        let Json { keys } = read?;
        if keys.len() > MAX_KEYS {
            return Err(format!("it holds more than {MAX_KEYS} keys"));
        }
        let (mut usable, mut reasons) = (Vec::new(), Vec::new());
        for key in keys {
            let jwk = serde_json::from_value::<Jwk>(key).map_err(|_| "it is not a JSON Web Key");
            match jwk.and_then(|jwk| Key::of_jwk(&jwk, wanted)) {
                Ok(key) => usable.push(key),
                Err(reason) => reasons.push(reason),
            }
        }
        reasons.sort_unstable();
        reasons.dedup();
        Ok(Self { keys: usable.into(), unused: reasons.join("; ") })
    }
}
