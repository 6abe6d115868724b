//! A tap around every trait: the one place that knows them all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, future};

use async_trait::async_trait;
use naru_model::hops::{self, Accepted, Payload};
use naru_model::live::{Confirmation, LiveEvent};
use naru_model::{
    DeviceId, Event, EventId, GatewayId, MemberVersion, Message, MessageId, Room, RoomId, Seq, SessionId,
    Timestamp, UserId,
};

use super::{Call, Tap, locked};
use crate::bus::{self, Acknowledge, Bus, Delivery, Queue, Receipt, Receiver};
use crate::live::{Attachment, IsHere, Leases, Live, Location, Presence, Proofs, Seen, Signal, Subscription};
use crate::store::{
    Advance, Appended, Changed, Closing, Created, Device, DevicePosition, Devices, Intake, IntakeRecord,
    MemberChange, MemberPosition, MemberSettings, Messages, Moved, NewRoom, ParkedCursor, ParkedPush,
    Platform, Positions, Pushes, RoomCursor, RoomSummary, Rooms, Run, Store, Window,
};
use crate::{EngineResult, Engines};

/// A tap around every call of these engines.
pub fn tapped(engines: Engines, tap: Arc<dyn Tap>) -> Engines {
    Engines {
        store: tapped_store(engines.store, tap.clone()),
        bus: tapped_bus(engines.bus, tap.clone()),
        live: Tapped::around("live", engines.live, &tap),
        presence: Tapped::around("presence", engines.presence, &tap),
        proofs: Tapped::around("proofs", engines.proofs, &tap),
        leases: Tapped::around("leases", engines.leases, &tap),
    }
}

/// A tap around every call of a store.
pub fn tapped_store(store: Store, tap: Arc<dyn Tap>) -> Store {
    Store {
        intake: Tapped::around("intake", store.intake, &tap),
        messages: Tapped::around("messages", store.messages, &tap),
        rooms: Tapped::around("rooms", store.rooms, &tap),
        positions: Tapped::around("positions", store.positions, &tap),
        devices: Tapped::around("devices", store.devices, &tap),
        pushes: Tapped::around("pushes", store.pushes, &tap),
        linger: store.linger,
    }
}

/// A tap around every call of a bus, its receivers and its receipts.
pub fn tapped_bus(bus: Bus, tap: Arc<dyn Tap>) -> Bus {
    Bus {
        accepted: Tapped::around(hops::ACCEPTED.name, bus.accepted, &tap),
        saved: Tapped::around(hops::SAVED.name, bus.saved, &tap),
        offline: Tapped::around(hops::OFFLINE.name, bus.offline, &tap),
        push_fcm: Tapped::around(hops::PUSH_FCM.name, bus.push_fcm, &tap),
        push_apns: Tapped::around(hops::PUSH_APNS.name, bus.push_apns, &tap),
        push_webhook: Tapped::around(hops::PUSH_WEBHOOK.name, bus.push_webhook, &tap),
    }
}

/// A part of an engine and the tap around it.
pub struct Tapped<T: ?Sized> {
    part: &'static str,
    inner: Arc<T>,
    tap: Arc<dyn Tap>,
}

impl<T: ?Sized> Tapped<T> {
    fn around(part: &'static str, inner: Arc<T>, tap: &Arc<dyn Tap>) -> Arc<Self> {
        Arc::new(Self { part, inner, tap: tap.clone() })
    }

    async fn call<R>(
        &self,
        method: &'static str,
        rooms: Vec<RoomId>,
        effect: impl Future<Output = EngineResult<R>>,
    ) -> EngineResult<R> {
        through(&self.tap, Call { part: self.part, method, rooms }, effect).await
    }
}

async fn through<R>(
    tap: &Arc<dyn Tap>,
    call: Call,
    effect: impl Future<Output = EngineResult<R>>,
) -> EngineResult<R> {
    tap.before(&call).await?;
    let answer = effect.await?;
    tap.after(&call).await?;
    Ok(answer)
}

/// Every method of the traits that only ask and answer: `method(arguments) -> answer, the rooms it is about`.
macro_rules! tapped {
    ($($trait:ident {
        $($method:ident($($argument:ident: $type:ty),*) -> $answer:ty $(, $rooms:expr)?;)+
    })+) => {$(
        #[async_trait]
        impl $trait for Tapped<dyn $trait> {$(
            async fn $method(&self, $($argument: $type),*) -> EngineResult<$answer> {
                let rooms = tapped!(@rooms $($rooms)?);
                self.call(stringify!($method), rooms, self.inner.$method($($argument),*)).await
            }
        )+}
    )+};
    (@rooms) => { Vec::new() };
    (@rooms $rooms:expr) => { $rooms.cloned().collect() };
}

