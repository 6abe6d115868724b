//! The durable data. Every write is durable when it returns `Ok`: on disk when embedded, on a majority and in its
//! journal when distributed. A write whose error is [`Applied::Unknown`](crate::Applied::Unknown) is repeated
//! with the same ids; every write here is idempotent on them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use naru_model::hops::{Accepted, Lane, PushEnvironment, PushJob};
use naru_model::message::Outcome;
use naru_model::{
    ClientMessageId, DeviceId, EventId, MemberVersion, Message, MessageId, Room, RoomId, RoomKind, Seq,
    StoreEpoch, StoreTime, Timestamp, UserId,
};
use serde::{Deserialize, Serialize};

use crate::EngineResult;

/// The parts of the store.
#[derive(Clone)]
pub struct Store {
    /// The log of accepted messages.
    pub intake: Arc<dyn Intake>,
    /// `chat_messages`.
    pub messages: Arc<dyn Messages>,
    /// Rooms and their members.
    pub rooms: Arc<dyn Rooms>,
    /// How far each member has received and read.
    pub positions: Arc<dyn Positions>,
    /// Where pushes go.
    pub devices: Arc<dyn Devices>,
    /// Which sessions and tokens of users have ended, whom users block, and which users are being erased.
    pub users: Arc<dyn Users>,
    /// Pushes that were sent, and pushes that could not be.
    pub pushes: Arc<dyn Pushes>,
    /// Restores of the data from a backup.
    pub epochs: Arc<dyn Epochs>,
    /// How appends to the intake are spaced.
    pub linger: Linger,
    /// The time of what this process has appended to the intake, or read of it.
    pub clock: StoreClock,
}

/// The latest time at which a store has answered this process: not before the appends, and the reads of open entries, that
/// have returned. None where no server of the store can be behind another. Clones are the same clock.
#[derive(Clone, Debug, Default)]
pub struct StoreClock(Arc<AtomicU64>);

impl StoreClock {
    /// Notes the time of an answer.
    pub fn note(&self, time: StoreTime) {
        self.0.fetch_max(time.0, Ordering::SeqCst);
    }

    pub fn latest(&self) -> Option<StoreTime> {
        Some(self.0.load(Ordering::SeqCst)).filter(|time| *time > 0).map(StoreTime)
    }
}

/// When an append to the intake waits for more entries. It depends on the store's fixed cost of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linger {
    /// An append begins no sooner than this after the one before it …
    pub span: Duration,
    /// … at this many entries a second or more. Below it, low latency is worth more than the savings of a batch.
    pub from_per_second: usize,
}

impl Linger {
    /// No append waits.
    pub const NONE: Self = Self { span: Duration::ZERO, from_per_second: 0 };
}

/// The intake's record of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntakeRecord {
    /// Without content and sender's name once they were dropped: both are empty then (see I9).
    pub accepted: Accepted,
    /// Its outcome; none while it is open.
    pub outcome: Option<Outcome>,
}

impl IntakeRecord {
    /// Whether an entry with the same key is a resend of this one, and not another message (see I3, I9).
    pub fn is_resent_by(&self, again: &Accepted) -> bool {
        // No message was accepted without content.
        self.accepted.content.is_empty() || self.accepted.content == again.content
    }
}

/// The result for one entry of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is in the intake now, open.
    New,
    /// A resend by the sender: the message is in the intake already. This is the first record.
    Resend(Box<IntakeRecord>),
    /// A resend of a message that was rejected: it is open again, as this entry but under the first one's id, which this is.
    Reopened(MessageId),
    /// This sender used its `clientMessageId` in this room before, for other content.
    Conflict,
}

/// The closing of an intake entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    pub id: MessageId,
    pub outcome: Outcome,
}

/// A place in the intake's order of appending: an entry that was appended later has a greater one. The store counts it; no
/// gateway's clock changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IntakePlace(pub u64);

/// An open entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenEntry {
    pub place: IntakePlace,
    pub accepted: Accepted,
}

/// Some open entries, in the order of appending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenPage {
    pub entries: Vec<OpenEntry>,
    /// The place after which the next page begins; none at the end.
    pub next: Option<IntakePlace>,
}

