//! The embedded engines, each time with one sin. Whatever is not the sin passes through.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::bus::{Bus, Delivery, Ledger, Queue, Receipt, Receiver, Verdict};
use naru_engines::live::{Attachment, Leases, Live, Location, Presence, Proofs, Seen, Signal, Subscription};
use naru_engines::store::{
    Advance, Appended, Changed, Created, Device, DevicePosition, Devices, Intake, IntakeRecord, MemberChange,
    MemberPosition, MemberSettings, Messages, Moved, NewRoom, ParkedCursor, ParkedPush, Platform, Positions,
    Pushes, RoomCursor, RoomSummary, Rooms, Run, RunConflict, Settlement, Window,
};
use naru_engines::{EngineResult, Engines, faults};
use naru_model::hops::{Accepted, Payload};
use naru_model::live::{Confirmation, LiveEvent};
use naru_model::message::Outcome;
use naru_model::{
    DeviceId, Event, EventId, GatewayId, MemberVersion, Message, MessageId, Room, RoomId, Seq, SessionId,
    Timestamp, UserId,
};

/// What can be wrong with an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Sin {
    None,
    /// The next process starts with nothing.
    ForgetsAtDeath,

    ResendIsNew,
    ConflictUnnoticed,
    AnswersOutOfOrder,
    OpenForgetsOrder,
    SettleOverwrites,

    RunGoesOnAfterConflict,
    TakenPlaceAccepted,
    RepeatedIdAccepted,
    HeadsStale,
    WindowSaysThereIsNoMore,
    UnreadNotCounted,

    MadeTwice,
    MembersOfTheLatestVersion,
    CurrentStale,
    ListEndsEarly,
    SettingsShared,

    PositionsGoBackward,
    PositionBeyondHead,
    MoveToldAlways,
    StrangersMove,
    UnreadOfTheFirst,
    PositionsOfTheFirstRoom,

    TokenWithTwoOwners,
    NewTokenRemoved,
    ContentShown,
    SeenDevicesForgotten,
    RecordForgotten,
    ListingTakesAway,
    ListForgetsItsOrder,
    ListBeginsAgain,
    FindsAnother,
    ParkedAgainIsDropped,

    LosesEvents,
    KnowsOldEventsAndDropsThem,
    RoomOutOfOrder,
    RoomInTwoHands,
    GivenBackToTheEnd,
    DelayIgnored,
    DeliveredTwice,
    BatchTooLarge,
    DoneBeforeTheEffect,
    DoneComesAgain,
    RetryIsNoAttempt,
    RetryAtOnce,
    GrowsWithoutBound,
    KeepsTheOldest,

    LiveLosesInSilence,
    LiveOutOfOrder,
    LiveBlocksOnTheSlow,
    ConfirmedToEveryone,

    DeadLeasesCount,
    AttachShowsLate,
    DetachTakesAllSessions,
    ReplacedStillCounts,
    LastSeenIsAlwaysNow,
    UnknownIsOffline,
    ProofForAnybody,
    LeaseToEveryone,
}

/// These engines with that sin.
pub(crate) fn sinful(engines: Engines, sin: Sin) -> Engines {
    let mut store = engines.store;
    store.intake = Broken::new(store.intake, sin);
    store.messages = Broken::new(store.messages, sin);
    store.rooms = Broken::new(store.rooms, sin);
    store.positions = Broken::new(store.positions, sin);
    store.devices = Broken::new(store.devices, sin);
    store.pushes = Broken::new(store.pushes, sin);
    Engines {
        store,
        bus: sinful_bus(engines.bus, sin),
        live: Broken::new(engines.live, sin),
        presence: Broken::new(engines.presence, sin),
        proofs: Broken::new(engines.proofs, sin),
        leases: Broken::new(engines.leases, sin),
    }
}

