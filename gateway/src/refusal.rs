//! One table from every refusal to the error that a client gets. `docs/ERRORS.md` is made from it.
//!
//! For a message, [`Refusal::Unavailable`] means that its fate is unknown, and resending the same `clientMessageId` is
//! safe; every other refusal means that it was not accepted.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use naru_engines::EngineError;
use naru_model::frame::{BadFrame, ServerFrame};
use naru_model::message::Rejection;
use naru_model::{ClientMessageId, InvalidId};

/// Why a frame or a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The frame, or the request, can't be read or breaks a rule.
    Invalid(String),
    /// No token, or an invalid one.
    Unauthenticated(&'static str),
    /// The caller may not do this.
    Forbidden(&'static str),
    /// There is no such room for the caller.
    RoomNotFound,
    /// The address does not exist.
    NotFound,
    /// It contradicts the stored state.
    Conflict(&'static str),
    /// The user has as many as one may have.
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// More bytes than the limit.
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The user, or the address, does more than allowed.
    RateLimited {
        /// When it may be tried again.
        retry_after: Duration,
    },
    /// This gateway has too many unanswered messages, too many bytes wait for clients, or the call's or handshake's turn does
    /// not come in time.
    Overloaded,
    /// An engine does not answer. The fate of a message is unknown.
    Unavailable,
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    /// The code, in frames and in HTTP bodies.
    pub code: &'static str,
    /// The status over HTTP.
    pub status: StatusCode,
    /// What it means for a message.
    pub message_fate: &'static str,
    /// When it is returned.
    pub meaning: &'static str,
}

macro_rules! row {
    ($code:literal, $status:ident, $fate:literal, $meaning:literal) => {
        Row { code: $code, status: StatusCode::$status, message_fate: $fate, meaning: $meaning }
    };
}

/// The table, in the order of [`Refusal`].
pub const TABLE: [Row; 10] = [
    row!(
        "INVALID_FRAME",
        BAD_REQUEST,
        "not accepted",
        "not JSON, missing or wrong fields, unknown type, binary frame"
    ),
    row!(
        "UNAUTHENTICATED",
        UNAUTHORIZED,
        "not accepted",
        "no token, or one that is forged, expired or malformed"
    ),
    row!(
        "FORBIDDEN",
        FORBIDDEN,
        "not accepted",
        "someone else's senderId, or a right the token does not give"
    ),
    row!("ROOM_NOT_FOUND", NOT_FOUND, "not accepted", "no such room, or the caller is not a member of it"),
    row!(
        "NOT_FOUND",
        NOT_FOUND,
        "not accepted",
        "no such address in the HTTP API, or nothing is there any more"
    ),
    row!(
        "CONFLICT",
        CONFLICT,
        "not accepted",
        "this clientMessageId was used in this room for other content; or what is there does not allow it; or there are too many"
    ),
    row!("TOO_LARGE", PAYLOAD_TOO_LARGE, "not accepted", "a content or a body of more bytes than are taken"),
    row!("RATE_LIMITED", TOO_MANY_REQUESTS, "not accepted", "more, or faster, than this user or address may"),
    row!(
        "OVERLOADED",
        SERVICE_UNAVAILABLE,
        "not accepted",
        "this gateway has too much to do: unanswered messages, bytes that wait for clients, calls, handshakes"
    ),
    row!(
        "UNAVAILABLE",
        SERVICE_UNAVAILABLE,
        "unknown: resend the same clientMessageId",
        "something behind the gateway does not answer"
    ),
];

impl Refusal {
    /// Its row of the table.
    pub const fn row(&self) -> &'static Row {
        &TABLE[match self {
            Self::Invalid(_) => 0,
            Self::Unauthenticated(_) => 1,
            Self::Forbidden(_) => 2,
            Self::RoomNotFound => 3,
            Self::NotFound => 4,
            Self::Conflict(_) | Self::TooMany { .. } => 5,
            Self::TooLarge { .. } => 6,
            Self::RateLimited { .. } => 7,
            Self::Overloaded => 8,
            Self::Unavailable => 9,
        }]
    }

    /// Whether later messages of the session wait for the refused one: it was not accepted, and may be in a moment.
    pub(crate) const fn holds_back(&self) -> bool {
        matches!(self, Self::RateLimited { .. } | Self::Overloaded)
    }

    /// A sentence for the client's developer; it holds no data that the client did not send.
    pub fn message(&self) -> Cow<'_, str> {
        match self {
            Self::Invalid(reason) => Cow::Borrowed(reason),
            Self::Unauthenticated(reason) | Self::Forbidden(reason) | Self::Conflict(reason) => {
                Cow::Borrowed(reason)
            }
            Self::RoomNotFound => Cow::Borrowed("there is no such room, or you are not in it"),
            Self::NotFound => Cow::Borrowed("there is nothing at this address"),
            Self::TooMany { what, max } => Cow::Owned(format!("you have {max} {what}, which is the most")),
            Self::TooLarge { limit } => Cow::Owned(format!("at most {limit} bytes are taken")),
            Self::RateLimited { .. } => Cow::Borrowed("you are sending too much, or too fast"),
            Self::Overloaded => Cow::Borrowed("this gateway has too much to do; it was not accepted"),
            Self::Unavailable => Cow::Borrowed(
                "no answer in time; it may still be saved: resend it with the same clientMessageId",
            ),
        }
    }

    /// When to try again.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } => Some(*retry_after),
            Self::Overloaded | Self::Unavailable => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The `ERROR` frame of it.
    pub fn frame(&self, client_message_id: Option<&ClientMessageId>) -> String {
        // Rounded up.
        let retry_after_ms = self
            .retry_after()
            .map(|span| u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX));
        to_text(&ServerFrame::Error {
            code: self.row().code,
            message: &self.message(),
            client_message_id,
            retry_after_ms,
        })
    }
}

