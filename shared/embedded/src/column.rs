//! How the model's types are stored in columns. A value that can't be read is an error of its row, never a guess.

use std::str::FromStr;
use std::sync::Arc;

use naru_model::message::Accepted;
use naru_model::{EventId, Message, MessageId, Seq, Timestamp};
use rusqlite::types::{FromSqlError, Type};
use rusqlite::{Error, Result, Row};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// A `seq` as SQLite stores it. No room has enough messages to reach the largest `i64`.
pub(crate) fn place(seq: Seq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}

/// A limit as SQLite takes it.
pub(crate) fn limit(max: usize) -> i64 {
    i64::try_from(max).unwrap_or(i64::MAX)
}

pub(crate) fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::ToSqlConversionFailure(error.into()))
}

/// A value that is one word in JSON, as that word.
pub(crate) fn word(value: &impl Serialize) -> Result<String> {
    json(value).map(|text| text.trim_matches('"').to_owned())
}

/// Reads columns of a row by their position.
pub(crate) trait Columns {
    /// A checked text, such as an id.
    fn text<T: FromStr<Err: Into<Unreadable>>>(&self, column: usize) -> Result<T>;
    /// A place in a room; 0 for none.
    fn seq(&self, column: usize) -> Result<Seq>;
    fn time(&self, column: usize) -> Result<Timestamp>;
    /// A time, or none.
    fn maybe_time(&self, column: usize) -> Result<Option<Timestamp>>;
    fn message_id(&self, column: usize) -> Result<MessageId>;
    fn event_id(&self, column: usize) -> Result<EventId>;
    /// A value that [`json`] wrote.
    fn json<T: DeserializeOwned>(&self, column: usize) -> Result<T>;
    /// A value that [`word`] wrote.
    fn word<T: DeserializeOwned>(&self, column: usize) -> Result<T>;
}

type Unreadable = Box<dyn std::error::Error + Send + Sync>;

fn unreadable(column: usize, kind: Type, why: impl Into<Unreadable>) -> Error {
    Error::FromSqlConversionFailure(column, kind, why.into())
}

fn string<'a>(row: &'a Row<'_>, column: usize) -> Result<&'a str> {
    row.get_ref(column)?.as_str().map_err(|error: FromSqlError| unreadable(column, Type::Text, error))
}

impl Columns for Row<'_> {
    fn text<T: FromStr<Err: Into<Unreadable>>>(&self, column: usize) -> Result<T> {
        string(self, column)?.parse().map_err(|error: T::Err| unreadable(column, Type::Text, error))
    }

    fn seq(&self, column: usize) -> Result<Seq> {
        let place = self.get::<_, Option<i64>>(column)?.unwrap_or(0);
        u64::try_from(place).map(Seq).map_err(|error| unreadable(column, Type::Integer, error))
    }

    fn time(&self, column: usize) -> Result<Timestamp> {
        self.get(column).map(Timestamp::from_millis)
    }

    fn maybe_time(&self, column: usize) -> Result<Option<Timestamp>> {
        self.get::<_, Option<i64>>(column).map(|millis| millis.map(Timestamp::from_millis))
    }

    fn message_id(&self, column: usize) -> Result<MessageId> {
        self.get(column).map(MessageId::from_bytes)
    }

    fn event_id(&self, column: usize) -> Result<EventId> {
        self.get(column).map(|bytes| EventId(Uuid::from_bytes(bytes)))
    }

    fn json<T: DeserializeOwned>(&self, column: usize) -> Result<T> {
        serde_json::from_str(string(self, column)?).map_err(|error| unreadable(column, Type::Text, error))
    }

    fn word<T: DeserializeOwned>(&self, column: usize) -> Result<T> {
        let word = serde_json::Value::from(string(self, column)?);
        serde_json::from_value(word).map_err(|error| unreadable(column, Type::Text, error))
    }
}

/// The columns of a [`Message`], as [`message`] reads them.
macro_rules! message_columns {
    () => {
        "_id, chatRoomId, seq, senderId, senderName, content, timestamp, clientMessageId, deletedAt"
    };
}
pub(crate) use message_columns;

/// Reads `message_columns!`.
pub(crate) fn message(row: &Row<'_>) -> Result<Message> {
    Ok(Message {
        id: row.message_id(0)?,
        chat_room_id: row.text(1)?,
        seq: row.seq(2)?,
        sender_id: row.text(3)?,
        sender_name: row.get::<_, Arc<str>>(4)?,
        content: row.get::<_, Arc<str>>(5)?,
        timestamp: row.time(6)?,
        client_message_id: row.text(7)?,
        deleted_at: row.maybe_time(8)?,
    })
}

/// The columns of an [`Accepted`], as [`accepted`] reads them.
macro_rules! accepted_columns {
    () => {
        "_id, chatRoomId, senderId, senderName, content, timestamp, clientMessageId, after, origin, trace"
    };
}
pub(crate) use accepted_columns;

/// Reads `accepted_columns!`.
pub(crate) fn accepted(row: &Row<'_>) -> Result<Accepted> {
    Ok(Accepted {
        id: row.message_id(0)?,
        chat_room_id: row.text(1)?,
        sender_id: row.text(2)?,
        sender_name: row.get::<_, Option<Arc<str>>>(3)?.unwrap_or_default(),
        content: row.get::<_, Option<Arc<str>>>(4)?.unwrap_or_default(),
        timestamp: row.time(5)?,
        client_message_id: row.text(6)?,
        after: row.get::<_, Option<[u8; 12]>>(7)?.map(MessageId::from_bytes),
        origin: row.get::<_, Option<Arc<str>>>(8)?.map(|_| row.json(8)).transpose()?,
        trace: row.text(9)?,
    })
}
