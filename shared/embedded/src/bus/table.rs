//! A durable hop: rows of one table, `queue`. A row is deleted when its event is acknowledged, and its delivery writes
//! nothing: after a crash every unacknowledged event is delivered again. Memory holds only which rows are unacknowledged
//! (delivered, not acknowledged or retried yet); a receiver reads the other due rows in the order of `(visibleAt, id)`.
//!
//! While nothing can be written, an acknowledged row can't be deleted nor a retry put down. Memory keeps both: the row is not
//! delivered again by this process, or not before its time. Else its work would be done over and over: a push sent each time.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::bus::{AckHandle, Acknowledge, Delivery, Queue, Receiver};
use naru_engines::{EngineError, EngineResult};
use naru_model::hops::Payload;
use naru_model::{Event, Timestamp};
use rusqlite::{Transaction, params};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::column::Columns;
use crate::database::{Database, ENGINE, Sync};
use crate::lock::lock;

/// The time that rows are due by: the time of day as the process began, or the latest that the rows know where that is later.
/// It never jumps, a step back of the machine's clock delays no row, and tests can pause it.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    started: Instant,
    started_at: Timestamp,
}

impl Clock {
    pub(crate) fn start(latest: Option<Timestamp>) -> Self {
        let now = Timestamp::now();
        Self { started: Instant::now(), started_at: latest.map_or(now, |latest| latest.max(now)) }
    }

    fn now(self) -> Timestamp {
        self.started_at.after(self.started.elapsed())
    }
}

/// How long a row waits at least whose retry could not be written, and a row that could not be deleted for the next try.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Stands before the hop of a row that can't be read: no receiver comes across it. The next start tries it once more, since a
/// later version of the program may have written it.
pub(crate) const UNREADABLE: &str = "!";

pub(crate) struct TableQueue<T: Payload> {
    table: Arc<Table>,
    payload: PhantomData<fn() -> T>,
}

/// One hop's rows.
struct Table {
    hop: &'static str,
    database: Arc<Database>,
    clock: Clock,
    held: Mutex<HashMap<i64, Held>>,
    /// When acknowledged rows that are still there are to be deleted again.
    delete_again_at: Mutex<Option<Instant>>,
    /// One receiver reads at a time: the rows that it finds are not held yet.
    reading: tokio::sync::Mutex<()>,
    /// A row was added, changed or released.
    changed: Notify,
}

/// Why a row of the table is not to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// It was delivered, and not acknowledged or retried yet; or it can't be read.
    Unacknowledged,
    /// Its retry, due then, could not be written.
    Until(Instant),
    /// It was acknowledged, and could not be deleted.
    Acknowledged,
}

impl<T: Payload> TableQueue<T> {
    pub(crate) fn new(hop: &'static str, database: Arc<Database>, clock: Clock) -> Self {
        let (held, delete_again_at, reading) =
            (Mutex::default(), Mutex::default(), tokio::sync::Mutex::default());
        let changed = Notify::new();
        let table = Arc::new(Table { hop, database, clock, held, delete_again_at, reading, changed });
        Self { table, payload: PhantomData }
    }
}

impl Table {
    /// The rows that are not to be delivered now, and when there are fewer of them by time alone.
    fn held(&self) -> (HashSet<i64>, Option<Instant>) {
        let mut fewer_at = *lock(&self.delete_again_at);
        let (mut held, now) = (lock(&self.held), Instant::now());
        held.retain(|_, why| match why {
            Held::Until(at) if *at <= now => false,
            Held::Until(at) => {
                fewer_at = Some(fewer_at.map_or(*at, |other| other.min(*at)));
                true
            }
            Held::Unacknowledged | Held::Acknowledged => true,
        });
        (held.keys().copied().collect(), fewer_at)
    }

    fn hold(&self, rows: impl IntoIterator<Item = i64>, why: Held) {
        lock(&self.held).extend(rows.into_iter().map(|row| (row, why)));
    }

    fn release(&self, rows: &[i64]) {
        let mut held = lock(&self.held);
        rows.iter().for_each(|row| {
            held.remove(row);
        });
    }

