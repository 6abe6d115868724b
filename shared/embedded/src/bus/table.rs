//! A durable hop: rows of one table, `queue`. A row is deleted when its event is acknowledged, and nothing else is written
//! of it while it is in hand: after a crash all that was not acknowledged comes again.
//!
//! In memory is what is in hand, what was dropped, and a little of what is due. What is sent while nothing waits in the
//! table goes there at once, after its commit; else one receiver at a time looks for due rows, in the order of
//! `(visibleAt, id)`. The `Cursor` says how far it has come: every row at or before it is in memory or gone. Whatever
//! else puts a row before it moves it back.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::bus::{Acknowledge, Delivery, Inbox, Place, Queue, Receipt, Receiver, Taken};
use naru_engines::{EngineError, EngineResult};
use naru_model::hops::{Kind, Payload};
use naru_model::{Event, Timestamp};
use rusqlite::{Row, Transaction, params};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::column::{self, Columns};
use crate::database::{Database, ENGINE, Sync, lock};

/// How many rows a look reads at most, and how many wait in memory at most before what is sent is left in the table.
const PAGE: usize = 1024;

/// The time of day, as a clock that never jumps and that tests can pause.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    started: Instant,
    started_at: Timestamp,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), started_at: Timestamp::now() }
    }

    fn now(self) -> Timestamp {
        self.started_at.after(self.started.elapsed())
    }
}

pub(crate) struct TableQueue<T: Payload>(Arc<Shared<T>>);

struct Shared<T: Payload> {
    hop: &'static str,
    database: Arc<Database>,
    clock: Clock,
    state: Mutex<State<T>>,
    changed: Notify,
}

struct State<T: Payload> {
    /// A place is a row.
    inbox: Inbox<T>,
    /// The rows that are in the inbox, or out of it while their acknowledgement or retry is written.
    known: HashSet<u64>,
    cursor: Cursor,
    is_looking: bool,
    /// How many looks have begun.
    looks: u64,
    next_holder: u64,
}

/// A place in the order of `(visibleAt, id)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor {
    visible_at: i64,
    id: i64,
}

impl Cursor {
    const END: Self = Self { visible_at: i64::MAX, id: i64::MAX };

    /// Before every row that is due at this moment or later.
    fn before(visible_at: i64) -> Self {
        Self { visible_at, id: i64::MIN }
    }
}

impl<T: Payload> State<T> {
    fn push(&mut self, row: i64, event: Event<T>, attempt: u32) {
        let place = row.cast_unsigned();
        self.known.insert(place);
        self.inbox.push(0, place, event, attempt, None);
    }
}

impl<T: Payload> Shared<T> {
    fn now(&self) -> i64 {
        self.clock.now().as_millis()
    }

    /// Changes the state and wakes the receivers.
    fn change<R>(&self, change: impl FnOnce(&mut State<T>) -> R) -> R {
        let answer = change(&mut lock(&self.state));
        self.changed.notify_waiters();
        answer
    }

    /// These rows were committed. They go straight to the receivers when all that was due before is there, too, and
    /// when no look can have met them: none has begun since before the commit.
    fn sent(&self, rows: Vec<i64>, events: Vec<Event<T>>, visible_at: i64, looks_before: Option<u64>) {
        self.change(|state| {
            let is_drained = state.cursor.visible_at > visible_at;
            let is_unseen = looks_before == Some(state.looks);
            if is_drained && is_unseen && state.inbox.waiting() + events.len() <= PAGE {
                rows.into_iter().zip(events).for_each(|(row, event)| state.push(row, event, 1));
            } else {
                state.cursor = state.cursor.min(Cursor::before(visible_at));
            }
        });
    }

