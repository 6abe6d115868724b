//! The database: one writer thread, which writes in groups, and a few reader threads.
//!
//! A write is answered after the commit it was part of, so a caller that was answered finds it in the next read. Writes
//! that arrive while a commit is under way form the next group: one commit for all of them. A group waits for nothing
//! more: a caller whose batches would shrink because an unsynced commit is fast waits for more before it writes. A read
//! never waits for a write.
//!
//! # What is synced
//!
//! A group that holds a command whose caller relies on the disk ([`Sync::Always`]) is committed with
//! `synchronous=FULL`: the write-ahead log is synced before the commit is visible to readers and before a caller is
//! answered. A group that holds none is committed with `synchronous=NORMAL`: its frames are written to the log, and the
//! log is not synced. Why this is enough:
//!
//! - *The process dies* (also by SIGKILL): its writes are in the kernel's page cache, and the next process finds all of them.
//!   No answered write is lost.
//! - *The power fails, or the kernel dies*: the log is sequential and a chain of checksums. A prefix of the commits is
//!   recovered, and the sync of a FULL commit covers all frames before it, those of unsynced commits included. So only
//!   commits after the last synced one can be missing, and a synced commit is never recovered without an earlier one: a saved
//!   message has its intake entry.
//! - *A checkpoint* syncs the log before it copies a page into the database, and the database before the log is written from
//!   its beginning again, whose new header it syncs: NORMAL leaves out the sync of a commit and none of these. So the
//!   database never holds more than the log that is on disk.
//! - *A synced write or its sync fails*: every command of the group is answered `Unknown`. The system does not report twice
//!   that it could not sync: nothing is committed until a checkpoint has written the log into the database and synced that.
//!
//! A write may therefore be unsynced if no client is notified of it, or only after a later, synced commit:
//!
//! - a `New` intake entry: its sender is answered when the run that saves it was synced, or not at all, and then sends it
//!   again;
//! - a `Reopened` entry, for the same reason: a rejected entry that is open again may be rejected once more;
//! - a `Resend` of an entry: its sender is answered from the saved message, which was synced, or waits for it like the first;
//! - a `Conflict` is reported to the sender at once. It depends on the first entry, so the append that finds one is synced
//!   ([`Sync::When`]), and the first entry with it;
//! - the closing of a saved entry: an entry that is open again is found to be saved. The closing of a rejected one is synced,
//!   since its sender is notified and a later check might decide otherwise;
//! - what is removed because it was kept for long enough: a later pass removes it again;
//! - the acknowledgement of a delivery: its event may be delivered again;
//! - the time at which a user was last seen.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use naru_engines::{Applied, BoxError, EngineError, EngineResult};
use naru_model::Timestamp;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, ffi};
use tokio::sync::{mpsc, oneshot};

use crate::condition::{Condition, Fault};
use crate::lock::lock;
use crate::rooms::RoomCache;
use crate::store::lists::Lists;

/// The engine's name in an [`EngineError`].
pub(crate) const ENGINE: &str = "the embedded engine";

/// How many commands may wait for the writer, and how many reads for a reader; the next caller waits for capacity.
const WAITING: usize = 1024;
/// How many commands share one commit at most: it bounds how long the first of them waits for the last.
const GROUP: usize = 256;
/// After a failed commit, the shortest time between two checkpoints that are to make up for it.
const REPAIR_INTERVAL: Duration = Duration::from_secs(1);

/// Whether a command's caller relies on the disk, or only on the process: see the module's text.
pub(crate) enum Sync<T> {
    /// On the disk.
    Always,
    /// Only on the process.
    Never,
    /// On the disk if this holds for the outcome.
    When(fn(&T) -> bool),
}

/// Counters since the start, for tests of costs.
#[derive(Debug, Default)]
pub struct Counts {
    commits: AtomicU64,
    syncs: AtomicU64,
    writes: AtomicU64,
    reads: AtomicU64,
}