/// How far a walk over old records has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// How many records this step has removed, or taken the content from.
    pub removed: u64,
    /// The id from which the next step goes on; none at the end.
    pub next: Option<MessageId>,
}

/// The intake: the append-only log of accepted messages, and the only source of recovery.
///
/// - **I1 durable** – an entry that was answered `New` survives the death of any process and is *open*. (The embedded
///   engine syncs it to disk with the run that saves it; the sender's `ACK` follows that run.)
/// - **I2 idempotent** – appending an entry again answers `Resend` with the first record, which keeps its id. An entry
///   whose own id is already in the intake (an append whose outcome was unknown) is a `Resend` of itself. `find` answers
///   the record that an append would meet, and changes nothing.
/// - **I3 conflict** – a `(room, sender, clientMessageId)` that was used before with other content answers `Conflict` and
///   changes nothing. With another room or another sender it is another message.
/// - **I4 one answer per entry**, in the order of the entries; the result of one entry does not affect another's. Of two
///   equal entries in one append, the first is `New` and the second its `Resend`.
/// - **I5 open until closed** – `open` lists the entries that were appended and not closed, in the order of appending,
///   oldest first, from right after one place and up to another. A walk by `next` lists each entry that is open all the time,
///   once. `newest_open` is the place of the last of them: what is appended after that answer has a greater place. No clock
///   and no entry's `timestamp` decides what is listed.
/// - **I6 closed once** – the first outcome stands; closing an entry again, or one that does not exist, changes nothing.
/// - **I7 after the first try** – an entry whose `after` names a resend of the same append is stored as coming after the first
///   record: a resend's own id is nowhere.
/// - **I8 rejected is not for ever** – appending an entry again that was rejected answers `Reopened`: it keeps its id and its
///   place in the order, is open with all else of the new entry, and can be closed once more. Of several such appends at the same
///   time, at least one answers `Reopened`, the others that or `Resend`.
/// - **I9 without content** – `drop_contents` takes content and sender's name from the closed ones of these entries, for ever, and
///   changes nothing else; an open entry keeps both. Repeated, it changes nothing. What is left is a resend's key, id, outcome and
///   place in the room: appending such an entry again is recognised by its key alone, whatever its content is (I3 can't be told),
///   and one that was rejected is opened again with the new entry's content (I8).
/// - **I10 old contents** – a walk of `forget_contents`, from the beginning and on by `next` to its end, drops the contents (I9) of
///   all closed entries whose ids were made before the given moment. Open ones keep theirs; the next walk after they were closed
///   finds them. A step looks at `limit` entries at most. A walk begins where the contents of all entries before were dropped, which
///   the store notes: it costs what is new, and what comes after an entry that stays open.
/// - **I11 of a sender** – `of_sender` lists what one user has sent to one room, in the order of the `clientMessageId`s' bytes, from
///   right after one: a walk lists each entry that is there all the time, once.
#[async_trait]
pub trait Intake: Send + Sync {
    /// Appends entries: see I1 to I4, I7, I8.
    async fn append(&self, entries: &[Accepted]) -> EngineResult<Vec<Appended>>;

    /// The records with these entries' [keys](resend_key), in their order: see I2.
    async fn find(&self, entries: &[Accepted]) -> EngineResult<Vec<Option<IntakeRecord>>>;

    /// The records of these ids, in their order; none for an id without a record.
    async fn get(&self, ids: &[MessageId]) -> EngineResult<Vec<Option<IntakeRecord>>>;

    /// The open entries after one place and up to another, at most `limit` to a page: see I5.
    async fn open(
        &self,
        after: Option<IntakePlace>,
        up_to: Option<IntakePlace>,
        limit: usize,
    ) -> EngineResult<OpenPage>;

    /// The place of the newest open entry; none when no entry is open. See I5.
    async fn newest_open(&self) -> EngineResult<Option<IntakePlace>>;

    /// Closes entries and records their outcomes: see I6. The cost is per many entries, not per entry.
    async fn close(&self, closings: &[Closing]) -> EngineResult<()>;

    /// Drops the contents of closed entries: see I9.
    async fn drop_contents(&self, ids: &[MessageId]) -> EngineResult<()>;

