//! Bearer tokens and signed tokens (JWT), as both providers read them.

use std::time::{SystemTime, UNIX_EPOCH};

use hyper::header::{AUTHORIZATION, HeaderMap};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

/// The token of `authorization: bearer TOKEN`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The content of a token with a good signature, otherwise unchecked.
pub(crate) struct Signed {
    pub(crate) key_id: Option<String>,
    claims: Value,
}

impl Signed {
    /// Verifies a token's signature, by this algorithm only.
    pub(crate) fn verify(token: &str, algorithm: Algorithm, key: &DecodingKey) -> Option<Self> {
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let token = jsonwebtoken::decode::<Value>(token, key, &validation).ok()?;
        Some(Self { key_id: token.header.kid, claims: token.claims })
    }

    /// A claim that is text.
    pub(crate) fn text(&self, claim: &str) -> Option<&str> {
        self.claims[claim].as_str()
    }

    /// A claim that is a moment, in seconds since 1970.
    pub(crate) fn seconds(&self, claim: &str) -> Option<i64> {
        self.claims[claim].as_i64()
    }
}

/// Now, in seconds since 1970.
pub(crate) fn now_seconds() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX)
}