fn sinful_bus(bus: Bus, sin: Sin) -> Bus {
    match sin {
        Sin::LosesEvents => faults::losing(bus, 1, 0.5),
        // What is no sin at a hand-over is one when there was none.
        Sin::RoomOutOfOrder => faults::reordering(bus, 1, 1.0),
        _ => Bus {
            accepted: Broken::new(bus.accepted, sin),
            saved: Broken::new(bus.saved, sin),
            offline: Broken::new(bus.offline, sin),
            owed: Broken::new(bus.owed, sin),
            push_fcm: Broken::new(bus.push_fcm, sin),
            push_apns: Broken::new(bus.push_apns, sin),
            push_webhook: Broken::new(bus.push_webhook, sin),
            outcome: Broken::new(bus.outcome, sin),
        },
    }
}

/// How many events there is room for, where that is not many.
pub(crate) const BOUND: usize = 100;

struct Broken<T: ?Sized> {
    inner: Arc<T>,
    sin: Sin,
    kept: Mutex<Kept>,
}

/// What a sin needs to remember.
#[derive(Default)]
struct Kept {
    outcomes: HashMap<MessageId, Outcome>,
    heads: HashMap<RoomId, Seq>,
    rooms: HashMap<RoomId, Arc<Room>>,
    steps: HashMap<(RoomId, UserId), Advance>,
    claims: Vec<Device>,
    events: HashSet<EventId>,
    gateways: Vec<GatewayId>,
    unheard: Vec<Weak<AtomicUsize>>,
    sessions: Vec<Attachment>,
    located: HashMap<UserId, Location>,
    proven: HashSet<MessageId>,
}

impl<T: ?Sized> Broken<T> {
    fn new(inner: Arc<T>, sin: Sin) -> Arc<Self> {
        Arc::new(Self { inner, sin, kept: Mutex::default() })
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().expect("no panic in here")
    }
}

#[async_trait]
impl Intake for Broken<dyn Intake> {
    async fn append(&self, entries: &[Accepted]) -> EngineResult<Vec<Appended>> {
        let mut answers = self.inner.append(entries).await?;
        for answer in &mut answers {
            match (self.sin, &answer) {
                (Sin::ResendIsNew, Appended::Resend(_)) | (Sin::ConflictUnnoticed, Appended::Conflict) => {
                    *answer = Appended::New;
                }
                _ => {}
            }
        }
        if self.sin == Sin::AnswersOutOfOrder {
            answers.reverse();
        }
        Ok(answers)
    }

    async fn get(&self, ids: &[MessageId]) -> EngineResult<Vec<Option<IntakeRecord>>> {
        let mut records = self.inner.get(ids).await?;
        let kept = self.kept();
        for record in records.iter_mut().flatten() {
            record.outcome = kept.outcomes.get(&record.accepted.id).copied().or(record.outcome);
        }
        Ok(records)
    }

    async fn open(&self, until: Timestamp, limit: usize) -> EngineResult<Vec<Accepted>> {
        let mut open = self.inner.open(until, limit).await?;
        if self.sin == Sin::OpenForgetsOrder {
            open.reverse();
        }
        Ok(open)
    }

    async fn settle(&self, settlements: &[Settlement]) -> EngineResult<()> {
        self.inner.settle(settlements).await?;
        if self.sin == Sin::SettleOverwrites {
            self.kept().outcomes.extend(settlements.iter().map(|end| (end.id, end.outcome)));
        }
        Ok(())
    }
}

#[async_trait]
impl Messages for Broken<dyn Messages> {
    async fn find(&self, ids: &[MessageId]) -> EngineResult<Vec<Option<Message>>> {
        self.inner.find(ids).await
    }

    async fn heads(&self, rooms: &[RoomId]) -> EngineResult<Vec<Seq>> {
        let heads = self.inner.heads(rooms).await?;
        if self.sin != Sin::HeadsStale {
            return Ok(heads);
        }
        let mut kept = self.kept();
        Ok(rooms
            .iter()
            .zip(heads)
            .map(|(room, head)| *kept.heads.entry(room.clone()).or_insert(head))
            .collect())
    }

