//! FCM HTTP v1: <https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode>. The `errorCode` in `error.details`
//! decides; the status alone is ambiguous (404 is a dead token, or a project that does not exist).

use fcm::{ErrorCode, FcmError, FcmResponse};
use naru_model::Timestamp;

use super::{Meaning, SERVER_ERROR, Scope, Verdict, by_status};
use crate::transport::Answer;

/// The detail that names the field which was refused.
const BAD_REQUEST: &str = "type.googleapis.com/google.rpc.BadRequest";

/// The verdict on an answer to a call made at `called_at`.
pub(crate) fn of_fcm(answer: &Answer, called_at: Timestamp, now: Timestamp) -> Verdict {
    let response: Option<FcmResponse> = serde_json::from_slice(&answer.body).ok();
    let (meaning, code) = match response {
        Some(FcmResponse::Success(name)) if answer.status == 200 => {
            return Verdict::Delivered { provider_id: name };
        }
        // 2xx, but not from FCM: a proxy's page.
        _ if (200..300).contains(&answer.status) => {
            (Meaning::OurConfiguration(Scope::Provider), "not an answer of FCM".to_owned())
        }
        Some(FcmResponse::Error(error)) => (of_error(answer.status, &error), words(&error)),
        _ => (by_status(answer.status), String::new()),
    };
    let reason = format!("FCM: status {} {code}", answer.status);
    meaning.verdict(reason.trim_end().to_owned(), answer.retry_after(), called_at, now)
}

fn of_error(status: u16, error: &FcmError) -> Meaning {
    match error.error_code() {
        Some(ErrorCode::InvalidArgument) if names_the_token(error) => Meaning::TokenDead,
        Some(code) => of_code(code).unwrap_or(by_status(status)),
        None => by_status(status),
    }
}

/// The table. None: by the status.
pub(super) fn of_code(code: ErrorCode) -> Option<Meaning> {
    Some(match code {
        ErrorCode::Unregistered => Meaning::TokenDead,
        // The token is of another Firebase project: the app was built with other keys, or ours are wrong.
        ErrorCode::SenderIdMismatch => Meaning::OurConfiguration(Scope::Device),
        ErrorCode::QuotaExceeded => Meaning::SlowDown(Scope::Provider),
        ErrorCode::Unavailable | ErrorCode::Internal => Meaning::TryLater(SERVER_ERROR),
        ErrorCode::InvalidArgument => Meaning::Refused,
        // The APNs key in the Firebase console is refused, for Apple apps that are reached through FCM.
        ErrorCode::ThirdPartyAuthError => Meaning::OurConfiguration(Scope::Device),
        // `UnspecifiedError`, and codes of a later version of the crate.
        _ => return None,
    })
}

/// `INVALID_ARGUMENT` is also the answer to a bad message, which is our fault; it is the token's only if it names the token.
fn names_the_token(error: &FcmError) -> bool {
    /// FCM's message where it gives no details (seen since 2021).
    const SENTENCE: &str = "The registration token is not a valid FCM registration token";
    let details = error.details.iter().filter(|detail| detail["@type"] == BAD_REQUEST);
    let mut fields = details.filter_map(|detail| detail["fieldViolations"].as_array()).flatten();
    fields.any(|violation| violation["field"] == "message.token") || error.message == SENTENCE
}

/// Google's codes. Its sentences may repeat a part of the message, and are left out.
fn words(error: &FcmError) -> String {
    let code = error.raw_error_code().unwrap_or(&error.status);
    code.chars().filter(|c| c.is_ascii_uppercase() || *c == '_').take(40).collect()
}

/// The rows of the page.
#[cfg(test)]
pub(super) fn rows() -> Vec<(String, Option<Meaning>)> {
    use ErrorCode::{
        Internal, InvalidArgument, QuotaExceeded, SenderIdMismatch, ThirdPartyAuthError, Unavailable,
        Unregistered, UnspecifiedError,
    };
    let rows = [
        ("UNREGISTERED", Unregistered),
        ("SENDER_ID_MISMATCH", SenderIdMismatch),
        ("QUOTA_EXCEEDED", QuotaExceeded),
        ("UNAVAILABLE", Unavailable),
        ("INTERNAL", Internal),
        ("INVALID_ARGUMENT", InvalidArgument),
        ("THIRD_PARTY_AUTH_ERROR", ThirdPartyAuthError),
        ("UNSPECIFIED_ERROR", UnspecifiedError),
    ];
    let rows = rows.into_iter().map(|(name, code)| (name.to_owned(), of_code(code)));
    rows.chain([("INVALID_ARGUMENT that names `message.token`".to_owned(), Some(Meaning::TokenDead))])
        .collect()
}