    /// Deletes acknowledged rows that could not be deleted, now and then until it succeeds.
    async fn delete_again(&self) -> EngineResult<()> {
        if lock(&self.delete_again_at).is_none_or(|at| Instant::now() < at) {
            return Ok(());
        }
        *lock(&self.delete_again_at) = Some(Instant::now() + AFTER_FAILURE);
        let is_acknowledged = |(row, why): (&i64, &Held)| (*why == Held::Acknowledged).then_some(*row);
        let rows: Vec<i64> = lock(&self.held).iter().filter_map(is_acknowledged).collect();
        let deleted = rows.clone();
        self.database.write_then(Sync::Never, move |transaction| delete(transaction, &rows), |_| {}).await?;
        self.release(&deleted);
        let mut again_at = lock(&self.delete_again_at);
        // Others may have come meanwhile.
        if !lock(&self.held).values().any(|why| *why == Held::Acknowledged) {
            *again_at = None;
        }
        Ok(())
    }

    /// Takes rows that can't be read out of the way of the others. Where that fails they are only held.
    async fn set_aside(&self, rows: Vec<i64>) -> EngineResult<()> {
        self.hold(rows.iter().copied(), Held::Unacknowledged);
        let moved = rows.clone();
        let set_aside = move |transaction: &Transaction<'_>| {
            let mut update = transaction.prepare_cached("UPDATE queue SET hop = ?2 || hop WHERE id = ?1")?;
            moved.iter().try_for_each(|row| update.execute(params![row, UNREADABLE]).map(drop))
        };
        self.database.write_then(Sync::Never, set_aside, |_| {}).await?;
        self.release(&rows);
        Ok(())
    }
}

fn delete(transaction: &Transaction<'_>, rows: &[i64]) -> rusqlite::Result<()> {
    let mut delete = transaction.prepare_cached("DELETE FROM queue WHERE id = ?1")?;
    rows.iter().try_for_each(|row| delete.execute([row]).map(drop))
}

#[async_trait]
impl<T: Payload> Queue<T> for TableQueue<T> {
    async fn send(&self, events: Vec<Event<T>>) -> EngineResult<()> {
        if events.is_empty() {
            return Ok(());
        }
        let rows = events.iter().map(|event| Ok((event.event_id, serde_json::to_string(event)?)));
        let rows = rows.collect::<Result<Vec<_>, serde_json::Error>>();
        let rows = rows.map_err(|error| EngineError::permanent(ENGINE, error))?;
        let (table, visible_at) = (self.table.clone(), self.table.clock.now().as_millis());
        let insert = move |transaction: &Transaction<'_>| {
            let sql =
                "INSERT INTO queue (hop, writtenAt, visibleAt, eventId, event) VALUES (?1, ?2, ?2, ?3, ?4)";
            let mut insert = transaction.prepare_cached(sql)?;
            rows.iter().try_for_each(|(id, event)| {
                insert.execute(params![table.hop, visible_at, id.0.as_bytes(), event]).map(drop)
            })
        };
        let table = self.table.clone();
        let then = move |_: &EngineResult<()>| table.changed.notify_waiters();
        self.table.database.write_then(Sync::Always, insert, then).await
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>> {
        Ok(Box::new(TableReceiver(Arc::new(TableAcknowledger(self.table.clone())))))
    }
}

struct TableReceiver(Arc<TableAcknowledger>);

