//! The way of a message, hop by hop: who hands what to whom, and what may be lost.
//!
//! ```text
//! gateway ──accepted──▶ persister ──saved──▶ fanout ──offline──▶ notifier ──push.*──▶ notifier's lanes
//! ```
//!
//! Each payload names its hop, so an engine's `Queue<Saved>` takes nothing but [`Saved`].

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::message::Accepted;
use crate::{DeviceId, EventId, MemberVersion, Message, MessageId, Origin, RoomId, Seq, Timestamp, UserId};

/// What a hop promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Events of one room arrive in the order they were sent while one receiver holds the room, and are never in two
    /// unacknowledged batches at once; a hand-over to another receiver may reorder. Events may be lost in a crash: the
    /// intake's `open` entries bring them back.
    Ordered,
    /// An event is there from `send` until it is acknowledged, whatever dies. No order; a retry has a delay.
    Durable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The queue's name, below the engine's own prefix.
    pub name: &'static str,
    /// What it promises.
    pub kind: Kind,
}

/// A payload: it says which event it is and which room it belongs to.
pub trait Payload: Serialize + DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static {
    /// The version of its shape. Old ones stay readable: fields are only added, with a default.
    const VERSION: u16 = 1;

    /// Derived from what it is about.
    fn event_id(&self) -> EventId;

    /// The room it belongs to.
    fn room(&self) -> &RoomId;
}

/// A message lies in the intake.
pub const ACCEPTED: Hop = Hop { name: "accepted", kind: Kind::Ordered };

/// A message has its place in `chat_messages`.
pub const SAVED: Hop = Hop { name: "saved", kind: Kind::Ordered };

/// Some recipients of a message have no live session, or did not prove in time that they have it.
pub const OFFLINE: Hop = Hop { name: "offline", kind: Kind::Durable };

/// One push to one device by FCM.
pub const PUSH_FCM: Hop = Hop { name: "push.fcm", kind: Kind::Durable };
/// One push to one device by APNs.
pub const PUSH_APNS: Hop = Hop { name: "push.apns", kind: Kind::Durable };
/// One push to the app's main backend.
pub const PUSH_WEBHOOK: Hop = Hop { name: "push.webhook", kind: Kind::Durable };

/// Every hop, in the order a message meets them.
pub const ALL: [Hop; 6] = [ACCEPTED, SAVED, OFFLINE, PUSH_FCM, PUSH_APNS, PUSH_WEBHOOK];

impl Payload for Accepted {
    fn event_id(&self) -> EventId {
        EventId::derive(&[b"accepted", &self.id.bytes()])
    }

    fn room(&self) -> &RoomId {
        &self.chat_room_id
    }
}

/// See [`SAVED`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// The message, with its place.
    pub message: Message,
    /// The members it goes to.
    pub member_version: MemberVersion,
    /// The session that is spared its own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

impl Payload for Saved {
    fn event_id(&self) -> EventId {
        EventId::derive(&[b"saved", &self.message.id.bytes()])
    }

    fn room(&self) -> &RoomId {
        &self.message.chat_room_id
    }
}

/// See [`OFFLINE`]. At most [`Offline::MAX_RECIPIENTS`] recipients; a larger group gets several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offline {
    /// What they missed.
    pub message: Message,
    pub recipients: Vec<UserId>,
}

impl Offline {
    /// How many recipients share one event: few enough that a crash repeats little, many enough that a room of
    /// 1,000 costs ten events.
    pub const MAX_RECIPIENTS: usize = 100;
}

impl Payload for Offline {
    fn event_id(&self) -> EventId {
        let id = self.message.id.bytes();
        let mut about: Vec<&[u8]> = vec![b"offline", &id];
        about.extend(self.recipients.iter().map(|user| user.as_str().as_bytes()));
        EventId::derive(&about)
    }

    fn room(&self) -> &RoomId {
        &self.message.chat_room_id
    }
}

/// Through whom a push goes. Each has a lane of its own, so one that is down delays no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Firebase Cloud Messaging.
    Fcm,
    /// Apple Push Notification service.
    Apns,
    /// The app's main backend.
    Webhook,
}

impl Lane {
    pub const fn hop(self) -> Hop {
        match self {
            Lane::Fcm => PUSH_FCM,
            Lane::Apns => PUSH_APNS,
            Lane::Webhook => PUSH_WEBHOOK,
        }
    }

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Lane::Fcm => "fcm",
            Lane::Apns => "apns",
            Lane::Webhook => "webhook",
        }
    }
}

/// Whether a device's token is of Apple's production or sandbox environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PushEnvironment {
    /// What the App Store's apps use.
    #[default]
    Production,
    /// What builds from Xcode use.
    Sandbox,
}

/// The device a push goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PushTarget {
    /// The user's own name for it.
    pub device_id: DeviceId,
    /// The provider's name for it.
    pub token: Arc<str>,
    /// The environment the token is of.
    pub environment: PushEnvironment,
}

/// One push through one lane: to one device, or, by webhook, to the main backend for one user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PushJob {
    pub lane: Lane,
    /// The message it tells of.
    pub message_id: MessageId,
    pub chat_room_id: RoomId,
    pub seq: Seq,
    pub recipient_id: UserId,
    /// The sender's name; empty where the phone hides it.
    pub title: Arc<str>,
    /// The message's content; empty where the phone hides it.
    pub body: Arc<str>,
    /// The phone shows words of its own, by a localisation key, in place of title and body.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hides_content: bool,
    /// How many messages the recipient has not read. Its lane sets it when its turn has come: what was true when the
    /// push was queued would be wrong by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub badge: Option<u64>,
    /// The device; none on the webhook's lane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PushTarget>,
    /// After this it is of no use.
    pub expires_at: Timestamp,
}

impl Payload for PushJob {
    fn event_id(&self) -> EventId {
        let device = self.target.as_ref().map_or("", |target| target.device_id.as_str());
        let (lane, user) = (self.lane.as_str(), self.recipient_id.as_str());
        EventId::derive(&[
            b"push",
            lane.as_bytes(),
            &self.message_id.bytes(),
            user.as_bytes(),
            device.as_bytes(),
        ])
    }

    fn room(&self) -> &RoomId {
        &self.chat_room_id
    }
}
