//! An interceptor around every trait: the one module that lists them all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, future};

use async_trait::async_trait;
use naru_model::hops::{self, Accepted, Payload};
use naru_model::live::{Confirmation, LiveEvent};
use naru_model::{
    ClientMessageId, DeviceId, Event, EventId, GatewayId, MemberVersion, Message, MessageId, Room, RoomId,
    Seq, SessionId, StoreEpoch, StoreTime, Timestamp, UserId,
};

use super::{Call, Interceptor, locked};
use naru_engines::bus::{self, AckHandle, Acknowledge, Bus, Delivery, Queue, Receiver};
use naru_engines::live::{
    HasSession, Leases, Live, Presence, PresenceEntry, Proofs, Renewal, Seen, Signal, Subscription,
};
use naru_engines::store::{
    Advance, Appended, Changed, Closing, Created, Device, DevicePosition, Devices, Epochs, Erasure, Intake,
    IntakePlace, IntakeRecord, MemberChange, MemberPosition, MemberSettings, Messages, Moved, NewRoom,
    OpenPage, ParkedCursor, ParkedPush, Platform, Positions, Pushes, RoomCursor, RoomSummary, Rooms,
    RunResult, Store, UserRecord, Users, Walked, Window,
};
use naru_engines::{EngineResult, Engines};

/// Puts an interceptor around every call of these engines.
pub fn intercepted(engines: Engines, interceptor: Arc<dyn Interceptor>) -> Engines {
    Engines {
        store: intercepted_store(engines.store, interceptor.clone()),
        bus: intercepted_bus(engines.bus, interceptor.clone()),
        live: Intercepted::around("live", engines.live, &interceptor),
        presence: Intercepted::around("presence", engines.presence, &interceptor),
        proofs: Intercepted::around("proofs", engines.proofs, &interceptor),
        leases: Intercepted::around("leases", engines.leases, &interceptor),
    }
}

/// Puts an interceptor around every call of a store.
pub fn intercepted_store(store: Store, interceptor: Arc<dyn Interceptor>) -> Store {
    Store {
        intake: Intercepted::around("intake", store.intake, &interceptor),
        messages: Intercepted::around("messages", store.messages, &interceptor),
        rooms: Intercepted::around("rooms", store.rooms, &interceptor),
        positions: Intercepted::around("positions", store.positions, &interceptor),
        devices: Intercepted::around("devices", store.devices, &interceptor),
        users: Intercepted::around("users", store.users, &interceptor),
        pushes: Intercepted::around("pushes", store.pushes, &interceptor),
        epochs: Intercepted::around("epochs", store.epochs, &interceptor),
        linger: store.linger,
        clock: store.clock,
    }
}

/// Puts an interceptor around every call of a bus, its receivers and its ack handles.
pub fn intercepted_bus(bus: Bus, interceptor: Arc<dyn Interceptor>) -> Bus {
    Bus {
        accepted: Intercepted::around(hops::ACCEPTED.name, bus.accepted, &interceptor),
        saved: Intercepted::around(hops::SAVED.name, bus.saved, &interceptor),
        offline: Intercepted::around(hops::OFFLINE.name, bus.offline, &interceptor),
        push_fcm: Intercepted::around(hops::PUSH_FCM.name, bus.push_fcm, &interceptor),
        push_apns: Intercepted::around(hops::PUSH_APNS.name, bus.push_apns, &interceptor),
        push_webhook: Intercepted::around(hops::PUSH_WEBHOOK.name, bus.push_webhook, &interceptor),
    }
}

/// A part of an engine and the interceptor around it.
pub struct Intercepted<T: ?Sized> {
    part: &'static str,
    inner: Arc<T>,
    interceptor: Arc<dyn Interceptor>,
}

impl<T: ?Sized> Intercepted<T> {
    fn around(part: &'static str, inner: Arc<T>, interceptor: &Arc<dyn Interceptor>) -> Arc<Self> {
        Arc::new(Self { part, inner, interceptor: interceptor.clone() })
    }

    async fn call<R>(
        &self,
        method: &'static str,
        rooms: Vec<RoomId>,
        effect: impl Future<Output = EngineResult<R>>,
    ) -> EngineResult<R> {
        through(&self.interceptor, Call { part: self.part, method, rooms }, effect).await
    }
}

async fn through<R>(
    interceptor: &Arc<dyn Interceptor>,
    call: Call,
    effect: impl Future<Output = EngineResult<R>>,
) -> EngineResult<R> {
    interceptor.before(&call).await?;
    let answer = effect.await?;
    interceptor.after(&call).await?;
    Ok(answer)
}