    async fn append_run(&self, run: &[Message]) -> EngineResult<Run> {
        let answer = self.inner.append_run(run).await?;
        match (self.sin, &answer.stopped_by) {
            (Sin::RunGoesOnAfterConflict, Some(_)) => {
                let mut rest = &run[answer.stored + 1..];
                while let Run { stored, stopped_by: Some(_) } = self.inner.append_run(rest).await? {
                    rest = &rest[stored + 1..];
                }
                Ok(answer)
            }
            (Sin::TakenPlaceAccepted, Some(RunConflict::SeqTaken))
            | (Sin::RepeatedIdAccepted, Some(RunConflict::AlreadySaved(_))) => {
                Ok(Run { stored: run.len(), stopped_by: None })
            }
            _ => Ok(answer),
        }
    }

    async fn range(&self, room: &RoomId, window: Window, limit: usize) -> EngineResult<(Vec<Message>, bool)> {
        let (messages, more) = self.inner.range(room, window, limit).await?;
        Ok((messages, more && self.sin != Sin::WindowSaysThereIsNoMore))
    }
}

impl Broken<dyn Rooms> {
    fn counted(&self, mut summary: RoomSummary) -> RoomSummary {
        if self.sin == Sin::UnreadNotCounted {
            summary.unread_count = 0;
        }
        summary
    }
}

#[async_trait]
impl Rooms for Broken<dyn Rooms> {
    async fn create(&self, room: NewRoom) -> EngineResult<Created> {
        Ok(match self.inner.create(room).await? {
            Created::Existing(room) if self.sin == Sin::MadeTwice => Created::New(room),
            answer => answer,
        })
    }

    async fn current(&self, ids: &[RoomId]) -> EngineResult<Vec<Option<Arc<Room>>>> {
        let mut rooms = self.inner.current(ids).await?;
        if self.sin == Sin::CurrentStale {
            let mut kept = self.kept();
            for room in rooms.iter_mut().flatten() {
                *room = kept.rooms.entry(room.id.clone()).or_insert_with(|| room.clone()).clone();
            }
        }
        Ok(rooms)
    }

    async fn members_at(&self, room: &RoomId, version: MemberVersion) -> EngineResult<Option<Arc<[UserId]>>> {
        let members = self.inner.members_at(room, version).await?;
        if self.sin != Sin::MembersOfTheLatestVersion || members.is_none() {
            return Ok(members);
        }
        let now = self.inner.current(std::slice::from_ref(room)).await?.remove(0);
        Ok(now.map(|room| room.member_ids.clone()))
    }

    async fn change(&self, room: &RoomId, change: MemberChange, most: usize) -> EngineResult<Changed> {
        self.inner.change(room, change, most).await
    }

    async fn of_user(
        &self,
        user: &UserId,
        cursor: Option<&RoomCursor>,
        limit: usize,
    ) -> EngineResult<(Vec<RoomSummary>, Option<RoomCursor>)> {
        let (rooms, next) = self.inner.of_user(user, cursor, limit).await?;
        let rooms = rooms.into_iter().map(|summary| self.counted(summary)).collect();
        Ok((rooms, next.filter(|_| self.sin != Sin::ListEndsEarly)))
    }

    async fn summary(&self, room: &RoomId, user: &UserId) -> EngineResult<Option<RoomSummary>> {
        Ok(self.inner.summary(room, user).await?.map(|summary| self.counted(summary)))
    }

    async fn configure(&self, room: &RoomId, user: &UserId, settings: MemberSettings) -> EngineResult<bool> {
        let done = self.inner.configure(room, user, settings).await?;
        if self.sin == Sin::SettingsShared && done {
            for room in self.inner.current(std::slice::from_ref(room)).await?.into_iter().flatten() {
                for member in room.member_ids.iter() {
                    self.inner.configure(&room.id, member, settings).await?;
                }
            }
        }
        Ok(done)
    }

