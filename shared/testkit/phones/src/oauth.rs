//! Google's OAuth2 for service accounts: a signed assertion for an access token.
//!
//! Source: Google, "Using OAuth 2.0 for Server to Server Applications" (the assertion, the answer, `invalid_grant` and
//! `invalid_scope`), RFC 7523 and RFC 6749, section 5.2 (the other errors).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, HeaderMap};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use crate::auth::{Signed, now_seconds};
use crate::keys::{CLIENT_EMAIL, SERVICE_ACCOUNT_KEY_ID};
use crate::provider::Provider;
use crate::record::Record;
use crate::reply::{self, Reply};

/// Stands for the OAuth2 endpoint in the place of a token, in [`crate::Handle::answer`] and its like.
pub const TOKEN_ENDPOINT: &str = "/token";

/// FCM REST reference, `projects.messages.send`, "Authorization scopes".
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const FORM: &str = "application/x-www-form-urlencoded";
/// For how many seconds an assertion may be valid.
const MAX_VALIDITY_SECONDS: i64 = 3_600;
/// By how many seconds the signer's clock may be ahead.
const MAX_SKEW_SECONDS: i64 = 300;
/// How long an access token is valid.
const LIFETIME: Duration = Duration::from_secs(3_600);

/// Issues access tokens and checks them.
pub(crate) struct Authority {
    token_uri: String,
    verifier: DecodingKey,
    /// When each access token expires.
    issued: Mutex<HashMap<String, Instant>>,
}

#[derive(Deserialize)]
struct Form {
    grant_type: String,
    assertion: String,
}

/// An error of RFC 6749, section 5.2, and its description.
type OauthError = (&'static str, &'static str);

impl Authority {
    pub(crate) fn new(verifier: DecodingKey, token_uri: String) -> Self {
        Self { token_uri, verifier, issued: Mutex::default() }
    }

    /// Whether an access token was issued and has not expired.
    pub(crate) fn is_valid(&self, token: &str) -> bool {
        self.issued().get(token).is_some_and(|end| *end > Instant::now())
    }

    /// Answers `POST /token`.
    pub(crate) fn answer(&self, headers: &HeaderMap, body: &[u8], record: &Record) -> Reply {
        match self.check(headers, body, record) {
            Ok(()) => {
                record.count(Provider::Fcm, |counts| counts.oauth_tokens_issued += 1);
                // Google answers a second less than the hour.
                let seconds = LIFETIME.as_secs() - 1;
                let value =
                    json!({"access_token": self.issue(), "expires_in": seconds, "token_type": "Bearer"});
                reply::json(200, &value)
            }
            Err((error, description)) => {
                reply::json(400, &json!({"error": error, "error_description": description}))
            }
        }
    }

    fn check(&self, headers: &HeaderMap, body: &[u8], record: &Record) -> Result<(), OauthError> {
        if headers.get(CONTENT_TYPE).is_none_or(|value| value != FORM) {
            return Err(("invalid_request", "Required parameter is missing: grant_type"));
        }
        let form: Form = serde_urlencoded::from_bytes(body)
            .map_err(|_| ("invalid_request", "A required parameter is missing."))?;
        if form.grant_type != GRANT_TYPE {
            return Err(("unsupported_grant_type", "Invalid grant_type."));
        }
        let signed = Signed::verify(&form.assertion, Algorithm::RS256, &self.verifier)
            .ok_or(("invalid_grant", "Invalid JWT Signature."))?;
        record.count_jwt(Provider::Fcm, &form.assertion);
        self.check_claims(&signed)
    }

    fn check_claims(&self, signed: &Signed) -> Result<(), OauthError> {
        // The assertion names a key that the account does not have.
        if signed.key_id.as_deref() != Some(SERVICE_ACCOUNT_KEY_ID) {
            return Err(("invalid_grant", "Invalid JWT Signature."));
        }
        if signed.text("iss") != Some(CLIENT_EMAIL) {
            return Err(("invalid_grant", "Invalid grant: account not found"));
        }
        if signed.text("aud") != Some(&self.token_uri) {
            return Err(("invalid_grant", "Invalid JWT: Failed audience check."));
        }
        let (issued, expires) = signed.seconds("iat").zip(signed.seconds("exp")).unwrap_or_default();
        let now = now_seconds();
        if issued > now + MAX_SKEW_SECONDS
            || expires <= now
            || !(1..=MAX_VALIDITY_SECONDS).contains(&(expires - issued))
        {
            let description = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable \
                               timeframe. Check your iat and exp values in the JWT claim.";
            return Err(("invalid_grant", description));
        }
        if signed.text("scope") != Some(SCOPE) {
            return Err(("invalid_scope", "Invalid OAuth scope or ID token audience provided."));
        }
        Ok(())
    }

    fn issue(&self) -> String {
        let token = format!("ya29.{}", Uuid::new_v4().simple());
        self.issued().insert(token.clone(), Instant::now() + LIFETIME);
        token
    }

    fn issued(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_access_token_is_valid_for_an_hour() {
        let authority = Authority::new(DecodingKey::from_secret(&[]), String::new());
        let token = authority.issue();
        tokio::time::advance(LIFETIME - Duration::from_secs(1)).await;
        assert!(authority.is_valid(&token) && !authority.is_valid("ya29.forged"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!authority.is_valid(&token));
    }
}
