//! Answers over HTTP.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::Value;

/// A whole answer.
pub(crate) type Reply = Response<Full<Bytes>>;

/// A status and a JSON value.
pub(crate) fn json(status: u16, value: &Value) -> Reply {
    let mut reply = bytes(status, value.to_string());
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
    reply
}

/// A status and a body of no stated type.
pub(crate) fn bytes(status: u16, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    reply
}

/// The response as given, word for word. Headers that HTTP can't carry are left out.
pub(crate) fn raw(status: u16, headers: &[(String, String)], body: String) -> Reply {
    let mut reply = bytes(status, body);
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            reply.headers_mut().append(name, value);
        }
    }
    reply
}

/// The same with `Retry-After`, if there is one.
pub(crate) fn with_retry_after(mut reply: Reply, seconds: Option<u64>) -> Reply {
    if let Some(seconds) = seconds {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    reply
}
