//! The condition of the disk and of the database on it: what `/readyz` says of this engine, and the log, once for each change.
//!
//! | fault | writes | reads | well again |
//! |---|---|---|---|
//! | the disk is full, read-only or fails, or the database was moved away | each is tried, and fails | are tried | once a write succeeds |
//! | the database is damaged | are refused: what would be confirmed now might be lost with it | are tried | after a restart on a good copy |

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{ErrorCode, ffi};

use crate::lock::lock;

/// A write that succeeds sooner after one that failed may have needed less space: the disk is not well yet.
const HOLD: Duration = Duration::from_secs(5);

/// Why nothing can be written, or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Full,
    ReadOnly,
    Moved,
    Failing,
    Damaged,
}

impl Fault {
    /// None: the error is not the disk's.
    pub(crate) fn of(error: &rusqlite::Error) -> Option<Self> {
        let error = error.sqlite_error()?;
        Some(match error.code {
            ErrorCode::DiskFull => Self::Full,
            ErrorCode::ReadOnly if error.extended_code == ffi::SQLITE_READONLY_DBMOVED => Self::Moved,
            ErrorCode::ReadOnly | ErrorCode::PermissionDenied => Self::ReadOnly,
            ErrorCode::SystemIoFailure | ErrorCode::CannotOpen => Self::Failing,
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Self::Damaged,
            _ => return None,
        })
    }

    /// A sentence for an operator.
    pub(crate) const fn sentence(self) -> &'static str {
        match self {
            Self::Full => "the disk is full: nothing can be written",
            Self::ReadOnly => "the disk is read-only: nothing can be written",
            Self::Moved => "naru.db was moved or deleted under the running process: put it back, or restart",
            Self::Failing => "the disk fails: see the log",
            Self::Damaged => {
                "the database is damaged, and nothing more is written to it: restore a backup, and restart"
            }
        }
    }
}

#[derive(Default)]
pub(crate) struct Condition {
    /// Whether there is a fault, so that a commit costs a look at this.
    is_faulty: AtomicBool,
    state: Mutex<Option<Faulty>>,
}

struct Faulty {
    fault: Fault,
    since: Instant,
    last: Instant,
    failures: u64,
}

impl Condition {
    /// A request failed. Logged when the fault is another one than before.
    pub(crate) fn failed(&self, error: &rusqlite::Error) {
        let Some(fault) = Fault::of(error) else { return };
        let (mut state, now) = (lock(&self.state), Instant::now());
        match &mut *state {
            // The first damage stays to be seen, whatever follows from it.
            Some(known) if known.fault == fault || known.fault == Fault::Damaged => {
                known.last = now;
                known.failures += 1;
            }
            _ => {
                let since = state.as_ref().map_or(now, |known| known.since);
                let failures = state.as_ref().map_or(0, |known| known.failures) + 1;
                *state = Some(Faulty { fault, since, last: now, failures });
                self.is_faulty.store(true, Ordering::Release);
                tracing::error!(%error, "{}", fault.sentence());
            }
        }
    }

    /// A write was committed.
    pub(crate) fn wrote(&self) {
        if !self.is_faulty.load(Ordering::Acquire) {
            return;
        }
        let mut state = lock(&self.state);
        if let Some(Faulty { fault, since, last, failures }) = &*state
            && *fault != Fault::Damaged
            && last.elapsed() >= HOLD
        {
            tracing::info!(after = ?since.elapsed(), failures, "the disk takes writes again");
            *state = None;
            self.is_faulty.store(false, Ordering::Release);
        }
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.is_faulty.load(Ordering::Acquire)
            && matches!(&*lock(&self.state), Some(Faulty { fault: Fault::Damaged, .. }))
    }

    /// As if the last failure were long ago.
    #[cfg(test)]
    pub(crate) fn let_time_pass(&self) {
        if let Some(faulty) = &mut *lock(&self.state) {
            faulty.last -= HOLD;
        }
    }

    /// The sentence about the fault, if there is one.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        lock(&self.state).as_ref().map(|faulty| faulty.fault.sentence())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(extended_code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(extended_code), None)
    }

    #[test]
    fn the_faults_of_the_disk_are_told_from_those_of_a_request() {
        for (code, fault) in [
            (ffi::SQLITE_FULL, Some(Fault::Full)),
            (ffi::SQLITE_READONLY, Some(Fault::ReadOnly)),
            (ffi::SQLITE_READONLY_DBMOVED, Some(Fault::Moved)),
            (ffi::SQLITE_IOERR_WRITE, Some(Fault::Failing)),
            (ffi::SQLITE_IOERR_FSYNC, Some(Fault::Failing)),
            (ffi::SQLITE_CANTOPEN, Some(Fault::Failing)),
            (ffi::SQLITE_CORRUPT, Some(Fault::Damaged)),
            (ffi::SQLITE_NOTADB, Some(Fault::Damaged)),
            (ffi::SQLITE_CONSTRAINT_UNIQUE, None),
            (ffi::SQLITE_BUSY, None),
        ] {
            assert_eq!(Fault::of(&answered(code)), fault, "{code}");
        }
    }

    #[test]
    fn damage_is_not_forgotten() {
        let condition = Condition::default();
        condition.failed(&answered(ffi::SQLITE_CORRUPT));
        condition.failed(&answered(ffi::SQLITE_FULL));
        condition.wrote();
        assert!(condition.is_damaged());
        assert_eq!(condition.fault(), Some(Fault::Damaged.sentence()));
    }

    #[test]
    fn a_small_write_right_after_a_failed_one_does_not_make_the_disk_well() {
        let condition = Condition::default();
        condition.failed(&answered(ffi::SQLITE_FULL));
        condition.wrote();
        assert_eq!(condition.fault(), Some(Fault::Full.sentence()));
        condition.let_time_pass();
        condition.wrote();
        assert_eq!(condition.fault(), None);
    }
}
