//! The meaning of Redis's failures for a request: the one place where the driver's errors become the engine's.

use naru_engines::{Applied, EngineError};
use redis::{ErrorKind, ParsingError, RedisError, ServerErrorKind};

/// This engine's name in errors.
pub(crate) const ENGINE: &str = "redis";

/// Classifies a failure by the next step. `applied` is the request's known effect if it may be repeated.
pub(crate) fn engine_error(error: RedisError, applied: Applied) -> EngineError {
    match error.kind() {
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => EngineError::poison(ENGINE, error),
        _ if is_passing(&error) => EngineError::unavailable(ENGINE, applied, error),
        _ => EngineError::permanent(ENGINE, error),
    }
}

/// A stored or answered value is not one that Naru writes.
pub(crate) fn unreadable(error: ParsingError) -> EngineError {
    EngineError::poison(ENGINE, error)
}

/// Whether the server of this connection no longer accepts writes: connecting anew finds its successor.
pub(crate) fn is_demoted(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown))
}

/// Whether the same request, unchanged, may succeed later.
fn is_passing(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound => true,
        ErrorKind::Server(kind) => match kind {
            ServerErrorKind::BusyLoading
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask => true,
            // The plain `ERR`s that are transient.
            ServerErrorKind::ResponseError => error
                .detail()
                .is_some_and(|detail| detail.starts_with("max number of clients") || in_script(detail)),
            _ => false,
        },
        _ => error.code().is_some_and(|code| PASSING.contains(&code)),
    }
}

/// Out of memory; replicas missing; disk full; a script that runs too long.
const PASSING: [&str; 4] = ["OOM", "NOREPLICAS", "MISCONF", "BUSY"];

/// Whether an error of a script, which a server before Redis 7 gives the code `ERR`, has a passing cause, which it quotes.
fn in_script(detail: &str) -> bool {
    PASSING.iter().chain(&["READONLY"]).any(|code| detail.contains(&format!(": -{code} ")))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// The driver's error for an error line of the server.
    fn answered(line: &str) -> RedisError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("an error line");
        value.extract_error().expect_err("an error")
    }

    #[test]
    fn failures_are_sorted_by_what_to_do_next() {
        let transient = [
            "LOADING Redis is loading the dataset in memory",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "CLUSTERDOWN The cluster is down",
            "READONLY You can't write against a read only replica.",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
            "BUSY Redis is busy running a script.",
            "ERR max number of clients reached",
            "ERR Error running script (call to f_6b1): @user_script:1: -OOM command not allowed when used memory > 'maxmemory'.",
            "ERR Error running script (call to f_6b1): @user_script: 1: -READONLY You can't write against a read only replica.",
        ];
        for line in transient {
            let error = engine_error(answered(line), Applied::Unknown);
            assert!(matches!(error, EngineError::Unavailable { applied: Applied::Unknown, .. }), "{error:?}");
        }
        let permanent = [
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "NOPERM this user has no permissions to run the 'publish' command",
            "ERR unknown command 'SMISMEMBER'",
            "ERR Error running script (call to f_6b1): @user_script:1: -WRONGTYPE Operation against a key",
        ];
        for line in permanent {
            let error = engine_error(answered(line), Applied::Unknown);
            assert!(matches!(error, EngineError::Permanent { .. }), "{error:?}");
        }
        let broken = RedisError::from(io::Error::from(io::ErrorKind::ConnectionReset));
        assert!(engine_error(broken, Applied::No).is_transient());
    }
}
