//! The demo page: two people, each with a phone on the desk. Off unless it is asked for, or the process listens on this
//! machine only and made its own token secret.
//!
//! Its endpoints hand out tokens for two made-up users and show their pushes. They answer only when asked for by a
//! loopback name, so that no foreign page reaches them through a name of its own (DNS rebinding).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use aws_lc_rs::hmac;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use naru_model::{Timestamp, UserId};
use naru_runtime::{Secret, Settings};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use warp::Filter;
use warp::reply::Response;
use warp::sse;

use crate::address;
use crate::token::{self, Claims};

/// The two people of the page: user id and name.
const PEOPLE: [(&str, &str); 2] = [("ada", "Ada"), ("ben", "Ben")];
/// How long their tokens are good for.
const TOKEN_TTL: Duration = Duration::from_secs(3600);
/// How many pushes a phone on the desk shows again after a reload.
const SHOWN: usize = 20;
/// How many pushes a page may fall behind; then its stream ends, and it comes back and is shown them anew.
const BACKLOG: usize = 64;
/// Nothing but the page's own files, its own server, and no page around it.
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
    address: SocketAddr,
    token_secret: Secret,
    push_secret: Secret,
    desk: Mutex<Desk>,
}

#[derive(Default)]
struct Desk {
    pushes: VecDeque<Push>,
    count: u64,
    /// Whoever looks at the desk now.
    viewers: Vec<mpsc::Sender<Push>>,
}

/// A push as it lies on the desk.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Push {
    #[serde(skip)]
    number: u64,
    #[serde(flatten)]
    sent: Sent,
    received_at: Timestamp,
}

/// What the webhook provider posts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sent {
    user_id: UserId,
    title: String,
    body: String,
    data: serde_json::Value,
}

impl Demo {
    /// The demo, if it is wanted and may be.
    ///
    /// # Errors
    /// When it is asked for and its tokens can't be signed.
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
        let push_secret = format!("{:032x}", rand::random::<u128>()).into();
        Ok(Some(Self { address, token_secret, push_secret, desk: Mutex::default() }))
    }

    /// Lets pushes go to the phones on the desk, unless they go to a backend already.
    pub fn receive_pushes(&self, config: &mut notifier::Config) {
        if config.push_webhook_url.is_none() {
            let own = address::from_here(self.address);
            config.push_webhook_url = Some(format!("http://{own}/demo/pushes").into());
            config.push_webhook_secret = Some(self.push_secret.clone());
        }
    }

    fn token(&self, wanted: &str) -> Option<Response> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body {
            token: String,
            expires_at: Timestamp,
        }
        let (id, name) = PEOPLE.into_iter().find(|(id, _)| *id == wanted)?;
        let (user, expires_at) = (UserId::new(id).ok()?, token::expiry(TOKEN_TTL));
        let claims = Claims {
            sub: &user,
            name: Some(name),
            device: None,
            scope: None,
            exp: expires_at.as_millis() / 1000,
        };
        let token = token::sign(&claims, &self.token_secret).ok()?;
        Some(answer("application/json", serde_json::to_string(&Body { token, expires_at }).ok()?))
    }

    /// Puts a push on the desk, once however often it comes.
    fn receive(&self, headers: &HeaderMap, body: &[u8]) -> StatusCode {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.push_secret.expose().as_bytes());
        let signature = headers.get("x-naru-signature").and_then(|value| value.to_str().ok());
        let signature = signature.and_then(|text| unhex(text.strip_prefix("sha256=")?));
        if signature.is_none_or(|signature| hmac::verify(&key, body, &signature).is_err()) {
            return StatusCode::UNAUTHORIZED;
        }
        let Ok(sent) = serde_json::from_slice::<Sent>(body) else { return StatusCode::BAD_REQUEST };
        let mut desk = self.desk();
        desk.count += 1;
        let push = Push { number: desk.count, sent, received_at: Timestamp::now() };
        let of_same_user = |other: &&Push| other.sent.user_id == push.sent.user_id;
        if desk.pushes.iter().filter(of_same_user).count() >= SHOWN
            && let Some(oldest) = desk.pushes.iter().position(|other| other.sent.user_id == push.sent.user_id)
        {
            desk.pushes.remove(oldest);
        }
        desk.pushes.push_back(push.clone());
        desk.viewers.retain(|viewer| viewer.try_send(push.clone()).is_ok());
        StatusCode::NO_CONTENT
    }

    /// What lies on the desk for a user, then what comes.
    fn show(&self, user: &UserId) -> impl Stream<Item = Push> + Send + Sync + use<> {
        let (viewer, coming) = mpsc::channel(BACKLOG);
        let mut desk = self.desk();
        desk.viewers.retain(|viewer| !viewer.is_closed());
        desk.viewers.push(viewer);
        let (lying, user) = (desk.pushes.clone(), user.clone());
        let all = stream::iter(lying).chain(ReceiverStream::new(coming));
        all.filter(move |push| std::future::ready(push.sent.user_id == user))
    }

    fn desk(&self) -> std::sync::MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The page, its files, and its endpoints below `/demo/`.
pub fn routes(demo: Demo, shutdown: CancellationToken) -> gateway::Routes {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Person {
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
        .and(warp::body::json())
        .map(|demo: Arc<Demo>, person: Person| {
            demo.token(&person.user_id).unwrap_or_else(|| bare(StatusCode::NOT_FOUND))
        });
    let receive = warp::path!("demo" / "pushes")
        .and(warp::post())
        .and(demo.clone())
        .and(warp::header::headers_cloned())
        .and(warp::body::content_length_limit(64 * 1024))
        .and(warp::body::bytes())
        .map(|demo: Arc<Demo>, headers: HeaderMap, body: Bytes| bare(demo.receive(&headers, &body)));
    let show = warp::path!("demo" / "pushes").and(warp::get()).and(demo).and(warp::query::<Person>()).map(
        move |demo: Arc<Demo>, person: Person| match UserId::new(person.user_id) {
            Ok(user) => stream_of(demo.show(&user), shutdown.clone()),
            Err(_) => bare(StatusCode::BAD_REQUEST),
        },
    );

    let here = warp::header::headers_cloned().and_then(|headers: HeaderMap| async move {
        if is_asked_for_here(&headers) { Ok(()) } else { Err(warp::reject::not_found()) }
    });
    let all = token.or(receive).unify().or(show).unify().or(page).unify().or(file).unify();
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
    // The first comment goes out at once and tells the page that the stream is open.
    let opening = stream::iter([Ok(sse::Event::default().comment("open"))]);
    let until_shutdown = opening.chain(events).take_until(shutdown.cancelled_owned());
    let mut response = warp::Reply::into_response(sse::reply(sse::keep_alive().stream(until_shutdown)));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
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
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn bare(status: StatusCode) -> Response {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
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
