//! Tokens as an app's backend signs them, and the expired, forged and unsigned ones that must be refused.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Map, Value};

pub use jsonwebtoken::Algorithm;

/// The base64url of `{"alg":"none","typ":"JWT"}`.
const UNSIGNED_HEADER: &str = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";

/// A token's claims. They start complete (`sub`, and an `exp` in one hour); any claim can be added or removed.
#[derive(Debug, Clone)]
pub struct Claims(Map<String, Value>);

impl Claims {
    /// Valid claims of this user for the next hour.
    pub fn user(id: &str) -> Self {
        Self(Map::new()).with("sub", id).expires_in(Duration::from_secs(3600))
    }

    pub fn name(self, name: &str) -> Self {
        self.with("name", name)
    }

    /// The device: makes `SYNC` without rooms possible, and makes a second session replace the first.
    pub fn device(self, id: &str) -> Self {
        self.with("device", id)
    }

    /// Makes this a token of the app's own backend.
    pub fn service(self) -> Self {
        self.with("scope", "service")
    }

    /// Valid for this long from now. `exp` counts whole seconds, so the token ends up to one second early.
    pub fn expires_in(self, time: Duration) -> Self {
        self.with("exp", (now() + time).as_secs())
    }

    /// Expired this long ago.
    pub fn expired_since(self, time: Duration) -> Self {
        self.with("exp", (now() - time).as_secs())
    }

    /// Adds or replaces any claim.
    pub fn with(mut self, claim: &str, value: impl Into<Value>) -> Self {
        self.0.insert(claim.to_owned(), value.into());
        self
    }

    /// Removes a claim.
    pub fn without(mut self, claim: &str) -> Self {
        self.0.remove(claim);
        self
    }

    /// Signs with any algorithm and key of the same family (`EncodingKey::from_ed_pem` and its siblings).
    pub fn sign(&self, algorithm: Algorithm, key: &EncodingKey) -> String {
        encode(&Header::new(algorithm), &self.0, key).expect("the key belongs to the algorithm")
    }

    /// A token with `alg: none` and no signature, which no server may accept.
    pub fn unsigned(&self) -> String {
        let signed = token(b"any", self);
        let payload = signed.split('.').nth(1).expect("a token has three parts");
        format!("{UNSIGNED_HEADER}.{payload}.")
    }
}

/// An HS256 token.
pub fn token(secret: &[u8], claims: &Claims) -> String {
    claims.sign(Algorithm::HS256, &EncodingKey::from_secret(secret))
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970")
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation, decode};

    use super::*;

    fn read(token: &str, secret: &[u8]) -> jsonwebtoken::errors::Result<Value> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        Ok(decode(token, &DecodingKey::from_secret(secret), &validation)?.claims)
    }

    #[test]
    fn a_token_carries_its_claims() {
        let claims =
            Claims::user("A").name("Ada").device("phone").service().with("tenant", 7).without("name");
        let read = read(&token(b"secret", &claims), b"secret").expect("valid");
        assert_eq!(
            (&read["sub"], &read["device"], &read["scope"], &read["tenant"], &read["name"]),
            (&"A".into(), &"phone".into(), &"service".into(), &7.into(), &Value::Null)
        );
    }

    #[test]
    fn bad_tokens_are_bad() {
        let ada = Claims::user("A");
        assert!(read(&token(b"another", &ada), b"secret").is_err());
        assert!(
            read(&token(b"secret", &ada.clone().expired_since(Duration::from_secs(2))), b"secret").is_err()
        );
        assert!(read(&token(b"secret", &ada.clone().without("exp")), b"secret").is_err());
        assert!(read(&ada.unsigned(), b"secret").is_err());
    }
}