    /// A step of a walk that drops old contents: see I10.
    async fn forget_contents(
        &self,
        after: Option<MessageId>,
        before: Timestamp,
        limit: usize,
    ) -> EngineResult<Walked>;

    /// The records of a sender in a room, at most `limit`; fewer at the end. See I11.
    async fn of_sender(
        &self,
        room: &RoomId,
        sender: &UserId,
        after: Option<&ClientMessageId>,
        limit: usize,
    ) -> EngineResult<Vec<IntakeRecord>>;
}

/// How much of a run was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunResult {
    /// This many from the front are stored.
    pub stored: usize,
    /// Why the next message is not stored; none when all are.
    pub stopped_by: Option<RunConflict>,
}

/// Why a message of a run could not be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunConflict {
    /// It is stored already, as this message.
    AlreadySaved(Message),
    /// Another message has its place.
    SeqTaken,
}

/// Which part of a room's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Oldest first, from right after this place.
    After(Seq),
    /// Newest first, from right before this place.
    Before(Seq),
    /// Newest first, from the newest.
    Latest,
}

/// `chat_messages`: every room's messages, each with its place.
///
/// - **M1 ordered run** – `append_run` stores messages in the order given. It stores a prefix and answers its length and
///   the conflict that ended it; after a failure or a crash, too, a prefix is stored. So there is never a gap.
/// - **M2 unique** – an id is stored once (`AlreadySaved`, with the stored message), a place in a room once
///   (`SeqTaken`). This fences two persisters; there is no lock.
/// - **M3 heads** – the highest place in each room, 0 where there is no message; it counts every finished run.
/// - **M4 windows** – `range` answers at most `limit` messages in the window's order and whether there are more.
/// - **M5 exact summaries** – once a run was stored, a room's newest message, `lastSeq`, unread counts and the sender's
///   read position (sending reads up to one's own message) count it.
/// - **M6 bumped** – once `bump` has returned for a room's newest message, the room stands in its members' lists where
///   that message puts it; until then its position may be that of an earlier message. Bumping again, or with an older message,
///   changes nothing.
/// - **M7 saved later, listed before** – of two rooms the one whose newest message was bumped later stands before the other,
///   also when a clock was set back and that message's timestamp is the earlier one.
/// - **M8 tombstones** – `delete` takes content and sender's name from these messages, for ever, and notes when (`deletedAt`); all
///   else stays: id, place, what M3 to M7 say. Of a message that is a tombstone already the first moment stays; an id that is not
///   stored is passed over. A run that meets a tombstone (`AlreadySaved`) does not bring its content back.
/// - **M9 expired** – a walk of `expire`, from the beginning and on by `next` to its end, removes messages whose id and timestamp are
///   of before the given moment: of each room from its first message on, so that what is left has no gap, and up to one whose intake
///   entry is open. A room's newest message is not removed: it becomes a tombstone (M8), so the head stays (M3), and is removed when
///   there is a newer one. What has expired is not unread (M5, P5). A step looks at `limit` messages at most.
#[async_trait]
pub trait Messages: Send + Sync {
    /// The messages of these ids, in their order; none for an id that is not stored.
    async fn find(&self, ids: &[MessageId]) -> EngineResult<Vec<Option<Message>>>;

    /// See M3; in the order asked.
    async fn heads(&self, rooms: &[RoomId]) -> EngineResult<Vec<Seq>>;

    /// See M1, M2.
    async fn append_run(&self, run: &[Message]) -> EngineResult<RunResult>;

    /// Moves rooms up in their members' lists: see M6. `newest` are stored messages, one for each room.
    async fn bump(&self, newest: &[Message]) -> EngineResult<()>;

    /// See M4.
    async fn range(&self, room: &RoomId, window: Window, limit: usize) -> EngineResult<(Vec<Message>, bool)>;

    /// Makes messages tombstones: see M8.
    async fn delete(&self, ids: &[MessageId], at: Timestamp) -> EngineResult<()>;

    /// A step of a walk that removes old messages: see M9.
    async fn expire(&self, after: Option<MessageId>, before: Timestamp, limit: usize)
    -> EngineResult<Walked>;
}

