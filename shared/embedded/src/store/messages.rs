//! `chat_messages`.

use std::collections::HashMap;

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::store::{Messages, RunConflict, RunResult, Window, activity_after};
use naru_model::{Message, MessageId, RoomId, Seq, Timestamp, UserId};
use rusqlite::{Connection, OptionalExtension, Result, params};

use crate::column::{self, Columns, message_columns};
use crate::database::Database;
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

    /// Nothing to do: lists are computed from `chat_messages` when they are asked for.
    async fn bump(&self, _: &[Message]) -> EngineResult<()> {
        Ok(())
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