/// Every method of the request-response traits: `method(arguments) -> answer, the rooms it is about`.
macro_rules! intercepted {
    ($($trait:ident {
        $($method:ident($($argument:ident: $type:ty),*) -> $answer:ty $(, $rooms:expr)?;)+
    })+) => {$(
        #[async_trait]
        impl $trait for Intercepted<dyn $trait> {$(
            async fn $method(&self, $($argument: $type),*) -> EngineResult<$answer> {
                let rooms = intercepted!(@rooms $($rooms)?);
                self.call(stringify!($method), rooms, self.inner.$method($($argument),*)).await
            }
        )+}
    )+};
    (@rooms) => { Vec::new() };
    (@rooms $rooms:expr) => { $rooms.cloned().collect() };
}

intercepted! {
    Intake {
        append(entries: &[Accepted]) -> Vec<Appended>, entries.iter().map(|entry| &entry.chat_room_id);
        find(entries: &[Accepted]) -> Vec<Option<IntakeRecord>>, entries.iter().map(|entry| &entry.chat_room_id);
        get(ids: &[MessageId]) -> Vec<Option<IntakeRecord>>;
        open(after: Option<IntakePlace>, up_to: Option<IntakePlace>, limit: usize) -> OpenPage;
        newest_open() -> Option<IntakePlace>;
        close(closings: &[Closing]) -> ();
        drop_contents(ids: &[MessageId]) -> ();
        forget_contents(after: Option<MessageId>, before: Timestamp, limit: usize) -> Walked;
        of_sender(room: &RoomId, sender: &UserId, after: Option<&ClientMessageId>, limit: usize) -> Vec<IntakeRecord>, [room].into_iter();
    }
    Messages {
        find(ids: &[MessageId]) -> Vec<Option<Message>>;
        heads(rooms: &[RoomId]) -> Vec<Seq>, rooms.iter();
        append_run(run: &[Message]) -> RunResult, run.iter().map(|message| &message.chat_room_id);
        bump(newest: &[Message]) -> (), newest.iter().map(|message| &message.chat_room_id);
        range(room: &RoomId, window: Window, limit: usize) -> (Vec<Message>, bool), [room].into_iter();
        delete(ids: &[MessageId], at: Timestamp) -> ();
        expire(after: Option<MessageId>, before: Timestamp, limit: usize) -> Walked;
    }
    Rooms {
        create(room: NewRoom) -> Created, [&room.id].into_iter();
        current(ids: &[RoomId]) -> Vec<Option<Arc<Room>>>, ids.iter();
        current_since(ids: &[RoomId], not_before: Option<StoreTime>) -> Vec<Option<Arc<Room>>>, ids.iter();
        members_at(room: &RoomId, version: MemberVersion) -> Option<Arc<[UserId]>>, [room].into_iter();
        change(room: &RoomId, change: MemberChange, max: usize) -> Changed, [room].into_iter();
        of_user(user: &UserId, cursor: Option<&RoomCursor>, limit: usize) -> (Vec<RoomSummary>, Option<RoomCursor>);
        summary(room: &RoomId, user: &UserId) -> Option<RoomSummary>, [room].into_iter();
        configure(room: &RoomId, user: &UserId, settings: MemberSettings) -> bool, [room].into_iter();
        ever_of(user: &UserId, after: Option<&RoomId>, limit: usize) -> Vec<RoomId>;
        share_a_room(user: &UserId, others: &[UserId]) -> Vec<bool>;
        forget_versions(left_before: Timestamp, limit: usize) -> u64;
        have_rooms(users: &[UserId], at_least: usize) -> Vec<bool>;
    }
    Positions {
        advance(steps: &[Advance]) -> Vec<Moved>, steps.iter().map(|step| &step.room);
        get(members: &[(RoomId, UserId, Seq)]) -> Vec<MemberPosition>, members.iter().map(|(room, ..)| room);
        unread(users: &[UserId]) -> Vec<u64>;
        forget(user: &UserId, rooms: &[RoomId]) -> (), rooms.iter();
        of_device(user: &UserId, device: &DeviceId) -> Vec<DevicePosition>;
    }
    Devices {
        claim(device: Device) -> ();
        of_users(users: &[UserId]) -> Vec<Device>;
        remove(user: &UserId, device: &DeviceId) -> bool;
        remove_token(platform: Platform, token: &str, registered_before: Timestamp) -> bool;
        forget_unseen(before: Timestamp) -> u64;
    }
    Users {
        get(users: &[UserId]) -> Vec<UserRecord>;
        blocked_by(user: &UserId, others: &[UserId]) -> Vec<bool>;
        end_sessions(user: &UserId, tokens_not_before: Option<Timestamp>) -> ();
        block(user: &UserId, other: &UserId, max: usize) -> bool;
        unblock(user: &UserId, other: &UserId) -> ();
        unblock_all(user: &UserId) -> ();
        begin_erasure(user: &UserId, at: Timestamp) -> ();
        erasure(user: &UserId) -> Option<Erasure>;
        erasures(after: Option<&UserId>, limit: usize) -> Vec<(UserId, Erasure)>;
        complete_erasure(user: &UserId, round: u64, at: Timestamp) -> bool;
    }
    Pushes {
        done(events: &[EventId]) -> Vec<bool>;
        record(taken: &[(EventId, String)]) -> ();
        park(pushes: &[ParkedPush]) -> (), pushes.iter().map(|push| &push.job.chat_room_id);
        parked(after: Option<&ParkedCursor>, limit: usize) -> Vec<ParkedPush>;
        parked_because(reason: &str, limit: usize) -> Vec<ParkedPush>;
        find_parked(event: EventId) -> Option<ParkedPush>;
        drop_parked(event: EventId) -> bool;
        drop_parked_at(place: &ParkedCursor) -> bool;
        forget_parked(before: Timestamp, limit: usize) -> u64;
        parked_count() -> u64;
    }
    Epochs {
        get() -> StoreEpoch;
        restored() -> StoreEpoch;
    }
    Presence {
        renew(gateway: &GatewayId, ttl: Duration) -> Renewal;
        resign(gateway: &GatewayId) -> ();
        attach(session: &PresenceEntry) -> Option<PresenceEntry>;
        detach(session: &PresenceEntry) -> ();
        attached(sessions: &[PresenceEntry]) -> Vec<bool>;
        online(users: &[UserId]) -> Vec<bool>;
        seen(users: &[UserId]) -> Vec<Seen>;
        forget(user: &UserId) -> bool;
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
impl<T: Payload> Queue<T> for Intercepted<dyn Queue<T>> {
    async fn send(&self, events: Vec<Event<T>>) -> EngineResult<()> {
        self.call("send", rooms_of(&events), self.inner.send(events)).await
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>> {
        let inner = self.call("receiver", Vec::new(), self.inner.receiver()).await?;
        let held =
            Held { part: self.part, interceptor: self.interceptor.clone(), ack_handles: Mutex::default() };
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
        let Held { part, interceptor, ack_handles } = &*self.held;
        let mut call = Call { part, method: "receive", rooms: Vec::new() };
        interceptor.before(&call).await?;
        let batch = self.inner.receive(max).await?;
        call.rooms = batch.iter().map(|delivery| delivery.event.payload.room().clone()).collect();
        // If this fails or is cancelled, the batch is dropped and comes again.
        interceptor.after(&call).await?;
        let wrap = |delivery: Delivery<T>| {
            let tag = self.tags.fetch_add(1, Ordering::Relaxed);
            locked(ack_handles).insert(tag, delivery.ack_handle);
            Delivery { ack_handle: AckHandle::new(tag, self.held.clone()), ..delivery }
        };
        Ok(batch.into_iter().map(wrap).collect())
    }
}

/// The engine's ack handles, each by the tag of the one handed out.
struct Held {
    part: &'static str,
    interceptor: Arc<dyn Interceptor>,
    ack_handles: Mutex<HashMap<u64, AckHandle>>,
}

impl Held {
    /// The ack handles of these tags. Dropping an ack handle notifies the engine, which must not happen under the lock.
    fn take(&self, tags: Vec<u64>) -> Vec<AckHandle> {
        let mut ack_handles = locked(&self.ack_handles);
        tags.iter().filter_map(|tag| ack_handles.remove(tag)).collect()
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
        through(&self.interceptor, call, bus::ack(self.take(tags))).await
    }

    async fn retry(&self, tags: Vec<u64>, after: Duration) -> EngineResult<()> {
        let call = Call { part: self.part, method: "retry", rooms: Vec::new() };
        through(&self.interceptor, call, bus::retry(self.take(tags), after)).await
    }

    fn dropped(&self, tag: u64) {
        drop(self.take(vec![tag]));
    }
}

#[async_trait]
impl Live for Intercepted<dyn Live> {
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

    async fn user_changed(&self, user: &UserId) -> EngineResult<()> {
        self.call("user_changed", Vec::new(), self.inner.user_changed(user)).await
    }

    async fn subscribe(
        &self,
        gateway: &GatewayId,
        has_session: HasSession,
    ) -> EngineResult<Box<dyn Subscription>> {
        let inner = self.call("subscribe", Vec::new(), self.inner.subscribe(gateway, has_session)).await?;
        Ok(Box::new(TappedSubscription { inner, interceptor: self.interceptor.clone(), interrupted: false }))
    }
}

struct TappedSubscription {
    inner: Box<dyn Subscription>,
    interceptor: Arc<dyn Interceptor>,
    interrupted: bool,
}

#[async_trait]
impl Subscription for TappedSubscription {
    async fn next(&mut self) -> Option<Signal> {
        if self.interrupted {
            // A signal that is available is lost.
            tokio::select! {
                biased;
                lost = self.inner.next() => { lost?; }
                () = future::ready(()) => {}
            }
            self.interrupted = false;
            return Some(Signal::Restored);
        }
        let call = Call { part: "live", method: "next", rooms: Vec::new() };
        if self.interceptor.before(&call).await.is_err() {
            self.interrupted = true;
            return Some(Signal::Interrupted);
        }
        self.inner.next().await
    }
}
