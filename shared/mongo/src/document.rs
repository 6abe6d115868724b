//! The documents, which other services and operators read: see the table in the crate's documentation.

use std::sync::Arc;

use bson::{Bson, Document, doc};
use naru_engines::store::{
    Device, Erasure, IntakePlace, IntakeRecord, MemberSettings, ParkedPush, Platform, UserRecord,
};
use naru_model::hops::{Accepted, PushEnvironment, PushJob};
use naru_model::message::{Outcome, Rejection};
use naru_model::room::sorted_members;
use naru_model::{
    ClientMessageId, DeviceId, EventId, MemberVersion, Message, MessageId, Origin, Room, RoomId, RoomKind,
    Seq, StoreEpoch, Timestamp, Trace, UserId,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::field::{self, Field};

/// In `intake`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IntakeDocument {
    #[serde(rename = "_id", with = "field")]
    pub(crate) id: MessageId,
    pub(crate) chat_room_id: RoomId,
    pub(crate) sender_id: UserId,
    /// Absent, like the content, once both were dropped.
    #[serde(default)]
    pub(crate) sender_name: Arc<str>,
    #[serde(default)]
    pub(crate) content: Arc<str>,
    #[serde(with = "field")]
    pub(crate) timestamp: Timestamp,
    pub(crate) client_message_id: ClientMessageId,
    #[serde(default, with = "field", skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<MessageId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<Origin>,
    pub(crate) trace: Trace,
    /// The order of appending, independent of gateways' clocks: an insert leaves this empty, and the server fills in its own
    /// clock's next tick, which no other entry has. <https://www.mongodb.com/docs/manual/reference/bson-types/#timestamps>
    pub(crate) appended: bson::Timestamp,
    /// The order within one append, for a server without such ticks.
    pub(crate) place: i64,
    pub(crate) open: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<StoredOutcome>,
    #[serde(default, with = "field", skip_serializing_if = "Option::is_none")]
    pub(crate) seq: Option<Seq>,
}

/// The outcome of an accepted message; a saved one also has its `seq`.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum StoredOutcome {
    Saved,
    NotAMember,
}

impl StoredOutcome {
    /// Its value in the document.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Saved => "saved",
            Self::NotAMember => "notAMember",
        }
    }

    pub(crate) const fn of(outcome: Outcome) -> (Self, Option<Seq>) {
        match outcome {
            Outcome::Saved { seq } => (Self::Saved, Some(seq)),
            Outcome::Rejected { reason: Rejection::NotAMember } => (Self::NotAMember, None),
        }
    }
}

impl IntakeDocument {
    /// A new, open entry.
    pub(crate) fn new(accepted: Accepted, place: usize) -> Self {
        Self {
            id: accepted.id,
            chat_room_id: accepted.chat_room_id,
            sender_id: accepted.sender_id,
            sender_name: accepted.sender_name,
            content: accepted.content,
            timestamp: accepted.timestamp,
            client_message_id: accepted.client_message_id,
            after: accepted.after,
            origin: accepted.origin,
            trace: accepted.trace,
            appended: bson::Timestamp { time: 0, increment: 0 },
            place: i64::try_from(place).unwrap_or(i64::MAX),
            open: true,
            outcome: None,
            seq: None,
        }
    }
}

/// An intake entry's place in the order of appending.
#[derive(Clone, Copy, Deserialize)]
pub(crate) struct PlaceDocument {
    #[serde(with = "field")]
    pub(crate) appended: IntakePlace,
}

/// An intake entry as it is read.
#[derive(Clone, Deserialize)]
#[serde(try_from = "IntakeDocument")]
pub(crate) struct StoredEntry(pub(crate) IntakeRecord);

impl TryFrom<IntakeDocument> for StoredEntry {
    type Error = &'static str;

    fn try_from(document: IntakeDocument) -> Result<Self, Self::Error> {
        let outcome = match (document.outcome, document.seq) {
            (None, _) => None,
            (Some(StoredOutcome::Saved), Some(seq)) => Some(Outcome::Saved { seq }),
            (Some(StoredOutcome::Saved), None) => return Err("saved at no place"),
            (Some(StoredOutcome::NotAMember), _) => Some(Outcome::Rejected { reason: Rejection::NotAMember }),
        };
        let accepted = Accepted {
            id: document.id,
            chat_room_id: document.chat_room_id,
            sender_id: document.sender_id,
            sender_name: document.sender_name,
            content: document.content,
            timestamp: document.timestamp,
            client_message_id: document.client_message_id,
            after: document.after,
            origin: document.origin,
            trace: document.trace,
        };
        Ok(Self(IntakeRecord { accepted, outcome }))
    }
}

