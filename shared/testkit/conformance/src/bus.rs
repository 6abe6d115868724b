//! The rules for a [`Bus`]: see [`naru_engines::bus`]. Each case is run on every hop it applies to, all at once.

mod durable_hops_through_death;
mod every_hop;
mod ordered_hops;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use naru_model::hops::{
    self, Accepted, Hop, HopKind, Lane, Offline, Payload, PushEnvironment, PushJob, PushTarget, Saved,
};
use naru_model::{Event, MemberVersion, MessageId, RoomId, Seq, Timestamp, Trace, UserId, partition_of};

use tokio::task::JoinSet;

use super::fixtures::{accepted, device, room, user};
use super::{Of, reopened};
use naru_engines::bus::{AckHandle, Bus, Delivery, Queue, Receiver, ack, retry};

/// A delay short enough to wait for. An engine that can keep only certain delays is opened with this and [`LONG`] among them.
pub const SHORT: Duration = Duration::from_millis(150);
/// A delay longer than any case waits.
pub const LONG: Duration = Duration::from_secs(60);

/// "Soon" in S2 is a second on an idle machine; the suite keeps the machine busy.
const SOON: Duration = Duration::from_secs(4);
/// Clocks are read in whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(2);

/// The cases as data, each with the hops it is run on.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_bus_data {
    ([$part:ty] $($group:ident { $($case:ident,)+ })+) => {
        pub const CASES: &[$crate::Case<$part>] = &[$($($crate::Case {
            group: stringify!($group),
            name: stringify!($case),
            body: |subject| Box::pin(conformance_bus_data!(@ $group $case subject)),
        },)+)+];
    };
    (@ every_hop $case:ident $subject:ident) => {
        on!($subject, every_hop::$case, [accepted saved offline push_fcm push_apns push_webhook])
    };
    (@ ordered_hops $case:ident $subject:ident) => {
        on!($subject, ordered_hops::$case, [accepted saved])
    };
    (@ durable_hops_through_death $case:ident $subject:ident) => { async move {
        // One hop at a time, since each case ends the process.
        durable_hops_through_death::$case($subject, On::offline).await;
        durable_hops_through_death::$case($subject, On::push_fcm).await;
        durable_hops_through_death::$case($subject, On::push_apns).await;
        durable_hops_through_death::$case($subject, On::push_webhook).await;
    } };
}

/// Runs a case on each of these hops at the same time.
macro_rules! on {
    ($subject:ident, $case:path, [$($hop:ident)+]) => { async move {
        let bus = $subject.open().await;
        let mut hops = HashMap::new();
        let mut cases = JoinSet::new();
        $(hops.insert(cases.spawn($case(On::$hop(&bus))).id(), stringify!($hop));)+
        while let Some(done) = cases.join_next().await {
            if let Err(broken) = done {
                panic!("on {}, as told above", hops[&broken.id()]);
            }
        }
    } };
}

crate::conformance_cases! { bus => conformance_bus_data [Bus] }

/// A hop under test.
pub(super) struct On<T: Payload> {
    hop: Hop,
    pub(super) queue: Arc<dyn Queue<T>>,
    payload: fn(&RoomId) -> T,
}

impl On<Accepted> {
    pub(super) fn accepted(bus: &Bus) -> Self {
        Self { hop: hops::ACCEPTED, queue: bus.accepted.clone(), payload: |room| accepted(room, &user()) }
    }
}

impl On<Saved> {
    pub(super) fn saved(bus: &Bus) -> Self {
        let payload = |room: &RoomId| {
            let accepted = accepted(room, &user());
            Saved { message: accepted.at(Seq(1)), member_version: MemberVersion(7), origin: accepted.origin }
        };
        Self { hop: hops::SAVED, queue: bus.saved.clone(), payload }
    }
}

impl On<Offline> {
    pub(super) fn offline(bus: &Bus) -> Self {
        let payload = |room: &RoomId| Offline {
            message: accepted(room, &user()).at(Seq(1)),
            recipients: vec![user(), user()],
        };
        Self { hop: hops::OFFLINE, queue: bus.offline.clone(), payload }
    }
}

impl On<PushJob> {
    pub(super) fn push_fcm(bus: &Bus) -> Self {
        Self { hop: hops::PUSH_FCM, queue: bus.push_fcm.clone(), payload: |room| push_job(room, &user()) }
    }

    pub(super) fn push_apns(bus: &Bus) -> Self {
        let payload = |room: &RoomId| PushJob { lane: Lane::Apns, ..push_job(room, &user()) };
        Self { hop: hops::PUSH_APNS, queue: bus.push_apns.clone(), payload }
    }

    pub(super) fn push_webhook(bus: &Bus) -> Self {
        let payload =
            |room: &RoomId| PushJob { lane: Lane::Webhook, target: None, ..push_job(room, &user()) };
        Self { hop: hops::PUSH_WEBHOOK, queue: bus.push_webhook.clone(), payload }
    }
}

