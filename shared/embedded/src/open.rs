//! Opening the data: only one process at a time, only data that this version can read, only with the partitions it
//! was made with.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::time::Duration;

use naru_engines::{Applied, EngineError, EngineResult};
use rusqlite::{Connection, OpenFlags};

use crate::Embedded;
use crate::database::{Database, ENGINE, engine_error};

/// How each version of the schema is made from the one before. Never changed, only added to.
const MIGRATIONS: [&str; 2] = [include_str!("schema.1.sql"), include_str!("schema.2.sql")];
/// How many threads read.
const READERS: usize = 2;
/// How many prepared statements each connection keeps: more than there are.
const STATEMENTS: usize = 64;

pub(crate) fn open(dir: &Path, partitions: u32) -> EngineResult<Database> {
    let hold = claim(dir)?;
    let path = dir.join(Embedded::DATABASE);
    let mut writer = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    // FULL syncs at every commit: NORMAL may lose the last ones in a power cut. A checkpoint every 16 MB.
    let pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
        PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -65536";
    writer.execute_batch(pragmas).map_err(engine_error)?;
    migrate(&mut writer)?;
    check_partitions(&writer, partitions)?;
    let readers = (0..READERS).map(|_| connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY));
    Database::start(writer, readers.collect::<Result<_, _>>()?, hold)
}

/// Makes the directory and locks it. The lock ends with the file or with the process, however that dies.
fn claim(dir: &Path) -> EngineResult<File> {
    let unavailable = |why: String| EngineError::unavailable(ENGINE, Applied::No, why);
    let claim = || {
        if !dir.exists() {
            fs::create_dir_all(dir)?;
            // What is confirmed soon must not go with a directory that a power cut forgets.
            dir.canonicalize()?.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())?;
        }
        File::options().create(true).truncate(false).write(true).open(dir.join("naru.lock"))
    };
    let file = claim().map_err(|error| unavailable(format!("{} can't be used: {error}", dir.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(unavailable(format!("{} is in use by another process", dir.display())))
        }
        Err(TryLockError::Error(error)) => {
            Err(unavailable(format!("{} can't be locked: {error}", dir.display())))
        }
    }
}

fn connect(path: &Path, flags: OpenFlags) -> EngineResult<Connection> {
    let connect = || {
        let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        // Nobody of ours ever waits; an operator's `sqlite3` may hold the lock for a moment.
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(connection)
    };
    connect().map_err(engine_error)
}

fn migrate(writer: &mut Connection) -> EngineResult<()> {
    let version = writer.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0));
    let version = usize::try_from(version.map_err(engine_error)?).unwrap_or(usize::MAX);
    if version > MIGRATIONS.len() {
        let known = MIGRATIONS.len();
        let why =
            format!("the data is of schema version {version}, this program knows versions up to {known}");
        return Err(EngineError::permanent(ENGINE, why));
    }
    for (done, migration) in MIGRATIONS.iter().enumerate().skip(version) {
        let step = |writer: &mut Connection| {
            let transaction = writer.transaction()?;
            transaction.execute_batch(migration)?;
            transaction.execute_batch(&format!("PRAGMA user_version = {}", done + 1))?;
            transaction.commit()
        };
        step(writer).map_err(engine_error)?;
    }
    Ok(())
}

fn check_partitions(writer: &Connection, partitions: u32) -> EngineResult<()> {
    let stored = || {
        writer.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('partitions', ?1)", [partitions])?;
        writer.query_row("SELECT value FROM meta WHERE key = 'partitions'", [], |row| row.get::<_, u32>(0))
    };
    let stored = stored().map_err(engine_error)?;
    if stored != partitions {
        let why = format!("the data was made with {stored} partitions, {partitions} are configured");
        return Err(EngineError::permanent(ENGINE, why));
    }
    Ok(())
}
