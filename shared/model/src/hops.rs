//! A message's hops: which worker sends it to which, as which payload, and what may be lost.
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

/// What a hop guarantees about order and loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopKind {
    /// Events of one room arrive in the order they were sent while one receiver holds the room, and are never in two
    /// unacknowledged batches at once; a room's reassignment to another receiver may reorder. Events may be lost in a crash: the
    /// intake's `open` entries bring them back.
    Ordered,
    /// An event is kept from `send` until it is acknowledged, whatever process dies. No order; a retry has a delay.
    Durable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The queue's name, below the engine's own prefix.
    pub name: &'static str,
    pub kind: HopKind,
}

/// A payload: it has an event id and a room.
pub trait Payload: Serialize + DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static {
    /// The version of its shape. Old versions stay readable: fields are only added, with a default.
    const VERSION: u16 = 1;

    /// Derived from its subject.
    fn event_id(&self) -> EventId;

    /// The room it belongs to.
    fn room(&self) -> &RoomId;
}

/// A message is in the intake.
pub const ACCEPTED: Hop = Hop { name: "accepted", kind: HopKind::Ordered };

/// A message has its place in `chat_messages`.
pub const SAVED: Hop = Hop { name: "saved", kind: HopKind::Ordered };

/// Some recipients of a message have no live session, or have not proven in time that they have it.
pub const OFFLINE: Hop = Hop { name: "offline", kind: HopKind::Durable };

/// One push to one device by FCM.
pub const PUSH_FCM: Hop = Hop { name: "push.fcm", kind: HopKind::Durable };
/// One push to one device by APNs.
pub const PUSH_APNS: Hop = Hop { name: "push.apns", kind: HopKind::Durable };
/// One push to the app's main backend.
pub const PUSH_WEBHOOK: Hop = Hop { name: "push.webhook", kind: HopKind::Durable };

/// Every hop, in the order in which a message passes them.
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
    /// The version of its recipients.
    pub member_version: MemberVersion,
    /// The session that sent it and does not receive it.
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

/// See [`OFFLINE`]. At most [`Offline::MAX_RECIPIENTS`] recipients; a larger group gets several events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offline {
    /// The message that they missed.
    pub message: Message,
    pub recipients: Vec<UserId>,
}

impl Offline {
    /// The most recipients in one event: few enough that a crash repeats little, many enough that a room of 1,000
    /// costs ten events.
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

/// A push provider's queue. Each provider has its own, so one that is down delays no other.
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
    /// For apps from the App Store.
    #[default]
    Production,
    /// For builds from Xcode.
    Sandbox,
}

/// The device that a push is sent to.
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
    /// The message it announces.
    pub message_id: MessageId,
    pub chat_room_id: RoomId,
    pub seq: Seq,
    pub recipient_id: UserId,
    /// The sender's name; empty where the phone hides it.
    pub title: Arc<str>,
    /// The message's content; empty where the phone hides it.
    pub body: Arc<str>,
    /// The phone shows the app's own text, by a localisation key, in place of title and body.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hides_content: bool,
    /// How many messages the recipient has not read. The lane sets it just before it sends the push: a count from when the
    /// push was queued would be out of date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub badge: Option<u64>,
    /// The group's name, where it has one. The lane sets it just before it sends the push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_name: Option<Arc<str>>,
    /// The device; none on the webhook's lane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PushTarget>,
    /// After this the push is of no use.
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
