//! The list of a user's rooms, latest activity first, at a cost that the page decides and not the number of rooms.
//!
//! The place of a room in the list is its activity: of its newest message, or of its making. It is computed when the list is
//! asked for, with a step in an index for each room, as long as the user is in few rooms. Of a user who is in more of them the
//! places are kept, in `memberships.activity`: an index has them in the order of the list, and `bump` moves them. Rooms that
//! such a user joins later are computed again until they are too many. So a message costs nothing more where no member is in
//! very many rooms, and a row for each such member where one is.
//!
//! What if the process dies in between? A place that was kept counts, a room without one is computed; the list that is asked
//! for next goes on. The bump of a message is repeated: its intake entry is closed after it.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use naru_engines::EngineResult;
use naru_engines::store::{RoomCursor, RoomSummary, Rooms as _};
use naru_model::{Message, RoomId, Timestamp, UserId};
use rusqlite::{Connection, OptionalExtension, Result, Row, Transaction, params};
use tokio::sync::Mutex;

use crate::column::{self, Columns};
use crate::database::{Database, Sync};
use crate::store::rooms::summary;

/// How many of a user's places are computed at most, unless the options say otherwise.
pub(crate) const COMPUTED: usize = 500;
/// How many places one command of the writer writes, and how many rooms it looks at to move them: no other command waits
/// longer than that takes.
const AT_ONCE: usize = 100;
const ROOMS_AT_ONCE: usize = 500;

/// The places of a user's rooms that are not kept.
const COMPUTE: &str = "SELECT room._id, coalesce(
         (SELECT activity FROM chat_messages WHERE chatRoomId = room._id ORDER BY seq DESC LIMIT 1), room.createdAt)
     FROM memberships INDEXED BY memberships_of_user JOIN chat_rooms room ON room._id = memberships.chatRoomId
     WHERE memberships.userId = ?1 AND memberships.until IS NULL AND memberships.activity IS NULL LIMIT ?2";
/// The places that are kept, from after a place in the list.
const WALK: &str = "SELECT chatRoomId, activity FROM memberships INDEXED BY memberships_of_user
     WHERE userId = ?1 AND until IS NULL AND activity IS NOT NULL AND (activity, chatRoomId) < (?2, ?3)
     ORDER BY activity DESC, chatRoomId DESC LIMIT ?4";
const KEEP: &str = "UPDATE memberships SET activity = (SELECT coalesce(
         (SELECT activity FROM chat_messages WHERE chatRoomId = room._id ORDER BY seq DESC LIMIT 1), room.createdAt)
         FROM chat_rooms room WHERE room._id = memberships.chatRoomId)
     WHERE userId = ?1 AND until IS NULL AND chatRoomId IN (
         SELECT other.chatRoomId FROM memberships other INDEXED BY memberships_of_user
         JOIN chat_rooms room ON room._id = other.chatRoomId
         WHERE other.userId = ?1 AND other.until IS NULL AND other.activity IS NULL LIMIT ?2)";
const MOVE: &str = "UPDATE memberships INDEXED BY memberships_kept SET activity = ?2
     WHERE chatRoomId = ?1 AND until IS NULL AND activity IS NOT NULL AND activity < ?2 AND userId IN (
         SELECT userId FROM memberships INDEXED BY memberships_kept
         WHERE chatRoomId = ?1 AND until IS NULL AND activity IS NOT NULL AND activity < ?2 LIMIT ?3)";

/// How lists are made.
#[derive(Default)]
pub(crate) struct Lists {
    /// How many of a user's places are computed at most.
    pub(crate) computed: usize,
    /// Whether any are kept. Set before the first one is: the bump of a message that was saved before sees it, or the place
    /// is computed from that message.
    are_kept: AtomicBool,
    /// For one user at a time.
    keeping: Mutex<()>,
}

impl Lists {
    pub(crate) fn open(connection: &Connection) -> Result<Self> {
        let kept = "SELECT 1 FROM memberships INDEXED BY memberships_kept WHERE until IS NULL AND activity IS NOT NULL";
        let are_kept = connection.prepare(kept)?.exists([])?;
        Ok(Self { computed: COMPUTED, are_kept: are_kept.into(), keeping: Mutex::default() })
    }
}