#[async_trait]
impl<T: Payload> Receiver<T> for TableReceiver {
    async fn receive(&mut self, max: usize) -> EngineResult<Vec<Delivery<T>>> {
        let TableAcknowledger(table) = &*self.0;
        loop {
            let mut changed = std::pin::pin!(table.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let turn = table.reading.lock().await;
            // The rows stay held; the engine reports why.
            let _not_now = table.delete_again().await;
            // A row that is released while the table is read is not delivered by this read: it may be deleted.
            let (hop, (held, fewer_at)) = (table.hop, table.held());
            let now = table.clock.now().as_millis();
            let find = move |transaction: &Transaction<'_>| Found::read(transaction, hop, now, &held, max);
            let Found { rows, unreadable, next } = table.database.read(find).await?;
            if !unreadable.is_empty() {
                let _not_now = table.set_aside(unreadable).await;
                continue;
            }
            // Nothing is awaited from here to the answer: a call that is cancelled has taken nothing.
            table.hold(rows.iter().map(|row| row.0), Held::Unacknowledged);
            drop(turn);
            if !rows.is_empty() {
                let deliver = |(row, attempt, event): (i64, u32, Event<T>)| {
                    let ack_handle = AckHandle::new(row.cast_unsigned(), self.0.clone());
                    Delivery { event, attempt, ack_handle }
                };
                return Ok(rows.into_iter().map(deliver).collect());
            }
            let due = next.map(|due| Instant::now() + Duration::from_millis(due.abs_diff(now)));
            match due.into_iter().chain(fewer_at).min() {
                Some(at) => tokio::select! { () = changed => {}, () = sleep_until(at) => {} },
                None => changed.await,
            }
        }
    }
}

/// The result of one read of the table.
struct Found<T: Payload> {
    /// The due rows: id, attempt and event.
    rows: Vec<(i64, u32, Event<T>)>,
    unreadable: Vec<i64>,
    /// When the next row is due, if none is due now.
    next: Option<i64>,
}

impl<T: Payload> Found<T> {
    fn read(
        transaction: &Transaction<'_>,
        hop: &str,
        now: i64,
        held: &HashSet<i64>,
        max: usize,
    ) -> rusqlite::Result<Self> {
        let (mut rows, mut unreadable) = (Vec::new(), Vec::new());
        let mut due = transaction.prepare_cached(
            "SELECT id, attempt, event FROM queue WHERE hop = ?1 AND visibleAt <= ?2 ORDER BY visibleAt, id",
        )?;
        let mut due = due.query(params![hop, now])?;
        while rows.len() < max.max(1)
            && let Some(row) = due.next()?
        {
            let id = row.get(0)?;
            if held.contains(&id) {
                continue;
            }
            match row.json(2) {
                Ok(event) => rows.push((id, row.get(1)?, event)),
                Err(error) => {
                    tracing::error!(hop, row = id, %error, "an event in the queue can't be read; it stays there");
                    unreadable.push(id);
                }
            }
        }
        let mut next = None;
        if rows.is_empty() {
            let sql = "SELECT min(visibleAt) FROM queue WHERE hop = ?1 AND visibleAt > ?2";
            next = transaction.prepare_cached(sql)?.query_row(params![hop, now], |row| row.get(0))?;
        }
        Ok(Self { rows, unreadable, next })
    }
}

/// Acknowledges and retries a receiver's rows.
struct TableAcknowledger(Arc<Table>);

impl fmt::Debug for TableAcknowledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableAcknowledger").field("hop", &self.0.hop).finish_non_exhaustive()
    }
}

impl TableAcknowledger {
    /// Deletes rows, or makes them due after that time as the next attempt; then releases them.
    async fn write(&self, tags: Vec<u64>, again_after: Option<Duration>) -> EngineResult<()> {
        let now = self.0.clock.now();
        let again_at = again_after.map(|after| now.after(after));
        let if_it_fails = again_after
            .map_or(Held::Acknowledged, |after| Held::Until(Instant::now() + after.max(AFTER_FAILURE)));
        let delete_again_at = Instant::now() + AFTER_FAILURE;
        let rows: Vec<i64> = tags.into_iter().map(u64::cast_signed).collect();
        let released = HeldRows { table: self.0.clone(), rows: rows.clone(), end: End::Release };
        let write = move |transaction: &Transaction<'_>| match again_at {
            None => delete(transaction, &rows),
            Some(again_at) => {
                let sql =
                    "UPDATE queue SET writtenAt = ?3, visibleAt = ?2, attempt = attempt + 1 WHERE id = ?1";
                let mut update = transaction.prepare_cached(sql)?;
                rows.iter().try_for_each(|row| {
                    update.execute([*row, again_at.as_millis(), now.as_millis()]).map(drop)
                })
            }
        };
        // The event of an ack that a power cut undoes is delivered again.
        let sync = if again_at.is_none() { Sync::Never } else { Sync::Always };
        let then = move |outcome: &EngineResult<()>| {
            let mut ended = released;
            ended.end = match outcome {
                Ok(()) if again_at.is_none() => End::Deleted,
                Ok(()) => End::Release,
                Err(_) => End::Hold(if_it_fails, delete_again_at),
            };
        };
        self.0.database.write_then(sync, write, then).await
    }
}

#[async_trait]
impl Acknowledge for TableAcknowledger {
    async fn ack(&self, tags: Vec<u64>) -> EngineResult<()> {
        self.write(tags, None).await
    }