/// A frame as text. Frames are made of strings and numbers, which always serialise.
pub(crate) fn to_text(frame: &impl serde::Serialize) -> String {
    serde_json::to_string(frame).expect("frames hold nothing that JSON can't")
}

impl From<EngineError> for Refusal {
    /// Here the failure of an engine becomes a refusal for the client, so it is logged here.
    fn from(error: EngineError) -> Self {
        tracing::warn!(%error, "an engine failed; the client is told UNAVAILABLE");
        Self::Unavailable
    }
}

impl From<&BadFrame> for Refusal {
    fn from(bad: &BadFrame) -> Self {
        Self::Invalid(bad.reason.clone())
    }
}

impl From<InvalidId> for Refusal {
    fn from(invalid: InvalidId) -> Self {
        Self::Invalid(invalid.to_string())
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::NotAMember => Self::RoomNotFound,
        }
    }
}

/// Why a connection is closed by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The peer has closed it or has disconnected: no close frame is sent.
    ByPeer,
    /// This gateway shuts down.
    GoingAway,
    /// The peer broke the WebSocket protocol.
    Protocol,
    /// A text frame was not UTF-8.
    NotUtf8,
    /// No sign of life.
    Policy,
    /// A frame above the limit.
    TooBig,
    /// The session's token has expired.
    TokenExpired,
    /// The app's backend has ended the session.
    Revoked,
    /// The client does not read as fast as the gateway writes.
    SlowConsumer,
    /// Too many bytes wait for this gateway's clients, and this one has left many unread.
    Overloaded,
    /// The same device has connected again.
    Replaced,
    /// The session's task panicked: its socket is lost, and no close frame is sent.
    Panic,
}

