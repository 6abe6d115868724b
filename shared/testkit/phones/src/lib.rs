//! The push providers that Naru is tested against: FCM with Google's OAuth2, and APNs, on this machine, over HTTP/2 and
//! TLS. Naru's notifier connects to them as to the real ones, by configuration alone.
//!
//! It implements the providers' documentation without depending on Naru: it refuses the requests that the documentation
//! refuses, with the providers' statuses and texts.
//!
//! ```no_run
//! # async fn example() -> Result<(), naru_phones::StartError> {
//! use naru_phones::{Answer, ApnsReason, Conduct, Options, Phones, Provider};
//!
//! let phones = Phones::start(Options::in_dir("phones")).await?;
//! print!("{phones}"); // export NARU_FCM_BASE_URL='https://localhost:40213' …
//! let handle = phones.handle();
//! handle.answer_once("8f3a…", [Answer::apns(ApnsReason::TooManyRequests).retry_after(5)]);
//! handle.set(Provider::Fcm, Conduct::Refuse).await;
//! let push = handle.find(|push| push.token == "8f3a…").await;
//! println!("{} got {:?}", push.token, push.body);
//! # Ok(())
//! # }
//! ```
//!
//! # Tokens that answer by their names
//!
//! | FCM token contains | answer | APNs token begins with | answer |
//! |---|---|---|---|
//! | `~unregistered` | 404 `UNREGISTERED` | `00000410` | 410 `Unregistered`, since now |
//! | `~quota` | 429 `QUOTA_EXCEEDED`, `Retry-After: 1` | `00000429` | 429 `TooManyRequests`, `Retry-After: 1` |
//! | `~invalid` | 400 `INVALID_ARGUMENT`, `message.token` | `00000400` | 400 `BadDeviceToken` |
//! | `~unavailable` | 503 `UNAVAILABLE` | `00000503` | 503 `ServiceUnavailable` |
//! | `~internal` | 500 `INTERNAL` | `00000500` | 500 `InternalServerError` |
//! | `~sender-id-mismatch` | 403 `SENDER_ID_MISMATCH` | | |
//! | `~third-party` | 401 `THIRD_PARTY_AUTH_ERROR` | | |
//! | `~hang` | none | `00000408` | none |
//! | `~slow` | 200, after a second | `00000200` | 200, after a second |
//!
//! [`Handle::answer`] takes precedence over a name. An invalid request is refused before either is considered.
//!
//! # Over HTTP
//!
//! With [`Options::admin`]; JSON, and no authentication: keep it on loopback. Bad input is answered with 400 and
//! `{"message": "a sentence"}`.
//!
//! | request | answer |
//! |---|---|
//! | `GET /healthz`, `GET /readyz` | 200 |
//! | `GET /pushes?after=NUMBER&token=TOKEN` | `{"newest": 7, "pushes": [`[`Push`]` …]}`; both parameters may be left out |
//! | `GET /counts` | `{"taken": 7, "fcm": `[`Counts`]`, "apns": `[`Counts`]`}` |
//!
//! # Differences from the real providers
//!
//! - APNs allows one stream on a connection until a valid provider token came; here the limit is the same from the start.
//!   Its GOAWAY frames carry a reason; these carry none.
//! - APNs counts provider tokens in a way that Apple does not describe. Here the first two are taken at any time, so that a
//!   provider can be started again, and each one after them at least 20 minutes after the one before.
//! - An assertion's `aud` must be the service account's `token_uri`, which is this emulator's. Clients that write Google's
//!   there whatever the file contains, as google-auth for Python does, are refused.
//! - Of FCM's `android_v2` nothing is checked but that `android` is not beside it, and a condition may be any text.
//! - Quotas are not counted and traffic is not shaped: 429 comes on demand.

mod admin;
mod answer;
mod apns;
mod conduct;
mod connection;
mod error;
mod fcm;
mod google;
mod handle;
mod jwt;
mod keys;
mod oauth;
mod provider;
mod provider_token;
mod push;
mod record;
mod reply;
mod request;
mod schema;
mod script;
mod server;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_util::task::AbortOnDropHandle;

pub use answer::{Answer, ApnsReason, FcmError};
pub use conduct::Conduct;
pub use error::StartError;
pub use handle::{Handle, Pushes};
pub use keys::{CLIENT_EMAIL, KEY_ID, PROJECT, TEAM_ID, TOPIC};
pub use oauth::TOKEN_ENDPOINT;
pub use provider::Provider;
pub use push::Push;
pub use record::{Counts, KEPT};

use keys::Keys;
use oauth::Authority;
use provider_token::ProviderTokens;
use record::Record;
use script::Script;
use server::Server;

/// Where the providers listen, and where their keys are.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of keys and certificates. Missing ones are made, existing ones are used again.
    pub dir: PathBuf,
    /// FCM's address, and OAuth2's. Port 0: any.
    pub fcm: SocketAddr,
    /// APNs' address. Port 0: any.
    pub apns: SocketAddr,
    /// Where the pushes are read over HTTP, if anywhere. Port 0: any. It asks for no authentication.
    pub admin: Option<SocketAddr>,
    /// The name by which clients reach the providers: it is in the URLs and in the certificate.
    pub host: String,
    /// How long an access token is valid. Google's are valid for an hour.
    pub access_token_lifetime: Duration,
    /// The least time between new provider tokens that APNs takes. Apple documents 20 minutes.
    pub provider_token_interval: Duration,
}