    async fn retry(&self, tags: Vec<u64>, after: Duration) -> EngineResult<()> {
        self.write(tags, Some(after)).await
    }

    fn dropped(&self, tag: u64) {
        let rows = vec![tag.cast_signed()];
        drop(HeldRows { table: self.0.clone(), rows, end: End::Release });
    }
}

/// Dropping this ends the hold of its rows, or changes it.
struct HeldRows {
    table: Arc<Table>,
    rows: Vec<i64>,
    end: End,
}

enum End {
    /// A row still in the table is delivered again when due.
    Release,
    /// There is nothing more to deliver, so no receiver reads the table for it.
    Deleted,
    /// The write failed. What was acknowledged is to be deleted again then.
    Hold(Held, Instant),
}

impl Drop for HeldRows {
    fn drop(&mut self) {
        match self.end {
            End::Deleted => return self.table.release(&self.rows),
            End::Release => self.table.release(&self.rows),
            End::Hold(why, delete_again_at) => {
                self.table.hold(self.rows.iter().copied(), why);
                if why == Held::Acknowledged {
                    lock(&self.table.delete_again_at).get_or_insert(delete_again_at);
                }
            }
        }
        self.table.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use naru_engines::bus::{ack, retry};
    use naru_model::{EventId, RoomId, Trace};
    use serde::{Deserialize, Serialize};
    use tempfile::TempDir;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Numbered(RoomId, usize);

    impl Payload for Numbered {
        fn event_id(&self) -> EventId {
            EventId::derive(&[&self.1.to_be_bytes()])
        }

        fn room(&self) -> &RoomId {
            &self.0
        }
    }

    fn events(numbers: std::ops::Range<usize>) -> Vec<Event<Numbered>> {
        let room = RoomId::new("r").unwrap();
        numbers.map(|number| Event::new(Numbered(room.clone(), number), Trace::start())).collect()
    }

    fn queue(dir: &TempDir) -> TableQueue<Numbered> {
        let database = crate::open::open(dir.path()).unwrap();
        TableQueue::new("test", Arc::new(database), Clock::start(None))
    }

    /// Reads and acknowledgements interleave as two receivers and a busy sender make them.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_event_is_acknowledged_once_while_reads_and_acknowledgements_alternate() {
        const COUNT: usize = 3_000;
        let dir = tempfile::tempdir().unwrap();
        let queue = Arc::new(queue(&dir));
        let acked = Arc::new(Mutex::new(HashMap::<usize, u32>::new()));
        let all_acked = Arc::new(Notify::new());
        let mut receivers = tokio::task::JoinSet::new();
        for _ in 0..2 {
            let (mut receiver, acked) = (queue.receiver().await.unwrap(), acked.clone());
            let all_acked = all_acked.clone();
            receivers.spawn(async move {
                for round in 0_usize.. {
                    let (mut done, mut ack_handles) = (Vec::new(), Vec::new());
                    for Delivery { event, attempt, ack_handle } in
                        receiver.receive(1 + round % 9).await.unwrap()
                    {
                        match (event.payload.1 + round) % 4 {
                            0 => drop(ack_handle),
                            1 if attempt == 1 => retry([ack_handle], Duration::ZERO).await.unwrap(),
                            _ => {
                                done.push(event.payload.1);
                                ack_handles.push(ack_handle);
                            }
                        }
                    }
                    ack(ack_handles).await.unwrap();
                    for number in done {
                        *lock(&acked).entry(number).or_default() += 1;
                    }
                    if lock(&acked).len() == COUNT {
                        all_acked.notify_one();
                    }
                }
            });
        }
        let mut next = 0;
        for size in (1..40).cycle() {
            let end = COUNT.min(next + size);
            queue.send(events(next..end)).await.unwrap();
            next = end;
            if next == COUNT {
                break;
            }
        }
        tokio::time::timeout(Duration::from_secs(60), all_acked.notified()).await.unwrap();
        receivers.shutdown().await;
        assert!(lock(&acked).values().all(|count| *count == 1), "each once");
        let rows = queue.table.database.read(|transaction| {
            transaction.query_row("SELECT count(*) FROM queue", [], |row| row.get::<_, i64>(0))
        });
        assert_eq!(rows.await.unwrap(), 0);
        assert!(lock(&queue.table.held).is_empty());
    }

