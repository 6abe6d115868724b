//! The store on MongoDB (6.0 or later, a replica set): what must last, on the majority of its members and in their
//! journals.
//!
//! ```text
//! let mongo = Mongo::open("mongodb://a,b,c/?replicaSet=rs0", "naru", Options::default()).await?;
//! let store = mongo.store();
//! ```
//!
//! # What is stored
//!
//! Ids are strings, but a message's is an ObjectId and an event's a UUID. Times are dates, places are 64-bit integers.
//!
//! | collection | one document is | fields |
//! |---|---|---|
//! | `intake` | what a gateway accepted; only the last three ever change, once | `_id`, `chatRoomId`, `senderId`, `senderName`, `content`, `timestamp`, `clientMessageId`, `after`?, `origin`? `{gateway, session}`, `trace`, `appended` (the server's tick) and `place` (in its append), `open`, `outcome`? (`saved`, `notAMember`), `seq`? |
//! | `chat_messages` | a message at its place | `_id`, `chatRoomId`, `seq`, `senderId`, `senderName`, `content`, `timestamp`, `clientMessageId` |
//! | `chat_rooms` | a room as it is now | `_id`, `user1Id` and `user2Id` (direct rooms), `name`?, `memberIds` (sorted), `memberVersion`, `makerId`?, `createdAt`, `activity` and `lastSeq`? (the moment and place of the newest message that the room was bumped for) |
//! | `room_versions` | who was in a group before its members changed | `chatRoomId`, `version`, `memberIds` |
//! | `members` | what a member has seen and set in a room; stays when they leave | `chatRoomId`, `userId`, `read` (what they said they read), `received` (the furthest), `devices` `[{deviceId, received}]`, `muted`, `mutedUntil` |
//! | `devices` | where a user's pushes go | `userId`, `deviceId`, `platform`, `token`, `environment`, `locale`?, `hidesContent`? (only where it does), `registeredAt` |
//! | `pushes` | a push that a provider took | `_id`, `providerId`, `recordedAt` |
//! | `parked` | a push that could not be sent | `_id`, `job` (as in its queue), `reason`, `attempts`, `parkedAt` |
//! | `meta` | the only one is named `store` | `_id`, `schemaVersion`, `partitions` |
//!
//! | index | of | for |
//! |---|---|---|
//! | `chatRoomId, senderId, clientMessageId` | `intake`, unique | a resend is recognised (I2, I3) |
//! | `appended, timestamp, place` | `intake`, only where `open: true` | the sweep costs what is pending (I5) |
//! | `chatRoomId, seq` | `chat_messages`, unique | a place is taken once (M2); heads, windows, newest messages |
//! | `chatRoomId, senderId, seq` | `chat_messages` | what a member sent they have read (M5) |
//! | `memberIds, activity↓, _id↓` | `chat_rooms` | a user's list (R5) |
//! | `user1Id, memberVersion` | `chat_rooms` | rooms of another system (R4) |
//! | `user2Id, memberVersion` | `chat_rooms` | the same |
//! | `chatRoomId, version` | `room_versions`, unique | the members at a version (R2) |
//! | `userId, chatRoomId` | `members`, unique | a member's document |
//! | `userId, deviceId` | `devices`, unique | one token per device (D2) |
//! | `platform, token` | `devices`, unique | one owner per token (D1) |
//! | `registeredAt` | `devices` | who was not seen for long (D4) |
//! | `recordedAt` | `pushes`, forgotten after three days | U1 |
//! | `parkedAt, _id` | `parked` | what is parked, oldest first (U3) |
//!
//! # What the promises stand on
//!
//! - **Durable**: every write asks for `w: majority, j: true` and every read for the primary and `majority`, whatever the
//!   URL says. What is answered is never rolled back, and what was answered is read.
//! - **Idempotent**: every write is an insert under an id that recognises itself, a maximum, conditional on what it
//!   changes, or the same when repeated. The driver may repeat any of them, to a server that forgot the first try too.
//! - **No locks, no transactions**: a unique index decides who was first, one document changes in one step. What a crash
//!   leaves between two steps is described at the method, with who repairs it.
//! - **Counted from the messages**: last message, heads, unread counts and what members have read by sending are computed
//!   from `chat_messages`. A room's `activity` decides on which page of a list it is, its `lastSeq` where its newest message is
//!   looked for, and nothing else.
//!
//! # Rooms of another system
//!
//! A document in `chat_rooms` with `_id`, `user1Id` and `user2Id` is a direct room, whatever else is in it, and reading it
//! writes nothing. When it is first to be listed it is *adopted*: `memberIds`, `memberVersion` and `activity` are filled
//! in. Its system may replace it at any time; then it is adopted again.
//!
//! # What it costs
//!
//! Each method's comment says its round trips; every look-up is one step in an index for each thing asked for. A message
//! costs its share of four commands, however many are in each: an insert into `intake`, an insert into `chat_messages`, and
//! later one `update` that closes entries and one that bumps rooms (`tests/costs.rs` counts them).
//!
//! - The index of `(chatRoomId, senderId, seq)` costs SecantusDB about 6 µs of CPU for each message, in inserts of 20. The
//!   statements that it saves, one for each sender and room, cost more than 100 µs each.
//! - The dearest write is the one that bumps a group: the index of `memberIds` has an entry for each member, so a room of
//!   1,000 moves 1,000 entries.
//! - Heads, newest messages and what a member sent are looked for from where they were last known to be (`lastSeq`,
//!   `read`). Each is one step backwards in an index on MongoDB; SecantusDB reads all that came after that.

mod database;
mod document;
mod error;
mod field;
mod open;
mod store;

use std::sync::Arc;
use std::time::Duration;

use naru_engines::EngineResult;
use naru_engines::store::Store;
use tokio::sync::mpsc::UnboundedSender;

use crate::database::Database;

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many partitions the bus spreads rooms over: stored at first start, so that all processes agree. Another number does
    /// not open afterwards.
    pub partitions: u32,
    /// How long one round trip may take, from looking for a primary to the answer. After that the request has failed as
    /// unavailable: a server that hangs, or that waits for a majority that is gone, must not hang its clients.
    pub answer_within: Duration,
    /// Told the name of every command that is sent: for tests of what a call costs.
    pub commands: Option<UnboundedSender<String>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { partitions: 1, answer_within: Duration::from_secs(10), commands: None }
    }
}

/// The store on one database. Clones share its connections.
#[derive(Clone)]
pub struct Mongo {
    database: Arc<Database>,
    store: Store,
}

impl Mongo {
    /// Connects to where the URL says, makes what indexes are missing, and checks that the data can be read.
    ///
    /// The URL is used as it is (hosts, replica set, user, TLS …). Where it says nothing of them, a request looks for a
    /// primary for 3 s, connecting takes 2 s at most, there are 8 connections and at most 100, and the servers' logs
    /// call this `naru`.
    ///
    /// # Errors
    /// `Unavailable` when no primary answers; `Permanent` when the URL can't be used, when the data is of another layout,
    /// or was made with another number of partitions.
    pub async fn open(url: &str, database: &str, options: Options) -> EngineResult<Self> {
        let database = Arc::new(open::open(url, database, &options).await?);
        let store = store::store(&database);
        Ok(Self { database, store })
    }

    /// The store; clones are the same one.
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// Whether the primary answers.
    ///
    /// # Errors
    /// `Unavailable` when it does not.
    pub async fn ping(&self) -> EngineResult<()> {
        self.database.ping().await
    }
}
