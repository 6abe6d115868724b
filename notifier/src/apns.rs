//! Apple Push Notification service, by token:
//! <https://developer.apple.com/documentation/usernotifications/sending-notification-requests-to-apns>.
//!
//! `apns-id` is the push's event id, `apns-collapse-id` its message's id: a push that comes twice is recognised by both, and on
//! the phone replaces itself.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use naru_model::hops::{Lane, PushEnvironment, PushJob};
use naru_model::{Event, MessageId, RoomId, Timestamp};
use reqwest::Url;
use reqwest::header::HeaderValue;
use serde::Serialize;

use crate::aps::{Alert, Aps};
use crate::fit::fit;
use crate::provider::Provider;
use crate::render::Appearance;
use crate::transport::{Answer, Gate, Transport, base_url, below};
use crate::verdict::{self, Scope, Verdict};
use crate::{BuildError, Config};

const PRODUCTION: &str = "https://api.push.apple.com";
const SANDBOX: &str = "https://api.sandbox.push.apple.com";
/// The longest payload that Apple takes, in bytes.
const LONGEST: usize = 4096;
/// A name is cut before it leaves too little space for the content.
const LONGEST_NAME: usize = 512;
/// A provider token holds its time of issue; Apple refuses one older than an hour, and a key whose tokens are renewed more
/// often than every 20 minutes. All notifiers, however many and however often restarted, use the same: the beginning of the
/// present span of this length.
const ISSUED_EVERY_SECONDS: i64 = 40 * 60;
/// More unknown tokens in a row than this are not the phones' fault: see [`Endpoint::assess`].
const MAX_UNKNOWN_TOKENS: u32 = 5;

/// APNs, for one app.
pub(crate) struct Apns {
    transport: Transport,
    key: ProviderKey,
    topic: String,
    appearance: Appearance,
    production: Endpoint,
    /// None: `production` serves both, because a base URL was configured.
    sandbox: Option<Endpoint>,
}

impl Apns {
    /// APNs, if it is configured.
    ///
    /// # Errors
    /// When its key's file or another one that it needs can't be used, or a key that belongs to it is not set.
    pub(crate) fn configured(config: &Config) -> Result<Option<Self>, BuildError> {
        let Some(file) = &config.apns_key_file else { return Ok(None) };
        let needed = |key: &'static str, value: &Option<String>| {
            value.clone().ok_or(BuildError::Missing { key, with: "apns_key_file" })
        };
        let key_id = needed("apns_key_id", &config.apns_key_id)?;
        let team_id = needed("apns_team_id", &config.apns_team_id)?;
        let topic = needed("apns_topic", &config.apns_topic)?;
        let key = ProviderKey::open(file, key_id, team_id)?;
        let base = config.apns_base_url.as_deref();
        let endpoint = |own| Ok(Endpoint::new(base_url("apns_base_url", base, own)?));
        let production = endpoint(PRODUCTION)?;
        let sandbox = if base.is_none() { Some(endpoint(SANDBOX)?) } else { None };
        let appearance = Appearance::from(config);
        Ok(Some(Self { transport: Transport::new(config)?, key, topic, appearance, production, sandbox }))
    }

    fn endpoint(&self, environment: PushEnvironment) -> &Endpoint {
        match (environment, &self.sandbox) {
            (PushEnvironment::Sandbox, Some(sandbox)) => sandbox,
            _ => &self.production,
        }
    }
}

#[async_trait]
impl Provider for Apns {
    fn lane(&self) -> Lane {
        Lane::Apns
    }

    fn shows_badge(&self) -> bool {
        true
    }

    async fn push(&self, event: &Event<PushJob>) -> Verdict {
        let job = &event.payload;
        let Some(target) = &job.target else {
            return Verdict::Refused("a push by APNs without a device".into());
        };
        let body = match payload(job, &self.appearance) {
            Ok(body) => body,
            Err(verdict) => return verdict,
        };
        let endpoint = self.endpoint(target.environment);
        let url = below(&endpoint.base, &["3", "device", &target.token]);
        let token = match self.key.token() {
            Ok(token) => token,
            Err(_) => {
                let reason = "the APNs key can't sign".into();
                return Verdict::OurConfiguration { reason, scope: Scope::Provider };
            }
        };
        let called_at = Timestamp::now();
        let request = |client: &reqwest::Client| {
            client
                .post(url.clone())
                .header(AUTHORIZATION, token.header.clone())
                .header(CONTENT_TYPE, "application/json")
                .header("apns-id", event.event_id.to_string())
                .header("apns-push-type", "alert")
                .header("apns-expiration", expiration(job))
                // Delivered at once: the user waits for it.
                .header("apns-priority", "10")
                .header("apns-topic", &self.topic)
                .header("apns-collapse-id", job.message_id.to_string())
                .body(body.clone())
        };
        match self.transport.call(Some(&endpoint.gate), request).await {
            Ok(answer) => {
                let verdict = verdict::apns::of_apns(&answer, called_at, Timestamp::now());
                endpoint.assess(verdict, &answer)
            }
            Err(no_answer) => verdict::try_later(format!("APNs: {no_answer}")),
        }
    }
}