impl Counts {
    /// Transactions that were committed: with writes from many callers far fewer than writes.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Commits that were synced by themselves. The syncs of checkpoints are not counted.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Commands that the writer's thread was sent.
    pub fn writer_calls(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Reads that a reader's thread was sent.
    pub fn reader_calls(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}

/// One process's exclusive access to the data.
pub(crate) struct Database {
    writes: mpsc::Sender<Box<dyn Command>>,
    reads: mpsc::Sender<Read>,
    closing: Arc<AtomicBool>,
    pub(crate) counts: Arc<Counts>,
    condition: Arc<Condition>,
    pub(crate) rooms: Arc<RoomCache>,
    pub(crate) lists: Lists,
    /// When a row of the durable hops was written last, as this data was opened.
    pub(crate) newest_row: Option<Timestamp>,
    /// The writer's thread, which ends last.
    writer: Mutex<Option<JoinHandle<()>>>,
    /// The writer's and the readers' threads.
    threads: Vec<ThreadId>,
}

type Read = Box<dyn FnOnce(&Connection) + Send>;

impl Database {
    /// Starts the threads. `hold` is dropped when all of them have ended.
    pub(crate) fn start(
        writer: Connection,
        readers: Vec<Connection>,
        hold: impl Send + 'static,
    ) -> EngineResult<Self> {
        let (writes, commands) = mpsc::channel(WAITING);
        let (reads, jobs) = mpsc::channel(WAITING);
        let (closing, counts) = (Arc::<AtomicBool>::default(), Arc::<Counts>::default());

        let jobs = Arc::new(Mutex::new(jobs));
        let read = |(number, reader): (usize, Connection)| {
            let (jobs, closing) = (jobs.clone(), closing.clone());
            spawn(format!("naru-read-{number}"), move || read_all(&reader, &jobs, &closing))
        };
        let readers = readers.into_iter().enumerate().map(read).collect::<EngineResult<Vec<_>>>()?;
        let mut threads: Vec<ThreadId> = readers.iter().map(|reader| reader.thread().id()).collect();
        let condition = Arc::<Condition>::default();
        let (counted, state, is_closing) = (counts.clone(), condition.clone(), closing.clone());
        let writer = spawn("naru-write".to_owned(), move || {
            let writer = Writer {
                connection: writer,
                is_synced: None,
                repair: None,
                counts: counted,
                condition: state,
            };
            writer.run(commands, readers, &is_closing);
            drop(hold);
        })?;
        threads.push(writer.thread().id());
        let (writer, rooms, lists) = (Mutex::new(Some(writer)), Arc::default(), Lists::default());
        Ok(Self {
            writes,
            reads,
            closing,
            counts,
            condition,
            rooms,
            lists,
            newest_row: None,
            writer,
            threads,
        })
    }

    /// Runs `work` in a transaction shared with other commands, and answers when that is on disk. When another command fails,
    /// `work` is run again, on the state it found before.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> EngineResult<T> {
        self.write_then(Sync::Always, work, |_| {}).await
    }

    /// The same with another [`Sync`], and with an epilogue: `then` is called on the writer's thread, before the answer, also
    /// when the caller was cancelled meanwhile. It is dropped without a call only when the caller was cancelled before the
    /// command was queued.
    pub(crate) async fn write_then<T: Send + 'static>(
        &self,
        sync: Sync<T>,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        then: impl FnOnce(&EngineResult<T>) + Send + 'static,
    ) -> EngineResult<T> {
        let (answer, answered) = oneshot::channel();
        let end = move |outcome| {
            then(&outcome);
            // A cancelled caller needs no answer.
            drop(answer.send(outcome));
        };
        self.submit(sync, work, end).await;
        answered
            .await
            .unwrap_or_else(|_| Err(EngineError::unavailable(ENGINE, Applied::Unknown, "the writer died")))
    }