/// The activity of a room after a message, where `latest` is the latest activity of any room: the message's timestamp, unless
/// a clock was set back. See M7.
pub fn activity_after(latest: Timestamp, timestamp: Timestamp) -> Timestamp {
    if timestamp >= latest { timestamp } else { latest.after(Duration::from_millis(1)) }
}

/// A room to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRoom {
    pub id: RoomId,
    pub kind: RoomKind,
    /// A group's name.
    pub name: Option<Arc<str>>,
    /// Its members, sorted, each once (`naru_model::room::sorted_members`).
    pub member_ids: Arc<[UserId]>,
    /// The user who makes it; none when the app's backend does.
    pub maker_id: Option<UserId>,
}

/// The result of making a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was made.
    New(Arc<Room>),
    /// It existed, with the same kind and the same members (of a group: when it was made, or at any version that is not
    /// forgotten, R8).
    Existing(Arc<Room>),
    /// The id belongs to another room.
    Taken,
}

/// A change of a group's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// This user joins.
    Add(UserId),
    /// This user leaves.
    Remove(UserId),
}

/// The result of a change of members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The room as it is now. A change that changes nothing makes no new version.
    Now(Arc<Room>),
    /// There is no such room.
    NoRoom,
    /// A direct room's members never change.
    Direct,
    /// The room would have more members than the limit.
    Full,
}

/// A room as one member sees it in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomSummary {
    pub room: Arc<Room>,
    pub last_message: Option<Message>,
    /// The newest message's place, 0 without one.
    pub last_seq: Seq,
    /// `last_seq` minus the member's read position; what has expired (M9) does not count.
    pub unread_count: u64,
    /// The member's own settings.
    pub settings: MemberSettings,
}

/// A member's own settings of a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberSettings {
    /// The member gets no pushes from this room.
    pub muted: bool,
    /// When the muting ends; none: never.
    pub muted_until: Option<Timestamp>,
}

impl MemberSettings {
    /// Whether pushes are off at a moment.
    pub fn mutes_at(&self, moment: Timestamp) -> bool {
        self.muted && self.muted_until.is_none_or(|until| moment < until)
    }
}

/// A place in a list of rooms, latest activity first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoomCursor {
    /// The activity of the last room that was listed: a moment, or a little later where a clock was set back.
    pub activity: Timestamp,
    pub room: RoomId,
}

/// Rooms and their members.
///
/// - **R1 made once** – `create` of an id that exists with the same kind and members answers `Existing`; two calls at the
///   same time make one room.
/// - **R2 immutable versions** – `members_at` a version answers the same list until the version is forgotten (R8); every
///   change makes the next version; each of several concurrent changes makes its own.
/// - **R3 current** – a `current` that begins after a change returned shows that change or a later one. (A removal holds
///   for every message whose room is read after it.)
/// - **R4 foreign rooms** – a direct room written by another system with only `_id`, `user1Id`, `user2Id` reads as a
///   direct room at version 1.
/// - **R5 list** – `of_user` lists each room of the user once, latest activity (newest message, else making) first (M7);
///   the cursor is the last room's place; a walk by cursors lists every room that did not move meanwhile.
/// - **R6 settings** are the member's own; setting them changes no other member's.
/// - **R7 not before** – `current_since` a time that the [clock](StoreClock) showed after an append, or after a look at an open
///   entry, shows every change that had returned before that entry was appended, also while a server that was cut off from the
///   others still answers; else it fails, as transient. (R3 holds only where there is no such server.)
/// - **R8 forgotten versions** – `forget_versions` forgets versions that their rooms left before the given moment, and no
///   others: never the one of now, and never the first. A call removes at most `limit` records; one that answers 0 has found none.
///   `members_at` a forgotten version answers the list of before, or none.
/// - **R9 number** – `have_rooms` counts the rooms that a user is in now, and no further than to the number that is asked about.
///   (A room of another system counts at the latest once it was listed.)
/// - **R10 of now and before** – `ever_of` lists the rooms that a user is in or was in, in the order of the ids' bytes, from right
///   after one: a walk lists each of them once.
#[async_trait]
pub trait Rooms: Send + Sync {
    /// See R1.
    async fn create(&self, room: NewRoom) -> EngineResult<Created>;