    /// Every write fails, until this is dropped.
    async fn without_writes(dir: &TempDir, queue: &TableQueue<Numbered>) -> rusqlite::Connection {
        let do_not_wait = |transaction: &Transaction<'_>| transaction.busy_timeout(Duration::ZERO);
        queue.table.database.write_then(Sync::Never, do_not_wait, |_| {}).await.unwrap();
        let other = rusqlite::Connection::open(dir.path().join(crate::Embedded::DATABASE)).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        other
    }

    async fn rows(queue: &TableQueue<Numbered>, hop: &'static str) -> i64 {
        let count = "SELECT count(*) FROM queue WHERE hop = ?1";
        let count =
            move |transaction: &Transaction<'_>| transaction.query_row(count, [hop], |row| row.get(0));
        queue.table.database.read(count).await.unwrap()
    }

    /// Its push, say, was sent: it is not sent over and over because the disk is full.
    #[tokio::test]
    async fn what_was_acknowledged_while_nothing_could_be_written_is_not_delivered_again() {
        let dir = tempfile::tempdir().unwrap();
        let queue = queue(&dir);
        let mut receiver = queue.receiver().await.unwrap();
        queue.send(events(0..2)).await.unwrap();
        let batch = receiver.receive(1).await.unwrap();
        let full = without_writes(&dir, &queue).await;
        let error = ack(batch.into_iter().map(|delivery| delivery.ack_handle)).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        let other = receiver.receive(10).await.unwrap();
        assert_eq!(other.iter().map(|delivery| delivery.event.payload.1).collect::<Vec<_>>(), [1]);

        drop(full);
        let deleted = async {
            // Waits for what is due: nothing.
            let waiting = receiver.receive(1);
            tokio::select! {
                batch = waiting => panic!("{batch:?}"),
                () = async { while rows(&queue, "test").await > 1 { tokio::task::yield_now().await } } => {}
            }
        };
        tokio::time::timeout(Duration::from_secs(20), deleted).await.expect("it is deleted");
        drop(other);
        assert_eq!(receiver.receive(10).await.unwrap()[0].event.payload.1, 1, "what was dropped comes again");
    }

    #[tokio::test]
    async fn a_retry_that_can_not_be_written_is_not_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let queue = queue(&dir);
        let mut receiver = queue.receiver().await.unwrap();
        queue.send(events(0..1)).await.unwrap();
        let batch = receiver.receive(1).await.unwrap();
        let _full = without_writes(&dir, &queue).await;
        let asked = Instant::now();
        retry(batch.into_iter().map(|delivery| delivery.ack_handle), Duration::ZERO).await.unwrap_err();
        let again = receiver.receive(1).await.unwrap();
        assert!(asked.elapsed() >= AFTER_FAILURE, "after {:?}", asked.elapsed());
        assert_eq!(again[0].attempt, 1, "it could not be counted");
    }

    #[tokio::test]
    async fn rows_that_can_not_be_read_are_read_once() {
        let dir = tempfile::tempdir().unwrap();
        {
            let queue = queue(&dir);
            queue.send(events(0..3)).await.unwrap();
            let spoil = |transaction: &Transaction<'_>| {
                transaction.execute("UPDATE queue SET event = '{' WHERE id < 3", [])
            };
            queue.table.database.write(spoil).await.unwrap();
            let mut receiver = queue.receiver().await.unwrap();
            assert_eq!(receiver.receive(10).await.unwrap()[0].event.payload.1, 2);
            assert_eq!((rows(&queue, "test").await, rows(&queue, "!test").await), (1, 2));
            assert_eq!(lock(&queue.table.held).len(), 0, "none is held");
            queue.table.database.close();
        }
        // The next start tries them once more: here, one was repaired.
        let database = rusqlite::Connection::open(dir.path().join(crate::Embedded::DATABASE)).unwrap();
        let repair = "UPDATE queue SET event = (SELECT event FROM queue WHERE id = 3) WHERE id = 1";
        assert_eq!(database.execute(repair, []).unwrap(), 1);
        drop(database);
        let queue = queue(&dir);
        let mut receiver = queue.receiver().await.unwrap();
        assert_eq!(receiver.receive(10).await.unwrap().len(), 2);
        assert_eq!((rows(&queue, "test").await, rows(&queue, "!test").await), (2, 1));
    }
}
