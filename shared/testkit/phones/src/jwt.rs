//! Signed tokens, as both providers take them.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

/// The content of a token with a good signature, otherwise unchecked.
pub(crate) struct Signed {
    pub(crate) key_id: Option<String>,
    pub(crate) claims: Value,
}

impl Signed {
    /// A claim that is text.
    pub(crate) fn text(&self, claim: &str) -> Option<&str> {
        self.claims[claim].as_str()
    }

    /// A claim that is a moment, in seconds since 1970.
    pub(crate) fn seconds(&self, claim: &str) -> Option<i64> {
        self.claims[claim].as_i64()
    }
}

/// The fault of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not a JWT.
    Malformed,
    /// It was signed by another key, or in another way.
    Signature,
}

/// Verifies a token's signature, by this algorithm only.
pub(crate) fn verify(token: &str, algorithm: Algorithm, key: &DecodingKey) -> Result<Signed, Fault> {
    let header = jsonwebtoken::decode_header(token).map_err(|_| Fault::Malformed)?;
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    match jsonwebtoken::decode::<Value>(token, key, &validation) {
        Ok(decoded) => Ok(Signed { key_id: header.kid, claims: decoded.claims }),
        Err(error) => Err(match error.kind() {
            ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm => Fault::Signature,
            _ => Fault::Malformed,
        }),
    }
}

/// Now, in seconds since 1970.
pub(crate) fn now_seconds() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX)
}