    /// The rooms of these ids as they are now, in their order; none for an id without a room. See R3, R4.
    async fn current(&self, ids: &[RoomId]) -> EngineResult<Vec<Option<Arc<Room>>>>;

    /// The same, not from before a time: see R7.
    async fn current_since(
        &self,
        ids: &[RoomId],
        not_before: Option<StoreTime>,
    ) -> EngineResult<Vec<Option<Arc<Room>>>>;

    /// See R2; none when the room or the version does not exist.
    async fn members_at(&self, room: &RoomId, version: MemberVersion) -> EngineResult<Option<Arc<[UserId]>>>;

    /// Changes a group's members; `max` members at most. See R2.
    async fn change(&self, room: &RoomId, change: MemberChange, max: usize) -> EngineResult<Changed>;

    /// See R5: at most `limit` rooms, and the cursor of the next page if there are more.
    async fn of_user(
        &self,
        user: &UserId,
        cursor: Option<&RoomCursor>,
        limit: usize,
    ) -> EngineResult<(Vec<RoomSummary>, Option<RoomCursor>)>;

    /// One room as a member sees it; none when the room does not exist or the user is not in it.
    async fn summary(&self, room: &RoomId, user: &UserId) -> EngineResult<Option<RoomSummary>>;

    /// Sets a member's own settings: see R6. `false` when there is no such member.
    async fn configure(&self, room: &RoomId, user: &UserId, settings: MemberSettings) -> EngineResult<bool>;

    /// The rooms of a user, of now and before, at most `limit`; fewer at the end. See R10.
    async fn ever_of(&self, user: &UserId, after: Option<&RoomId>, limit: usize)
    -> EngineResult<Vec<RoomId>>;

    /// Which of `others` share a room with `user`, in their order. A user shares a room with themself. The cost is bounded: where
    /// both are in a thousand rooms or more, only as many of their latest ones need be searched.
    async fn share_a_room(&self, user: &UserId, others: &[UserId]) -> EngineResult<Vec<bool>>;

    /// See R8; how many records were removed by this call.
    async fn forget_versions(&self, left_before: Timestamp, limit: usize) -> EngineResult<u64>;

    /// Which of these users are in at least so many rooms (1 or more), in their order: see R9.
    async fn have_rooms(&self, users: &[UserId], at_least: usize) -> EngineResult<Vec<bool>>;
}

/// A member's advance in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    pub room: RoomId,
    /// The member.
    pub user: UserId,
    /// The device that has the messages; none for a session without a device.
    pub device: Option<DeviceId>,
    /// All messages up to here are on the device.
    pub received: Seq,
    /// All messages up to here were read (0: not reported).
    pub read: Seq,
}

/// The positions that a step moved forward; none for one that it did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// The received position of the device that is furthest, when this moved it: a device that is behind another moves
    /// only its own position, which is not reported.
    pub received: Option<Seq>,
    /// The member's read position, when this moved it.
    pub read: Option<Seq>,
}

/// A member's positions and settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberPosition {
    /// Read up to here.
    pub read: Seq,
    /// Received up to here by the device that is furthest.
    pub received: Seq,
    pub settings: MemberSettings,
}

/// How far one device is in one room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePosition {
    pub room: RoomId,
    /// The device has all messages up to here.
    pub received: Seq,
}

/// How far each member has received and read, per device.
///
/// - **P1 forward only** – positions are merged by maximum, so the order of steps does not matter; READ implies
///   RECEIVED on the same device.
/// - **P2 cut** – a position never passes the room's head.
/// - **P3 reported once** – `advance` answers a position only where the step moved the member forward: so the reported
///   positions of a member only go forward, whichever of the member's devices takes the step.
/// - **P4 members only** – a step of a user who is not a member moves nothing.
/// - **P5 unread** – `unread` is the sum, over the rooms that a user is in now and has not muted at the moment, of the room's
///   head minus the user's read position: as exact as the counts in lists of rooms (M5).
/// - **P6 independent** – `get` answers each member of each room that is asked about, whatever else is in the call; a user
///   who was never a member has no position. For messages that a member sent, it may ignore those before the given place.
/// - **P7 forgotten** – after `forget`, a user's positions and settings in these rooms are as if nothing had ever been reported or
///   set; what sending says of a position (M5) may stay. Other members', and the user's in other rooms, stay.
#[async_trait]
pub trait Positions: Send + Sync {
    /// Takes steps, in order; one answer each. See P1 to P4.
    async fn advance(&self, steps: &[Advance]) -> EngineResult<Vec<Moved>>;

