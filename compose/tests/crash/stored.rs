//! What lies on the disk, read past the server.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use naru_client::TEST_TIMEOUT;
use rusqlite::{Connection, OpenFlags, Row};

/// How often the disk is looked at while something is waited for.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// The embedded database, opened for reading.
pub struct Stored(Connection);

/// An entry of the intake.
#[derive(Debug)]
pub struct Entry {
    pub id: String,
    pub room: String,
    pub sender: String,
    pub client_message_id: String,
    pub is_open: bool,
    pub outcome: Option<String>,
    pub seq: Option<u64>,
}

impl Stored {
    pub fn open(data: &Path) -> Self {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(data.join("naru.db"), flags).expect("there is data");
        connection.busy_timeout(TEST_TIMEOUT).expect("a connection can be told to wait");
        Self(connection)
    }

    /// Waits until nothing accepted is open: every message is saved, and its way to its recipients lies on the disk.
    pub async fn recovered(data: &Path) -> Self {
        Self::without(data, |stored| stored.open_entries()).await
    }

    /// Waits until there is nothing in a queue either: every push was taken.
    pub async fn when_closed(data: &Path) -> Self {
        Self::without(data, |stored| stored.open_entries() + stored.queued()).await
    }

    async fn without(data: &Path, left: impl Fn(&Self) -> u64) -> Self {
        let stored = Self::open(data);
        let begun = Instant::now();
        while left(&stored) > 0 {
            let (open, queued) = (stored.open_entries(), stored.queued());
            let waited = begun.elapsed();
            assert!(
                waited < TEST_TIMEOUT,
                "P4: after {waited:?} {open} entries are open, {queued} events queued"
            );
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
        stored
    }

    pub fn queued(&self) -> u64 {
        self.count("SELECT count(*) FROM queue")
    }

    pub fn open_entries(&self) -> u64 {
        self.count("SELECT count(*) FROM intake WHERE open = 1")
    }

    pub fn parked(&self) -> u64 {
        self.count("SELECT count(*) FROM parked")
    }

    /// Messages whose place is not the one after that of the message before them.
    pub fn holes(&self) -> u64 {
        self.count(
            "SELECT count(*) FROM (SELECT seq - lag(seq, 1, 0) OVER (PARTITION BY chatRoomId ORDER BY seq) AS step
             FROM chat_messages) WHERE step != 1",
        )
    }

    /// The place of a saved message.
    pub fn place_of(&self, id: &str) -> Option<u64> {
        let sql = "SELECT seq FROM chat_messages WHERE _id = unhex(?1)";
        let mut statement = self.0.prepare_cached(sql).expect("a statement of this schema");
        let mut rows = statement.query([id]).expect("a text");
        let row = rows.next().expect("readable data");
        row.map(|row| row.get::<_, i64>(0).expect("a number").cast_unsigned())
    }

    /// Everything that was ever accepted.
    pub fn intake(&self) -> Vec<Entry> {
        let sql =
            "SELECT lower(hex(_id)), chatRoomId, senderId, clientMessageId, open, outcome, seq FROM intake
            ORDER BY position";
        let read = |row: &Row<'_>| {
            Ok(Entry {
                id: row.get(0)?,
                room: row.get(1)?,
                sender: row.get(2)?,
                client_message_id: row.get(3)?,
                is_open: row.get(4)?,
                outcome: row.get(5)?,
                seq: row.get::<_, Option<i64>>(6)?.map(i64::cast_unsigned),
            })
        };
        let mut statement = self.0.prepare(sql).expect("a statement of this schema");
        let entries = statement.query_map([], read).expect("no parameters");
        entries.collect::<Result<_, _>>().expect("readable data")
    }

    /// Everything that was saved: room and place by id.
    pub fn messages(&self) -> HashMap<String, (String, u64)> {
        let sql = "SELECT lower(hex(_id)), chatRoomId, seq FROM chat_messages";
        let read = |row: &Row<'_>| Ok((row.get(0)?, (row.get(1)?, row.get::<_, i64>(2)?.cast_unsigned())));
        let mut statement = self.0.prepare(sql).expect("a statement of this schema");
        let messages = statement.query_map([], read).expect("no parameters");
        messages.collect::<Result<_, _>>().expect("readable data")
    }

    fn count(&self, sql: &str) -> u64 {
        let mut statement = self.0.prepare_cached(sql).expect("a statement of this schema");
        let count = statement.query_row([], |row| row.get::<_, i64>(0)).expect("readable data");
        count.cast_unsigned()
    }
}
