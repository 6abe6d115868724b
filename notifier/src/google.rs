//! Google's access tokens: a service account's key signs a statement, and Google's token endpoint gives a token for it that
//! is valid for an hour (RFC 7523). `docs/decisions/0008` explains why no crate does this.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use naru_model::Timestamp;
use reqwest::Client;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::transport::{self, Answer, CALL_TIMEOUT};
use crate::verdict::{self, SERVER_ERROR, Scope, Verdict};
use crate::{BuildError, Config};

const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
/// How long a statement is valid: the longest that Google takes.
const STATEMENT: Duration = Duration::from_secs(3600);
/// A token is renewed so long before it expires, or after half of its time, whichever is later.
const AHEAD: Duration = Duration::from_secs(300);

/// The fields used of the Firebase console's JSON key file.
#[derive(Deserialize)]
struct KeyFile {
    project_id: String,
    client_email: String,
    private_key: String,
    private_key_id: String,
    token_uri: String,
}

/// A service account and the access token that it holds.
pub(crate) struct ServiceAccount {
    pub(crate) project_id: String,
    client_email: String,
    key: EncodingKey,
    key_id: String,
    token_uri: String,
    client: Client,
    held: Mutex<CachedToken>,
}

#[derive(Default)]
struct CachedToken {
    token: Option<Arc<AccessToken>>,
    /// When the last call failed, if it did, and its verdict.
    failure: Option<(Instant, Verdict)>,
}

/// An access token. It is never shown.
pub(crate) struct AccessToken {
    pub(crate) text: String,
    renew_at: Instant,
}

#[derive(Serialize)]
struct Statement<'a> {
    iss: &'a str,
    scope: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
}

/// The token endpoint's answer (RFC 6749, 5.1).
#[derive(Deserialize)]
struct Given {
    access_token: String,
    /// In seconds.
    expires_in: u64,
}

impl ServiceAccount {
    /// # Errors
    /// When the file can't be read, is not a service account's, or holds no usable key.
    pub(crate) fn open(path: &Path, config: &Config) -> Result<Self, BuildError> {
        let unusable = |source| BuildError::ServiceAccount { path: path.to_owned(), source };
        let file = std::fs::read(path).map_err(|error| unusable(error.into()))?;
        // A parser's error may repeat a part of the key.
        let file: KeyFile = serde_json::from_slice(&file)
            .map_err(|_| unusable("it is not the JSON key file of a service account".into()))?;
        let key = EncodingKey::from_rsa_pem(file.private_key.as_bytes())
            .map_err(|_| unusable("its private_key is not an RSA key in PEM".into()))?;
        if reqwest::Url::parse(&file.token_uri).is_err() {
            return Err(unusable("its token_uri is not a URL".into()));
        }
        let client = transport::client(config)?.timeout(CALL_TIMEOUT).build().map_err(BuildError::Client)?;
        Ok(Self {
            project_id: file.project_id,
            client_email: file.client_email,
            key,
            key_id: file.private_key_id,
            token_uri: file.token_uri,
            client,
            held: Mutex::default(),
        })
    }

    /// A valid token. It is renewed once for all callers that ask meanwhile; a failure is returned to all of them.
    ///
    /// # Errors
    /// The verdict on the push.
    pub(crate) async fn token(&self) -> Result<Arc<AccessToken>, Verdict> {
        let asked_at = Instant::now();
        let mut held = self.held.lock().await;
        if let Some(token) = held.token.as_ref().filter(|token| Instant::now() < token.renew_at) {
            return Ok(token.clone());
        }
        if let Some((_, verdict)) = held.failure.as_ref().filter(|(failed_at, _)| *failed_at >= asked_at) {
            return Err(verdict.clone());
        }
        match self.renew().await {
            Ok(token) => {
                let token = Arc::new(token);
                *held = CachedToken { token: Some(token.clone()), failure: None };
                Ok(token)
            }
            Err(verdict) => {
                held.failure = Some((Instant::now(), verdict.clone()));
                Err(verdict)
            }
        }
    }

    /// This token was refused: the next caller gets another.
    pub(crate) async fn refused(&self, token: &Arc<AccessToken>) {
        let mut held = self.held.lock().await;
        if held.token.as_ref().is_some_and(|held| Arc::ptr_eq(held, token)) {
            held.token = None;
        }
    }

    async fn renew(&self) -> Result<AccessToken, Verdict> {
        let asked_at = Instant::now();
        let assertion = self.statement().map_err(|_| ours("the service account's key can't sign".into()))?;
        let body = serde_urlencoded::to_string([
            ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
            ("assertion", &assertion),
        ])
        .map_err(|_| ours("the service account's statement can't be sent".into()))?;
        let request = self
            .client
            .post(&self.token_uri)
            .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body);
        let answer = transport::receive(request).await.map_err(|error| {
            verdict::try_later(format!("Google's token endpoint: {}", transport::no_answer(&error)))
        })?;
        let given: Given = match answer.status {
            200 => serde_json::from_slice(&answer.body)
                .map_err(|_| verdict::try_later("Google's token endpoint: not a token".into()))?,
            _ => return Err(of_refusal(&answer)),
        };
        let lifetime = Duration::from_secs(given.expires_in);
        let renew_after = lifetime.saturating_sub(AHEAD).max(lifetime / 2);
        tracing::debug!(?renew_after, "a new access token for FCM");
        Ok(AccessToken { text: given.access_token, renew_at: asked_at + renew_after })
    }

    fn statement(&self) -> jsonwebtoken::errors::Result<String> {
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::RS256) };
        let now = Timestamp::now();
        let seconds = |moment: Timestamp| moment.as_millis() / 1000;
        let statement = Statement {
            iss: &self.client_email,
            scope: SCOPE,
            aud: &self.token_uri,
            iat: seconds(now),
            exp: seconds(now.after(STATEMENT)),
        };
        jsonwebtoken::encode(&header, &statement, &self.key)
    }
}

/// An answer of the token endpoint that gives no token: its `error` (RFC 6749, 5.2), or its status.
fn of_refusal(answer: &Answer) -> Verdict {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let now = Timestamp::now();
    let code = serde_json::from_slice(&answer.body).map_or_else(|_| String::new(), |Refusal { error }| error);
    // It comes from outside, and goes to the log.
    let code: String = code.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(40).collect();
    let reason = format!("Google's token endpoint: status {} {code}", answer.status);
    match answer.status {
        408 | 429 | 500..=599 => {
            verdict::later(reason.trim_end().to_owned(), SERVER_ERROR, answer.retry_after(), now)
        }
        _ => ours(reason.trim_end().to_owned()),
    }
}

fn ours(reason: String) -> Verdict {
    Verdict::OurConfiguration { reason: reason.into(), scope: Scope::Provider }
}
