//! FCM's errors as Google writes them: a status, a message and details.
//!
//! Source: `google.rpc.Status` and `google.rpc.error_details`, FCM REST reference (`ErrorCode`). A message is Google's own
//! where one has been observed.

use hyper::header::{HeaderValue, WWW_AUTHENTICATE};
use serde_json::{Value, json};

use crate::answer::FcmError;
use crate::reply::{self, Reply};
use crate::schema::Violation;

/// An answer that is an error.
pub(crate) type Refusal = Box<Reply>;

/// Why a request is unauthenticated: it has no access token.
pub(crate) const MISSING: &str = "CREDENTIALS_MISSING";
/// Why a request is unauthenticated: its access token was never issued.
pub(crate) const UNKNOWN: &str = "ACCESS_TOKEN_TYPE_UNSUPPORTED";
/// Why a request is unauthenticated: its access token has expired.
pub(crate) const EXPIRED: &str = "ACCESS_TOKEN_EXPIRED";

/// One of FCM's errors about a device, a quota or the service.
pub(crate) fn refused(code: FcmError) -> Refusal {
    let (status, message) = match code {
        FcmError::InvalidArgument => return not_a_token(),
        FcmError::Unspecified => ("UNKNOWN", "Unknown error."),
        FcmError::Unregistered => ("NOT_FOUND", "Requested entity was not found."),
        FcmError::SenderIdMismatch => ("PERMISSION_DENIED", "SenderId mismatch"),
        FcmError::QuotaExceeded => ("RESOURCE_EXHAUSTED", "Quota exceeded."),
        FcmError::Unavailable => ("UNAVAILABLE", "The service is currently unavailable."),
        FcmError::Internal => ("INTERNAL", "Internal error encountered."),
        FcmError::ThirdPartyAuthError => ("UNAUTHENTICATED", "Auth error from APNS or Web Push Service"),
    };
    error(code.status(), status, message, &json!([fcm_error(code)]))
}

/// The answer to a request that is not read to its end.
pub(crate) fn too_large() -> Refusal {
    error(413, "INVALID_ARGUMENT", "Request payload size exceeds the limit.", &json!([]))
}

/// An entity that does not exist.
pub(crate) fn not_found() -> Refusal {
    error(404, "NOT_FOUND", "Requested entity was not found.", &json!([]))
}

/// A request without a valid access token.
pub(crate) fn unauthenticated(reason: &str) -> Refusal {
    const SEE: &str = "Expected OAuth 2 access token, login cookie or other valid authentication credential. See \
                       https://developers.google.com/identity/sign-in/web/devconsole-project.";
    let (problem, challenge) = if reason == MISSING {
        ("is missing required authentication credential", "Bearer realm=\"https://accounts.google.com/\"")
    } else {
        (
            "had invalid authentication credentials",
            "Bearer realm=\"https://accounts.google.com/\", error=\"invalid_token\"",
        )
    };
    let method = "google.firebase.fcm.v1.FcmService.SendMessage";
    let metadata = json!({"service": "fcm.googleapis.com", "method": method});
    let details = json!([error_info(reason, &metadata)]);
    let mut reply = error(401, "UNAUTHENTICATED", &format!("Request {problem}. {SEE}"), &details);
    reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    reply
}

/// A project that does not exist, or that the service account may not use.
pub(crate) fn no_permission(project: &str) -> Refusal {
    const PERMISSION: &str = "cloudmessaging.messages.create";
    let resource = format!("projects/{project}");
    let message = format!(
        "Permission '{PERMISSION}' denied on resource '//cloudresourcemanager.googleapis.com/{resource}' (or it may not \
         exist)."
    );
    let metadata = json!({"permission": PERMISSION, "resource": resource});
    error(403, "PERMISSION_DENIED", &message, &json!([error_info("IAM_PERMISSION_DENIED", &metadata)]))
}

/// A registration token, or an installation, that is not valid.
pub(crate) fn not_a_token() -> Refusal {
    invalid("The registration token is not a valid FCM registration token", "message.token")
}

/// A value that FCM, not protobuf, refuses.
pub(crate) fn invalid(message: &str, field: &str) -> Refusal {
    let violation = Violation { field: field.to_owned(), description: message.to_owned() };
    let details = json!([fcm_error(FcmError::InvalidArgument), violations_detail(&[violation])]);
    error(400, "INVALID_ARGUMENT", message, &details)
}

/// Values that protobuf refuses before FCM reads them.
pub(crate) fn bad_request(violations: &[Violation]) -> Refusal {
    let lines: Vec<&str> = violations.iter().map(|violation| violation.description.as_str()).collect();
    error(400, "INVALID_ARGUMENT", &lines.join("\n"), &json!([violations_detail(violations)]))
}

/// A body that is not a JSON object.
pub(crate) fn unreadable() -> Refusal {
    let description = "Invalid JSON payload received. It is not a JSON object.".to_owned();
    bad_request(&[Violation { field: String::new(), description }])
}

fn violations_detail(violations: &[Violation]) -> Value {
    let violations: Vec<Value> = violations.iter().map(Violation::json).collect();
    json!({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations})
}

fn fcm_error(code: FcmError) -> Value {
    json!({"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code.as_str()})
}

fn error_info(reason: &str, metadata: &Value) -> Value {
    json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": metadata,
    })
}

/// An error in Google's format.
fn error(code: u16, status: &str, message: &str, details: &Value) -> Refusal {
    let mut error = json!({"code": code, "message": message, "status": status});
    if details.as_array().is_some_and(|details| !details.is_empty()) {
        error["details"] = details.clone();
    }
    Box::new(reply::json(code, &json!({"error": error})))
}