    /// What a receiver may do next.
    fn next(&self, holder: u64, max: usize) -> Next<T> {
        let mut state = lock(&self.state);
        if let Ok(batch) = state.inbox.take(holder, max, Instant::now()) {
            return Next::Deliver(batch);
        }
        let now = self.now();
        match state.cursor.visible_at {
            _ if state.is_looking => Next::Wait(None),
            i64::MAX => Next::Wait(None),
            due if now < due => Next::Wait(Some(Duration::from_millis(due.abs_diff(now)))),
            _ => {
                state.is_looking = true;
                state.looks += 1;
                // Whatever moves it back meanwhile is not overlooked.
                let from = std::mem::replace(&mut state.cursor, Cursor::END);
                Next::Look { from, now, known: state.known.clone() }
            }
        }
    }
}

enum Next<T: Payload> {
    Deliver(Vec<Taken<T>>),
    Wait(Option<Duration>),
    /// The rows that were known before the table is read: one that is acknowledged meanwhile is among them, and is not
    /// delivered again.
    Look {
        from: Cursor,
        now: i64,
        known: HashSet<u64>,
    },
}

impl<T: Payload> TableQueue<T> {
    pub(crate) fn new(hop: &'static str, database: Arc<Database>, clock: Clock) -> Self {
        let state = State {
            inbox: Inbox::new(Kind::Durable, 1),
            known: HashSet::new(),
            cursor: Cursor::before(i64::MIN),
            is_looking: false,
            looks: 0,
            next_holder: 0,
        };
        Self(Arc::new(Shared { hop, database, clock, state: Mutex::new(state), changed: Notify::new() }))
    }
}

#[async_trait]
impl<T: Payload> Queue<T> for TableQueue<T> {
    async fn send(&self, events: Vec<Event<T>>) -> EngineResult<()> {
        if events.is_empty() {
            return Ok(());
        }
        let shared = self.0.clone();
        let (hop, visible_at) = (shared.hop, shared.now());
        let looks_before = {
            let state = lock(&shared.state);
            (!state.is_looking).then_some(state.looks)
        };
        let rows = events.iter().map(|event| Ok((event.event_id, serde_json::to_string(event)?)));
        let rows = rows.collect::<Result<Vec<_>, serde_json::Error>>();
        let rows = rows.map_err(|error| EngineError::permanent(ENGINE, error))?;
        let insert = move |transaction: &Transaction<'_>| {
            let sql = "INSERT INTO queue (hop, visibleAt, eventId, event) VALUES (?1, ?2, ?3, ?4)";
            let mut insert = transaction.prepare_cached(sql)?;
            let rows = rows.iter();
            rows.map(|(id, event)| insert.insert(params![hop, visible_at, id.0.as_bytes(), event])).collect()
        };
        let then = move |inserted: &EngineResult<Vec<i64>>| {
            if let Ok(rows) = inserted {
                shared.sent(rows.clone(), events, visible_at, looks_before);
            }
        };
        self.0.database.write_then(Sync::Always, insert, then).await.map(drop)
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>> {
        let mut state = lock(&self.0.state);
        state.next_holder += 1;
        let holder = Holder { shared: self.0.clone(), number: state.next_holder };
        Ok(Box::new(TableReceiver(Arc::new(holder))))
    }
}

struct TableReceiver<T: Payload>(Arc<Holder<T>>);