    /// The positions of these members of these rooms, in their order, each from a place on: see P6. A fixed number of trips.
    async fn get(&self, members: &[(RoomId, UserId, Seq)]) -> EngineResult<Vec<MemberPosition>>;

    /// How many messages each of these users has not read, in their order: see P5. A fixed number of round trips, however
    /// many users; the work grows with the rooms they are in.
    async fn unread(&self, users: &[UserId]) -> EngineResult<Vec<u64>>;

    /// Forgets a user's positions and settings in these rooms: see P7.
    async fn forget(&self, user: &UserId, rooms: &[RoomId]) -> EngineResult<()>;

    /// The device's position in every room of its user, also where it has received nothing.
    async fn of_device(&self, user: &UserId, device: &DeviceId) -> EngineResult<Vec<DevicePosition>>;
}

/// The push provider of a device's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Firebase Cloud Messaging.
    Fcm,
    /// Apple Push Notification service.
    Apns,
}

impl Platform {
    pub const fn lane(self) -> Lane {
        match self {
            Platform::Fcm => Lane::Fcm,
            Platform::Apns => Lane::Apns,
        }
    }

    /// The one spelling of a token under which it is stored: see D5.
    pub fn canonical(self, token: &str) -> Arc<str> {
        match self {
            // Case-sensitive, and opaque.
            Platform::Fcm => token.into(),
            // Bytes in hexadecimal digits. What is anything else is no token of APNs', and stays as it is.
            Platform::Apns if token.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                token.to_ascii_lowercase().into()
            }
            Platform::Apns => token.into(),
        }
    }
}

/// Where a user's pushes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub user: UserId,
    /// The user's own name for it.
    pub id: DeviceId,
    pub platform: Platform,
    /// The provider's name for it.
    pub token: Arc<str>,
    /// The environment the token is of.
    pub environment: PushEnvironment,
    /// The language its owner reads, as a BCP 47 tag.
    pub locale: Option<Arc<str>>,
    /// Its pushes show the app's own text in place of the sender and the content.
    pub hides_content: bool,
    /// The time of its last registration.
    pub registered_at: Timestamp,
}

/// The device registry.
///
/// - **D1 last owner wins** – a token belongs to the user and device that claimed it last, and no longer to its owner
///   before.
/// - **D2 one token per device** – claiming a device again replaces its token.
/// - **D3 conditional removal** – `remove_token` removes a token only if it is still there and was registered before
///   the given moment.
/// - **D4 expired** – `forget_unseen` removes every device that was last registered before the given moment, and no other.
/// - **D5 one spelling** – two spellings of a token that its provider takes for the same ([`Platform::canonical`]) are one
///   token, in every call; the canonical one is stored and answered.
#[async_trait]
pub trait Devices: Send + Sync {
    /// Registers a device: see D1, D2.
    async fn claim(&self, device: Device) -> EngineResult<()>;

    /// The devices of these users.
    async fn of_users(&self, users: &[UserId]) -> EngineResult<Vec<Device>>;

    /// Removes a device; `false` when there was none.
    async fn remove(&self, user: &UserId, device: &DeviceId) -> EngineResult<bool>;

    /// See D3; whether it was removed.
    async fn remove_token(
        &self,
        platform: Platform,
        token: &str,
        registered_before: Timestamp,
    ) -> EngineResult<bool>;

    /// See D4; how many were removed by this call.
    async fn forget_unseen(&self, before: Timestamp) -> EngineResult<u64>;
}