impl Database {
    /// A page of a user's rooms.
    pub(super) async fn list(
        &self,
        user: &UserId,
        cursor: Option<&RoomCursor>,
        limit: usize,
    ) -> EngineResult<(Vec<RoomSummary>, Option<RoomCursor>)> {
        let (mut places, more) = loop {
            let (whose, cursor, computed) = (user.clone(), cursor.cloned(), self.lists.computed);
            let page = move |transaction: &Transaction<'_>| {
                page(transaction, &whose, cursor.as_ref(), limit, computed)
            };
            match self.read(page).await? {
                Some(page) => break page,
                None => self.keep_places(user).await?,
            }
        };
        let ids: Vec<RoomId> = places.iter().map(|place| place.room.clone()).collect();
        let (rooms, reader) = (self.current(&ids).await?, user.clone());
        let summaries = self.read(move |transaction| {
            let rooms = rooms.into_iter().flatten().filter(|room| room.has(&reader));
            rooms.map(|room| summary(transaction, room, &reader)).collect::<Result<_>>()
        });
        Ok((summaries.await?, places.pop().filter(|_| more)))
    }

    /// Keeps the places of all of a user's rooms: once for each user who is in so many. Other commands come in between.
    async fn keep_places(&self, user: &UserId) -> EngineResult<()> {
        let _turn = self.lists.keeping.lock().await;
        self.lists.are_kept.store(true, Ordering::SeqCst);
        loop {
            let user = user.clone();
            let keep = move |transaction: &Transaction<'_>| {
                transaction.prepare_cached(KEEP)?.execute(params![user.as_str(), column::limit(AT_ONCE)])
            };
            if self.write_then(Sync::Never, keep, |_| {}).await? < AT_ONCE {
                return Ok(());
            }
        }
    }

    /// Moves rooms to where their newest messages put them, in the lists that are kept.
    pub(super) async fn move_up(&self, newest: &[Message]) -> EngineResult<()> {
        if newest.is_empty() || !self.lists.are_kept.load(Ordering::SeqCst) {
            return Ok(());
        }
        let rooms: Arc<[RoomId]> = newest.iter().map(|message| message.chat_room_id.clone()).collect();
        // Those before it are where they belong.
        let mut next = 0;
        while next < rooms.len() {
            let rooms = rooms.clone();
            let some = move |transaction: &Transaction<'_>| move_some(transaction, &rooms, next);
            next = self.write_then(Sync::Never, some, |_| {}).await?;
        }
        Ok(())
    }
}

fn place(row: &Row<'_>) -> Result<RoomCursor> {
    Ok(RoomCursor { room: row.text(0)?, activity: row.time(1)? })
}

/// The places of a page, and whether there are more; none when too many of the user's would have to be computed.
fn page(
    connection: &Connection,
    user: &UserId,
    cursor: Option<&RoomCursor>,
    limit: usize,
    computed: usize,
) -> Result<Option<(Vec<RoomCursor>, bool)>> {
    let mut compute = connection.prepare_cached(COMPUTE)?;
    let max = column::limit(computed.saturating_add(1));
    let mut places = compute.query_map(params![user.as_str(), max], place)?.collect::<Result<Vec<_>>>()?;
    if places.len() > computed {
        return Ok(None);
    }
    let order = |place: &RoomCursor| (place.activity, place.room.clone());
    if let Some(cursor) = cursor {
        places.retain(|place| order(place) < order(cursor));
    }
    let (activity, after) = cursor.map_or((i64::MAX, ""), |at| (at.activity.as_millis(), at.room.as_str()));
    let mut walk = connection.prepare_cached(WALK)?;
    let range = params![user.as_str(), activity, after, column::limit(limit.saturating_add(1))];
    for kept in walk.query_map(range, place)? {
        places.push(kept?);
    }
    places.sort_by_cached_key(|place| Reverse(order(place)));
    let more = places.len() > limit;
    places.truncate(limit);
    Ok(Some((places, more)))
}