impl Close {
    /// The code and the reason of the close frame; none when it can't be sent.
    pub const fn frame(self) -> Option<(u16, &'static str)> {
        Some(match self {
            Self::ByPeer | Self::Panic => return None,
            Self::GoingAway => (1001, "going away; reconnect with jitter"),
            Self::Protocol => (1002, "protocol error"),
            Self::NotUtf8 => (1007, "a text frame must be UTF-8"),
            Self::Policy => (1008, "no sign of life"),
            Self::TooBig => (1009, "a frame above the limit"),
            Self::Overloaded => (1013, "overloaded; reconnect later and SYNC"),
            Self::TokenExpired => (4401, "token expired"),
            Self::Revoked => (4401, "ended by the app's backend"),
            Self::SlowConsumer => (4408, "slow consumer; reconnect and SYNC"),
            Self::Replaced => (4409, "replaced by a newer connection of this device"),
        })
    }

    /// Its label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ByPeer => "by_peer",
            Self::GoingAway => "going_away",
            Self::Protocol => "protocol",
            Self::NotUtf8 => "not_utf8",
            Self::Policy => "policy",
            Self::TooBig => "too_big",
            Self::TokenExpired => "token_expired",
            Self::Revoked => "revoked",
            Self::SlowConsumer => "slow_consumer",
            Self::Overloaded => "overloaded",
            Self::Replaced => "replaced",
            Self::Panic => "panic",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// The public page, made from the tables above.
    fn page() -> String {
        let mut page = String::from(
            "# Errors\n\nMade from the tables in `gateway/src/refusal.rs`; `UPDATE_DOCS=1 cargo test -p gateway` writes it.\n\n\
             An `ERROR` frame carries the code, a sentence for the developer, the `clientMessageId` it is about if there is\n\
             one, and `retryAfterMs` where waiting helps. Over HTTP the same code comes as `{\"code\",\"message\"}` with the\n\
             status, and `Retry-After` in seconds.\n\n| code | HTTP | the message was | when |\n|---|---|---|---|\n",
        );
        for row in &TABLE {
            let (code, status) = (row.code, row.status.as_u16());
            writeln!(page, "| `{code}` | {status} | {} | {} |", row.message_fate, row.meaning).unwrap();
        }
        page.push_str("\n## Close codes\n\n| code | reason |\n|---|---|\n");
        let mut closes: Vec<_> = CLOSES.iter().filter_map(|close| close.frame()).collect();
        closes.sort_unstable();
        for (code, reason) in closes {
            writeln!(page, "| {code} | {reason} |").unwrap();
        }
        page
    }

    const CLOSES: [Close; 12] = [
        Close::ByPeer,
        Close::GoingAway,
        Close::Protocol,
        Close::NotUtf8,
        Close::Policy,
        Close::TooBig,
        Close::TokenExpired,
        Close::Revoked,
        Close::SlowConsumer,
        Close::Overloaded,
        Close::Replaced,
        Close::Panic,
    ];

    #[test]
    fn the_public_page_is_what_the_tables_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ERRORS.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), page(), "UPDATE_DOCS=1 cargo test -p gateway");
    }

    #[test]
    fn every_refusal_has_the_row_of_its_name() {
        let refusals = [
            (Refusal::Invalid(String::new()), "INVALID_FRAME"),
            (Refusal::Unauthenticated(""), "UNAUTHENTICATED"),
            (Refusal::Forbidden(""), "FORBIDDEN"),
            (Refusal::RoomNotFound, "ROOM_NOT_FOUND"),
            (Refusal::NotFound, "NOT_FOUND"),
            (Refusal::Conflict(""), "CONFLICT"),
            (Refusal::TooMany { what: "", max: 1 }, "CONFLICT"),
            (Refusal::TooLarge { limit: 1 }, "TOO_LARGE"),
            (Refusal::RateLimited { retry_after: Duration::ZERO }, "RATE_LIMITED"),
            (Refusal::Overloaded, "OVERLOADED"),
            (Refusal::Unavailable, "UNAVAILABLE"),
        ];
        for (refusal, code) in refusals {
            assert_eq!(refusal.row().code, code);
        }
    }
}
