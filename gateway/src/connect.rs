//! The WebSocket handshake: a client's origin, its identity, and the switch from HTTP to WebSocket.
//!
//! The switch is made here rather than by warp's own filter, which gives every connection a read buffer of 128 KiB
//! (docs/decisions/0002).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{
    CONNECTION, HOST, HeaderMap, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::api;
use crate::client_address::ClientAddress;
use crate::gateway::Gateway;
use crate::limit::CONNECT_COST;
use crate::refusal::Refusal;
use crate::session;
use crate::token::bearer;

/// The one version of the protocol that is spoken.
const VERSION: &str = "13";
/// At most one refused origin in this time is logged: a page may try as often as it likes.
const LOGGED_EVERY: Duration = Duration::from_secs(1);
/// When a user with too many sessions may try again.
const SESSION_MAY_END: Duration = Duration::from_secs(10);
/// The subprotocol of the server.
const PROTOCOL: &str = "naru.v1";
/// The read buffer of a connection; larger frames take more memory while they arrive.
const READ_BUFFER: usize = 2048;
/// The frames of a session are written in pieces of this size: a burst costs one system call, and an idle connection
/// keeps no more than it once needed.
const WRITE_BUFFER: usize = 2048;

/// Answers `GET /ws`.
///
/// # Errors
/// Before the upgrade: a foreign origin, a missing or bad token, no WebSocket handshake, a limit.
pub(crate) async fn upgrade(
    gateway: &Arc<Gateway>,
    headers: &HeaderMap,
    client: ClientAddress,
    upgrade: Option<OnUpgrade>,
) -> Result<warp::reply::Response, Refusal> {
    if !gateway.config.allowed_origins.allow(headers) {
        log_refused_origin(headers);
        return Err(Refusal::Forbidden("this origin is not allowed"));
    }
    gateway.limits.connect(client.0)?;
    let offered = offered_protocols(headers);
    let token = bearer(headers)
        .or_else(|| offered.iter().find_map(|protocol| protocol.strip_prefix("bearer.")))
        .ok_or(Refusal::Unauthenticated("no token: send Authorization: Bearer, or the bearer subprotocol"))?;
    let identity = gateway.verifier.verify(token).await?;
    gateway.limits.call(&identity, CONNECT_COST)?;
    let (Some(key), Some(upgrade)) = (handshake_key(headers), upgrade) else {
        return Err(Refusal::Invalid("this is a WebSocket endpoint: version 13, with a key".to_owned()));
    };
    let record = gateway.users.admit(&identity).await?;
    // Last, so that only who may connect takes a turn.
    match gateway.drain.begun.run_until_cancelled(gateway.connect_turns.next(&identity.user)).await {
        Some(turn) => turn?,
        None => return Err(Refusal::Overloaded),
    }
    if gateway.drain.has_begun() || gateway.sessions.count() >= gateway.config.max_connections {
        return Err(Refusal::Overloaded);
    }
    gateway.budget.admit()?;
    if gateway.sessions.count_of(&identity.user) >= gateway.config.max_sessions_per_user {
        return Err(Refusal::RateLimited { retry_after: SESSION_MAY_END });
    }

    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()));
    if offered.contains(&PROTOCOL) {
        response = response.header(SEC_WEBSOCKET_PROTOCOL, PROTOCOL);
    }
    tracing::debug!(client = %client.0, user = %identity.user, "a session begins");
    let serving = gateway.clone();
    gateway.connections.spawn(async move {
        // The peer may disconnect before the switch is made.
        let Ok(upgraded) = upgrade.await else { return };
        let limit = Some(serving.config.max_frame_bytes);
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(WRITE_BUFFER)
            .max_message_size(limit)
            .max_frame_size(limit);
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
        session::serve(serving, socket, identity, record).await;
    });
    response.body(warp::reply::Response::default().into_body()).map_err(|_| Refusal::Unavailable)
}

/// The answer to a handshake that was refused. One that is no handshake of this version is told the version (RFC 6455,
/// 4.2.2).
pub(crate) fn refused(refusal: &Refusal) -> warp::reply::Response {
    let mut response = api::refused(refusal);
    if matches!(refusal, Refusal::Invalid(_)) {
        response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
    }
    response
}

/// The page is told only that it was refused; the log names the key to configure.
pub(crate) fn log_refused_origin(headers: &HeaderMap) {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.is_none_or(|last| last.elapsed() >= LOGGED_EVERY) {
        *last = Some(Instant::now());
        tracing::warn!(
            origin = ?headers.get(ORIGIN),
            host = ?headers.get(HOST),
            "a page was refused: its origin is not in `allowed_origins`, nor this server's own"
        );
    }
}

fn offered_protocols(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',').map(str::trim)).collect()
}

fn handshake_key(headers: &HeaderMap) -> Option<&HeaderValue> {
    let has = |name, wanted: &str| {
        let text = headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        text.is_some_and(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case(wanted)))
    };
    let asked =
        has(CONNECTION, "upgrade") && has(UPGRADE, "websocket") && has(SEC_WEBSOCKET_VERSION, VERSION);
    headers.get(SEC_WEBSOCKET_KEY).filter(|_| asked)
}
