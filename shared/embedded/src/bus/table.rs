//! A durable hop: rows of one table, `queue`. A row is deleted when its event is settled, and nothing else is said of it on
//! disk while it is in somebody's hands: after a crash all that is unsettled comes again.
//!
//! Only one receiver at a time looks for due rows, and walks through them in the order of `(visibleAt, id)`. The
//! `Cursor` says how far it has come: whatever lies at or before it is in flight or was settled. Whoever puts a row
//! (back) before it says so by [`Hands::arrived`].
//!
//! A newest-only hop is the same in a table of its own, `newest`, from which a send that makes it too long takes the oldest
//! rows, in the same transaction. Rows may vanish like this while they are in somebody's hands: their numbers are not given
//! again, so a verdict on one of them meets nothing.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::bus::{Delivery, Ledger, Queue, Receipt, Receiver, Verdict};
use naru_engines::{EngineError, EngineResult};
use naru_model::hops::Payload;
use naru_model::{Event, Timestamp};
use rusqlite::{Row, Transaction, params};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::column::{self, Columns};
use crate::database::{Database, ENGINE, lock};

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

/// Where a hop's rows lie.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    name: &'static str,
    /// It keeps so many of the newest; none: all.
    most: Option<u32>,
}

/// For durable hops.
pub(crate) const DURABLE: Table = Table { name: "queue", most: None };

/// For newest-only hops, each of which keeps so many.
pub(crate) const fn newest(most: u32) -> Table {
    Table { name: "newest", most: Some(most) }
}

pub(crate) struct TableQueue<T> {
    shared: Arc<Shared>,
    payload: std::marker::PhantomData<fn() -> T>,
}

struct Shared {
    hop: &'static str,
    table: Table,
    database: Arc<Database>,
    clock: Clock,
    /// Whose turn it is to look, and how far the last look came.
    cursor: tokio::sync::Mutex<Cursor>,
    hands: Arc<Hands>,
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

/// What is in memory: the rows in somebody's hands.
struct Hands {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    /// By row.
    in_flight: HashMap<i64, InFlight>,
    /// The first place at which there may be a row that the cursor has passed.
    arrived: Cursor,
    next_receiver: u64,
}

struct InFlight {
    /// Who holds it; none when it is being settled.
    receiver: Option<u64>,
    visible_at: i64,
}

impl Hands {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A row may be due from `visible_at` on, and the cursor may have passed it.
    fn arrived(&self, visible_at: i64) {
        self.state().arrived(visible_at);
        self.changed.notify_one();
    }

    /// Gives back everything that `pick` names.
    fn give_back(&self, pick: impl Fn(i64, &InFlight) -> bool) {
        let mut state = self.state();
        let given: Vec<_> = state.in_flight.extract_if(|row, held| pick(*row, held)).collect();
        given.into_iter().for_each(|(_, held)| state.arrived(held.visible_at));
        drop(state);
        self.changed.notify_one();
    }
}

impl State {
    fn arrived(&mut self, visible_at: i64) {
        self.arrived = self.arrived.min(Cursor::before(visible_at));
    }
}

/// Rows on their way out of somebody's hands. Dropped before it is finished, it gives them back.
struct Settling {
    hands: Arc<Hands>,
    /// Each with the moment at which it comes again; none: never.
    rows: Vec<(i64, Option<i64>)>,
}

impl Settling {
    /// The table says what the verdicts said.
    fn finish(&mut self) {
        let mut state = self.hands.state();
        for (row, again_at) in self.rows.drain(..) {
            state.in_flight.remove(&row);
            again_at.into_iter().for_each(|visible_at| state.arrived(visible_at));
        }
        drop(state);
        self.hands.changed.notify_one();
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        if !self.rows.is_empty() {
            let rows: HashSet<_> = self.rows.drain(..).map(|(row, _)| row).collect();
            self.hands.give_back(|row, _| rows.contains(&row));
        }
    }
}

impl<T: Payload> TableQueue<T> {
    pub(crate) fn new(hop: &'static str, table: Table, database: Arc<Database>, clock: Clock) -> Self {
        let start = Cursor::before(i64::MIN);
        let state = State { in_flight: HashMap::new(), arrived: start, next_receiver: 0 };
        let hands = Arc::new(Hands { state: Mutex::new(state), changed: Notify::new() });
        let shared = Shared { hop, table, database, clock, cursor: tokio::sync::Mutex::new(start), hands };
        Self { shared: Arc::new(shared), payload: std::marker::PhantomData }
    }
}

impl<T: Payload> TableQueue<T> {
    async fn insert(&self, delay: Duration, events: Vec<Event<T>>) -> EngineResult<()> {
        let Shared { hop, table, database, clock, hands, .. } = &*self.shared;
        let (hop, table, hands) = (*hop, *table, hands.clone());
        let visible_at = clock.now().after(delay).as_millis();
        let rows = events.iter().map(|event| Ok((event.event_id, serde_json::to_string(event)?)));
        let rows = rows.collect::<Result<Vec<_>, serde_json::Error>>();
        let rows = rows.map_err(|error| EngineError::permanent(ENGINE, error))?;
        let insert = move |transaction: &Transaction<'_>| {
            let sql = format!(
                "INSERT INTO {} (hop, visibleAt, eventId, event) VALUES (?1, ?2, ?3, ?4)",
                table.name
            );
            let mut insert = transaction.prepare_cached(&sql)?;
            for (id, event) in &rows {
                insert.execute(params![hop, visible_at, id.0.as_bytes(), event])?;
            }
            table.most.map_or(Ok(()), |most| drop_oldest(transaction, hop, most))
        };
        let then = move |outcome: &EngineResult<()>| {
            if outcome.is_ok() {
                hands.arrived(visible_at);
            }
        };
        database.write_then(insert, then).await
    }
}