#[async_trait]
impl<T: Payload> Receiver<T> for TableReceiver<T> {
    async fn receive(&mut self, max: usize) -> EngineResult<Vec<Delivery<T>>> {
        let Holder { shared, number } = &*self.0;
        loop {
            let mut changed = std::pin::pin!(shared.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            match shared.next(*number, max.max(1)) {
                Next::Deliver(batch) => {
                    let deliver = |Taken { tag, event, attempt }| Delivery {
                        event,
                        attempt,
                        receipt: Receipt::new(tag, self.0.clone()),
                    };
                    return Ok(batch.into_iter().map(deliver).collect());
                }
                Next::Wait(Some(wait)) => {
                    tokio::select! { () = changed => {}, () = sleep(wait) => {} }
                }
                Next::Wait(None) => changed.await,
                Next::Look { from, now, known } => {
                    let look = Look { shared: shared.clone(), upto: from };
                    shared.database.read(move |transaction| look.read(transaction, now, &known)).await?;
                }
            }
        }
    }
}

impl<T: Payload> Drop for TableReceiver<T> {
    fn drop(&mut self) {
        let Holder { shared, number } = &*self.0;
        shared.change(|state| state.inbox.release(*number));
    }
}

/// A look for due rows. When it is dropped, the next one begins where it came to; before it has read, where it began.
struct Look<T: Payload> {
    shared: Arc<Shared<T>>,
    upto: Cursor,
}

impl<T: Payload> Look<T> {
    /// Takes the due rows that are not known into the inbox, at most a page of them.
    fn read(mut self, transaction: &Transaction<'_>, now: i64, known: &HashSet<u64>) -> rusqlite::Result<()> {
        let (hop, from) = (self.shared.hop, self.upto);
        let mut due = transaction.prepare_cached(
            "SELECT id, visibleAt, attempt, event FROM queue
             WHERE hop = ?1 AND (visibleAt, id) > (?2, ?3) AND visibleAt <= ?4 ORDER BY visibleAt, id LIMIT ?5",
        )?;
        let mut due = due.query(params![hop, from.visible_at, from.id, now, column::limit(PAGE)])?;
        let (mut found, mut seen, mut upto) = (Vec::new(), 0, from);
        while let Some(row) = due.next()? {
            seen += 1;
            upto = Cursor { visible_at: row.get(1)?, id: row.get(0)? };
            if !known.contains(&upto.id.cast_unsigned()) {
                found.extend(read_row(row, hop)?);
            }
        }
        if seen < PAGE {
            let next = transaction
                .prepare_cached("SELECT min(visibleAt) FROM queue WHERE hop = ?1 AND visibleAt > ?2")?
                .query_row(params![hop, now], |row| row.get::<_, Option<i64>>(0))?;
            upto = next.map_or(Cursor::END, Cursor::before);
        }
        let mut state = lock(&self.shared.state);
        found.into_iter().for_each(|(row, attempt, event)| state.push(row, event, attempt));
        drop(state);
        self.upto = upto;
        Ok(())
    }
}

impl<T: Payload> Drop for Look<T> {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.is_looking = false;
            state.cursor = state.cursor.min(self.upto);
        });
    }
}

/// An event that can't be read stays where it is, for an operator to see, and holds up no other.
fn read_row<T: Payload>(row: &Row<'_>, hop: &str) -> rusqlite::Result<Option<(i64, u32, Event<T>)>> {
    let (id, attempt) = (row.get(0)?, row.get(2)?);
    match row.json(3) {
        Ok(event) => Ok(Some((id, attempt, event))),
        Err(error) => {
            tracing::error!(hop, row = id, %error, "an event in the queue can't be read; it stays there");
            Ok(None)
        }
    }
}

/// One receiver, as its receipts know it.
struct Holder<T: Payload> {
    shared: Arc<Shared<T>>,
    number: u64,
}

impl<T: Payload> fmt::Debug for Holder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holder")
            .field("hop", &self.shared.hop)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl<T: Payload> Holder<T> {
    /// Writes of rows in hand that they are gone, or, as the next attempt, due again at a moment.
    async fn write(&self, tags: Vec<u64>, again_at: Option<i64>) -> EngineResult<()> {
        let removed = lock(&self.shared.state).inbox.remove(self.number, tags);
        let rows: Vec<_> = removed.places.iter().map(|place| place.place.cast_signed()).collect();
        let leaving = Leaving { shared: self.shared.clone(), places: removed.places };
        if !rows.is_empty() {
            let write = move |transaction: &Transaction<'_>| match again_at {
                None => {
                    let mut delete = transaction.prepare_cached("DELETE FROM queue WHERE id = ?1")?;
                    rows.iter().try_for_each(|row| delete.execute([row]).map(drop))
                }
                Some(again_at) => {
                    let sql = "UPDATE queue SET visibleAt = ?2, attempt = attempt + 1 WHERE id = ?1";
                    let mut update = transaction.prepare_cached(sql)?;
                    rows.iter().try_for_each(|row| update.execute([*row, again_at]).map(drop))
                }
            };
            let then = move |written: &EngineResult<()>| {
                if written.is_ok() {
                    leaving.finish(again_at);
                }
            };
            // An acknowledgement that a power cut undoes brings its event again.
            let sync = if again_at.is_none() { Sync::Never } else { Sync::Always };
            self.shared.database.write_then(sync, write, then).await?;
        }
        if removed.some_are_gone { Err(super::not_in_hand()) } else { Ok(()) }
    }
}