impl Options {
    /// Any ports of loopback, no admin, and the providers' own times.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            dir: dir.into(),
            fcm: any,
            apns: any,
            admin: None,
            host: "localhost".to_owned(),
            access_token_lifetime: Duration::from_secs(3_600),
            provider_token_interval: Duration::from_secs(20 * 60),
        }
    }
}

/// The running providers. Dropping this stops them.
///
/// Its `Display` is the environment by which Naru finds them, as lines for a shell.
pub struct Phones {
    host: String,
    fcm: SocketAddr,
    apns: SocketAddr,
    ca_file: PathBuf,
    service_account_file: PathBuf,
    apns_key_file: PathBuf,
    admin: Option<SocketAddr>,
    handle: Handle,
    _servers: [Server; 2],
    _admin: Option<AbortOnDropHandle<()>>,
}

/// The state that the providers share.
struct Shared {
    record: Record,
    script: Script,
    authority: Authority,
    provider_tokens: ProviderTokens,
}

impl Phones {
    /// Starts the providers; returns when they listen. Where there are no keys yet, this thread is busy for a fraction of a
    /// second making them.
    ///
    /// # Errors
    /// When an address can't be bound, or a key or a certificate can't be made, read or written.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let keys = Keys::open(&options.dir)?;
        let (fcm_listener, fcm) = server::listen(options.fcm)?;
        let (apns_listener, apns) = server::listen(options.apns)?;
        let token_uri = format!("{}{TOKEN_ENDPOINT}", url(&options.host, fcm));
        keys.name_token_uri(&token_uri)?;
        let shared = Arc::new(Shared {
            record: Record::new(),
            script: Script::default(),
            authority: Authority::new(&keys, token_uri, options.access_token_lifetime),
            provider_tokens: ProviderTokens::new(&keys, options.provider_token_interval),
        });
        let tls = |protocols: &[&str]| tls(&keys, &options.host, protocols);
        let (fcm_tls, apns_tls) = (tls(&["h2", "http/1.1"])?, tls(&["h2"])?);
        let servers = [
            Server::start(Provider::Fcm, fcm_listener, fcm, fcm_tls, shared.clone()),
            Server::start(Provider::Apns, apns_listener, apns, apns_tls, shared.clone()),
        ];
        let handle = Handle { shared, fcm: servers[0].commands.clone(), apns: servers[1].commands.clone() };
        let (mut admin, mut admin_task) = (None, None);
        if let Some(address) = options.admin {
            let (listener, address) = server::listen(address)?;
            admin = Some(address);
            admin_task = Some(AbortOnDropHandle::new(tokio::spawn(admin::serve(listener, handle.clone()))));
        }
        Ok(Self {
            host: options.host,
            fcm,
            apns,
            ca_file: keys.ca_file(),
            service_account_file: keys.service_account_file(),
            apns_key_file: keys.apns_file(),
            admin,
            handle,
            _servers: servers,
            _admin: admin_task,
        })
    }

    /// FCM, and OAuth2: `https://localhost:PORT`.
    pub fn fcm_url(&self) -> String {
        url(&self.host, self.fcm)
    }

    /// APNs: `https://localhost:PORT`.
    pub fn apns_url(&self) -> String {
        url(&self.host, self.apns)
    }

    /// Where the pushes are read over HTTP: `http://127.0.0.1:PORT`.
    pub fn admin_url(&self) -> Option<String> {
        self.admin.map(|address| format!("http://{address}"))
    }

    /// The certificate to trust.
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// FCM's key: the service account's JSON file.
    pub fn service_account_file(&self) -> &Path {
        &self.service_account_file
    }

    /// APNs' key: the .p8 file.
    pub fn apns_key_file(&self) -> &Path {
        &self.apns_key_file
    }

    /// Controls the providers and reads their pushes.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The environment variables by which Naru finds the providers.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let file = |path: &Path| path.display().to_string();
        vec![
            ("NARU_FCM_SERVICE_ACCOUNT_FILE", file(&self.service_account_file)),
            ("NARU_FCM_BASE_URL", self.fcm_url()),
            ("NARU_APNS_KEY_FILE", file(&self.apns_key_file)),
            ("NARU_APNS_KEY_ID", KEY_ID.to_owned()),
            ("NARU_APNS_TEAM_ID", TEAM_ID.to_owned()),
            ("NARU_APNS_TOPIC", TOPIC.to_owned()),
            ("NARU_APNS_BASE_URL", self.apns_url()),
            ("NARU_EXTRA_CA_FILE", file(&self.ca_file)),
        ]
    }
}

impl fmt::Debug for Phones {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut phones = formatter.debug_struct("Phones");
        phones.field("fcm", &self.fcm).field("apns", &self.apns).field("admin", &self.admin);
        phones.finish_non_exhaustive()
    }
}

impl fmt::Display for Phones {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.environment() {
            writeln!(formatter, "export {name}='{}'", value.replace('\'', r"'\''"))?;
        }
        Ok(())
    }
}

fn url(host: &str, address: SocketAddr) -> String {
    format!("https://{host}:{}", address.port())
}

/// TLS with a new certificate, for these protocols of ALPN.
fn tls(keys: &Keys, host: &str, protocols: &[&str]) -> Result<TlsAcceptor, StartError> {
    let (certificates, key) = keys.server(host)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}
