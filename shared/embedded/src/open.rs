//! Opens the data: for one process at a time, and only in a layout that this version can read.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use naru_engines::{Applied, EngineError, EngineResult};
use rusqlite::{Connection, OpenFlags};

use crate::Embedded;
use crate::column::Columns;
use crate::database::{Database, ENGINE, engine_error};
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

pub(crate) fn open(dir: &Path) -> EngineResult<Database> {
    let hold = claim(dir)?;
    let path = dir.join(Embedded::DATABASE);
    let mut writer = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    // A checkpoint runs every 16 MB. The writer sets for each commit whether it is synced.
    let pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
        PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -65536";
    writer.execute_batch(pragmas).map_err(engine_error)?;
    lay_out(&mut writer, dir)?;
    let newest_row = "SELECT max(writtenAt) FROM queue";
    let newest_row = writer.query_row(newest_row, [], |row| row.maybe_time(0)).map_err(engine_error)?;
    let lists = Lists::open(&writer).map_err(engine_error)?;
    let readers = (0..READERS).map(|_| connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY));
    let mut database = Database::start(writer, readers.collect::<Result<_, _>>()?, hold)?;
    (database.newest_row, database.lists) = (newest_row, lists);
    Ok(database)
}

/// Makes the directory and locks it. The lock ends with the file or with the process, however it ends.
fn claim(dir: &Path) -> EngineResult<File> {
    let unavailable = |why: String| EngineError::unavailable(ENGINE, Applied::No, why);
    let claim = || {
        directory::prepare(dir)?;
        // SQLite gives the log and its index the permissions of the database.
        directory::open_file(&dir.join(Embedded::DATABASE))?;
        for beside in ["-wal", "-shm"] {
            directory::restrict_file(&dir.join(format!("{}{beside}", Embedded::DATABASE)))?;
        }
        directory::open_file(&dir.join("naru.lock"))
    };
    let file = claim().map_err(|error| unavailable(format!("{} can't be used: {error}", dir.display())))?;
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

fn connect(path: &Path, flags: OpenFlags) -> EngineResult<Connection> {
    let connect = || {
        let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        // The engine's connections never wait; an operator's `sqlite3` may hold the lock for a moment.
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(connection)
    };
    connect().map_err(engine_error)
}

/// Makes the tables in an empty database; refuses any layout but this one.
fn lay_out(writer: &mut Connection, dir: &Path) -> EngineResult<()> {
    let version = writer.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0));
    match version.map_err(engine_error)? {
        VERSION => Ok(()),
        0 => {
            let make = |writer: &mut Connection| {
                let transaction = writer.transaction()?;
                transaction.execute_batch(SCHEMA)?;
                transaction.pragma_update(None, "user_version", VERSION)?;
                transaction.commit()
            };
            make(writer).map_err(engine_error)
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