    /// The same for a caller that need not wait for the commit: returns when the command is queued.
    pub(crate) async fn submit<T: Send + 'static>(
        &self,
        sync: Sync<T>,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        then: impl FnOnce(EngineResult<T>) + Send + 'static,
    ) {
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        let command = Box::new(Write { sync, work, done: None, then });
        if let Err(refused) = self.writes.send(command).await {
            refused.0.end(Err(closed()));
        }
    }

    /// Runs `work` on one consistent state of the data, which holds every write that was answered before.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> EngineResult<T> {
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        let condition = self.condition.clone();
        let read = move |connection: &Connection| {
            // A cancelled caller needs no answer.
            if answer.is_closed() {
                return;
            }
            drop(answer.send(guarded(&condition, || work(&connection.unchecked_transaction()?))));
        };
        self.reads.send(Box::new(read)).await.map_err(|_| closed())?;
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Whether the disk takes what is written. Where it did not lately, a write that changes nothing is tried.
    ///
    /// # Errors
    /// A sentence about the fault.
    pub(crate) async fn check(&self) -> Result<(), &'static str> {
        let Some(fault) = self.condition.fault() else { return Ok(()) };
        let probe = |transaction: &Transaction<'_>| {
            let version = transaction.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0))?;
            transaction.pragma_update(None, "user_version", version)
        };
        match self.write(probe).await {
            Ok(()) => self.condition.fault().map_or(Ok(()), Err),
            Err(_) => Err(self.condition.fault().unwrap_or(fault)),
        }
    }

    /// Writes all of the log into the database and empties it, so that no older copy of a page is left in it.
    ///
    /// # Errors
    /// `Unavailable` when a read holds it up, or the disk.
    pub(crate) async fn empty_log(&self) -> EngineResult<()> {
        let (answer, answered) = oneshot::channel();
        if let Err(refused) = self.writes.send(Box::new(EmptyLog { answer })).await {
            refused.0.end(Err(closed()));
        }
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Finishes the queued work and ends the threads. Blocks until they have ended, unless it is one of them that calls.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        // Wakes the idle threads. When the queue is full, no thread is idle.
        drop(self.writes.try_send(Box::new(Write {
            sync: Sync::Never,
            work: |_: &Transaction<'_>| Ok(()),
            done: None,
            then: drop,
        })));
        drop(self.reads.try_send(Box::new(|_: &Connection| {})));
        // A command may be the last owner of this database, and its thread can't wait for itself.
        if self.threads.contains(&thread::current().id()) {
            return;
        }
        let mut writer = lock(&self.writer);
        writer.take().into_iter().for_each(join);
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.close();
    }
}

/// A command for the writer.
trait Command: Send {
    /// Whether it runs outside of any transaction, after the commands that came with it.
    fn is_alone(&self) -> bool {
        false
    }
    /// Runs such a command.
    fn run_alone(&mut self, _: &Connection, _: &Condition) -> EngineResult<()> {
        Ok(())
    }
    /// Whether its commit is to be synced; final only once it was run.
    fn needs_sync(&self) -> bool;
    /// Runs it in the group's transaction, and again in another one if the first was rolled back.
    fn run(&mut self, transaction: &Transaction<'_>, condition: &Condition) -> EngineResult<()>;
    /// Answers its caller with the outcome.
    fn end(self: Box<Self>, outcome: EngineResult<()>);
}

struct EmptyLog {
    answer: oneshot::Sender<EngineResult<()>>,
}

/// How long the writer waits for reads that hold up an emptying of the log.
const READS_HOLD_UP: Duration = Duration::from_millis(100);
/// How long a connection waits for another process, such as an operator's `sqlite3`.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

impl Command for EmptyLog {
    fn needs_sync(&self) -> bool {
        false
    }

    fn is_alone(&self) -> bool {
        true
    }

    fn run_alone(&mut self, connection: &Connection, condition: &Condition) -> EngineResult<()> {
        let empty = || {
            connection.busy_timeout(READS_HOLD_UP)?;
            let is_held_up =
                connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
            connection.busy_timeout(BUSY_TIMEOUT)?;
            is_held_up
        };
        match empty() {
            Ok(false) => Ok(()),
            Ok(true) => Err(EngineError::unavailable(ENGINE, Applied::No, "a read holds the log up")),
            Err(error) => {
                condition.failed(&error);
                Err(engine_error(error))
            }
        }
    }