/// In `chat_messages`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MessageDocument {
    #[serde(rename = "_id", with = "field")]
    id: MessageId,
    pub(crate) chat_room_id: RoomId,
    #[serde(with = "field")]
    seq: Seq,
    sender_id: UserId,
    sender_name: Arc<str>,
    content: Arc<str>,
    #[serde(with = "field")]
    timestamp: Timestamp,
    client_message_id: ClientMessageId,
    #[serde(default, with = "field", skip_serializing_if = "Option::is_none")]
    deleted_at: Option<Timestamp>,
}

impl From<&Message> for MessageDocument {
    fn from(message: &Message) -> Self {
        Self {
            id: message.id,
            chat_room_id: message.chat_room_id.clone(),
            seq: message.seq,
            sender_id: message.sender_id.clone(),
            sender_name: message.sender_name.clone(),
            content: message.content.clone(),
            timestamp: message.timestamp,
            client_message_id: message.client_message_id.clone(),
            deleted_at: message.deleted_at,
        }
    }
}

impl From<MessageDocument> for Message {
    fn from(document: MessageDocument) -> Self {
        Self {
            id: document.id,
            chat_room_id: document.chat_room_id,
            seq: document.seq,
            sender_id: document.sender_id,
            sender_name: document.sender_name,
            content: document.content,
            timestamp: document.timestamp,
            client_message_id: document.client_message_id,
            deleted_at: document.deleted_at,
        }
    }
}

/// In `chat_rooms`. A room that another system wrote needs only `_id`, `user1Id` and `user2Id`; only direct rooms have
/// the latter two.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RoomDocument {
    #[serde(rename = "_id")]
    pub(crate) id: RoomId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user1_id: Option<UserId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user2_id: Option<UserId>,
    #[serde(default, deserialize_with = "if_readable", skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) member_ids: Option<Arc<[UserId]>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) member_version: Option<MemberVersion>,
    #[serde(default, deserialize_with = "if_readable", skip_serializing_if = "Option::is_none")]
    pub(crate) maker_id: Option<UserId>,
    #[serde(default, serialize_with = "field::serialize", deserialize_with = "if_field")]
    pub(crate) created_at: Option<Timestamp>,
    #[serde(default, serialize_with = "field::serialize", deserialize_with = "if_field")]
    pub(crate) activity: Option<Timestamp>,
    #[serde(default, deserialize_with = "if_field", skip_serializing)]
    pub(crate) last_seq: Option<Seq>,
    #[serde(default, deserialize_with = "if_field", skip_serializing)]
    pub(crate) expired_to: Option<Seq>,
}

impl RoomDocument {
    /// The fields above: another system's documents may have many more.
    pub(crate) fn fields() -> Document {
        doc! {
            "user1Id": 1, "user2Id": 1, "name": 1, "memberIds": 1, "memberVersion": 1, "makerId": 1, "createdAt": 1,
            "activity": 1, "lastSeq": 1, "expiredTo": 1,
        }
    }
}

/// None for an unreadable value: another system may use the field for something else.
fn if_readable<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let value = Bson::deserialize(deserializer)?;
    Ok(bson::deserialize_from_bson(value).ok())
}

/// The same for a type with a BSON type of its own.
pub(crate) fn if_field<'de, F: Field, D: Deserializer<'de>>(deserializer: D) -> Result<Option<F>, D::Error> {
    Ok(if_readable(deserializer)?.and_then(F::from_bson))
}

/// A room as it is read.
#[derive(Clone, Deserialize)]
#[serde(try_from = "RoomDocument")]
pub(crate) struct StoredRoom {
    pub(crate) room: Arc<Room>,
    /// Its place in lists of rooms.
    pub(crate) activity: Timestamp,
    /// The place of the message that set `activity`: the newest one or an earlier one.
    pub(crate) bumped: Seq,
    /// Messages up to this place have expired.
    pub(crate) expired: Seq,
}

/// The creation time of a room whose document has none.
const LONG_AGO: Timestamp = Timestamp::from_millis(0);

impl TryFrom<RoomDocument> for StoredRoom {
    type Error = &'static str;

    fn try_from(document: RoomDocument) -> Result<Self, Self::Error> {
        let created_at = document.created_at.unwrap_or(LONG_AGO);
        let (kind, name, member_ids, member_version) = match (document.user1_id, document.user2_id) {
            // These members never change. Other fields are ignored: another system may have replaced it.
            (Some(user1), Some(user2)) => {
                (RoomKind::Direct, None, sorted_members([user1, user2]), MemberVersion::FIRST)
            }
            (None, None) => {
                let members = document.member_ids.ok_or("a room without members")?;
                let version = document.member_version.ok_or("a group without a version")?;
                (RoomKind::Group, document.name, members, version)
            }
            _ => return Err("a direct room of one"),
        };
        let maker_id = document.maker_id;
        let room = Room { id: document.id, kind, name, member_ids, member_version, maker_id, created_at };
        Ok(Self {
            room: Arc::new(room),
            activity: document.activity.unwrap_or(created_at),
            bumped: document.last_seq.unwrap_or_default(),
            expired: document.expired_to.unwrap_or_default(),
        })
    }
}

