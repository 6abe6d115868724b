//! The demo page: two users, each with a phone on the desk. Off unless it is configured, or the process listens on this
//! machine only and made its own token secret.
//!
//! Ada's phone is an Android, Ben's is one of Apple's. Where no keys of FCM or APNs are configured, the provider emulator is
//! started, too, and the notifier pushes to it as it would to Google and Apple: the desk shows the pushes it receives.
//!
//! The endpoints issue tokens for two made-up users and show their pushes. They answer only requests for a loopback
//! name, so that no foreign page reaches them through a name of its own (DNS rebinding).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use naru_model::{Timestamp, UserId};
use naru_phones::{Handle, Options, Phones};
use naru_runtime::{Secret, Settings};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use warp::Filter;
use warp::reply::Response;
use warp::sse;

use crate::token::{self, Claims, Signer};

/// One of the page's two users.
struct Person {
    id: &'static str,
    name: &'static str,
    phone: Phone,
}

/// A phone on the desk, as its app registers it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Phone {
    device_id: &'static str,
    platform: &'static str,
    token: &'static str,
}

const PEOPLE: [Person; 2] = [
    Person {
        id: "ada",
        name: "Ada",
        phone: Phone { device_id: "desk", platform: "fcm", token: "naru-demo:the-phone-on-adas-desk" },
    },
    Person {
        id: "ben",
        name: "Ben",
        // "naru demo: the phone on bens desk" in hexadecimal digits: APNs' tokens have 64 or more.
        phone: Phone {
            device_id: "desk",
            platform: "apns",
            token: "6e6172752064656d6f3a207468652070686f6e65206f6e2062656e73206465736b",
        },
    },
];

impl Person {
    fn of(id: &str) -> Option<&'static Self> {
        PEOPLE.iter().find(|person| person.id == id)
    }
}

/// The lifetime of their tokens.
const TOKEN_TTL: Duration = Duration::from_secs(3600);
/// The most pushes that a phone on the desk shows again after a reload.
const SHOWN: usize = 20;
/// The page may load its own files and call its own server only, and no page may frame it.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page's files: name, type, content.
const FILES: [(&str, &str, &str); 10] = [
    ("app.js", "text/javascript; charset=utf-8", include_str!("../demo/app.js")),
    ("connection.js", "text/javascript; charset=utf-8", include_str!("../demo/connection.js")),
    ("conversation.js", "text/javascript; charset=utf-8", include_str!("../demo/conversation.js")),
    ("demo.css", "text/css; charset=utf-8", include_str!("../demo/demo.css")),
    ("desk.js", "text/javascript; charset=utf-8", include_str!("../demo/desk.js")),
    ("icon.svg", "image/svg+xml", include_str!("../demo/icon.svg")),
    ("person.js", "text/javascript; charset=utf-8", include_str!("../demo/person.js")),
    ("screen.js", "text/javascript; charset=utf-8", include_str!("../demo/screen.js")),
    ("server.js", "text/javascript; charset=utf-8", include_str!("../demo/server.js")),
    ("words.js", "text/javascript; charset=utf-8", include_str!("../demo/words.js")),
];
const PAGE: &str = include_str!("../demo/index.html");

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wish {
    Auto,
    On,
    Off,
}

#[derive(Deserialize)]
struct Config {
    demo: Wish,
}

/// The demo's server side.
pub struct Demo {
    signer: Signer,
    /// None: pushes go to the configured providers, and the phones on the desk show none.
    phones: Option<Phones>,
}

/// A push as a phone on the desk shows it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Push {
    #[serde(skip)]
    number: u64,
    title: Option<String>,
    body: Option<String>,
    badge: Option<u64>,
    data: Data,
    received_at: Timestamp,
    /// It was received before its stream was opened: the phone does not buzz.
    replayed: bool,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    chat_room_id: Option<String>,
    message_id: Option<String>,
}

impl Push {
    fn new(push: &naru_phones::Push, replayed: bool) -> Self {
        Self {
            number: push.number,
            title: push.title.clone(),
            body: push.body.clone(),
            badge: push.badge,
            data: Data { chat_room_id: push.chat_room_id.clone(), message_id: push.message_id.clone() },
            received_at: Timestamp::from_millis(i64::try_from(push.received_at).unwrap_or(i64::MAX)),
            replayed,
        }
    }
}