    fn run(&mut self, _: &Transaction<'_>, _: &Condition) -> EngineResult<()> {
        Ok(())
    }

    fn end(self: Box<Self>, outcome: EngineResult<()>) {
        // A cancelled caller needs no answer.
        drop(self.answer.send(outcome));
    }
}

struct Write<W, T, D> {
    sync: Sync<T>,
    work: W,
    done: Option<T>,
    then: D,
}

impl<W, T, D> Command for Write<W, T, D>
where
    W: Fn(&Transaction<'_>) -> rusqlite::Result<T> + Send,
    T: Send,
    D: FnOnce(EngineResult<T>) + Send,
{
    fn needs_sync(&self) -> bool {
        match self.sync {
            Sync::Always => true,
            Sync::Never => false,
            Sync::When(is_such) => self.done.as_ref().is_some_and(is_such),
        }
    }

    fn run(&mut self, transaction: &Transaction<'_>, condition: &Condition) -> EngineResult<()> {
        self.done = Some(guarded(condition, || (self.work)(transaction))?);
        Ok(())
    }

    fn end(self: Box<Self>, outcome: EngineResult<()>) {
        let Self { done, then, .. } = *self;
        then(outcome.and_then(|()| done.ok_or_else(closed)));
    }
}

type Group = Vec<Box<dyn Command>>;

/// The writer thread's state.
struct Writer {
    connection: Connection,
    /// Whether commits are synced now; none before the first commit.
    is_synced: Option<bool>,
    /// A commit failed, and a checkpoint has to make up for it.
    repair: Option<Repair>,
    counts: Arc<Counts>,
    condition: Arc<Condition>,
}

#[derive(Clone, Copy)]
struct Repair {
    not_before: Instant,
    /// The sync of the log may have failed: nothing is committed before. Else the checkpoint is only to free space.
    is_required: bool,
}

enum Failure {
    Begin(rusqlite::Error),
    /// Without a try.
    Refused(&'static str),
    Command(usize, EngineError),
    /// A command turned out to need a sync, in a group that was to have none.
    Unsynced,
    Commit(rusqlite::Error),
}

impl Writer {
    fn run(
        mut self,
        mut commands: mpsc::Receiver<Box<dyn Command>>,
        readers: Vec<JoinHandle<()>>,
        closing: &AtomicBool,
    ) {
        let mut group = Group::with_capacity(GROUP);
        while commands.blocking_recv_many(&mut group, GROUP) > 0 {
            // Commands that need no sync don't wait for that of the others.
            let (synced, mut unsynced): (Group, Group) =
                group.drain(..).partition(|command| command.needs_sync());
            let alone: Group = unsynced.extract_if(.., |command| command.is_alone()).collect();
            self.write(unsynced);
            self.write(synced);
            for mut command in alone {
                let outcome = match self.condition.is_damaged() {
                    true => Err(EngineError::unavailable(ENGINE, Applied::No, Fault::Damaged.sentence())),
                    false => command.run_alone(&self.connection, &self.condition),
                };
                command.end(outcome);
            }
            if closing.load(Ordering::Acquire) {
                // Queued commands are still run; later ones are refused.
                commands.close();
            }
        }
        // No read may see what another process writes, and none may hold up the last checkpoint.
        readers.into_iter().for_each(join);
        if let Err(error) = self.checkpoint() {
            tracing::warn!(%error, "the last checkpoint failed; the log stays, and the next start repeats it");
        }
    }

    /// One commit for all. A command that fails is answered and left out, and the others run again without it: nothing that
    /// it wrote is left, and no other command is affected. Where the disk fails, all of them fail.
    fn write(&mut self, mut group: Group) {
        while !group.is_empty() {
            match self.attempt(&mut group) {
                Ok(()) => group.drain(..).for_each(|command| command.end(Ok(()))),
                Err(Failure::Unsynced) => {}
                Err(Failure::Refused(why)) => refuse(&mut group, Applied::No, why.into()),
                Err(Failure::Begin(error)) => {
                    self.condition.failed(&error);
                    refuse(&mut group, Applied::No, error.into());
                }
                Err(Failure::Command(_, EngineError::Unavailable { applied, source, .. })) => {
                    refuse(&mut group, applied, source);
                }
                Err(Failure::Command(index, error)) => group.remove(index).end(Err(error)),
                Err(Failure::Commit(error)) => {
                    self.condition.failed(&error);
                    // Where the log could not be written, for want of space, it was not synced either.
                    let is_required = Fault::of(&error) != Some(Fault::Full);
                    self.repair = Some(Repair { not_before: Instant::now(), is_required });
                    // Part of the group may be on disk and be recovered after a crash.
                    refuse(&mut group, Applied::Unknown, error.into());
                }
            }
        }
    }

    /// The transaction is rolled back when it is dropped before its commit, and when the commit fails.
    fn attempt(&mut self, group: &mut Group) -> Result<(), Failure> {
        if self.condition.is_damaged() {
            return Err(Failure::Refused(Fault::Damaged.sentence()));
        }
        self.repair()?;
        if !self.connection.is_autocommit() {
            // The rollback failed, for want of memory.
            self.connection.execute_batch("ROLLBACK").map_err(Failure::Begin)?;
        }
        let is_synced = group.iter().any(|command| command.needs_sync());
        if self.is_synced != Some(is_synced) {
            let mode = if is_synced { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            self.connection.execute_batch(mode).map_err(Failure::Begin)?;
            self.is_synced = Some(is_synced);
        }
        let begun = self.connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let transaction = begun.map_err(Failure::Begin)?;
        for (index, command) in group.iter_mut().enumerate() {
            command.run(&transaction, &self.condition).map_err(|error| Failure::Command(index, error))?;
        }
        if !is_synced && group.iter().any(|command| command.needs_sync()) {
            return Err(Failure::Unsynced);
        }
        transaction.commit().map_err(Failure::Commit)?;
        self.counts.commits.fetch_add(1, Ordering::Relaxed);
        self.counts.syncs.fetch_add(is_synced.into(), Ordering::Relaxed);
        if is_synced {
            self.condition.wrote();
        }
        Ok(())
    }

    /// After a failed commit: a checkpoint, now and then, until one succeeds.
    fn repair(&mut self) -> Result<(), Failure> {
        let Some(Repair { not_before, is_required }) = self.repair else { return Ok(()) };
        let refused = match Instant::now() < not_before {
            true => Failure::Refused(
                self.condition.fault().unwrap_or("a commit failed, and is not made up for yet"),
            ),
            false => match self.checkpoint() {
                Ok(()) => {
                    self.repair = None;
                    return Ok(());
                }
                Err(error) => {
                    self.repair = Some(Repair { not_before: Instant::now() + REPAIR_INTERVAL, is_required });
                    Failure::Begin(error)
                }
            },
        };
        if is_required { Err(refused) } else { Ok(()) }
    }

    /// Writes all of the log into the database and syncs both.
    fn checkpoint(&self) -> rusqlite::Result<()> {
        let is_busy = |row: &rusqlite::Row<'_>| row.get::<_, bool>(0);
        match self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], is_busy)? {
            true => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), None)),
            false => Ok(()),
        }
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> EngineResult<JoinHandle<()>> {
    let thread = thread::Builder::new().name(name).spawn(body);
    thread.map_err(|error| EngineError::unavailable(ENGINE, Applied::No, error))
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread of the embedded engine panicked");
    }
}

