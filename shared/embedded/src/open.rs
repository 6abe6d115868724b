//! Opens the data: for one process at a time, only in a layout that this version can read, and only where it is not damaged.
//!
//! # The marker
//!
//! `naru.marker` beside the database says that the directory has held data. SQLite makes a new database where it finds an empty
//! one or none, and throws the log beside it away: what was there would be gone without a word. It is made once, when the tables
//! are, and both are on disk before anybody can write.
//!
//! | dies between | the next start |
//! |---|---|
//! | the empty database · its tables | finds no marker, and makes the tables |
//! | the tables · the marker, or before that is on disk | finds the tables, and makes the marker |

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::Embedded;
use crate::bus::UNREADABLE;
use crate::column::Columns;
use crate::condition::Fault;
use crate::database::{BUSY_TIMEOUT, Database, ENGINE, engine_error};
use crate::directory;
use crate::store::lists::Lists;

/// The data's layout and its version. No release exists yet, so no older layout is read.
const SCHEMA: &str = include_str!("schema.sql");
const VERSION: u32 = 7;
/// How long an owner that is ending may still have the directory.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
const RELEASE_CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// The number of reader threads.
const READERS: usize = 2;
/// How many prepared statements each connection caches: more than exist.
const STATEMENTS: usize = 128;
/// The file that says that the directory has held data.
const MARKER: &str = "naru.marker";
const MARKER_TEXT: &str = "Naru keeps messages in naru.db beside this file, which says that there are some: without naru.db it does not start.\n";
/// For how long a start looks for damage: all of a database of some hundred megabytes, the beginning of a larger one.
const CHECK_FOR: Duration = Duration::from_secs(1);

pub(crate) fn open(dir: &Path) -> EngineResult<Database> {
    let hold = claim(dir)?;
    refuse_if_lost(dir)?;
    let path = dir.join(Embedded::DATABASE);
    let database = prepare(&path).map_err(|error| unusable(dir, &error))?;
    let mut writer = database.map_err(|error| refusal(dir, error))?;
    lay_out(&mut writer, dir)?;
    mark(dir).map_err(|error| unusable(dir, &error))?;
    check(&writer).map_err(|error| refusal(dir, error))?;
    let newest_row = prepare_queue(&writer).map_err(|error| refusal(dir, error))?;
    let lists = Lists::open(&writer).map_err(|error| refusal(dir, error))?;
    let readers = (0..READERS).map(|_| connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY));
    let readers = readers.collect::<rusqlite::Result<_>>().map_err(|error| refusal(dir, error))?;
    let mut database = Database::start(writer, readers, hold)?;
    (database.newest_row, database.lists) = (newest_row, lists);
    Ok(database)
}

fn unavailable(why: String) -> EngineError {
    EngineError::unavailable(ENGINE, Applied::No, why)
}

fn unusable(dir: &Path, error: &io::Error) -> EngineError {
    unavailable(format!("{} can't be used: {error}", dir.display()))
}

/// An error of SQLite while it opens the data, with what to do where that is known.
fn refusal(dir: &Path, error: rusqlite::Error) -> EngineError {
    match Fault::of(&error) {
        Some(Fault::Damaged) => EngineError::permanent(
            ENGINE,
            format!(
                "{}/{} is damaged ({error}): move it and the files beside it away and restore a backup, or copy what is left \
                 with `sqlite3 naru.db .recover`",
                dir.display(),
                Embedded::DATABASE
            ),
        ),
        Some(_) => unavailable(format!("{} can't be used: {error}", dir.display())),
        None => engine_error(error),
    }
}

fn beside(dir: &Path, ending: &str) -> PathBuf {
    dir.join(format!("{}{ending}", Embedded::DATABASE))
}