impl Demo {
    /// The demo, if it is wanted and allowed.
    ///
    /// # Errors
    /// When it is configured and its tokens can't be signed.
    pub fn wanted(
        settings: &Settings,
        address: SocketAddr,
        token_secret: Option<&Secret>,
        has_own_key: bool,
    ) -> anyhow::Result<Option<Self>> {
        let wanted = match settings.pick::<Config>()?.demo {
            Wish::On => true,
            Wish::Off => false,
            Wish::Auto => address.ip().is_loopback() && has_own_key,
        };
        if !wanted {
            return Ok(None);
        }
        let Some(token_secret) = token_secret.cloned() else {
            bail!("demo = \"on\" needs a token secret to sign with: set jwt_secret, or no key at all");
        };
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "the demo is on, but answers to names of this machine only");
        }
        Ok(Some(Self { signer: Signer::new(settings, token_secret)?, phones: None }))
    }

    /// Sends pushes to the phones on the desk, unless a provider is configured. The emulator's keys are in `data_dir`.
    ///
    /// # Errors
    /// When the keys can't be made there, or the emulator can't listen.
    pub async fn put_phones_on_the_desk(
        &mut self,
        config: &mut notifier::Config,
        data_dir: &Path,
    ) -> anyhow::Result<()> {
        if config.fcm_service_account_file.is_some() || config.apns_key_file.is_some() {
            return Ok(());
        }
        let dir = data_dir.join("phones");
        let phones = Phones::start(Options::in_dir(&dir))
            .await
            .context("the demo's phones can't be put on the desk")?;
        config.fcm_service_account_file = Some(phones.service_account_file().to_owned());
        config.fcm_base_url = Some(phones.fcm_url());
        config.apns_key_file = Some(phones.apns_key_file().to_owned());
        config.apns_key_id = Some(naru_phones::KEY_ID.to_owned());
        config.apns_team_id = Some(naru_phones::TEAM_ID.to_owned());
        config.apns_topic = Some(naru_phones::TOPIC.to_owned());
        config.apns_base_url = Some(phones.apns_url());
        config.extra_ca_file = Some(match config.extra_ca_file.take() {
            None => phones.ca_file().to_owned(),
            // The webhook's root stays trusted, too.
            Some(theirs) => {
                let both = dir.join("trusted.pem");
                let read = |path: &Path| {
                    std::fs::read(path).with_context(|| format!("can't read {}", path.display()))
                };
                let pem = [read(&theirs)?, b"\n".to_vec(), read(phones.ca_file())?].concat();
                std::fs::write(&both, pem).with_context(|| format!("can't write {}", both.display()))?;
                both
            }
        });
        self.phones = Some(phones);
        Ok(())
    }

    fn token(&self, wanted: &str) -> Option<Response> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body {
            token: String,
            expires_at: Timestamp,
        }
        let person = Person::of(wanted)?;
        let (user, expires_at) = (UserId::new(person.id).ok()?, token::expiry(TOKEN_TTL));
        let claims = Claims {
            sub: &user,
            name: Some(person.name),
            device: None,
            scope: None,
            exp: expires_at.as_millis() / 1000,
        };
        let token = self.signer.sign(&claims).ok()?;
        Some(answer("application/json", serde_json::to_string(&Body { token, expires_at }).ok()?))
    }

    /// A user's pushes on the desk, then new ones; none where pushes go to configured providers.
    fn show(&self, person: &'static Person) -> impl Stream<Item = Push> + Send + Sync + use<> {
        let handle = self.phones.as_ref().map(Phones::handle);
        stream::iter(handle).flat_map(move |handle| on_the_desk(&handle, person))
    }
}

