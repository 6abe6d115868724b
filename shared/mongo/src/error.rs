//! The meaning of the driver's failures. Every failure of MongoDB is classified here, and nowhere else.
//!
//! The driver prints whole answers of the server, and a server may repeat documents in its messages. Bodies and tokens
//! are never logged, so only the part of a message before its first document is kept.

use mongodb::error::{CommandError, Error, ErrorKind, InsertManyError, WriteConcernError, WriteFailure};
use naru_engines::{Applied, EngineError};

/// This engine's name in errors.
pub(crate) const ENGINE: &str = "mongodb";

/// The code of a write that a unique index refused.
pub(crate) const DUPLICATE_KEY: i32 = 11000;

/// Codes after which this server or another one can serve the same request later: the driver specifications' retryable
/// errors, and those of a server that ran out of time or space or is busy.
/// <https://github.com/mongodb/specifications/blob/master/source/retryable-writes/retryable-writes.md>
const PASSING: [i32; 30] = [
    6,     // HostUnreachable
    7,     // HostNotFound
    24,    // LockTimeout
    43,    // CursorNotFound
    46,    // LockBusy
    50,    // MaxTimeMSExpired
    64,    // WriteConcernTimeout
    89,    // NetworkTimeout
    91,    // ShutdownInProgress
    112,   // WriteConflict
    133,   // FailedToSatisfyReadPreference
    134,   // ReadConcernMajorityNotAvailableYet
    175,   // QueryPlanKilled
    189,   // PrimarySteppedDown
    202,   // NetworkInterfaceExceededTimeLimit
    237,   // CursorKilled
    262,   // ExceededTimeLimit
    279,   // ClientDisconnect
    314,   // ObjectIsBusy
    371,   // UserWritesBlocked: while a cluster is moved, or short of disk
    462,   // IngressRequestRateLimitExceeded
    9001,  // SocketException
    10058, // LegacyNotPrimary
    10107, // NotWritablePrimary
    11600, // InterruptedAtShutdown
    11601, // Interrupted
    11602, // InterruptedDueToReplStateChange
    13435, // NotPrimaryNoSecondaryOk
    13436, // NotPrimaryOrSecondary
    14031, // OutOfDiskSpace
];

/// The possible effect of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// None, whatever the failure.
    Read,
    /// Its effect, unless it was certainly never sent.
    Write,
}

impl Request {
    const fn once_sent(self) -> Applied {
        match self {
            Self::Read => Applied::No,
            Self::Write => Applied::Unknown,
        }
    }

    /// No answer came in time.
    pub(crate) fn timed_out(self, about: &str) -> EngineError {
        EngineError::unavailable(ENGINE, self.once_sent(), format!("{about}: no answer in time"))
    }

    /// The meaning of a driver's failure.
    pub(crate) fn failed(self, about: &str, error: &Error) -> EngineError {
        let why = format!("{about}: {}", describe(error));
        match &*error.kind {
            // A retry that finds no server returns the first try's error: so here there was no try.
            ErrorKind::ServerSelection { .. } | ErrorKind::DnsResolve { .. } => {
                EngineError::unavailable(ENGINE, Applied::No, why)
            }
            ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } | ErrorKind::Shutdown => {
                EngineError::unavailable(ENGINE, self.once_sent(), why)
            }
            _ if code(error).is_some_and(|code| PASSING.contains(&code))
                || error.contains_label(mongodb::error::RETRYABLE_WRITE_ERROR)
                || error.contains_label(mongodb::error::RETRYABLE_ERROR) =>
            {
                EngineError::unavailable(ENGINE, self.once_sent(), why)
            }
            _ => EngineError::permanent(ENGINE, why),
        }
    }

    /// The meaning of a code that the server gave for one statement of many, or for their write concern.
    pub(crate) fn refused(self, about: &str, code: i32) -> EngineError {
        let why = format!("{about}: code {code}");
        if PASSING.contains(&code) {
            EngineError::unavailable(ENGINE, self.once_sent(), why)
        } else {
            EngineError::permanent(ENGINE, why)
        }
    }
}

/// A failure of a later step: even where that step had no effect, an earlier one had.
pub(crate) fn after_effect(error: EngineError) -> EngineError {
    match error {
        EngineError::Unavailable { engine, source, .. } => {
            EngineError::Unavailable { engine, applied: Applied::Unknown, source }
        }
        other => other,
    }
}

