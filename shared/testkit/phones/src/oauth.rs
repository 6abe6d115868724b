//! Google's OAuth2 for service accounts: a signed assertion for an access token.
//!
//! Source: Google, "Using OAuth 2.0 for Server to Server Applications" (the assertion, the answer, `invalid_grant` and
//! `invalid_scope`), RFC 7523 and RFC 6749, section 5.2 (the other errors).

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use crate::jwt::{self, Fault, Signed};
use crate::keys::{CLIENT_EMAIL, Keys};
use crate::record::{Counters, count};
use crate::reply::{self, Reply};

/// Stands for the OAuth2 endpoint in the place of a token, in [`crate::Handle::answer`] and its like.
pub const TOKEN_ENDPOINT: &str = "/token";

/// Either scope lets the bearer send (FCM REST reference, `projects.messages.send`, "Authorization scopes").
const SCOPES: [&str; 2] =
    ["https://www.googleapis.com/auth/firebase.messaging", "https://www.googleapis.com/auth/cloud-platform"];
const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// An assertion is valid for this many seconds at most.
const LONGEST: i64 = 3_600;
/// By how many seconds the signer's clock may be ahead.
const SKEW: i64 = 300;
const SHORT_LIVED: &str = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. \
                           Check your iat and exp values in the JWT claim.";

/// Issues access tokens and checks them.
pub(crate) struct Authority {
    token_uri: String,
    key_id: String,
    verifier: DecodingKey,
    lifetime: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When each token expires.
    issued: HashMap<String, Instant>,
    assertions: HashSet<String>,
}

/// The state of a bearer's access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Good,
    Expired,
    Unknown,
}

impl Authority {
    pub(crate) fn new(keys: &Keys, token_uri: String, lifetime: Duration) -> Self {
        Self {
            token_uri,
            key_id: keys.service_account_key_id().to_owned(),
            verifier: keys.service_account_verifier(),
            lifetime,
            state: Mutex::default(),
        }
    }

    /// Checks an access token.
    pub(crate) fn access(&self, token: &str) -> Access {
        match self.lock().issued.get(token) {
            Some(end) if *end > Instant::now() => Access::Good,
            Some(_) => Access::Expired,
            None => Access::Unknown,
        }
    }

    /// Ends all access tokens: they are expired from now on.
    pub(crate) fn expire_all(&self) {
        let now = Instant::now();
        for end in self.lock().issued.values_mut() {
            *end = now;
        }
    }

    /// Answers `POST /token`.
    pub(crate) fn answer(&self, head: &Parts, body: &[u8], counters: &Counters) -> Reply {
        match self.exchange(head, body, counters) {
            Ok(access_token) => {
                count(&counters.oauth_tokens_issued);
                // Google answers a second less than the hour.
                let seconds = self.lifetime.as_secs().saturating_sub(1);
                let value =
                    json!({"access_token": access_token, "expires_in": seconds, "token_type": "Bearer"});
                reply::json(200, &value)
            }
            Err((error, description)) => {
                reply::json(400, &json!({"error": error, "error_description": description}))
            }
        }
    }

    fn exchange(&self, head: &Parts, body: &[u8], counters: &Counters) -> Result<String, Refusal> {
        let form = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let fields: HashMap<String, String> = match form.split(';').next().map(str::trim) {
            Some("application/x-www-form-urlencoded") => {
                serde_urlencoded::from_bytes(body).map_err(|_| invalid_request("the form cannot be read"))?
            }
            _ => HashMap::new(),
        };
        let field =
            |name: &str| fields.get(name).map(String::as_str).filter(|value: &&str| !value.is_empty());
        match field("grant_type") {
            Some(GRANT_TYPE) => {}
            Some(other) => return Err(("unsupported_grant_type", format!("Invalid grant_type: {other}"))),
            None => return Err(invalid_request("Required parameter is missing: grant_type")),
        }
        let assertion =
            field("assertion").ok_or_else(|| invalid_request("Required parameter is missing: assertion"))?;
        let signed =
            jwt::verify(assertion, Algorithm::RS256, &self.verifier).map_err(|fault| match fault {
                Fault::Malformed => invalid_grant("Invalid JWT: the assertion cannot be read."),
                Fault::Signature => invalid_grant("Invalid JWT Signature."),
            })?;
        if self.lock().assertions.insert(assertion.to_owned()) {
            count(&counters.jwts_seen);
        }
        self.check(&signed)?;
        Ok(self.issue())
    }

    /// Checks an assertion's claims.
    fn check(&self, signed: &Signed) -> Result<(), Refusal> {
        // The assertion names a key that the account does not have.
        if signed.key_id.as_ref() != Some(&self.key_id) {
            return Err(invalid_grant("Invalid JWT Signature."));
        }
        if signed.text("iss") != Some(CLIENT_EMAIL) {
            return Err(invalid_grant("Invalid grant: account not found"));
        }
        if signed.text("aud") != Some(&self.token_uri) {
            let right = &self.token_uri;
            let text = format!("Invalid JWT: Failed audience check. The right audience is {right}");
            return Err(("invalid_grant", text));
        }
        let (issued, expires) = signed.seconds("iat").zip(signed.seconds("exp")).unwrap_or_default();
        let now = jwt::now_seconds();
        if issued > now + SKEW || expires <= now || expires <= issued || expires - issued > LONGEST {
            return Err(invalid_grant(SHORT_LIVED));
        }
        let mut scopes = signed.text("scope").unwrap_or_default().split(' ');
        if !scopes.any(|scope| SCOPES.contains(&scope)) {
            return Err(("invalid_scope", "Invalid OAuth scope or ID token audience provided.".to_owned()));
        }
        Ok(())
    }

    fn issue(&self) -> String {
        let token = format!("ya29.{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        self.lock().issued.insert(token.clone(), Instant::now() + self.lifetime);
        token
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error of RFC 6749, section 5.2, and its description.
type Refusal = (&'static str, String);

fn invalid_request(text: &str) -> Refusal {
    ("invalid_request", text.to_owned())
}

fn invalid_grant(text: &str) -> Refusal {
    ("invalid_grant", text.to_owned())
}