pub(super) fn push_job(room: &RoomId, user: &UserId) -> PushJob {
    let token = format!("token:{}", MessageId::generate()).into();
    PushJob {
        lane: Lane::Fcm,
        message_id: MessageId::generate(),
        chat_room_id: room.clone(),
        seq: Seq(1),
        recipient_id: user.clone(),
        title: "Ada".into(),
        body: "안녕하세요 👋".into(),
        hides_content: true,
        badge: Some(3),
        room_name: None,
        target: Some(PushTarget { device_id: device(), token, environment: PushEnvironment::Sandbox }),
        expires_at: Timestamp::from_millis(1_795_339_800_042),
    }
}

impl<T: Payload> On<T> {
    fn event(&self, room: &RoomId) -> Event<T> {
        Event::new((self.payload)(room), Trace::start())
    }

    pub(super) fn events(&self, room: &RoomId, count: usize) -> Vec<Event<T>> {
        (0..count).map(|_| self.event(room)).collect()
    }

    /// This many events that an engine may carry as one, and of which none need wait for another: on an ordered hop, of
    /// rooms of different partitions.
    fn together(&self, count: usize) -> Vec<Event<T>> {
        match self.hop.kind {
            HopKind::Ordered => self.scattered(count),
            HopKind::Durable => self.events(&room(), count),
        }
    }

    /// One event in each of this many rooms.
    pub(super) fn scattered(&self, count: usize) -> Vec<Event<T>> {
        rooms_apart(count).iter().map(|room| self.event(room)).collect()
    }

    pub(super) async fn send(&self, events: &[Event<T>]) {
        self.queue.send(events.to_vec()).await.unwrap();
    }

    pub(super) async fn receiver(&self) -> Box<dyn Receiver<T>> {
        self.queue.receiver().await.unwrap()
    }
}

/// Rooms of different partitions: an engine may hold a partition back where it need only hold a room.
fn rooms_apart(count: usize) -> Vec<RoomId> {
    const PARTITIONS: u32 = 32;
    let mut partitions = HashSet::new();
    std::iter::repeat_with(room)
        .filter(|room| partitions.insert(partition_of(room, PARTITIONS)))
        .take(count)
        .collect()
}

/// The next delivery, alone.
async fn one<T: Payload>(receiver: &mut Box<dyn Receiver<T>>) -> Delivery<T> {
    let mut batch = receiver.receive(1).await.unwrap();
    assert_eq!(batch.len(), 1, "at most one was asked for, and a batch is never empty");
    batch.remove(0)
}

/// The next `count` deliveries, none acknowledged: of rooms of different partitions, or of a hop without order.
async fn held<T: Payload>(receiver: &mut Box<dyn Receiver<T>>, count: usize) -> Vec<Delivery<T>> {
    let mut held = Vec::new();
    while held.len() < count {
        held.extend(receiver.receive(count - held.len()).await.unwrap());
    }
    held
}

/// The next `count` events, each batch acknowledged before the next.
pub(super) async fn drained<T: Payload>(
    receiver: &mut Box<dyn Receiver<T>>,
    count: usize,
    max: usize,
) -> Vec<Event<T>> {
    let mut events = Vec::new();
    while events.len() < count {
        let batch = receiver.receive(max.min(count - events.len())).await.unwrap();
        let (batch, ack_handles) = split(batch);
        events.extend(batch);
        ack(ack_handles).await.unwrap();
    }
    events
}

/// Receives and acknowledges until each of `these` has come. Any other event is one of `perhaps`, once at most.
async fn drained_at_least<T: Payload + PartialEq>(
    receiver: &mut Box<dyn Receiver<T>>,
    these: &[Event<T>],
    perhaps: &[Event<T>],
) {
    let (mut missing, mut perhaps) = (these.to_vec(), perhaps.to_vec());
    while !missing.is_empty() {
        let (batch, ack_handles) = split(receiver.receive(9).await.unwrap());
        for event in batch {
            let expected = [&mut missing, &mut perhaps].into_iter().find(|events| events.contains(&event));
            expected.expect("it was sent, and comes once").retain(|other| *other != event);
        }
        ack(ack_handles).await.unwrap();
    }
}

fn split<T: Payload>(batch: Vec<Delivery<T>>) -> (Vec<Event<T>>, Vec<AckHandle>) {
    batch.into_iter().map(|delivery| (delivery.event, delivery.ack_handle)).unzip()
}

/// Every second item, and the others.
fn every_second<T>(items: Vec<T>) -> (Vec<T>, Vec<T>) {
    let (mut odd, mut even) = (Vec::new(), Vec::new());
    for (nth, item) in items.into_iter().enumerate() {
        if nth % 2 == 0 { even.push(item) } else { odd.push(item) }
    }
    (odd, even)
}

/// Sorted by id, to compare where the contract has no order.
pub(super) fn sorted<T: Payload>(events: impl IntoIterator<Item = Event<T>>) -> Vec<Event<T>> {
    let mut events: Vec<_> = events.into_iter().collect();
    events.sort_by_key(|event| event.event_id.0);
    events
}
