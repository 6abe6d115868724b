//! The store on MongoDB (6.0 or later, a replica set): every write lasts on a majority of its members, in their journals.
//!
//! ```text
//! let mongo = Mongo::open("mongodb://a,b,c/?replicaSet=rs0", "naru", Options::default()).await?;
//! let store = mongo.store();
//! ```
//!
//! # What is stored
//!
//! Ids are strings, except a message's (an ObjectId) and an event's (a UUID). Times are dates, places 64-bit integers.
//!
//! | collection | one document is | fields |
//! |---|---|---|
//! | `intake` | an accepted message; only its last three fields change, once, and more when it is sent again after it was rejected; a closed one may lose `senderName` and `content` | `_id`, `chatRoomId`, `senderId`, `senderName`?, `content`?, `timestamp`, `clientMessageId`, `after`?, `origin`? `{gateway, session}`, `trace`, `appended` (the server's tick) and `place` (in its append), `open`, `outcome`? (`saved`, `notAMember`), `seq`? |
//! | `chat_messages` | a message at its place | `_id`, `chatRoomId`, `seq`, `senderId`, `senderName`, `content`, `timestamp`, `clientMessageId`, `deletedAt`? (of a tombstone, whose name and content are empty) |
//! | `chat_rooms` | a room as it is now | `_id`, `user1Id` and `user2Id` (direct rooms), `name`?, `memberIds` (sorted), `memberVersion`, `makerId`?, `createdAt`, `activity` and `lastSeq`? (the moment and place of the newest message that the room was bumped for), `expiredTo`? (messages up to this place have expired) |
//! | `room_versions` | a group's members before a change of them | `chatRoomId`, `version`, `memberIds`, `leftAt`? (not of the first version) |
//! | `members` | a member's positions and settings in a room; one who leaves has one from then on (R10) | `chatRoomId`, `userId`, `read` (as reported), `received` (of the furthest device), `devices` `[{deviceId, received}]`, `muted`, `mutedUntil` |
//! | `devices` | a device for a user's pushes | `userId`, `deviceId`, `platform`, `token`, `environment`, `locale`?, `hidesContent`? (only if true), `registeredAt` |
//! | `users` | a user whose sessions were ended, or who blocks others | `_id`, `sessionEpoch`?, `tokensNotBefore`?, `blocked`? |
//! | `erasures` | a user whose personal data was erased or is being erased | `_id`, `round` (how often it was asked for), `requestedAt`, `open`? (only if under way), `completedAt`? |
//! | `pushes` | a push that a provider accepted | `_id`, `providerId`, `recordedAt` |
//! | `parked` | a push that could not be sent | `_id`, `job` (as in its queue), `reason`, `attempts`, `parkedAt` |
//! | `meta` | the data's layout and its epoch, under the `_id` `store`, and how far old contents were dropped from `intake`, under `contents` | `_id`, `schemaVersion`, `partitions`, `epoch`; `_id`, `droppedTo`?, `reopened`? |
//!
//! | index | of | for |
//! |---|---|---|
//! | `chatRoomId, senderId, clientMessageId` | `intake`, unique | a resend is recognised (I2, I3) |
//! | `appended, timestamp, place` | `intake`, only where `open: true` | the sweep reads open entries only (I5) |
//! | `chatRoomId, seq` | `chat_messages`, unique | a place is taken once (M2); heads, windows, newest messages |
//! | `chatRoomId, senderId, seq` | `chat_messages` | a sender has read up to their own message (M5) |
//! | `memberIds, activity↓, _id↓` | `chat_rooms` | a user's list (R5) |
//! | `user1Id, memberVersion` | `chat_rooms` | rooms of another system (R4) |
//! | `user2Id, memberVersion` | `chat_rooms` | the same |
//! | `chatRoomId, version` | `room_versions`, unique | the members at a version (R2) |
//! | `leftAt` | `room_versions` | versions left long ago (R8) |
//! | `userId, chatRoomId` | `members`, unique | a member's document |
//! | `userId, deviceId` | `devices`, unique | one token per device (D2) |
//! | `platform, token` | `devices`, unique | one owner per token (D1, D5) |
//! | `registeredAt` | `devices` | devices not registered for long (D4) |
//! | `open` | `erasures`, only where `open: true` | erasures under way (K5) |
//! | `recordedAt` | `pushes`, forgotten after three days | U1 |
//! | `parkedAt, _id` | `parked` | parked pushes, oldest first (U3, U5) |
//! | `reason, parkedAt, _id` | `parked` | those parked for a reason (U4) |
//!
//! # Guarantees
//!
//! - **Durable**: every write asks for `w: majority, j: true` and every read for the primary and `majority`, whatever the
//!   URL says. Answered data is never rolled back, and an answered write is visible to later reads of the same primary (a
//!   primary that was cut off may answer from before: R7).
//! - **Idempotent**: every write is an insert under its own id, a maximum, conditional on the state that it changes, or
//!   without further effect when repeated. The driver may repeat any of them, even to a server that lost the first try.
//! - **No locks, no transactions**: a unique index decides which write is first, and a document changes in one step. Each
//!   method's comment describes the state that a crash between two steps leaves, and its repair.
//! - **Counted from the messages**: last messages, heads, unread counts and the places that members read by sending come
//!   from `chat_messages`. A room's `activity` decides only its page in a list, its `lastSeq` only the place from which its
//!   newest message is searched.
//!
//! # Rooms of another system
//!
//! A document in `chat_rooms` with `_id`, `user1Id` and `user2Id` is a direct room, whatever else it has, and reading it
//! writes nothing. Its first listing *adopts* it: `memberIds`, `memberVersion` and `activity` are filled in. Its system may
//! replace it at any time; then it is adopted again.
//!
//! # Costs
//!
//! Each method's comment states its round trips; a look-up takes one index step for each item. A message costs its share of
//! four commands, whatever their batch sizes: an insert into `intake`, an insert into `chat_messages`, and later one
//! `update` that closes entries and one that bumps rooms (`tests/costs.rs` counts them).
//!
//! - The index of `(chatRoomId, senderId, seq)` costs SecantusDB about 6 µs of CPU for each message, in inserts of 20. The
//!   statements that it saves, one for each sender and room, cost more than 100 µs each.
//! - The most expensive write bumps a group: the index of `memberIds` has an entry for each member, so a room of 1,000
//!   moves 1,000 entries.
//! - Heads, newest messages and a member's own messages are searched from their last known places (`lastSeq`, `read`).
//!   Each search is one backward index step on MongoDB; SecantusDB reads all messages after that place.