#[async_trait]
impl<T: Payload> Acknowledge for Holder<T> {
    async fn ack(&self, tags: Vec<u64>) -> EngineResult<()> {
        self.write(tags, None).await
    }

    async fn retry(&self, tags: Vec<u64>, after: Duration) -> EngineResult<()> {
        let again_at = self.shared.clock.now().after(after).as_millis();
        self.write(tags, Some(again_at)).await
    }

    fn dropped(&self, tag: u64) {
        self.shared.change(|state| state.inbox.put_back(self.number, [tag]));
    }
}

/// Events whose acknowledgement or retry is being written. Dropped before it is finished, it lets them wait again.
struct Leaving<T: Payload> {
    shared: Arc<Shared<T>>,
    places: Vec<Place<T>>,
}

impl<T: Payload> Leaving<T> {
    fn finish(mut self, again_at: Option<i64>) {
        let places = std::mem::take(&mut self.places);
        self.shared.change(|state| {
            for place in &places {
                state.known.remove(&place.place);
            }
            let again = again_at.map_or(Cursor::END, Cursor::before);
            state.cursor = state.cursor.min(again);
        });
    }
}

impl<T: Payload> Drop for Leaving<T> {
    fn drop(&mut self) {
        if !self.places.is_empty() {
            let places = std::mem::take(&mut self.places);
            self.shared.change(|state| places.into_iter().for_each(|place| state.inbox.restore(place)));
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
        TableQueue::new("test", Arc::new(database), Clock::start())
    }

    #[tokio::test]
    async fn what_is_not_received_stays_in_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let queue = queue(&dir);
        let mut receiver = queue.receiver().await.unwrap();
        // Once it was looked for, what is sent goes straight to the receivers; but not all of it.
        queue.send(events(0..1)).await.unwrap();
        ack(receiver.receive(1).await.unwrap().into_iter().map(|delivery| delivery.receipt)).await.unwrap();
        for nth in 0..30 {
            queue.send(events(1 + nth * 100..1 + (nth + 1) * 100)).await.unwrap();
        }
        let mut received = Vec::new();
        while received.len() < 3_000 {
            let waiting = lock(&queue.0.state).inbox.waiting();
            assert!(waiting <= PAGE, "{waiting} wait in memory");
            let batch = receiver.receive(70).await.unwrap();
            received.extend(batch.iter().map(|delivery| delivery.event.payload.1));
            ack(batch.into_iter().map(|delivery| delivery.receipt)).await.unwrap();
        }
        assert_eq!(received, (1..3_001).collect::<Vec<_>>());
        assert!(lock(&queue.0.state).known.is_empty());
    }

    /// Looks, hand-overs and acknowledgements in every order that two receivers and a busy sender make of them.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_event_is_acknowledged_once_while_looks_and_hand_overs_alternate() {
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
                    let (mut done, mut receipts) = (Vec::new(), Vec::new());
                    for Delivery { event, attempt, receipt } in receiver.receive(1 + round % 9).await.unwrap()
                    {
                        match (event.payload.1 + round) % 4 {
                            0 => drop(receipt),
                            1 if attempt == 1 => retry([receipt], Duration::ZERO).await.unwrap(),
                            _ => {
                                done.push(event.payload.1);
                                receipts.push(receipt);
                            }
                        }
                    }
                    ack(receipts).await.unwrap();
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
        let rows = queue.0.database.read(|transaction| {
            transaction.query_row("SELECT count(*) FROM queue", [], |row| row.get::<_, i64>(0))
        });
        assert_eq!(rows.await.unwrap(), 0);
    }
}
