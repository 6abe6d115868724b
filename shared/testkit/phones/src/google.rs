//! FCM's errors as Google writes them: a status, a message and details.
//!
//! Source: `google.rpc.Status` and `google.rpc.BadRequest`, FCM REST reference (`ErrorCode`). A message is Google's own where
//! one has been observed.

use serde_json::{Value, json};

use crate::answer::FcmError;
use crate::reply::{self, Refusal};
use crate::schema::Violation;

/// One of FCM's errors about a device, a quota or the service.
pub(crate) fn refused(code: FcmError) -> Refusal {
    let (status, message) = match code {
        FcmError::InvalidArgument => return not_a_token(),
        FcmError::Unregistered => ("NOT_FOUND", "Requested entity was not found."),
        FcmError::SenderIdMismatch => ("PERMISSION_DENIED", "SenderId mismatch"),
        FcmError::QuotaExceeded => ("RESOURCE_EXHAUSTED", "Quota exceeded."),
        FcmError::Unavailable => ("UNAVAILABLE", "The service is currently unavailable."),
        FcmError::Internal => ("INTERNAL", "Internal error encountered."),
        FcmError::ThirdPartyAuthError => ("UNAUTHENTICATED", "Auth error from APNS or Web Push Service"),
    };
    error(code.status(), status, message, vec![fcm_error(code)])
}

/// A path that does not exist.
pub(crate) fn not_found() -> Refusal {
    error(404, "NOT_FOUND", "Requested entity was not found.", Vec::new())
}

/// A request without a valid access token.
pub(crate) fn unauthenticated() -> Refusal {
    error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.", Vec::new())
}

/// A project that does not exist, or that the service account may not use.
pub(crate) fn no_permission() -> Refusal {
    let message = "Permission 'cloudmessaging.messages.create' denied on resource (or it may not exist).";
    error(403, "PERMISSION_DENIED", message, Vec::new())
}

/// A registration token that is not valid.
pub(crate) fn not_a_token() -> Refusal {
    invalid("The registration token is not a valid FCM registration token", "message.token")
}

/// A value that FCM, not protobuf, refuses.
pub(crate) fn invalid(message: &str, field: &str) -> Refusal {
    let violation = Violation { field: field.to_owned(), description: message.to_owned() };
    let details = vec![fcm_error(FcmError::InvalidArgument), violation_detail(&violation)];
    error(400, "INVALID_ARGUMENT", message, details)
}

/// A value that protobuf refuses before FCM reads it.
pub(crate) fn malformed(violation: &Violation) -> Refusal {
    error(400, "INVALID_ARGUMENT", &violation.description, vec![violation_detail(violation)])
}

fn violation_detail(violation: &Violation) -> Value {
    let violations = [json!({"field": violation.field, "description": violation.description})];
    json!({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations})
}

fn fcm_error(code: FcmError) -> Value {
    json!({"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code.as_str()})
}

fn error(code: u16, status: &str, message: &str, details: Vec<Value>) -> Refusal {
    let error = json!({"code": code, "message": message, "status": status, "details": details});
    Box::new(reply::json(code, &json!({ "error": error })))
}