mod database;
mod document;
mod error;
mod field;
mod open;
mod store;

use std::sync::Arc;
use std::time::Duration;

use naru_engines::EngineResult;
use naru_engines::store::{Epochs, Store};
use naru_model::StoreEpoch;
use tokio::sync::mpsc::UnboundedSender;

use crate::database::Database;

#[derive(Clone, Debug)]
pub struct Options {
    /// How many partitions the bus spreads rooms over: stored at first start, so that all processes agree. Afterwards another
    /// number is refused.
    pub partitions: u32,
    /// How long one round trip may take, from the search for a primary to the answer. After that the request fails as
    /// unavailable: a server that hangs, or that waits for a majority that is gone, must not hang its clients.
    pub answer_within: Duration,
    /// Receives the name of every command that is sent, for tests of a call's cost.
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
    /// Connects to the URL's servers, creates missing indexes, and checks that the data can be read.
    ///
    /// The URL is used as it is (hosts, replica set, user, TLS …). Unless it sets them, a request searches for a primary
    /// for 3 s, connecting takes 2 s at most, there are 8 connections and at most 100, and the servers' logs name the
    /// client `naru`.
    ///
    /// # Errors
    /// `Unavailable` when no primary answers; `Permanent` when the URL can't be used, or the data has another layout or
    /// another number of partitions.
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

    /// Writes one document, always the same.
    ///
    /// # Errors
    /// `Unavailable` when no majority stores it: the disk is full, or there is no primary.
    pub async fn check_writes(&self) -> EngineResult<()> {
        self.database.check_writes().await
    }
}

/// Data that was restored from a backup, while no worker runs.
pub struct Restored(Database);

impl Restored {
    /// Connects to it, and makes nothing.
    ///
    /// # Errors
    /// `Unavailable` when no primary answers; `Permanent` when the URL can't be used, or the database holds no data of this
    /// version and this number of partitions.
    pub async fn open(url: &str, database: &str, partitions: u32) -> EngineResult<Self> {
        Ok(Self(open::open_restored(url, database, partitions).await?))
    }

    /// Begins its next epoch; returns it. See [`Epochs::restored`].
    ///
    /// # Errors
    /// `Unavailable` when no primary answers: it may be repeated.
    pub async fn begin_epoch(&self) -> EngineResult<StoreEpoch> {
        self.0.restored().await
    }
}
