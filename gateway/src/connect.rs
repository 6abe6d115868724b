//! The WebSocket handshake: a client's origin, its identity, and the switch from HTTP to WebSocket.
//!
//! The switch is made here rather than by warp's own filter, which gives every connection a read buffer of 128 KiB
//! (docs/decisions/0002).

use std::sync::Arc;

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

use crate::client_address::ClientAddress;
use crate::gateway::Gateway;
use crate::refusal::Refusal;
use crate::session;
use crate::token::bearer;

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
/// Before the upgrade: a foreign origin, a missing or bad token, no WebSocket handshake.
pub(crate) async fn upgrade(
    gateway: &Arc<Gateway>,
    headers: &HeaderMap,
    client: ClientAddress,
    upgrade: Option<OnUpgrade>,
) -> Result<warp::reply::Response, Refusal> {
    if !is_allowed(headers, &gateway.config.allowed_origins) {
        return Err(Refusal::Forbidden("this origin is not allowed"));
    }
    let offered = offered_protocols(headers);
    let token = bearer(headers)
        .or_else(|| offered.iter().find_map(|protocol| protocol.strip_prefix("bearer.")))
        .ok_or(Refusal::Unauthenticated("no token: send Authorization: Bearer, or the bearer subprotocol"))?;
    let identity = gateway.verifier.verify(token).await?;
    let (Some(key), Some(upgrade)) = (handshake_key(headers), upgrade) else {
        return Err(Refusal::Invalid("this is a WebSocket endpoint: version 13, with a key".to_owned()));
    };
    if gateway.drain.has_begun() || gateway.sessions.count() >= gateway.config.max_connections {
        return Err(Refusal::Overloaded);
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
        session::serve(serving, socket, identity).await;
    });
    response.body(warp::reply::Response::default().into_body()).map_err(|_| Refusal::Unavailable)
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
    let asked = has(CONNECTION, "upgrade") && has(UPGRADE, "websocket") && has(SEC_WEBSOCKET_VERSION, "13");
    headers.get(SEC_WEBSOCKET_KEY).filter(|_| asked)
}

/// Whether a browser page may use this server: its origin is a configured one, or the server's own. A client that is
/// not a browser sends no origin.
pub(crate) fn is_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(origin) = headers.get(ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else { return false };
    let is_own = || {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        origin.split_once("://").is_some_and(|(_, authority)| Some(authority) == host)
    };
    allowed.iter().any(|one| one == "*" || one == origin) || is_own()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(http::header::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_page_may_come_from_the_server_itself_or_an_allowed_origin() {
        let allowed = ["https://app.example".to_owned()];
        for (origin, wanted) in [
            ("https://app.example", true),
            ("http://naru.example:8080", true),
            ("https://app.example.evil.example", false),
            ("null", false),
        ] {
            let headers = headers(&[(ORIGIN, origin), (HOST, "naru.example:8080")]);
            assert_eq!(is_allowed(&headers, &allowed), wanted, "{origin}");
        }
        assert!(is_allowed(&HeaderMap::new(), &allowed), "an app sends no origin");
    }
}