fn refuse(group: &mut Group, applied: Applied, error: BoxError) {
    let error = Arc::<dyn std::error::Error + Send + std::marker::Sync>::from(error);
    for command in group.drain(..) {
        command.end(Err(EngineError::unavailable(ENGINE, applied, error.clone())));
    }
}

fn read_all(connection: &Connection, jobs: &Mutex<mpsc::Receiver<Read>>, closing: &AtomicBool) {
    let next = || {
        let mut jobs = lock(jobs);
        if closing.load(Ordering::Acquire) {
            jobs.close();
        }
        jobs.blocking_recv()
    };
    while let Some(read) = next() {
        read(connection);
    }
}

/// A panic in `work` fails its command, not its thread.
fn guarded<T>(condition: &Condition, work: impl FnOnce() -> rusqlite::Result<T>) -> EngineResult<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.inspect_err(|error| condition.failed(error)).map_err(engine_error),
        Err(_) => Err(EngineError::permanent(ENGINE, "the command panicked")),
    }
}

/// The engine's error for an error of SQLite. Before the commit nothing was applied. A fault of the disk or of the database is
/// no fault of the request: it may be repeated when an operator has repaired that.
pub(crate) fn engine_error(error: rusqlite::Error) -> EngineError {
    use ErrorCode::{
        DatabaseBusy, DatabaseLocked, FileLockingProtocolFailed, OperationAborted, OperationInterrupted,
        OutOfMemory, SchemaChanged,
    };
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
    let passing = [
        DatabaseBusy,
        DatabaseLocked,
        FileLockingProtocolFailed,
        OperationAborted,
        OperationInterrupted,
        OutOfMemory,
        SchemaChanged,
    ];
    match &error {
        FromSqlConversionFailure(..)
        | IntegralValueOutOfRange(..)
        | InvalidColumnType(..)
        | Utf8Error(..) => EngineError::poison(ENGINE, error),
        _ if Fault::of(&error).is_some()
            || error.sqlite_error_code().is_some_and(|code| passing.contains(&code)) =>
        {
            EngineError::unavailable(ENGINE, Applied::No, error)
        }
        _ => EngineError::permanent(ENGINE, error),
    }
}