    async fn share_a_room(&self, user: &UserId, others: &[UserId]) -> EngineResult<Vec<bool>> {
        self.inner.share_a_room(user, others).await
    }
}

#[async_trait]
impl Positions for Broken<dyn Positions> {
    async fn advance(&self, steps: &[Advance]) -> EngineResult<Vec<Moved>> {
        let mut answers = self.inner.advance(steps).await?;
        for (step, moved) in steps.iter().zip(&mut answers) {
            let told = Moved { received: Some(step.received), read: Some(step.read) };
            let is_member =
                !self.inner.of_device(&step.user, &DeviceId::new("-").expect("an id")).await?.is_empty();
            if self.sin == Sin::MoveToldAlways || self.sin == Sin::StrangersMove && !is_member {
                *moved = told;
            }
        }
        if matches!(self.sin, Sin::PositionsGoBackward | Sin::PositionBeyondHead) {
            let last = |step: &Advance| ((step.room.clone(), step.user.clone()), step.clone());
            self.kept().steps.extend(steps.iter().map(last));
        }
        Ok(answers)
    }

    async fn get(&self, members: &[(RoomId, UserId)]) -> EngineResult<Vec<MemberPosition>> {
        let mut asked = members.to_vec();
        if self.sin == Sin::PositionsOfTheFirstRoom {
            asked.iter_mut().for_each(|(room, _)| room.clone_from(&members[0].0));
        }
        let mut positions = self.inner.get(&asked).await?;
        let kept = self.kept();
        for (member, position) in members.iter().zip(&mut positions) {
            let Some(step) = kept.steps.get(member) else { continue };
            let goes = if self.sin == Sin::PositionsGoBackward { Seq::min } else { Seq::max };
            position.read = goes(position.read, step.read);
            position.received = goes(position.received, step.received);
        }
        Ok(positions)
    }

    async fn unread(&self, users: &[UserId]) -> EngineResult<Vec<u64>> {
        let mut unread = self.inner.unread(users).await?;
        match self.sin {
            Sin::UnreadNotCounted => unread.fill(0),
            Sin::UnreadOfTheFirst => {
                let first = unread.first().copied().unwrap_or(0);
                unread.fill(first);
            }
            _ => {}
        }
        Ok(unread)
    }

    async fn of_device(&self, user: &UserId, device: &DeviceId) -> EngineResult<Vec<DevicePosition>> {
        self.inner.of_device(user, device).await
    }
}

#[async_trait]
impl Devices for Broken<dyn Devices> {
    async fn claim(&self, device: Device) -> EngineResult<()> {
        self.kept().claims.push(device.clone());
        self.inner.claim(device).await
    }

    async fn of_users(&self, users: &[UserId]) -> EngineResult<Vec<Device>> {
        let mut devices = self.inner.of_users(users).await?;
        if self.sin == Sin::TokenWithTwoOwners {
            let kept = self.kept();
            let had =
                kept.claims.iter().filter(|claim| users.contains(&claim.user) && !devices.contains(claim));
            let had: Vec<_> = had.cloned().collect();
            devices.extend(had);
        }
        if self.sin == Sin::ContentShown {
            devices.iter_mut().for_each(|device| device.hides_content = false);
        }
        Ok(devices)
    }

    async fn remove(&self, user: &UserId, device: &DeviceId) -> EngineResult<bool> {
        self.inner.remove(user, device).await
    }

    async fn remove_token(&self, platform: Platform, token: &str, before: Timestamp) -> EngineResult<bool> {
        let any = Timestamp::now().after(Duration::from_secs(3_600));
        let before = if self.sin == Sin::NewTokenRemoved { any } else { before };
        self.inner.remove_token(platform, token, before).await
    }

    async fn forget_unseen(&self, before: Timestamp) -> EngineResult<u64> {
        let late = before.after(Duration::from_millis(1));
        self.inner.forget_unseen(if self.sin == Sin::SeenDevicesForgotten { late } else { before }).await
    }
}