/// Each push once, however often it was received.
fn on_the_desk(handle: &Handle, person: &'static Person) -> impl Stream<Item = Push> + Send + Sync + use<> {
    let is_theirs = |push: &naru_phones::Push| push.token == person.phone.token && !push.repeated;
    let mut lying = handle.received();
    let newest = lying.last().map_or(0, |push| push.number);
    lying.retain(|push| is_theirs(push));
    let lying: Vec<_> = lying.iter().rev().take(SHOWN).rev().map(|push| Push::new(push, true)).collect();
    let coming = stream::unfold((handle.clone(), newest), |(handle, newest)| async move {
        let push = handle.next(newest).await;
        let newest = push.number;
        Some((push, (handle, newest)))
    });
    let coming =
        coming.filter_map(move |push| std::future::ready(is_theirs(&push).then(|| Push::new(&push, false))));
    stream::iter(lying).chain(coming)
}

/// The page, its files, and its endpoints below `/demo/`.
pub fn routes(demo: Demo, shutdown: CancellationToken) -> gateway::Routes {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Whose {
        user_id: String,
    }
    let demo = Arc::new(demo);
    let demo = warp::any().map(move || demo.clone());

    let page = warp::path::end().and(warp::get()).map(|| answer("text/html; charset=utf-8", PAGE.to_owned()));
    let file = warp::path!("demo" / String).and(warp::get()).map(|name: String| {
        let file = FILES.iter().find(|(known, ..)| *known == name);
        file.map_or_else(
            || bare(StatusCode::NOT_FOUND),
            |(_, kind, content)| answer(kind, (*content).to_owned()),
        )
    });
    let token = warp::path!("demo" / "token")
        .and(warp::post())
        .and(demo.clone())
        .and(warp::body::content_length_limit(1024))
        // Not as JSON yet: where a filter refuses, the next route would find the body consumed.
        .and(warp::body::bytes())
        .map(|demo: Arc<Demo>, body: Bytes| match serde_json::from_slice::<Whose>(&body) {
            Ok(whose) => demo.token(&whose.user_id).unwrap_or_else(|| bare(StatusCode::NOT_FOUND)),
            Err(_) => bare(StatusCode::BAD_REQUEST),
        });
    let phone =
        warp::path!("demo" / "phone").and(warp::get()).and(warp::query::<Whose>()).map(|whose: Whose| {
            match Person::of(&whose.user_id).map(|person| serde_json::to_string(&person.phone)) {
                Some(Ok(phone)) => answer("application/json", phone),
                _ => bare(StatusCode::NOT_FOUND),
            }
        });
    let show = warp::path!("demo" / "pushes").and(warp::get()).and(demo).and(warp::query::<Whose>()).map(
        move |demo: Arc<Demo>, whose: Whose| match Person::of(&whose.user_id) {
            Some(person) => stream_of(demo.show(person), shutdown.clone()),
            None => bare(StatusCode::NOT_FOUND),
        },
    );

    let here = warp::header::headers_cloned().and_then(|headers: HeaderMap| async move {
        if is_asked_for_here(&headers) { Ok(()) } else { Err(warp::reject::not_found()) }
    });
    let all = token.or(phone).unify().or(show).unify().or(page).unify().or(file).unify();
    here.untuple_one().and(all).boxed()
}

fn stream_of(
    pushes: impl Stream<Item = Push> + Send + Sync + 'static,
    shutdown: CancellationToken,
) -> Response {
    let events = pushes.filter_map(|push| {
        let event = sse::Event::default().id(push.number.to_string()).json_data(push);
        std::future::ready(event.ok().map(Ok::<_, Infallible>))
    });
    // The first comment is sent at once and shows the page that the stream is open.
    let opening = stream::iter([Ok(sse::Event::default().comment("open"))]);
    let until_shutdown = opening.chain(events).take_until(shutdown.cancelled_owned());
    warp::Reply::into_response(sse::reply(sse::keep_alive().stream(until_shutdown)))
}

/// Whether the request names this machine, as a browser on it does.
fn is_asked_for_here(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let name = name.map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn answer(kind: &'static str, body: String) -> Response {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn bare(status: StatusCode) -> Response {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_answered() {
        for (host, wanted) in [
            ("localhost:8080", true),
            ("127.0.0.1:8080", true),
            ("[::1]:8080", true),
            ("localhost", true),
            ("evil.example:8080", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(host))]);
            assert_eq!(is_asked_for_here(&headers), wanted, "{host}");
        }
    }
}