/// What is kept of a user besides rooms and devices. A user of whom nothing is kept has the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserRecord {
    /// Counts how often the user's sessions were ended. A session that began at a lower one has ended.
    pub session_epoch: u64,
    /// Tokens that were issued before this are refused.
    pub tokens_not_before: Option<Timestamp>,
    /// The users that this one blocks, sorted.
    pub blocked: Vec<UserId>,
}

/// The erasure of a user's personal data, which goes on until it is completed, through the death of any process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// Counts how often it was asked for.
    pub round: u64,
    /// When it was asked for last.
    pub requested_at: Timestamp,
    /// When it was completed; none: it is under way.
    pub completed_at: Option<Timestamp>,
}

/// Which sessions and tokens of users have ended, whom users block, and which users are being erased.
///
/// - **K1 forward only** – each `end_sessions` makes a later session epoch, also of several at the same time; the time
///   before which tokens are refused only moves forward.
/// - **K2 own list** – `block` and `unblock` change the list of their user only, and nothing when repeated. A list holds at
///   most `max` users: `block` answers `false` when the other is not on it because it is full.
/// - **K3 current** – a `get` or `blocked_by` that begins after a change returned shows it. What was changed survives death.
/// - **K4 each its own** – `get` and `blocked_by` answer each of the users that are asked about, in their order.
/// - **K5 erased until it is done** – once `begin_erasure` has returned, the user is among the `erasures` until
///   `complete_erasure` has returned for that round, also after the death of every process; asked for again, it begins a later round,
///   and the completion of an earlier one changes nothing. The embedded engine completes one only when no copy of what was deleted
///   before is left in its files.
#[async_trait]
pub trait Users: Send + Sync {
    /// The records of these users. One round trip. See K3, K4.
    async fn get(&self, users: &[UserId]) -> EngineResult<Vec<UserRecord>>;

    /// Which of `others` block `user`. One round trip. See K3, K4.
    async fn blocked_by(&self, user: &UserId, others: &[UserId]) -> EngineResult<Vec<bool>>;

    /// Ends a user's sessions, and with a time also all tokens that were issued before it: see K1. Repeated, it ends the
    /// sessions that have begun since.
    async fn end_sessions(&self, user: &UserId, tokens_not_before: Option<Timestamp>) -> EngineResult<()>;

    /// See K2.
    async fn block(&self, user: &UserId, other: &UserId, max: usize) -> EngineResult<bool>;

    /// See K2.
    async fn unblock(&self, user: &UserId, other: &UserId) -> EngineResult<()>;

    /// Empties a user's list.
    async fn unblock_all(&self, user: &UserId) -> EngineResult<()>;

    /// Begins the next round of a user's erasure: see K5.
    async fn begin_erasure(&self, user: &UserId, at: Timestamp) -> EngineResult<()>;

    /// The user's last erasure, if there was one.
    async fn erasure(&self, user: &UserId) -> EngineResult<Option<Erasure>>;

    /// The erasures under way, at most `limit`, in the order of the users' ids, from right after one. See K5.
    async fn erasures(&self, after: Option<&UserId>, limit: usize) -> EngineResult<Vec<(UserId, Erasure)>>;

    /// Completes a round: see K5. `false` when it is not the last one.
    async fn complete_erasure(&self, user: &UserId, round: u64, at: Timestamp) -> EngineResult<bool>;
}

/// A push that could not be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedPush {
    /// The push's event id: the same however often it is parked.
    pub event_id: EventId,
    pub job: PushJob,
    /// Why it was not sent, in words for an operator.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    pub parked_at: Timestamp,
}

/// A place in the list of parked pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkedCursor {
    /// When the last listed push was parked.
    pub parked_at: Timestamp,
    /// The last listed push.
    pub event_id: EventId,
}

impl ParkedCursor {
    /// The place right after a push.
    pub const fn at(push: &ParkedPush) -> Self {
        Self { parked_at: push.parked_at, event_id: push.event_id }
    }
}