/// Concurrent requests kept coming first.
pub(crate) fn contended(about: &str, applied: Applied) -> EngineError {
    EngineError::unavailable(ENGINE, applied, format!("{about}: others kept coming first"))
}

fn code(error: &Error) -> Option<i32> {
    match &*error.kind {
        ErrorKind::Command(CommandError { code, .. })
        | ErrorKind::Write(WriteFailure::WriteConcernError(WriteConcernError { code, .. })) => Some(*code),
        ErrorKind::Write(WriteFailure::WriteError(error)) => Some(error.code),
        ErrorKind::InsertMany(InsertManyError { write_concern_error: Some(error), .. }) => Some(error.code),
        ErrorKind::InsertMany(InsertManyError { write_errors: Some(errors), .. }) => {
            errors.first().map(|error| error.code)
        }
        _ => None,
    }
}

/// Whether a unique index refused the write.
pub(crate) fn is_duplicate(error: &Error) -> bool {
    code(error) == Some(DUPLICATE_KEY)
}

/// Whether a server refused to answer for a time that it has not come to. (The code is that of all options that can't be used;
/// this is the only one that a request of ours computes.)
pub(crate) fn is_too_early(error: &Error) -> bool {
    const INVALID_OPTIONS: i32 = 72;
    code(error) == Some(INVALID_OPTIONS)
}

fn describe(error: &Error) -> String {
    match &*error.kind {
        ErrorKind::Command(CommandError { code, code_name, message, .. }) => {
            format!("{} ({code} {code_name})", without_documents(message))
        }
        ErrorKind::Write(WriteFailure::WriteConcernError(error)) => {
            format!("{} ({} {})", without_documents(&error.message), error.code, error.code_name)
        }
        ErrorKind::Write(_) | ErrorKind::InsertMany(_) => {
            code(error).map_or_else(|| "a write failed".to_owned(), |code| format!("code {code}"))
        }
        ErrorKind::Bson(_) => "a document could not be written as BSON or read from it".to_owned(),
        // The driver itself makes these; they contain no documents.
        ErrorKind::Io(error) => error.to_string(),
        ErrorKind::ServerSelection { message, .. }
        | ErrorKind::ConnectionPoolCleared { message, .. }
        | ErrorKind::DnsResolve { message, .. }
        | ErrorKind::Authentication { message, .. }
        | ErrorKind::IncompatibleServer { message, .. } => message.clone(),
        ErrorKind::Shutdown => "the client was shut down".to_owned(),
        _ => "the driver refused the request or did not understand the answer".to_owned(),
    }
}

fn without_documents(message: &str) -> &str {
    message.split('{').next().unwrap_or_default().trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(error: &EngineError) -> Option<Applied> {
        match error {
            EngineError::Unavailable { applied, .. } => Some(*applied),
            _ => None,
        }
    }

    #[test]
    fn a_write_that_was_sent_may_have_had_its_effect_and_a_read_never_has() {
        let lost = Error::from(std::io::Error::other("reset by peer"));
        assert_eq!(applied(&Request::Write.failed("intake", &lost)), Some(Applied::Unknown));
        assert_eq!(applied(&Request::Read.failed("intake", &lost)), Some(Applied::No));
        assert_eq!(applied(&Request::Write.timed_out("intake")), Some(Applied::Unknown));
        let never_sent = EngineError::unavailable(ENGINE, Applied::No, "no server");
        assert_eq!(applied(&after_effect(never_sent)), Some(Applied::Unknown), "an earlier step was");
    }

    #[test]
    fn a_code_says_whether_to_ask_again() {
        assert!(Request::Write.refused("intake", 189).is_transient(), "the primary stepped down");
        assert!(Request::Write.refused("intake", 14031).is_transient(), "there is no space left on the disk");
        assert!(Request::Write.refused("intake", 371).is_transient(), "an operator has blocked writes");
        assert!(!Request::Write.refused("intake", 121).is_transient(), "a validator refused the document");
        assert!(!Request::Write.refused("intake", 13).is_transient(), "not authorized");
    }

    #[test]
    fn what_a_server_repeats_of_a_document_is_not_said() {
        let message = r#"not authorized on naru to execute command { insert: "intake", content: "secret" }"#;
        assert_eq!(without_documents(message), "not authorized on naru to execute command");
    }
}