/// Refuses a directory whose database is missing or empty although there was one. Called before SQLite sees it.
fn refuse_if_lost(dir: &Path) -> EngineResult<()> {
    let length = |path: &Path| match fs::metadata(path) {
        Ok(found) => Ok(Some(found.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(dir, &error)),
    };
    let state = match length(&beside(dir, ""))? {
        None => "missing",
        Some(0) => "empty",
        Some(_) => return Ok(()),
    };
    let (log, marker) = (length(&beside(dir, "-wal"))?.unwrap_or(0), length(&dir.join(MARKER))?);
    let (witness, what) = match (log, marker) {
        (1.., _) => ("naru.db-wal", "holds newer messages of it"),
        (0, Some(_)) => (MARKER, "says that there were messages"),
        (0, None) => return Ok(()),
    };
    let dir = dir.display();
    let why = format!(
        "{dir}/naru.db is {state}, but {witness} beside it {what}: put naru.db back where it was, or restore a backup; to begin \
         with nothing, delete naru.marker and naru.db-wal"
    );
    Err(EngineError::permanent(ENGINE, why))
}

/// The writer's connection to the database, which is made if it is absent.
fn prepare(path: &Path) -> io::Result<rusqlite::Result<Connection>> {
    // SQLite gives the log and its index the permissions of the database.
    directory::open_file(path)?;
    let open = || {
        let writer = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
        // A checkpoint runs every 16 MB. The writer sets for each commit whether it is synced. What is deleted is overwritten:
        // a user's erasure leaves nothing in the file.
        let pragmas =
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
            PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -65536; PRAGMA secure_delete = ON";
        writer.execute_batch(pragmas)?;
        Ok(writer)
    };
    Ok(open())
}

/// Makes the marker, unless it is there.
fn mark(dir: &Path) -> io::Result<()> {
    let path = dir.join(MARKER);
    if path.exists() {
        return Ok(());
    }
    let mut marker = directory::open_file(&path)?;
    marker.write_all(MARKER_TEXT.as_bytes())?;
    marker.sync_all()?;
    // It is there after a power cut, too.
    File::open(dir)?.sync_all()
}

/// Brings rows that could not be read back to their hops. Returns when a row was written last.
fn prepare_queue(writer: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    let again = "UPDATE queue SET hop = substr(hop, 2) WHERE hop >= ?1 AND hop < ?1 || char(1114111)";
    writer.execute(again, [UNREADABLE])?;
    writer.query_row("SELECT max(writtenAt) FROM queue", [], |row| row.maybe_time(0))
}

/// Looks for damage, for a while.
///
/// # Errors
/// `DatabaseCorrupt` where it finds some.
fn check(writer: &Connection) -> rusqlite::Result<()> {
    let interrupt = writer.get_interrupt_handle();
    let (done, ended) = channel::<()>();
    let checked = thread::scope(|scope| {
        scope.spawn(move || {
            if let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(CHECK_FOR) {
                interrupt.interrupt();
            }
        });
        let checked = writer.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        drop(done);
        checked
    });
    match checked {
        Ok(found) if found == "ok" => Ok(()),
        Ok(found) => {
            let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            Err(rusqlite::Error::SqliteFailure(corrupt, Some(found)))
        }
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes the directory and locks it. The lock ends with the file or with the process, however it ends.
fn claim(dir: &Path) -> EngineResult<File> {
    let claim = || {
        directory::prepare(dir)?;
        for ending in ["", "-wal", "-shm"] {
            directory::restrict_file(&beside(dir, ending))?;
        }
        directory::open_file(&dir.join("naru.lock"))
    };
    let file = claim().map_err(|error| unusable(dir, &error))?;
    // The owner before may just be ending. In this process it is no longer known who that is: a command that runs on the
    // writer's thread may be the last to own its database.
    let refused_at = Instant::now() + RELEASE_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < refused_at => {
                thread::sleep(RELEASE_CHECK_INTERVAL)
            }
            Err(TryLockError::WouldBlock) => {
                return Err(unavailable(format!("{} is in use by another process", dir.display())));
            }
            Err(TryLockError::Error(error)) => {
                return Err(unavailable(format!("{} can't be locked: {error}", dir.display())));
            }
        }
    }
}

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    // The engine's connections never wait; an operator's `sqlite3` may hold the lock for a moment.
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Makes the tables in an empty database; refuses any layout but this one.
fn lay_out(writer: &mut Connection, dir: &Path) -> EngineResult<()> {
    let version = writer.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0));
    match version.map_err(|error| refusal(dir, error))? {
        VERSION => Ok(()),
        0 if dir.join(MARKER).exists() => {
            let dir = dir.display();
            let why = format!(
                "{dir}/naru.db holds no tables, but {MARKER} beside it says that there were messages: restore a backup, or, to \
                 begin with nothing, delete {MARKER}"
            );
            Err(EngineError::permanent(ENGINE, why))
        }
        0 => {
            let make = |writer: &mut Connection| {
                let transaction = writer.transaction()?;
                transaction.execute_batch(SCHEMA)?;
                transaction.pragma_update(None, "user_version", VERSION)?;
                transaction.commit()
            };
            make(writer).map_err(|error| refusal(dir, error))
        }
        other => {
            let dir = dir.display();
            let why = if other < VERSION {
                format!(
                    "the data in {dir} is of an older layout (schema {other}); no release was made yet: move it away \
                     or delete it"
                )
            } else {
                format!(
                    "the data in {dir} is of a later layout (schema {other}) than this program's ({VERSION})"
                )
            };
            Err(EngineError::permanent(ENGINE, why))
        }
    }
}