/// Pushes that were sent, and pushes that could not be.
///
/// - **U1 recorded** – `done` answers `true` for a recorded push for at least two days.
/// - **U2 parked once** – parking an event again replaces its entry. It stays until it is dropped; `drop_parked_at` with the
///   place of the earlier entry does not drop one that was parked again. All pushes of a call are parked when it returns.
/// - **U3 listed in order** – `parked` lists in the order of `(parkedAt, eventId)`, ids by their bytes, from right after the
///   cursor, whether or not the push it names is still there: a walk by cursors lists once each push that is parked all the
///   time and is not parked again.
/// - **U4 by reason** – `parked_because` lists, in the same order, the pushes that were parked for exactly this reason.
/// - **U5 forgotten** – `forget_parked` removes pushes that were parked before the given moment, at most `limit` to a call, oldest
///   first, and no others; one that answers 0 has found none. `parked_count` is how many are parked.
#[async_trait]
pub trait Pushes: Send + Sync {
    /// Which of these pushes a provider accepted, in their order. See U1.
    async fn done(&self, events: &[EventId]) -> EngineResult<Vec<bool>>;

    /// Records that a provider accepted these pushes, with the ids it gave.
    async fn record(&self, taken: &[(EventId, String)]) -> EngineResult<()>;

    /// Keeps pushes, each of another event, where they can be listed and replayed. See U2. A fixed number of round trips.
    async fn park(&self, pushes: &[ParkedPush]) -> EngineResult<()>;

    /// The parked pushes, oldest first, at most `limit`, from right after a place in the list: see U3.
    async fn parked(&self, after: Option<&ParkedCursor>, limit: usize) -> EngineResult<Vec<ParkedPush>>;

    /// The pushes that were parked for this reason, oldest first, at most `limit`: see U4.
    async fn parked_because(&self, reason: &str, limit: usize) -> EngineResult<Vec<ParkedPush>>;

    /// The parked push with this event id; none when it is not parked.
    async fn find_parked(&self, event: EventId) -> EngineResult<Option<ParkedPush>>;

    /// Removes a push from the list; `false` when it was not there.
    async fn drop_parked(&self, event: EventId) -> EngineResult<bool>;

    /// The same, if it is still at this place in the list: a push that was parked again has another place, and stays.
    async fn drop_parked_at(&self, place: &ParkedCursor) -> EngineResult<bool>;

    /// See U5; how many were removed by this call.
    async fn forget_parked(&self, before: Timestamp, limit: usize) -> EngineResult<u64>;

    /// How many pushes are parked. The store counts each of them: not to be asked often.
    async fn parked_count(&self) -> EngineResult<u64>;
}

/// Restores of the data from a backup.
///
/// - **H1 each its own epoch** – new data has the first epoch. Each `restored` begins a later one, also of several at the same
///   time, and answers it; a `get` that begins after that shows it, or a later one. It survives death.
#[async_trait]
pub trait Epochs: Send + Sync {
    /// The epoch of the data. One round trip.
    async fn get(&self) -> EngineResult<StoreEpoch>;

    /// Makes the restored data consistent with itself, then begins an epoch: see H1. A backup that was not taken at one
    /// moment may hold positions beyond the heads of their rooms; these are cut, as P2 says. To be called after every restore,
    /// while no worker runs; after a failure, again.
    async fn restored(&self) -> EngineResult<StoreEpoch>;
}

/// The entries of an append that come after a resend of the same append, each with the id of that one's first record: see I7.
pub fn after_first_tries(entries: &[Accepted], answers: &[Appended]) -> Vec<(MessageId, MessageId)> {
    let first_of = |(entry, answer): (&Accepted, &Appended)| match answer {
        Appended::Resend(first) if first.accepted.id != entry.id => Some((entry.id, first.accepted.id)),
        Appended::Reopened(first) if *first != entry.id => Some((entry.id, *first)),
        _ => None,
    };
    let resends: HashMap<MessageId, MessageId> = entries.iter().zip(answers).filter_map(first_of).collect();
    let there = entries.iter().filter(|entry| !resends.contains_key(&entry.id));
    there.filter_map(|entry| Some((entry.id, *resends.get(&entry.after?)?))).collect()
}

/// The key under which a resend is recognised.
pub fn resend_key(accepted: &Accepted) -> (&RoomId, &UserId, &ClientMessageId) {
    (&accepted.chat_room_id, &accepted.sender_id, &accepted.client_message_id)
}