/// Moves the rooms from this one on, as many as one command takes; returns the first that is left.
fn move_some(connection: &Connection, rooms: &[RoomId], first: usize) -> Result<usize> {
    let sql = "SELECT activity FROM chat_messages WHERE chatRoomId = ?1 ORDER BY seq DESC LIMIT 1";
    let mut newest = connection.prepare_cached(sql)?;
    let mut move_up = connection.prepare_cached(MOVE)?;
    let end = rooms.len().min(first + ROOMS_AT_ONCE);
    let mut left = AT_ONCE;
    for (number, room) in rooms.iter().enumerate().take(end).skip(first) {
        let activity = |row: &Row<'_>| row.time(0).map(Timestamp::as_millis);
        let Some(activity) = newest.query_row([room.as_str()], activity).optional()? else { continue };
        left -= move_up.execute(params![room.as_str(), activity, column::limit(left)])?;
        if left == 0 {
            return Ok(number);
        }
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    /// A user in this many rooms with a message each, whose places are kept, and in as many as may be without.
    fn database(kept: i64) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../schema.sql")).unwrap();
        let rooms =
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)";
        let make = |sql: &str, rooms_of: &str, count: i64| {
            connection.execute(&format!("{rooms} {sql}").replace("ROOM", rooms_of), [count]).unwrap();
        };
        for (rooms_of, count) in [("'kept' || n", kept), ("'new' || n", column::limit(COMPUTED))] {
            make("INSERT INTO chat_rooms (_id, createdAt) SELECT ROOM, n FROM numbers", rooms_of, count);
            make(
                "INSERT INTO memberships (chatRoomId, userId, since) SELECT ROOM, 'ada', 1 FROM numbers",
                rooms_of,
                count,
            );
            let message = "INSERT INTO chat_messages (chatRoomId, seq, _id, senderId, senderName, content, timestamp, clientMessageId, activity) SELECT ROOM, 1, randomblob(12), 'ada', 'Ada', 'hi', n, n, 2 * n FROM numbers";
            make(message, rooms_of, count);
            if rooms_of.starts_with("'kept") {
                while connection.execute(KEEP, params!["ada", 500]).unwrap() == 500 {}
            }
        }
        connection
    }

    /// How many steps of SQLite's virtual machine the statements of lists have taken.
    fn steps(connection: &Connection) -> i32 {
        let statements = [COMPUTE, WALK].map(|sql| connection.prepare_cached(sql).unwrap());
        statements.iter().map(|statement| statement.reset_status(StatementStatus::VmStep)).sum()
    }

    #[test]
    fn a_page_costs_the_same_in_ten_times_as_many_rooms() {
        let ada = UserId::new("ada").unwrap();
        let cost = |rooms| {
            let connection = database(rooms);
            let mut cursor = None;
            // The third page, so that the cursor counts, too.
            for _ in 0..3 {
                steps(&connection);
                let (places, more) = page(&connection, &ada, cursor.as_ref(), 50, COMPUTED).unwrap().unwrap();
                assert!(more && places.len() == 50);
                cursor = places.last().cloned();
            }
            steps(&connection)
        };
        let (few, many) = (cost(1_000), cost(10_000));
        assert!(many <= few + few / 10, "{few} steps in 1,000 rooms, {many} in 10,000");
    }

    /// Each statement searches an index and sorts nothing.
    #[test]
    fn no_statement_scans_or_sorts() {
        let connection = database(1);
        for sql in [COMPUTE, WALK, MOVE, KEEP] {
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let nothing = (0..plan.parameter_count()).map(|_| rusqlite::types::Null);
            let steps =
                plan.query_map(rusqlite::params_from_iter(nothing), |row| row.get::<_, String>(3)).unwrap();
            let steps: Vec<String> = steps.collect::<Result<_>>().unwrap();
            let is_bad = |step: &String| step.starts_with("SCAN") || step.contains("TEMP B-TREE");
            assert!(!steps.is_empty() && !steps.iter().any(is_bad), "{sql}\n{steps:#?}");
        }
    }
}
