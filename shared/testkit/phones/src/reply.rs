//! Answers over HTTP.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::Value;

/// A whole answer.
pub(crate) type Reply = Response<Full<Bytes>>;
/// An answer that is an error.
pub(crate) type Refusal = Box<Reply>;

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

/// The same with `Retry-After`, if there is one.
pub(crate) fn with_retry_after(mut reply: Reply, seconds: Option<u64>) -> Reply {
    if let Some(seconds) = seconds {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    reply
}