/// In `room_versions`: a group's members before a change of them. It has a `leftAt`, too, unless the version is the first.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VersionDocument {
    pub(crate) member_ids: Arc<[UserId]>,
}

/// In `members`: a member's positions and settings in a room, kept after leaving for a later return.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MemberDocument {
    pub(crate) chat_room_id: RoomId,
    pub(crate) user_id: UserId,
    #[serde(default, with = "field")]
    pub(crate) read: Seq,
    /// Of the furthest device, or of a session without a device.
    #[serde(default, with = "field")]
    pub(crate) received: Seq,
    #[serde(default)]
    pub(crate) devices: Vec<DevicePlace>,
    #[serde(default)]
    pub(crate) muted: bool,
    #[serde(default, with = "field")]
    pub(crate) muted_until: Option<Timestamp>,
}

/// One device's position. A device id may hold any character, so it is never the name of a field.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DevicePlace {
    pub(crate) device_id: DeviceId,
    #[serde(with = "field")]
    pub(crate) received: Seq,
}

impl MemberDocument {
    pub(crate) const fn settings(&self) -> MemberSettings {
        MemberSettings { muted: self.muted, muted_until: self.muted_until }
    }
}

/// In `devices`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeviceDocument {
    user_id: UserId,
    device_id: DeviceId,
    platform: Platform,
    token: Arc<str>,
    environment: PushEnvironment,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    locale: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    hides_content: bool,
    #[serde(with = "field")]
    registered_at: Timestamp,
}

impl From<Device> for DeviceDocument {
    fn from(device: Device) -> Self {
        Self {
            user_id: device.user,
            device_id: device.id,
            platform: device.platform,
            token: device.token,
            environment: device.environment,
            locale: device.locale,
            hides_content: device.hides_content,
            registered_at: device.registered_at,
        }
    }
}

impl From<DeviceDocument> for Device {
    fn from(document: DeviceDocument) -> Self {
        Self {
            user: document.user_id,
            id: document.device_id,
            platform: document.platform,
            token: document.token,
            environment: document.environment,
            locale: document.locale,
            hides_content: document.hides_content,
            registered_at: document.registered_at,
        }
    }
}

/// In `users`: a user whose sessions were ended, or who blocks others.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserDocument {
    #[serde(rename = "_id")]
    pub(crate) id: UserId,
    #[serde(default)]
    session_epoch: u64,
    #[serde(default, with = "field")]
    tokens_not_before: Option<Timestamp>,
    #[serde(default)]
    pub(crate) blocked: Vec<UserId>,
}

impl From<UserDocument> for UserRecord {
    fn from(mut document: UserDocument) -> Self {
        document.blocked.sort_unstable();
        Self {
            session_epoch: document.session_epoch,
            tokens_not_before: document.tokens_not_before,
            blocked: document.blocked,
        }
    }
}

/// In `erasures`. One that is under way is `open`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErasureDocument {
    #[serde(rename = "_id")]
    pub(crate) user: UserId,
    round: u64,
    #[serde(with = "field")]
    requested_at: Timestamp,
    #[serde(default, with = "field")]
    completed_at: Option<Timestamp>,
}

impl From<ErasureDocument> for Erasure {
    fn from(ErasureDocument { round, requested_at, completed_at, .. }: ErasureDocument) -> Self {
        Self { round, requested_at, completed_at }
    }
}

/// In `pushes`: a push that a provider accepted.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PushDocument {
    #[serde(rename = "_id", with = "field")]
    pub(crate) event_id: EventId,
    pub(crate) provider_id: String,
    #[serde(with = "field")]
    pub(crate) recorded_at: Timestamp,
}

/// In `parked`: a push that could not be sent. Its job has the same shape as in a queue.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ParkedDocument {
    #[serde(rename = "_id", with = "field")]
    event_id: EventId,
    job: PushJob,
    reason: String,
    attempts: u32,
    #[serde(with = "field")]
    parked_at: Timestamp,
}

impl From<ParkedPush> for ParkedDocument {
    fn from(push: ParkedPush) -> Self {
        Self {
            event_id: push.event_id,
            job: push.job,
            reason: push.reason,
            attempts: push.attempts,
            parked_at: push.parked_at,
        }
    }
}

impl From<ParkedDocument> for ParkedPush {
    fn from(document: ParkedDocument) -> Self {
        Self {
            event_id: document.event_id,
            job: document.job,
            reason: document.reason,
            attempts: document.attempts,
            parked_at: document.parked_at,
        }
    }
}

/// In `meta`: the data's layout.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MetaDocument {
    #[serde(rename = "_id")]
    pub(crate) id: String,
    pub(crate) schema_version: u32,
    pub(crate) partitions: u32,
    /// Absent: it was never restored from a backup.
    #[serde(default = "first_epoch", with = "field")]
    pub(crate) epoch: StoreEpoch,
}

const fn first_epoch() -> StoreEpoch {
    StoreEpoch::FIRST
}
