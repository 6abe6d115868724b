//! `chat_messages`.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::store::{Messages, RunConflict, RunResult, Walked, Window, activity_after};
use naru_model::{Message, MessageId, RoomId, Seq, Timestamp, UserId};
use rusqlite::{Connection, OptionalExtension, Result, Row, Transaction, params};

use crate::column::{self, Columns, message_columns};
use crate::database::{Database, Sync};
use crate::store::head;

#[async_trait]
impl Messages for Database {
    async fn find(&self, ids: &[MessageId]) -> EngineResult<Vec<Option<Message>>> {
        let ids = ids.to_vec();
        self.read(move |transaction| ids.iter().map(|id| find(transaction, *id)).collect()).await
    }

    async fn heads(&self, rooms: &[RoomId]) -> EngineResult<Vec<Seq>> {
        let rooms = rooms.to_vec();
        self.read(move |transaction| {
            let heads = rooms.iter().map(|room| head(transaction, room).map(|head| Seq(head.unsigned_abs())));
            heads.collect()
        })
        .await
    }

    async fn append_run(&self, run: &[Message]) -> EngineResult<RunResult> {
        let run = run.to_vec();
        self.write(move |transaction| append_run(transaction, &run)).await
    }

    /// No call at all as long as no list is kept: see `lists.rs`.
    async fn bump(&self, newest: &[Message]) -> EngineResult<()> {
        self.move_up(newest).await
    }

    async fn range(&self, room: &RoomId, window: Window, limit: usize) -> EngineResult<(Vec<Message>, bool)> {
        let room = room.clone();
        self.read(move |transaction| range(transaction, &room, window, limit)).await
    }

    async fn delete(&self, ids: &[MessageId], at: Timestamp) -> EngineResult<()> {
        let ids = ids.to_vec();
        self.write(move |transaction| {
            let sql = "UPDATE chat_messages SET senderName = '', content = '', deletedAt = ?2
                WHERE _id = ?1 AND deletedAt IS NULL";
            let mut delete = transaction.prepare_cached(sql)?;
            ids.iter().try_for_each(|id| delete.execute(params![id.bytes(), at.as_millis()]).map(drop))
        })
        .await
    }

    /// Not synced: what a power cut brings back is removed by the next walk.
    async fn expire(
        &self,
        after: Option<MessageId>,
        before: Timestamp,
        limit: usize,
    ) -> EngineResult<Walked> {
        let expire = move |transaction: &Transaction<'_>| expire(transaction, after, before, limit);
        self.write_then(Sync::Never, expire, |_| {}).await
    }
}