#[async_trait]
impl Pushes for Broken<dyn Pushes> {
    async fn done(&self, events: &[EventId]) -> EngineResult<Vec<bool>> {
        self.inner.done(events).await
    }

    async fn record(&self, taken: &[(EventId, String)]) -> EngineResult<()> {
        if self.sin == Sin::RecordForgotten { Ok(()) } else { self.inner.record(taken).await }
    }

    async fn park(&self, push: ParkedPush) -> EngineResult<()> {
        self.inner.park(push).await
    }

    async fn parked(&self, after: Option<&ParkedCursor>, limit: usize) -> EngineResult<Vec<ParkedPush>> {
        let after = after.filter(|_| self.sin != Sin::ListBeginsAgain);
        let mut parked = self.inner.parked(after, limit).await?;
        if self.sin == Sin::ListForgetsItsOrder {
            parked.sort_by_key(|push| push.event_id.0);
        }
        if self.sin == Sin::ListingTakesAway {
            for push in &parked {
                self.inner.drop_parked(push.event_id).await?;
            }
        }
        Ok(parked)
    }

    async fn find_parked(&self, event: EventId) -> EngineResult<Option<ParkedPush>> {
        if self.sin == Sin::FindsAnother {
            return Ok(self.inner.parked(None, 1).await?.pop());
        }
        self.inner.find_parked(event).await
    }

    async fn drop_parked(&self, event: EventId) -> EngineResult<bool> {
        self.inner.drop_parked(event).await
    }

    async fn drop_parked_at(&self, place: &ParkedCursor) -> EngineResult<bool> {
        if self.sin == Sin::ParkedAgainIsDropped {
            return self.inner.drop_parked(place.event_id).await;
        }
        self.inner.drop_parked_at(place).await
    }
}

#[async_trait]
impl<T: Payload> Queue<T> for Broken<dyn Queue<T>> {
    async fn send(&self, mut events: Vec<Event<T>>) -> EngineResult<()> {
        if self.sin == Sin::KnowsOldEventsAndDropsThem {
            let mut kept = self.kept();
            events.retain(|event| kept.events.insert(event.event_id));
        }
        if self.sin == Sin::KeepsTheOldest {
            let mut kept = self.kept();
            events.retain(|event| kept.events.len() < BOUND && kept.events.insert(event.event_id));
        }
        if self.sin == Sin::DeliveredTwice {
            self.inner.send(events.clone()).await?;
        }
        self.inner.send(events).await
    }

    async fn send_later(&self, delay: Duration, events: Vec<Event<T>>) -> EngineResult<()> {
        let delay = if self.sin == Sin::DelayIgnored { Duration::ZERO } else { delay };
        self.inner.send_later(delay, events).await
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>> {
        let inner = self.inner.receiver().await?;
        let ledger = BrokenLedger { sin: self.sin, queue: self.inner.clone(), held: Mutex::default() };
        Ok(Box::new(BrokenReceiver { inner, ledger: Arc::new(ledger), next_tag: 0 }))
    }
}

struct BrokenReceiver<T: Payload> {
    inner: Box<dyn Receiver<T>>,
    ledger: Arc<BrokenLedger<T>>,
    next_tag: u64,
}

#[async_trait]
impl<T: Payload> Receiver<T> for BrokenReceiver<T> {
    async fn receive(&mut self, most: usize) -> EngineResult<Vec<Delivery<T>>> {
        let sin = self.ledger.sin;
        let most = if sin == Sin::BatchTooLarge { 1_000 } else { most };
        let mut deliveries = Vec::new();
        for Delivery { event, attempt, receipt } in self.inner.receive(most).await? {
            let attempt = if sin == Sin::RetryIsNoAttempt { 1 } else { attempt };
            let receipt = if matches!(sin, Sin::DoneBeforeTheEffect | Sin::RoomInTwoHands) {
                receipt.settle(Verdict::Done).await?;
                None
            } else {
                Some(receipt)
            };
            self.next_tag += 1;
            self.ledger.held().insert(self.next_tag, (event.clone(), receipt));
            let receipt = Receipt::new(self.next_tag, self.ledger.clone());
            deliveries.push(Delivery { event, attempt, receipt });
        }
        Ok(deliveries)
    }
}

/// By tag; without a receipt the engine was told long ago that it is done.
type Held<T> = HashMap<u64, (Event<T>, Option<Receipt>)>;

struct BrokenLedger<T: Payload> {
    sin: Sin,
    queue: Arc<dyn Queue<T>>,
    held: Mutex<Held<T>>,
}

impl<T: Payload> BrokenLedger<T> {
    fn held(&self) -> std::sync::MutexGuard<'_, Held<T>> {
        self.held.lock().expect("no panic in here")
    }
}

