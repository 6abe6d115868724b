//! The intake.

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::store::{
    Appended, Closing, Intake, IntakePlace, IntakeRecord, OpenEntry, OpenPage, Walked, after_first_tries,
};
use naru_model::hops::Accepted;
use naru_model::message::Outcome;
use naru_model::{ClientMessageId, MessageId, RoomId, Timestamp, UserId};
use rusqlite::{Connection, OptionalExtension, Params, Result, Row, Transaction, params};

use crate::column::{self, Columns, accepted_columns};
use crate::database::{Database, Sync};

const SAVED: &str = "saved";
/// How many columns `accepted_columns!` are; other ones come after them.
const ACCEPTED_COLUMNS: usize = 10;

#[async_trait]
impl Intake for Database {
    async fn append(&self, entries: &[Accepted]) -> EngineResult<Vec<Appended>> {
        let entries = entries.to_vec();
        let append = move |transaction: &Transaction<'_>| {
            let answers =
                entries.iter().map(|entry| append(transaction, entry)).collect::<Result<Vec<_>>>()?;
            for (id, first) in after_first_tries(&entries, &answers) {
                let mut correct =
                    transaction.prepare_cached("UPDATE intake SET after = ?2 WHERE _id = ?1")?;
                correct.execute(params![id.bytes(), first.bytes()])?;
            }
            Ok(answers)
        };
        self.write_then(Sync::When(|answers: &Vec<_>| answers.contains(&Appended::Conflict)), append, |_| {})
            .await
    }

    async fn find(&self, entries: &[Accepted]) -> EngineResult<Vec<Option<IntakeRecord>>> {
        let entries = entries.to_vec();
        self.read(move |transaction| entries.iter().map(|entry| by_key(transaction, entry)).collect()).await
    }

    async fn get(&self, ids: &[MessageId]) -> EngineResult<Vec<Option<IntakeRecord>>> {
        let ids = ids.to_vec();
        self.read(move |transaction| ids.iter().map(|id| by_id(transaction, *id)).collect()).await
    }

    async fn open(
        &self,
        after: Option<IntakePlace>,
        up_to: Option<IntakePlace>,
        limit: usize,
    ) -> EngineResult<OpenPage> {
        self.read(move |transaction| {
            // The index holds only open entries.
            let sql = concat!(
                "SELECT ",
                accepted_columns!(),
                ", position FROM intake INDEXED BY intake_open
                WHERE open = 1 AND position > ?1 AND position <= ?2 ORDER BY position LIMIT ?3"
            );
            let tick = |place: IntakePlace| place.0.cast_signed();
            let range = params![after.map_or(0, tick), up_to.map_or(i64::MAX, tick), column::limit(limit)];
            let mut open = transaction.prepare_cached(sql)?;
            let entry = |row: &Row<'_>| {
                Ok(OpenEntry { place: place(row.get(ACCEPTED_COLUMNS)?), accepted: column::accepted(row)? })
            };
            let entries = open.query_map(range, entry)?.collect::<Result<Vec<_>>>()?;
            let next = entries.last().filter(|_| entries.len() == limit).map(|last| last.place);
            Ok(OpenPage { entries, next })
        })
        .await
    }

    async fn newest_open(&self) -> EngineResult<Option<IntakePlace>> {
        self.read(|transaction| {
            let sql = "SELECT max(position) FROM intake INDEXED BY intake_open WHERE open = 1";
            let newest =
                transaction.prepare_cached(sql)?.query_row([], |row| row.get::<_, Option<i64>>(0))?;
            Ok(newest.map(place))
        })
        .await
    }

    async fn close(&self, closings: &[Closing]) -> EngineResult<()> {
        let closings = closings.to_vec();
        let is_saved = |closing: &Closing| matches!(closing.outcome, Outcome::Saved { .. });
        let sync = if closings.iter().all(is_saved) { Sync::Never } else { Sync::Always };
        let close = move |transaction: &Transaction<'_>| {
            let sql = "UPDATE intake SET open = 0, outcome = ?2, seq = ?3 WHERE _id = ?1 AND open = 1";
            let mut close = transaction.prepare_cached(sql)?;
            for Closing { id, outcome } in &closings {
                match outcome {
                    Outcome::Saved { seq } => {
                        close.execute(params![id.bytes(), SAVED, column::place(*seq)])?
                    }
                    Outcome::Rejected { reason } => {
                        close.execute(params![id.bytes(), column::word(reason)?, None::<i64>])?
                    }
                };
            }
            Ok(())
        };
        self.write_then(sync, close, |_| {}).await
    }

    async fn drop_contents(&self, ids: &[MessageId]) -> EngineResult<()> {
        let ids = ids.to_vec();
        self.write(move |transaction| {
            let sql = "UPDATE intake SET senderName = NULL, content = NULL WHERE _id = ?1 AND open = 0";
            let mut drop_content = transaction.prepare_cached(sql)?;
            ids.iter().try_for_each(|id| drop_content.execute([id.bytes()]).map(drop))
        })
        .await
    }

    /// Not synced: a power cut brings back the contents together with the note of how far they were dropped.
    async fn forget_contents(
        &self,
        after: Option<MessageId>,
        before: Timestamp,
        limit: usize,
    ) -> EngineResult<Walked> {
        let forget = move |transaction: &Transaction<'_>| forget_contents(transaction, after, before, limit);
        self.write_then(Sync::Never, forget, |_| {}).await
    }

    async fn of_sender(
        &self,
        room: &RoomId,
        sender: &UserId,
        after: Option<&ClientMessageId>,
        limit: usize,
    ) -> EngineResult<Vec<IntakeRecord>> {
        let (room, sender, after) = (room.clone(), sender.clone(), after.cloned());
        self.read(move |transaction| {
            let sql = concat!(
                "SELECT ",
                accepted_columns!(),
                ", outcome, seq FROM intake WHERE chatRoomId = ?1 AND senderId = ?2 AND clientMessageId > ?3
                ORDER BY clientMessageId LIMIT ?4"
            );
            let after = after.as_ref().map_or("", |after| after.as_str());
            let range = params![room.as_str(), sender.as_str(), after, column::limit(limit)];
            transaction.prepare_cached(sql)?.query_map(range, record)?.collect()
        })
        .await
    }
}

