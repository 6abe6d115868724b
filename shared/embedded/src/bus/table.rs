//! A durable hop: rows of one table, `queue`. A row is deleted when its event is acknowledged, and its delivery writes
//! nothing: after a crash every unacknowledged event is delivered again. Memory holds only which rows are unacknowledged
//! (delivered, not acknowledged or retried yet); a receiver reads the other due rows in the order of `(visibleAt, id)`.

use std::collections::HashSet;
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
use tokio::time::{Instant, sleep};

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

pub(crate) struct TableQueue<T: Payload> {
    table: Arc<Table>,
    payload: PhantomData<fn() -> T>,
}

/// One hop's rows.
struct Table {
    hop: &'static str,
    database: Arc<Database>,
    clock: Clock,
    unacknowledged: Mutex<HashSet<i64>>,
    /// One receiver reads at a time: the rows that it finds are not unacknowledged yet.
    reading: tokio::sync::Mutex<()>,
    /// A row was added, changed or released.
    changed: Notify,
}

impl<T: Payload> TableQueue<T> {
    pub(crate) fn new(hop: &'static str, database: Arc<Database>, clock: Clock) -> Self {
        let (unacknowledged, reading, changed) =
            (Mutex::default(), tokio::sync::Mutex::default(), Notify::new());
        let table = Arc::new(Table { hop, database, clock, unacknowledged, reading, changed });
        Self { table, payload: PhantomData }
    }
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
            // A row that is released while the table is read is not delivered by this read: it may be deleted.
            let (hop, unacknowledged) = (table.hop, lock(&table.unacknowledged).clone());
            let now = table.clock.now().as_millis();
            let find =
                move |transaction: &Transaction<'_>| Found::read(transaction, hop, now, &unacknowledged, max);
            let Found { rows, unreadable, next } = table.database.read(find).await?;
            // Nothing is awaited from here to the answer: a call that is cancelled has taken nothing.
            lock(&table.unacknowledged).extend(rows.iter().map(|row| row.0).chain(unreadable));
            drop(turn);
            if !rows.is_empty() {
                let deliver = |(row, attempt, event): (i64, u32, Event<T>)| {
                    let ack_handle = AckHandle::new(row.cast_unsigned(), self.0.clone());
                    Delivery { event, attempt, ack_handle }
                };
                return Ok(rows.into_iter().map(deliver).collect());
            }
            match next {
                Some(due) => {
                    let wait = Duration::from_millis(due.abs_diff(now));
                    tokio::select! { () = changed => {}, () = sleep(wait) => {} }
                }
                None => changed.await,
            }
        }
    }
}

/// The result of one read of the table.
struct Found<T: Payload> {
    /// The due rows: id, attempt and event.
    rows: Vec<(i64, u32, Event<T>)>,
    /// These rows stay in the table for an operator, and count as unacknowledged until the process ends.
    unreadable: Vec<i64>,
    /// When the next row is due, if none is due now.
    next: Option<i64>,
}

impl<T: Payload> Found<T> {
    fn read(
        transaction: &Transaction<'_>,
        hop: &str,
        now: i64,
        unacknowledged: &HashSet<i64>,
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
            if unacknowledged.contains(&id) {
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
    /// Deletes rows, or makes them due after that time as the next attempt; then releases them, also if the write failed.
    async fn write(&self, tags: Vec<u64>, again_after: Option<Duration>) -> EngineResult<()> {
        let now = self.0.clock.now();
        let again_at = again_after.map(|after| now.after(after));
        let rows: Vec<i64> = tags.into_iter().map(u64::cast_signed).collect();
        let released = UnacknowledgedRows { table: self.0.clone(), rows: rows.clone(), are_deleted: false };
        let write = move |transaction: &Transaction<'_>| match again_at {
            None => {
                let mut delete = transaction.prepare_cached("DELETE FROM queue WHERE id = ?1")?;
                rows.iter().try_for_each(|row| delete.execute([row]).map(drop))
            }
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
            ended.are_deleted = again_at.is_none() && outcome.is_ok();
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
        drop(UnacknowledgedRows { table: self.0.clone(), rows: vec![tag.cast_signed()], are_deleted: false });
    }
}

/// Dropping this releases its rows: a row still in the table is delivered again when due.
struct UnacknowledgedRows {
    table: Arc<Table>,
    rows: Vec<i64>,
    /// There is nothing more to deliver, so no receiver reads the table for it.
    are_deleted: bool,
}

impl Drop for UnacknowledgedRows {
    fn drop(&mut self) {
        lock(&self.table.unacknowledged).retain(|row| !self.rows.contains(row));
        if !self.are_deleted {
            self.table.changed.notify_waiters();
        }
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
        assert!(lock(&queue.table.unacknowledged).is_empty());
    }
}