/// One of Apple's environments.
struct Endpoint {
    base: Url,
    gate: Gate,
    /// How many tokens in a row were not of this environment.
    unknown_tokens: AtomicU32,
}

impl Endpoint {
    fn new(base: Url) -> Self {
        Self { base, gate: Gate::default(), unknown_tokens: AtomicU32::new(0) }
    }

    /// A token of the other environment is a bad one as well. If every token is bad, the fault is our address, and no token
    /// may be removed: so after [`MAX_UNKNOWN_TOKENS`] in a row the verdict is our configuration, until one is taken.
    fn assess(&self, verdict: Verdict, answer: &Answer) -> Verdict {
        match verdict {
            Verdict::TokenDead { .. } if answer.status == 400 => {
                if self.unknown_tokens.fetch_add(1, Ordering::Relaxed) < MAX_UNKNOWN_TOKENS {
                    return verdict;
                }
                Verdict::OurConfiguration {
                    reason: "APNs: no token is of this environment (apns_base_url, or the apps' environment)"
                        .into(),
                    scope: Scope::Provider,
                }
            }
            Verdict::Delivered { .. } | Verdict::TokenDead { .. } => {
                self.unknown_tokens.store(0, Ordering::Relaxed);
                verdict
            }
            _ => verdict,
        }
    }
}

/// When a push expires, in seconds since 1970.
pub(crate) fn expiration(job: &PushJob) -> i64 {
    job.expires_at.as_millis().div_euclid(1000).max(0)
}

/// The payload of a push, as Apple reads it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Payload<'a> {
    aps: Aps<'a>,
    chat_room_id: &'a RoomId,
    message_id: &'a MessageId,
}

/// The request's body, [`LONGEST`] bytes at most: longer content is cut.
pub(crate) fn payload(job: &PushJob, appearance: &Appearance) -> Result<Bytes, Verdict> {
    let whole = body(job, appearance, &job.body)?;
    if whole.len() <= LONGEST || job.body.is_empty() {
        return Ok(whole);
    }
    let Some(left) = LONGEST.checked_sub(body(job, appearance, "")?.len()) else {
        return Err(Verdict::TooBig);
    };
    body(job, appearance, &fit(&job.body, left))
}

fn body(job: &PushJob, appearance: &Appearance, text: &str) -> Result<Bytes, Verdict> {
    let title = fit(&job.title, LONGEST_NAME);
    let group = job.room_name.as_deref().map(|name| fit(name, LONGEST_NAME));
    let alert = match job.hides_content {
        true => Alert::Hidden { loc_key: &appearance.loc_key },
        false => Alert::Shown { title: &title, subtitle: group.as_deref(), body: text },
    };
    let aps = Aps::new(job, appearance, Some(alert));
    let payload = Payload { aps, chat_room_id: &job.chat_room_id, message_id: &job.message_id };
    let json = serde_json::to_vec(&payload);
    json.map(Bytes::from).map_err(|_| Verdict::Refused("a push by APNs that can't be written".into()))
}

/// The key of the Apple developer account, and the provider token that it signed last.
struct ProviderKey {
    key: EncodingKey,
    key_id: String,
    team_id: String,
    held: Mutex<Option<Arc<ProviderToken>>>,
}

/// The `authorization` header. It is never shown.
struct ProviderToken {
    header: HeaderValue,
    /// In seconds since 1970.
    issued_at: i64,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    iat: i64,
}

impl ProviderKey {
    fn open(path: &Path, key_id: String, team_id: String) -> Result<Self, BuildError> {
        let unusable = |source| BuildError::ApnsKey { path: path.to_owned(), source };
        let file = std::fs::read(path).map_err(|error| unusable(error.into()))?;
        let key = EncodingKey::from_ec_pem(&file)
            .map_err(|_| unusable("it is not an EC key in PEM, which a .p8 file is".into()))?;
        let this = Self { key, key_id, team_id, held: Mutex::default() };
        // A key of another curve fails here.
        this.token().map_err(|error| unusable(error.into()))?;
        Ok(this)
    }

    /// The token of all pushes in the present span: it is signed once for all of them.
    fn token(&self) -> jsonwebtoken::errors::Result<Arc<ProviderToken>> {
        let now = Timestamp::now().as_millis() / 1000;
        let issued_at = now - now.rem_euclid(ISSUED_EVERY_SECONDS);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = held.as_ref().filter(|token| token.issued_at == issued_at) {
            return Ok(token.clone());
        }
        let token = Arc::new(self.sign(issued_at)?);
        *held = Some(token.clone());
        Ok(token)
    }

    fn sign(&self, issued_at: i64) -> jsonwebtoken::errors::Result<ProviderToken> {
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::ES256) };
        let claims = Claims { iss: &self.team_id, iat: issued_at };
        let token = jsonwebtoken::encode(&header, &claims, &self.key)?;
        let mut header = HeaderValue::try_from(format!("bearer {token}"))
            .map_err(|_| jsonwebtoken::errors::ErrorKind::InvalidToken)?;
        header.set_sensitive(true);
        Ok(ProviderToken { header, issued_at })
    }
}