fn forget_contents(
    connection: &Connection,
    after: Option<MessageId>,
    before: Timestamp,
    limit: usize,
) -> Result<Walked> {
    let sql = "SELECT upTo FROM contents_dropped";
    let dropped = connection.prepare_cached(sql)?.query_row([], |row| row.message_id(0)).optional()?;
    let dropped = dropped.unwrap_or(MessageId::from_bytes([0; 12]));
    let after = after.unwrap_or(dropped);
    let sql = "SELECT _id, open, content IS NOT NULL FROM intake
        WHERE _id > ?1 AND _id < ?2 ORDER BY _id LIMIT ?3";
    let range = params![after.bytes(), MessageId::first_at(before).bytes(), column::limit(limit)];
    let entry = |row: &Row<'_>| Ok((row.message_id(0)?, row.get::<_, bool>(1)?, row.get::<_, bool>(2)?));
    let mut walk = connection.prepare_cached(sql)?;
    let entries = walk.query_map(range, entry)?.collect::<Result<Vec<_>>>()?;
    let mut forget =
        connection.prepare_cached("UPDATE intake SET senderName = NULL, content = NULL WHERE _id = ?1")?;
    let mut removed = 0;
    for (id, ..) in entries.iter().filter(|(_, is_open, has_content)| !is_open && *has_content) {
        removed += forget.execute([id.bytes()])? as u64;
    }
    let done = entries.iter().take_while(|(_, is_open, _)| !is_open).last();
    if let Some((done, ..)) = done.filter(|_| after == dropped) {
        let sql = "INSERT INTO contents_dropped (only, upTo) VALUES (1, ?1)
            ON CONFLICT DO UPDATE SET upTo = excluded.upTo";
        connection.prepare_cached(sql)?.execute([done.bytes()])?;
    }
    Ok(Walked { removed, next: entries.last().filter(|_| entries.len() == limit).map(|(id, ..)| *id) })
}

