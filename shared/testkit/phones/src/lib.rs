//! An emulator of the push providers, not of phones: FCM with Google's OAuth2, and APNs, on this machine, over HTTP/2 and TLS.
//! Naru's notifier connects to them as to the real ones, by configuration alone.
//!
//! It implements the providers' documentation without depending on Naru: it refuses the requests that the documentation
//! refuses, with the providers' statuses and texts.
//!
//! ```no_run
//! # async fn example() -> Result<(), naru_phones::StartError> {
//! use naru_phones::{Answer, ApnsReason, Behaviour, Options, Phones, Provider};
//!
//! let phones = Phones::start(Options::in_dir("phones")).await?;
//! print!("{phones}"); // export NARU_FCM_BASE_URL='https://localhost:40213' …
//! let handle = phones.handle();
//! handle.answer_once("8f3a…", [Answer::apns(ApnsReason::TooManyRequests).retry_after(5)]);
//! handle.set(Provider::Fcm, Behaviour::Refuse).await;
//! let push = handle.next(0).await;
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
//!
//! [`Handle::answer`] takes precedence over a name. An invalid request is refused before either is considered.
//!
//! # Over HTTP
//!
//! With [`Options::admin`]; JSON, and no authentication: keep it on loopback.
//!
//! | request | answer |
//! |---|---|
//! | `GET /healthz`, `GET /readyz` | 200 |
//! | `GET /pushes` | `{"pushes": [`[`Push`]` …]}`: the newest [`MAX_KEPT`] |
//! | `GET /counts` | `{"taken": 7, "fcm": `[`Counts`]`, "apns": `[`Counts`]`}` |
//!
//! # Differences from the real providers
//!
//! - Both know only what Naru sends. At FCM that is a message to a registration token, with the fields in `schema.rs`; at
//!   APNs a push of the type `alert`. Everything else is refused, and HTTP/1.1 is not spoken.
//! - APNs allows one stream on a connection until a valid provider token came; here the limit is the same from the start.
//!   Its GOAWAY frames carry a reason; these carry none.
//! - APNs counts provider tokens in a way that Apple does not describe. Here the first two are taken at any time, so that a
//!   notifier can be started again, and each one after them at least 20 minutes after the one before.
//! - An assertion's `aud` must be the service account's `token_uri`, which is this emulator's.
//! - Quotas are not counted and traffic is not shaped: 429 comes on demand.

mod admin;
mod answer;
mod apns;
mod auth;
mod behaviour;
mod connection;
mod error;
mod fcm;
mod google;
mod handle;
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
mod state;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_util::task::AbortOnDropHandle;

pub use answer::{Answer, ApnsReason, FcmError};
pub use behaviour::Behaviour;
pub use error::StartError;
pub use handle::Handle;
pub use keys::{KEY_ID, PROJECT, TEAM_ID, TOPIC};
pub use oauth::TOKEN_ENDPOINT;
pub use provider::Provider;
pub use push::Push;
pub use record::{Counts, MAX_KEPT};

use keys::Keys;
use oauth::Authority;
use provider_token::ProviderTokens;
use record::Record;
use script::Script;
use server::{Port, Server};
use state::State;

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
}

impl Options {
    /// Any ports of loopback, and no admin.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { dir: dir.into(), fcm: any, apns: any, admin: None, host: "localhost".to_owned() }
    }
}

/// The running providers. Dropping this stops them.
///
/// Its `Display` is the environment by which Naru finds them, as lines for a shell.
pub struct Phones {
    fcm_url: String,
    apns_url: String,
    admin_url: Option<String>,
    keys: Keys,
    handle: Handle,
    _servers: [Server; 2],
    _admin: Option<AbortOnDropHandle<()>>,
}

impl Phones {
    /// Starts the providers; returns when they listen. Where there are no keys yet, this thread is busy for a fraction of a
    /// second making them.
    ///
    /// # Errors
    /// When an address can't be bound, or a key or a certificate can't be made, read or written.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let keys = Keys::open(&options.dir)?;
        let (fcm, apns) = (Port::open(options.fcm)?, Port::open(options.apns)?);
        let admin = options.admin.map(Port::open).transpose()?;
        let url = |port: &Port| format!("https://{}:{}", options.host, port.address.port());
        let (fcm_url, apns_url) = (url(&fcm), url(&apns));
        let admin_url = admin.as_ref().map(|port| format!("http://{}", port.address));
        let token_uri = format!("{fcm_url}{TOKEN_ENDPOINT}");
        keys.write_service_account(&token_uri)?;
        let state = Arc::new(State {
            record: Record::default(),
            script: Script::default(),
            authority: Authority::new(keys.service_account_verifier(), token_uri),
            provider_tokens: ProviderTokens::new(keys.apns_verifier()),
        });
        let tls = tls(&keys, &options.host)?;
        let servers = [(Provider::Fcm, fcm), (Provider::Apns, apns)]
            .map(|(provider, port)| Server::start(provider, port, tls.clone(), state.clone()));
        let [fcm, apns] = servers.each_ref().map(|server| server.commands.clone());
        let handle = Handle { state, fcm, apns };
        let admin = admin.map(|port| tokio::spawn(admin::serve(port, handle.clone())));
        let _admin = admin.map(AbortOnDropHandle::new);
        Ok(Self { fcm_url, apns_url, admin_url, keys, handle, _servers: servers, _admin })
    }

    /// FCM, and OAuth2: `https://localhost:PORT`.
    pub fn fcm_url(&self) -> String {
        self.fcm_url.clone()
    }

    /// APNs: `https://localhost:PORT`.
    pub fn apns_url(&self) -> String {
        self.apns_url.clone()
    }

    /// Where the pushes are read over HTTP: `http://127.0.0.1:PORT`.
    pub fn admin_url(&self) -> Option<&str> {
        self.admin_url.as_deref()
    }

    /// The certificate to trust.
    pub fn ca_file(&self) -> &Path {
        &self.keys.ca_file
    }

    /// FCM's key: the service account's JSON file.
    pub fn service_account_file(&self) -> &Path {
        &self.keys.service_account_file
    }

    /// APNs' key: the .p8 file.
    pub fn apns_key_file(&self) -> &Path {
        &self.keys.apns_key_file
    }

    /// Controls the providers and reads their pushes.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The environment variables by which Naru finds the providers.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let file = |path: &Path| path.display().to_string();
        vec![
            ("NARU_FCM_SERVICE_ACCOUNT_FILE", file(self.service_account_file())),
            ("NARU_FCM_BASE_URL", self.fcm_url()),
            ("NARU_APNS_KEY_FILE", file(self.apns_key_file())),
            ("NARU_APNS_KEY_ID", KEY_ID.to_owned()),
            ("NARU_APNS_TEAM_ID", TEAM_ID.to_owned()),
            ("NARU_APNS_TOPIC", TOPIC.to_owned()),
            ("NARU_APNS_BASE_URL", self.apns_url()),
            ("NARU_EXTRA_CA_FILE", file(self.ca_file())),
        ]
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

/// HTTP/2 over TLS, with a new certificate.
fn tls(keys: &Keys, host: &str) -> Result<TlsAcceptor, StartError> {
    let (certificates, key) = keys.server(host)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