impl<T: Payload> std::fmt::Debug for BrokenLedger<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.sin)
    }
}

#[async_trait]
impl<T: Payload> Ledger for BrokenLedger<T> {
    async fn settle(&self, verdicts: Vec<(u64, Verdict)>) -> EngineResult<()> {
        for (tag, verdict) in verdicts {
            let Some((event, receipt)) = self.held().remove(&tag) else { continue };
            let (verdict, copies) = match (self.sin, verdict) {
                (Sin::DoneComesAgain, Verdict::Done) => (Verdict::Done, 1),
                (Sin::GivenBackToTheEnd, Verdict::GiveBack) => (Verdict::Done, 1),
                (Sin::RoomInTwoHands, Verdict::GiveBack | Verdict::RetryAfter(_)) => (Verdict::Done, 1),
                (Sin::RetryAtOnce, Verdict::RetryAfter(_)) => (Verdict::RetryAfter(Duration::ZERO), 0),
                (_, verdict) => (verdict, 0),
            };
            if let Some(receipt) = receipt {
                receipt.settle(verdict).await?;
            }
            self.queue.send(vec![event; copies]).await?;
        }
        Ok(())
    }

    fn dropped(&self, tag: u64) {
        let held = self.held().remove(&tag);
        if let (Sin::RoomInTwoHands, Some((event, _))) = (self.sin, held) {
            let queue = self.queue.clone();
            tokio::spawn(async move { queue.send(vec![event]).await });
        }
    }
}

#[async_trait]
impl Live for Broken<dyn Live> {
    async fn publish(&self, mut events: Vec<LiveEvent>) -> EngineResult<()> {
        if self.sin == Sin::LiveOutOfOrder {
            events.reverse();
        }
        if self.sin == Sin::LiveBlocksOnTheSlow {
            let unheard: Vec<_> = self.kept().unheard.iter().filter_map(Weak::upgrade).collect();
            for count in unheard {
                while count.load(Ordering::SeqCst) > 100 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                count.fetch_add(events.len(), Ordering::SeqCst);
            }
        }
        self.inner.publish(events).await
    }

    async fn confirm(&self, gateway: &GatewayId, confirmations: Vec<Confirmation>) -> EngineResult<()> {
        let everyone = self.kept().gateways.clone();
        for other in everyone.iter().filter(|other| self.sin == Sin::ConfirmedToEveryone && *other != gateway)
        {
            self.inner.confirm(other, confirmations.clone()).await?;
        }
        self.inner.confirm(gateway, confirmations).await
    }

    async fn evict(&self, gateway: &GatewayId, session: &SessionId) -> EngineResult<()> {
        self.inner.evict(gateway, session).await
    }

    async fn subscribe(&self, gateway: &GatewayId) -> EngineResult<Box<dyn Subscription>> {
        let unheard = Arc::new(AtomicUsize::new(0));
        let inner = self.inner.subscribe(gateway).await?;
        let mut kept = self.kept();
        kept.gateways.push(gateway.clone());
        kept.unheard.push(Arc::downgrade(&unheard));
        Ok(Box::new(BrokenSubscription { inner, sin: self.sin, unheard }))
    }
}