tapped! {
    Intake {
        append(entries: &[Accepted]) -> Vec<Appended>, entries.iter().map(|entry| &entry.chat_room_id);
        get(ids: &[MessageId]) -> Vec<Option<IntakeRecord>>;
        open(until: Timestamp, limit: usize) -> Vec<Accepted>;
        close(closings: &[Closing]) -> ();
    }
    Messages {
        find(ids: &[MessageId]) -> Vec<Option<Message>>;
        heads(rooms: &[RoomId]) -> Vec<Seq>, rooms.iter();
        append_run(run: &[Message]) -> Run, run.iter().map(|message| &message.chat_room_id);
        bump(newest: &[Message]) -> (), newest.iter().map(|message| &message.chat_room_id);
        range(room: &RoomId, window: Window, limit: usize) -> (Vec<Message>, bool), [room].into_iter();
    }
    Rooms {
        create(room: NewRoom) -> Created, [&room.id].into_iter();
        current(ids: &[RoomId]) -> Vec<Option<Arc<Room>>>, ids.iter();
        members_at(room: &RoomId, version: MemberVersion) -> Option<Arc<[UserId]>>, [room].into_iter();
        change(room: &RoomId, change: MemberChange, max: usize) -> Changed, [room].into_iter();
        of_user(user: &UserId, cursor: Option<&RoomCursor>, limit: usize) -> (Vec<RoomSummary>, Option<RoomCursor>);
        summary(room: &RoomId, user: &UserId) -> Option<RoomSummary>, [room].into_iter();
        configure(room: &RoomId, user: &UserId, settings: MemberSettings) -> bool, [room].into_iter();
        share_a_room(user: &UserId, others: &[UserId]) -> Vec<bool>;
    }
    Positions {
        advance(steps: &[Advance]) -> Vec<Moved>, steps.iter().map(|step| &step.room);
        get(members: &[(RoomId, UserId, Seq)]) -> Vec<MemberPosition>, members.iter().map(|(room, ..)| room);
        unread(users: &[UserId]) -> Vec<u64>;
        of_device(user: &UserId, device: &DeviceId) -> Vec<DevicePosition>;
    }
    Devices {
        claim(device: Device) -> ();
        of_users(users: &[UserId]) -> Vec<Device>;
        remove(user: &UserId, device: &DeviceId) -> bool;
        remove_token(platform: Platform, token: &str, registered_before: Timestamp) -> bool;
        forget_unseen(before: Timestamp) -> u64;
    }
    Pushes {
        done(events: &[EventId]) -> Vec<bool>;
        record(taken: &[(EventId, String)]) -> ();
        park(push: ParkedPush) -> (), [&push.job.chat_room_id].into_iter();
        parked(after: Option<&ParkedCursor>, limit: usize) -> Vec<ParkedPush>;
        find_parked(event: EventId) -> Option<ParkedPush>;
        drop_parked(event: EventId) -> bool;
        drop_parked_at(place: &ParkedCursor) -> bool;
    }
    Presence {
        renew(gateway: &GatewayId, ttl: Duration) -> ();
        resign(gateway: &GatewayId) -> ();
        attach(session: &Attachment) -> Option<Attachment>;
        detach(session: &Attachment) -> ();
        locate(users: &[UserId]) -> Vec<Location>;
        seen(users: &[UserId]) -> Vec<Seen>;
    }
    Proofs {
        record(proofs: &[(MessageId, UserId)], keep: Duration) -> ();
        proven(asked: &[(MessageId, UserId)]) -> Vec<bool>;
    }
    Leases {
        hold(name: &str, holder: &str, ttl: Duration) -> bool;
    }
}

fn rooms_of<T: Payload>(events: &[Event<T>]) -> Vec<RoomId> {
    events.iter().map(|event| event.payload.room().clone()).collect()
}