/// Leaves the newest. How many there are is counted by the schema's triggers: counting them here would cost the more the
/// longer nobody takes them.
fn drop_oldest(transaction: &Transaction<'_>, hop: &str, most: u32) -> rusqlite::Result<()> {
    let length = "SELECT length FROM newest_lengths WHERE hop = ?1";
    let length: i64 = transaction.prepare_cached(length)?.query_row([hop], |row| row.get(0))?;
    let too_many = length.saturating_sub(i64::from(most));
    if too_many > 0 {
        let sql =
            "DELETE FROM newest WHERE id IN (SELECT id FROM newest WHERE hop = ?1 ORDER BY id LIMIT ?2)";
        transaction.prepare_cached(sql)?.execute(params![hop, too_many])?;
    }
    Ok(())
}

#[async_trait]
impl<T: Payload> Queue<T> for TableQueue<T> {
    async fn send(&self, events: Vec<Event<T>>) -> EngineResult<()> {
        if events.is_empty() { Ok(()) } else { self.insert(Duration::ZERO, events).await }
    }

    async fn send_later(&self, delay: Duration, events: Vec<Event<T>>) -> EngineResult<()> {
        match self.shared.table.most {
            None => self.insert(delay, events).await,
            Some(_) => Err(super::not_for_later()),
        }
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>> {
        let mut state = self.shared.hands.state();
        state.next_receiver += 1;
        let ledger = TableLedger { shared: self.shared.clone(), receiver: state.next_receiver };
        Ok(Box::new(TableReceiver(Arc::new(ledger))))
    }
}

struct TableReceiver(Arc<TableLedger>);

#[async_trait]
impl<T: Payload> Receiver<T> for TableReceiver {
    async fn receive(&mut self, most: usize) -> EngineResult<Vec<Delivery<T>>> {
        let TableLedger { shared, receiver } = &*self.0;
        let mut cursor = shared.cursor.lock().await;
        loop {
            let now = shared.clock.now().as_millis();
            // Taken before the table is read: a row that is settled meanwhile is in here, and is not delivered again.
            let held: HashSet<_> = {
                let mut state = shared.hands.state();
                *cursor = std::mem::replace(&mut state.arrived, Cursor::END).min(*cursor);
                state.in_flight.keys().copied().collect()
            };
            if now < cursor.visible_at {
                let wait = Duration::from_millis(cursor.visible_at.abs_diff(now));
                // Whether it changed or was waited for long enough: look again.
                let _ = tokio::time::timeout(wait, shared.hands.changed.notified()).await;
                continue;
            }
            let (hop, table, from) = (shared.hop, shared.table, *cursor);
            let found = shared
                .database
                .read(move |transaction| look(transaction, table, hop, from, now, most, &held))
                .await?;
            // No wait from here on: cancelled before, nothing has happened.
            *cursor = found.upto;
            if found.rows.is_empty() {
                continue;
            }
            let mut state = shared.hands.state();
            let deliver = |Found { row, visible_at, attempt, event }| {
                state.in_flight.insert(row, InFlight { receiver: Some(*receiver), visible_at });
                Delivery { event, attempt, receipt: Receipt::new(row.cast_unsigned(), self.0.clone()) }
            };
            return Ok(found.rows.into_iter().map(deliver).collect());
        }
    }
}

impl Drop for TableReceiver {
    fn drop(&mut self) {
        self.0.shared.hands.give_back(|_, held| held.receiver == Some(self.0.receiver));
    }
}

struct Look<T: Payload> {
    rows: Vec<Found<T>>,
    upto: Cursor,
}

struct Found<T: Payload> {
    row: i64,
    visible_at: i64,
    attempt: u32,
    event: Event<T>,
}

/// The due rows after `from` that nobody holds: at most `most`, and at most a page of the table.
fn look<T: Payload>(
    transaction: &Transaction<'_>,
    table: Table,
    hop: &str,
    from: Cursor,
    now: i64,
    most: usize,
    held: &HashSet<i64>,
) -> rusqlite::Result<Look<T>> {
    const PAGE: usize = 1024;
    let page = most.clamp(1, PAGE);
    let sql = format!(
        "SELECT id, visibleAt, attempt, event FROM {}
         WHERE hop = ?1 AND (visibleAt, id) > (?2, ?3) AND visibleAt <= ?4 ORDER BY visibleAt, id LIMIT ?5",
        table.name
    );
    let mut due = transaction.prepare_cached(&sql)?;
    let mut due = due.query(params![hop, from.visible_at, from.id, now, column::limit(page)])?;
    let (mut rows, mut seen, mut upto) = (Vec::new(), 0, from);
    while let Some(row) = due.next()? {
        seen += 1;
        upto = Cursor { visible_at: row.get(1)?, id: row.get(0)? };
        if !held.contains(&upto.id) {
            rows.extend(read_row(row, hop)?);
        }
    }
    if seen < page {
        let sql = format!("SELECT min(visibleAt) FROM {} WHERE hop = ?1 AND visibleAt > ?2", table.name);
        let next = transaction
            .prepare_cached(&sql)?
            .query_row(params![hop, now], |row| row.get::<_, Option<i64>>(0))?;
        upto = next.map_or(Cursor::END, Cursor::before);
    }
    Ok(Look { rows, upto })
}

/// An event that can't be read stays where it is, for an operator to see, and holds up no other.
fn read_row<T: Payload>(row: &Row<'_>, hop: &str) -> rusqlite::Result<Option<Found<T>>> {
    let (id, visible_at, attempt) = (row.get(0)?, row.get(1)?, row.get(2)?);
    match row.json(3) {
        Ok(event) => Ok(Some(Found { row: id, visible_at, attempt, event })),
        Err(error) => {
            tracing::error!(hop, row = id, %error, "an event in the queue can't be read; it stays there");
            Ok(None)
        }
    }
}

/// What one receiver holds. A delivery's tag is its row.
struct TableLedger {
    shared: Arc<Shared>,
    receiver: u64,
}

impl fmt::Debug for TableLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shared, receiver } = self;
        f.debug_struct("TableLedger")
            .field("hop", &shared.hop)
            .field("receiver", receiver)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Ledger for TableLedger {
    async fn settle(&self, verdicts: Vec<(u64, Verdict)>) -> EngineResult<()> {
        let Shared { table, database, clock, hands, .. } = &*self.shared;
        let (table, now) = (*table, clock.now());
        let mut settling = Settling { hands: hands.clone(), rows: Vec::with_capacity(verdicts.len()) };
        let (mut given, mut unknown) = (HashSet::new(), false);
        {
            let mut state = hands.state();
            for (tag, verdict) in verdicts {
                let row = tag.cast_signed();
                let held = state.in_flight.get_mut(&row).filter(|held| held.receiver == Some(self.receiver));
                match (held, verdict) {
                    (Some(_), Verdict::GiveBack) => drop(given.insert(row)),
                    (Some(held), Verdict::Done | Verdict::RetryAfter(_)) => {
                        held.receiver = None;
                        let again_at = |delay| now.after(delay).as_millis();
                        let delay = if let Verdict::RetryAfter(delay) = verdict { Some(delay) } else { None };
                        settling.rows.push((row, delay.map(again_at)));
                    }
                    (None, verdict) => unknown |= verdict != Verdict::GiveBack,
                }
            }
        }
        if !given.is_empty() {
            hands.give_back(|row, _| given.contains(&row));
        }
        if !settling.rows.is_empty() {
            let rows = settling.rows.clone();
            let work = move |transaction: &Transaction<'_>| settle(transaction, table, &rows);
            let then = move |outcome: &EngineResult<()>| {
                if outcome.is_ok() {
                    settling.finish();
                }
            };
            database.write_then(work, then).await?;
        }
        if unknown { Err(super::given_back()) } else { Ok(()) }
    }

    fn dropped(&self, tag: u64) {
        self.shared
            .hands
            .give_back(|row, held| row == tag.cast_signed() && held.receiver == Some(self.receiver));
    }
}

fn settle(transaction: &Transaction<'_>, table: Table, rows: &[(i64, Option<i64>)]) -> rusqlite::Result<()> {
    let table = table.name;
    let mut done = transaction.prepare_cached(&format!("DELETE FROM {table} WHERE id = ?1"))?;
    let sql = format!("UPDATE {table} SET visibleAt = ?2, attempt = attempt + 1 WHERE id = ?1");
    let mut retry = transaction.prepare_cached(&sql)?;
    for (row, again_at) in rows {
        match again_at {
            None => done.execute([row])?,
            Some(again_at) => retry.execute([row, again_at])?,
        };
    }
    Ok(())
}