pub(crate) fn closed() -> EngineError {
    EngineError::unavailable(ENGINE, Applied::No, "it is closed")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use rusqlite::OpenFlags;

    use super::*;

    fn database() -> Database {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE numbers (n INTEGER PRIMARY KEY)").unwrap();
        Database::start(connection, vec![], ()).unwrap()
    }

    fn insert(transaction: &Transaction<'_>, n: u32) -> rusqlite::Result<usize> {
        transaction.execute("INSERT INTO numbers VALUES (?1)", [n])
    }

    #[tokio::test]
    async fn a_command_that_fails_or_panics_takes_nothing_of_its_neighbours_with_it() {
        let database = database();
        // Holds the writer until all the others are queued, or is in their group itself: they are one group.
        let (go, wait) = channel::<()>();
        let wait = Mutex::new(wait);
        let first = database.write(move |_| Ok(lock(&wait).recv().is_err()));
        let fails = database.write(|transaction| insert(transaction, 2).and_then(|_| insert(transaction, 1)));
        let panics = database.write(|transaction| -> rusqlite::Result<usize> {
            insert(transaction, 3)?;
            panic!("a bug")
        });
        let neighbours = (database.write(|t| insert(t, 1)), database.write(|t| insert(t, 4)));
        let release = async move {
            tokio::task::yield_now().await;
            drop(go);
        };
        let (first, one, fails, panics, four, ()) =
            tokio::join!(biased; first, neighbours.0, fails, panics, neighbours.1, release);
        assert!(first.unwrap(), "it went on when `go` was dropped");
        assert_eq!((one.unwrap(), four.unwrap()), (1, 1));
        for failed in [fails, panics] {
            assert!(matches!(failed, Err(EngineError::Permanent { .. })), "{failed:?}");
        }

        let numbers = |transaction: &Transaction<'_>| {
            let mut numbers = transaction.prepare("SELECT n FROM numbers ORDER BY n")?;
            numbers.query_map([], |row| row.get::<_, u32>(0))?.collect::<rusqlite::Result<Vec<_>>>()
        };
        assert_eq!(database.write(numbers).await.unwrap(), [1, 4]);
        assert!(database.counts.commits() <= 3, "the first, the group, the look");
    }

    #[tokio::test]
    async fn when_the_commit_fails_no_caller_is_told_that_nothing_happened() {
        let connection = Connection::open_in_memory().unwrap();
        let schema = "PRAGMA foreign_keys = ON; CREATE TABLE numbers (n INTEGER PRIMARY KEY);
            CREATE TABLE children (n INTEGER REFERENCES numbers (n) DEFERRABLE INITIALLY DEFERRED)";
        connection.execute_batch(schema).unwrap();
        let database = Database::start(connection, vec![], ()).unwrap();
        // A deferred constraint is checked by the commit itself.
        let orphan =
            database.write(|transaction| transaction.execute("INSERT INTO children VALUES (7)", [])).await;
        assert!(
            matches!(orphan, Err(EngineError::Unavailable { applied: Applied::Unknown, .. })),
            "{orphan:?}"
        );
        assert_eq!(
            database.write(|transaction| insert(transaction, 1)).await.unwrap(),
            1,
            "the writer goes on"
        );
    }

    /// Lets the database grow to so many pages, as a disk does.
    async fn limit(database: &Database, pages: u32) {
        let limit = move |transaction: &Transaction<'_>| {
            transaction.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
        };
        database.write(limit).await.unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_is_told_until_it_takes_writes_again() {
        let database = database();
        limit(&database, 3).await;
        assert_eq!(database.check().await, Ok(()));
        let fill = |transaction: &Transaction<'_>| {
            transaction
                .execute_batch("CREATE TABLE more (bytes BLOB); INSERT INTO more VALUES (zeroblob(100000))")
        };
        let (small, full) = tokio::join!(database.write(|t| insert(t, 1)), database.write(fill));
        assert!(matches!(full, Err(EngineError::Unavailable { applied: Applied::No, .. })), "{full:?}");
        let wrote_small = small.is_ok();
        let told = database.check().await.unwrap_err();
        assert!(told.contains("the disk is full"), "{told}");

        limit(&database, 1000).await;
        assert!(database.check().await.is_err(), "a small write right after says little");
        database.condition.let_time_pass();
        assert_eq!(database.check().await, Ok(()));
        database.write(fill).await.unwrap();
        assert_eq!(database.write(|t| insert(t, 1)).await.is_ok(), !wrote_small, "nothing was half applied");
    }

    #[tokio::test]
    async fn nothing_is_written_to_a_damaged_database() {
        let database = database();
        let corrupt = || rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), None);
        let damaged = database.write(move |_| Err::<(), _>(corrupt())).await;
        assert!(matches!(damaged, Err(EngineError::Unavailable { applied: Applied::No, .. })), "{damaged:?}");
        let refused = database.write(|transaction| insert(transaction, 1)).await;
        let Err(EngineError::Unavailable { applied: Applied::No, source, .. }) = refused else {
            panic!("{refused:?}")
        };
        assert!(source.to_string().contains("restore a backup"), "{source}");
        // Nor is the log written into it, which an erasure asks for.
        let Err(EngineError::Unavailable { applied: Applied::No, source, .. }) = database.empty_log().await
        else {
            panic!("a checkpoint writes")
        };
        assert!(source.to_string().contains("restore a backup"), "{source}");
        assert!(database.check().await.unwrap_err().contains("the database is damaged"));
    }

    #[tokio::test]
    async fn a_disk_on_which_the_log_can_not_be_emptied_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("numbers.db");
        let writer = Connection::open(&path).unwrap();
        let log = "PRAGMA journal_mode = WAL; CREATE TABLE numbers (n INTEGER PRIMARY KEY)";
        writer.execute_batch(log).unwrap();
        let read_only = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let database = Database::start(read_only, vec![], ()).unwrap();
        assert_eq!(database.check().await, Ok(()));
        let refused = database.empty_log().await;
        assert!(matches!(refused, Err(EngineError::Unavailable { applied: Applied::No, .. })), "{refused:?}");
        assert!(database.condition.fault().is_some(), "{refused:?}");
    }

    #[test]
    fn only_a_fault_of_the_request_is_permanent() {
        let class = |code| engine_error(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        for code in [
            ffi::SQLITE_FULL,
            ffi::SQLITE_IOERR_FSYNC,
            ffi::SQLITE_READONLY,
            ffi::SQLITE_CANTOPEN,
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_NOTADB,
            ffi::SQLITE_PERM,
            ffi::SQLITE_NOMEM,
            ffi::SQLITE_BUSY,
            ffi::SQLITE_PROTOCOL,
        ] {
            let error = class(code);
            assert!(matches!(error, EngineError::Unavailable { applied: Applied::No, .. }), "{error:?}");
        }
        for code in [ffi::SQLITE_CONSTRAINT_UNIQUE, ffi::SQLITE_ERROR, ffi::SQLITE_TOOBIG] {
            assert!(matches!(class(code), EngineError::Permanent { .. }), "{code}");
        }
    }

    #[tokio::test]
    async fn a_read_whose_caller_is_gone_is_not_made() {
        let memory = || Connection::open_in_memory().unwrap();
        let database = Database::start(memory(), vec![memory()], ()).unwrap();
        let (go, wait) = channel::<()>();
        let first = database.read(move |_| Ok(wait.recv().is_err()));
        let is_made = Arc::new(AtomicBool::new(false));
        let made = is_made.clone();
        let abandoned = database.read(move |_| {
            made.store(true, Ordering::Relaxed);
            Ok(())
        });
        let abandon = async {
            // Both are queued when this is polled.
            tokio::select! { biased; _ = abandoned => panic!("the reader is busy"), () = tokio::task::yield_now() => {} }
            drop(go);
        };
        let (first, ()) = tokio::join!(biased; first, abandon);
        assert!(first.unwrap(), "it went on when `go` was dropped");
        database.read(|_| Ok(())).await.unwrap();
        assert!(!is_made.load(Ordering::Relaxed));
    }

    /// Reports that it is dropped, and whether by a panic.
    struct Hold(std::sync::mpsc::Sender<bool>);

    impl Drop for Hold {
        fn drop(&mut self) {
            self.0.send(thread::panicking()).unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_directory_is_held_while_a_read_is_under_way() {
        let memory = || Connection::open_in_memory().unwrap();
        let (released, release) = channel();
        let database = Arc::new(Database::start(memory(), vec![memory()], Hold(released.clone())).unwrap());
        let (begin, begun) = oneshot::channel();
        let reading = {
            let database = database.clone();
            tokio::spawn(async move {
                let read = move |_: &Transaction<'_>| {
                    begin.send(()).unwrap();
                    let is_released = release.recv_timeout(std::time::Duration::from_millis(200)).is_ok();
                    Ok((is_released, release))
                };
                database.read(read).await
            })
        };
        begun.await.unwrap();
        tokio::task::spawn_blocking(move || database.close()).await.unwrap();
        let (is_released, release) = reading.await.unwrap().unwrap();
        assert!(!is_released, "another process could have taken the directory");
        assert_eq!(release.recv(), Ok(false));
    }

    #[tokio::test]
    async fn a_command_may_be_the_last_owner() {
        let (released, release) = channel();
        let memory = Connection::open_in_memory().unwrap();
        let database = Arc::new(Database::start(memory, vec![], Hold(released)).unwrap());
        let (go, wait) = channel::<()>();
        let wait = Mutex::new(wait);
        let last = database.clone();
        let work = move |_: &Transaction<'_>| Ok(lock(&wait).recv().is_err());
        database.submit(Sync::Always, work, move |_| drop(last)).await;
        drop(database);
        drop(go);
        assert_eq!(release.recv(), Ok(false), "the writer's thread did not wait for itself");
    }

    #[tokio::test]
    async fn a_command_after_the_close_is_refused() {
        let database = database();
        database.close();
        let late = database.write(|transaction| insert(transaction, 1)).await;
        assert!(matches!(late, Err(EngineError::Unavailable { applied: Applied::No, .. })), "{late:?}");
    }
}