struct BrokenSubscription {
    inner: Box<dyn Subscription>,
    sin: Sin,
    unheard: Arc<AtomicUsize>,
}

#[async_trait]
impl Subscription for BrokenSubscription {
    async fn next(&mut self) -> Option<Signal> {
        loop {
            let signal = self.inner.next().await?;
            match (self.sin, &signal) {
                (Sin::LiveLosesInSilence, Signal::Interrupted | Signal::Restored) => continue,
                (Sin::LiveBlocksOnTheSlow, Signal::Event(_)) => {
                    self.unheard.fetch_sub(1, Ordering::SeqCst);
                }
                _ => {}
            }
            return Some(signal);
        }
    }
}

#[async_trait]
impl Presence for Broken<dyn Presence> {
    async fn renew(&self, gateway: &GatewayId, ttl: Duration) -> EngineResult<()> {
        let ttl = if self.sin == Sin::DeadLeasesCount { Duration::from_secs(600) } else { ttl };
        self.inner.renew(gateway, ttl).await
    }

    async fn resign(&self, gateway: &GatewayId) -> EngineResult<()> {
        self.inner.resign(gateway).await
    }

    async fn attach(&self, session: &Attachment) -> EngineResult<Option<Attachment>> {
        self.kept().sessions.push(session.clone());
        if self.sin == Sin::ReplacedStillCounts {
            return self.inner.attach(&Attachment { device: None, ..session.clone() }).await;
        }
        self.inner.attach(session).await
    }

    async fn detach(&self, session: &Attachment) -> EngineResult<()> {
        if self.sin == Sin::DetachTakesAllSessions {
            let all = self.kept().sessions.clone();
            for other in all.iter().filter(|other| other.user == session.user) {
                self.inner.detach(other).await?;
            }
        }
        self.inner.detach(session).await
    }

    async fn locate(&self, users: &[UserId]) -> EngineResult<Vec<Location>> {
        match (self.sin, self.inner.locate(users).await) {
            (Sin::UnknownIsOffline, Err(_)) => Ok(vec![Location::default(); users.len()]),
            (Sin::AttachShowsLate, Ok(now)) => {
                let mut kept = self.kept();
                let before = |(user, now): (&UserId, Location)| {
                    kept.located.insert(user.clone(), now).unwrap_or_default()
                };
                Ok(users.iter().zip(now).map(before).collect())
            }
            (_, answer) => answer,
        }
    }

    async fn seen(&self, users: &[UserId]) -> EngineResult<Vec<Seen>> {
        let mut seen = self.inner.seen(users).await?;
        if self.sin == Sin::LastSeenIsAlwaysNow {
            seen.iter_mut().for_each(|seen| seen.last_seen_at = Some(Timestamp::now()));
        }
        Ok(seen)
    }
}

#[async_trait]
impl Proofs for Broken<dyn Proofs> {
    async fn record(&self, proofs: &[(MessageId, UserId)], keep: Duration) -> EngineResult<()> {
        self.kept().proven.extend(proofs.iter().map(|(message, _)| message));
        self.inner.record(proofs, keep).await
    }

    async fn proven(
        &self,
        message: MessageId,
        room: &RoomId,
        seq: Seq,
        users: &[UserId],
    ) -> EngineResult<Vec<bool>> {
        if self.sin == Sin::ProofForAnybody && self.kept().proven.contains(&message) {
            return Ok(vec![true; users.len()]);
        }
        self.inner.proven(message, room, seq, users).await
    }
}

#[async_trait]
impl Leases for Broken<dyn Leases> {
    async fn hold(&self, name: &str, holder: &str, ttl: Duration) -> EngineResult<bool> {
        Ok(self.inner.hold(name, holder, ttl).await? || self.sin == Sin::LeaseToEveryone)
    }
}