fn append(connection: &Connection, entry: &Accepted) -> Result<Appended> {
    let sql = concat!(
        "INSERT INTO intake (",
        accepted_columns!(),
        ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO NOTHING"
    );
    let added = connection.prepare_cached(sql)?.execute(params![
        entry.id.bytes(),
        entry.chat_room_id.as_str(),
        entry.sender_id.as_str(),
        entry.sender_name,
        entry.content,
        entry.timestamp.as_millis(),
        entry.client_message_id.as_str(),
        entry.after.map(|id| id.bytes()),
        entry.origin.as_ref().map(column::json).transpose()?,
        entry.trace.to_string(),
    ])?;
    if added == 1 {
        return Ok(Appended::New);
    }
    // Its key or its id exists. An id that exists under another key is another message.
    Ok(match by_key(connection, entry)? {
        Some(first) if first.is_resent_by(entry) => match first.outcome {
            Some(Outcome::Rejected { .. }) => reopen(connection, first.accepted.id, entry)?,
            _ => Appended::Resend(Box::new(first)),
        },
        _ => Appended::Conflict,
    })
}

/// Its key, its id and its place in the order stay.
fn reopen(connection: &Connection, first: MessageId, entry: &Accepted) -> Result<Appended> {
    // It has a content again, which a walk must find once it is closed.
    let sql = "UPDATE contents_dropped SET upTo = ?1 WHERE upTo > ?1";
    connection.prepare_cached(sql)?.execute([first.predecessor().bytes()])?;
    let sql = "UPDATE intake SET open = 1, outcome = NULL, senderName = ?2, content = ?3, timestamp = ?4, after = ?5,
        origin = ?6, trace = ?7 WHERE _id = ?1";
    connection.prepare_cached(sql)?.execute(params![
        first.bytes(),
        entry.sender_name,
        entry.content,
        entry.timestamp.as_millis(),
        entry.after.map(|id| id.bytes()),
        entry.origin.as_ref().map(column::json).transpose()?,
        entry.trace.to_string(),
    ])?;
    Ok(Appended::Reopened(first))
}

fn by_id(connection: &Connection, id: MessageId) -> Result<Option<IntakeRecord>> {
    let sql = concat!("SELECT ", accepted_columns!(), ", outcome, seq FROM intake WHERE _id = ?1");
    one(connection, sql, [id.bytes()])
}

fn by_key(connection: &Connection, entry: &Accepted) -> Result<Option<IntakeRecord>> {
    let sql = concat!(
        "SELECT ",
        accepted_columns!(),
        ", outcome, seq FROM intake WHERE chatRoomId = ?1 AND senderId = ?2 AND clientMessageId = ?3"
    );
    let (room, sender, name) = naru_engines::store::resend_key(entry);
    one(connection, sql, [room.as_str(), sender.as_str(), name.as_str()])
}

fn one(connection: &Connection, sql: &str, key: impl Params) -> Result<Option<IntakeRecord>> {
    connection.prepare_cached(sql)?.query_row(key, record).optional()
}

/// Reads `accepted_columns!, outcome, seq`.
fn record(row: &Row<'_>) -> Result<IntakeRecord> {
    Ok(IntakeRecord { accepted: column::accepted(row)?, outcome: outcome(row)? })
}

/// A row's place: rows are never removed, so their ids are in the order of appending.
fn place(position: i64) -> IntakePlace {
    IntakePlace(position.cast_unsigned())
}

fn outcome(row: &Row<'_>) -> Result<Option<Outcome>> {
    Ok(match row.get_ref(ACCEPTED_COLUMNS)?.as_str_or_null()? {
        None => None,
        Some(SAVED) => Some(Outcome::Saved { seq: row.seq(ACCEPTED_COLUMNS + 1)? }),
        Some(_) => Some(Outcome::Rejected { reason: row.word(ACCEPTED_COLUMNS)? }),
    })
}