fn expire(
    connection: &Connection,
    after: Option<MessageId>,
    before: Timestamp,
    limit: usize,
) -> Result<Walked> {
    let sql = "SELECT _id, chatRoomId, seq, timestamp < ?3
            AND NOT EXISTS (SELECT 1 FROM intake WHERE intake._id = chat_messages._id AND open = 1)
        FROM chat_messages WHERE _id > ?1 AND _id < ?2 ORDER BY _id LIMIT ?4";
    let range = params![
        after.unwrap_or(MessageId::from_bytes([0; 12])).bytes(),
        MessageId::first_at(before).bytes(),
        before.as_millis(),
        column::limit(limit)
    ];
    let old = |row: &Row<'_>| {
        Ok((row.message_id(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?, row.get::<_, bool>(3)?))
    };
    let mut walk = connection.prepare_cached(sql)?;
    let old = walk.query_map(range, old)?.collect::<Result<Vec<_>>>()?;
    let mut rooms: HashMap<&str, HashSet<i64>> = HashMap::new();
    for (_, room, seq, _) in old.iter().filter(|(.., may_expire)| *may_expire) {
        rooms.entry(room).or_default().insert(*seq);
    }
    let mut ends = connection.prepare_cached(
        "SELECT (SELECT min(seq) FROM chat_messages WHERE chatRoomId = ?1),
            (SELECT max(seq) FROM chat_messages WHERE chatRoomId = ?1)",
    )?;
    let mut remove = connection
        .prepare_cached("DELETE FROM chat_messages WHERE chatRoomId = ?1 AND seq BETWEEN ?2 AND ?3")?;
    let mut bury = connection.prepare_cached(
        "UPDATE chat_messages SET senderName = '', content = '', deletedAt = ?3
            WHERE chatRoomId = ?1 AND seq = ?2 AND deletedAt IS NULL",
    )?;
    let mut note = connection
        .prepare_cached("UPDATE chat_rooms SET expiredTo = ?2 WHERE _id = ?1 AND expiredTo < ?2")?;
    let (mut removed, now) = (0, Timestamp::now().as_millis());
    for (room, places) in rooms {
        let (first, head): (i64, i64) = ends.query_row([room], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let Some(last) = (first..).take_while(|seq| places.contains(seq)).last() else { continue };
        removed += remove.execute(params![room, first, last.min(head - 1)])? as u64;
        if last == head {
            bury.execute(params![room, head, now])?;
        }
        note.execute(params![room, last])?;
    }
    Ok(Walked { removed, next: old.last().filter(|_| old.len() == limit).map(|(id, ..)| *id) })
}

fn find(connection: &Connection, id: MessageId) -> Result<Option<Message>> {
    let sql = concat!("SELECT ", message_columns!(), " FROM chat_messages WHERE _id = ?1");
    connection.prepare_cached(sql)?.query_row([id.bytes()], column::message).optional()
}

/// In one transaction: readers see the prefix and its senders' read positions at once, or nothing.
fn append_run(connection: &Connection, run: &[Message]) -> Result<RunResult> {
    let sql = concat!(
        "INSERT INTO chat_messages (",
        message_columns!(),
        ", activity) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO NOTHING"
    );
    let mut insert = connection.prepare_cached(sql)?;
    let mut latest = latest_activity(connection)?;
    // A send advances its sender's read position.
    let mut read: HashMap<(&RoomId, &UserId), Seq> = HashMap::new();
    let (mut stored, mut stopped_by) = (0, None);
    for message in run {
        let activity = activity_after(latest, message.timestamp);
        let added = insert.execute(params![
            message.id.bytes(),
            message.chat_room_id.as_str(),
            column::place(message.seq),
            message.sender_id.as_str(),
            message.sender_name,
            message.content,
            message.timestamp.as_millis(),
            message.client_message_id.as_str(),
            message.deleted_at.map(Timestamp::as_millis),
            activity.as_millis(),
        ])?;
        if added == 0 {
            let saved = find(connection, message.id)?;
            stopped_by = Some(saved.map_or(RunConflict::SeqTaken, RunConflict::AlreadySaved));
            break;
        }
        stored += 1;
        latest = activity;
        let up_to = read.entry((&message.chat_room_id, &message.sender_id)).or_default();
        *up_to = message.seq.max(*up_to);
    }

    let sql = "UPDATE members SET read = ?3 WHERE chatRoomId = ?1 AND userId = ?2 AND read < ?3";
    let mut advance = connection.prepare_cached(sql)?;
    for ((room, sender), seq) in read {
        advance.execute(params![room.as_str(), sender.as_str(), column::place(seq)])?;
    }
    Ok(RunResult { stored, stopped_by })
}

/// The activity of the message that was saved last, which is the latest one.
pub(super) fn latest_activity(connection: &Connection) -> Result<Timestamp> {
    let sql = "SELECT activity FROM chat_messages ORDER BY rowid DESC LIMIT 1";
    let latest = connection.prepare_cached(sql)?.query_row([], |row| row.time(0)).optional()?;
    Ok(latest.unwrap_or(Timestamp::from_millis(0)))
}

fn range(
    connection: &Connection,
    room: &RoomId,
    window: Window,
    limit: usize,
) -> Result<(Vec<Message>, bool)> {
    let (sql, seq) = match window {
        Window::After(seq) => (
            concat!(
                "SELECT ",
                message_columns!(),
                " FROM chat_messages WHERE chatRoomId = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3"
            ),
            seq,
        ),
        Window::Before(_) | Window::Latest => (
            concat!(
                "SELECT ",
                message_columns!(),
                " FROM chat_messages WHERE chatRoomId = ?1 AND seq < ?2 ORDER BY seq DESC LIMIT ?3"
            ),
            if let Window::Before(seq) = window { seq } else { Seq(u64::MAX) },
        ),
    };
    // One more row than requested shows whether there are more.
    let max = column::limit(limit.saturating_add(1));
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(params![room.as_str(), column::place(seq), max], column::message)?;
    let mut messages = rows.collect::<Result<Vec<_>>>()?;
    let more = messages.len() > limit;
    messages.truncate(limit);
    Ok((messages, more))
}