#[async_trait]
impl<T: Payload> Queue<T> for Tapped<dyn Queue<T>> {
    async fn send(&self, events: Vec<Event<T>>) -> EngineResult<()> {
        self.call("send", rooms_of(&events), self.inner.send(events)).await
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>> {
        let inner = self.call("receiver", Vec::new(), self.inner.receiver()).await?;
        let held = Held { part: self.part, tap: self.tap.clone(), receipts: Mutex::default() };
        Ok(Box::new(TappedReceiver { inner, held: Arc::new(held), tags: AtomicU64::new(0) }))
    }
}

struct TappedReceiver<T: Payload> {
    inner: Box<dyn Receiver<T>>,
    held: Arc<Held>,
    tags: AtomicU64,
}

#[async_trait]
impl<T: Payload> Receiver<T> for TappedReceiver<T> {
    async fn receive(&mut self, max: usize) -> EngineResult<Vec<Delivery<T>>> {
        let Held { part, tap, receipts } = &*self.held;
        let mut call = Call { part, method: "receive", rooms: Vec::new() };
        tap.before(&call).await?;
        let batch = self.inner.receive(max).await?;
        call.rooms = batch.iter().map(|delivery| delivery.event.payload.room().clone()).collect();
        // Whether this fails or is cancelled, the batch is dropped and comes again.
        tap.after(&call).await?;
        let wrap = |delivery: Delivery<T>| {
            let tag = self.tags.fetch_add(1, Ordering::Relaxed);
            locked(receipts).insert(tag, delivery.receipt);
            Delivery { receipt: Receipt::new(tag, self.held.clone()), ..delivery }
        };
        Ok(batch.into_iter().map(wrap).collect())
    }
}

/// The engine's receipts, each behind one that was handed out.
struct Held {
    part: &'static str,
    tap: Arc<dyn Tap>,
    receipts: Mutex<HashMap<u64, Receipt>>,
}

impl Held {
    /// Those of these tags. A receipt that is dropped tells the engine, which is not to happen under the lock.
    fn take(&self, tags: Vec<u64>) -> Vec<Receipt> {
        let mut receipts = locked(&self.receipts);
        tags.iter().filter_map(|tag| receipts.remove(tag)).collect()
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("part", &self.part).finish_non_exhaustive()
    }
}

#[async_trait]
impl Acknowledge for Held {
    async fn ack(&self, tags: Vec<u64>) -> EngineResult<()> {
        let call = Call { part: self.part, method: "ack", rooms: Vec::new() };
        through(&self.tap, call, bus::ack(self.take(tags))).await
    }

    async fn retry(&self, tags: Vec<u64>, after: Duration) -> EngineResult<()> {
        let call = Call { part: self.part, method: "retry", rooms: Vec::new() };
        through(&self.tap, call, bus::retry(self.take(tags), after)).await
    }

    fn dropped(&self, tag: u64) {
        drop(self.take(vec![tag]));
    }
}

#[async_trait]
impl Live for Tapped<dyn Live> {
    async fn publish(&self, events: Vec<LiveEvent>) -> EngineResult<()> {
        let rooms = events.iter().map(|event| event.news.room().clone()).collect();
        self.call("publish", rooms, self.inner.publish(events)).await
    }

    async fn confirm(&self, gateway: &GatewayId, confirmations: Vec<Confirmation>) -> EngineResult<()> {
        self.call("confirm", Vec::new(), self.inner.confirm(gateway, confirmations)).await
    }

    async fn evict(&self, gateway: &GatewayId, session: &SessionId) -> EngineResult<()> {
        self.call("evict", Vec::new(), self.inner.evict(gateway, session)).await
    }

    async fn subscribe(&self, gateway: &GatewayId, is_here: IsHere) -> EngineResult<Box<dyn Subscription>> {
        let inner = self.call("subscribe", Vec::new(), self.inner.subscribe(gateway, is_here)).await?;
        Ok(Box::new(TappedSubscription { inner, tap: self.tap.clone(), interrupted: false }))
    }
}

struct TappedSubscription {
    inner: Box<dyn Subscription>,
    tap: Arc<dyn Tap>,
    interrupted: bool,
}

#[async_trait]
impl Subscription for TappedSubscription {
    async fn next(&mut self) -> Option<Signal> {
        if self.interrupted {
            // What is there is lost.
            tokio::select! {
                biased;
                lost = self.inner.next() => { lost?; }
                () = future::ready(()) => {}
            }
            self.interrupted = false;
            return Some(Signal::Restored);
        }
        let call = Call { part: "live", method: "next", rooms: Vec::new() };
        if self.tap.before(&call).await.is_err() {
            self.interrupted = true;
            return Some(Signal::Interrupted);
        }
        self.inner.next().await
    }
}
