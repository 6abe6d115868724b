//! The embedded engines, each time with one defect. Whatever it does not concern passes through.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::bus::{AckHandle, Acknowledge, Bus, Delivery, Queue, Receiver, ack, retry};
use naru_engines::live::{
    HasSession, Leases, Live, Presence, PresenceEntry, Proofs, Renewal, Seen, Signal, Subscription,
};
use naru_engines::store::{
    Advance, Appended, Changed, Closing, Created, Device, DevicePosition, Devices, Epochs, Erasure, Intake,
    IntakePlace, IntakeRecord, MemberChange, MemberPosition, MemberSettings, Messages, Moved, NewRoom,
    OpenPage, ParkedCursor, ParkedPush, Platform, Positions, Pushes, RoomCursor, RoomSummary, Rooms,
    RunConflict, RunResult, UserRecord, Users, Walked, Window,
};
use naru_engines::{EngineResult, Engines};
use naru_model::hops::{Accepted, Payload};
use naru_model::live::{Confirmation, LiveEvent, News};
use naru_model::message::Outcome;
use naru_model::{
    ClientMessageId, DeviceId, Event, EventId, GatewayId, MemberVersion, Message, MessageId, Room, RoomId,
    Seq, SessionId, StoreEpoch, StoreTime, Timestamp, UserId,
};

/// What can be wrong with an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Defect {
    None,
    /// The next process starts with nothing.
    ForgetsAtDeath,

    ResendIsNew,
    ConflictUnnoticed,
    AnswersOutOfOrder,
    OpenForgetsOrder,
    OpenEndsEarly,
    NewestIsNot,
    CloseOverwrites,
    AfterAResend,
    FindsNoResend,
    RejectedStays,
    OpenContentsDropped,
    ContentStays,
    ConflictOfNothing,
    SendersWalkBeginsAgain,

    RunGoesOnAfterConflict,
    TakenPlaceAccepted,
    RepeatedIdAccepted,
    HeadsStale,
    WindowSaysThereIsNoMore,
    UnreadNotCounted,
    SendingIsNotReading,
    BumpIgnored,
    BumpGoesBack,
    ListByTheClock,
    DeletedIsRemoved,
    DeletedAgain,

    MadeTwice,
    MembersOfTheLatestVersion,
    CurrentStale,
    SinceStale,
    ListEndsEarly,
    SettingsShared,
    VersionsStay,
    ContentsStay,
    ContentsGoTooSoon,
    ContentsWalkEndsEarly,
    ExpiredStay,
    ExpiresTooSoon,
    ExpiryEndsEarly,
    ExpiredIsUnread,
    VersionsGoTooSoon,
    ForgottenIsTheLatest,
    RoomsMiscounted,
    LeftRoomsForgotten,

    PositionsGoBackward,
    PositionBeyondHead,
    MoveToldAlways,
    StrangersMove,
    UnreadOfTheFirst,
    MutedCounts,
    PositionsOfTheFirstRoom,
    ForgetsAllMembers,

    TokenWithTwoOwners,
    NewTokenRemoved,
    ContentShown,
    SeenDevicesForgotten,
    SpellingsAreTwoTokens,
    SessionsEndOnce,
    TokensComeBack,
    BlocksBothWays,
    BlockListGrows,
    RecordOfTheFirst,
    AnyRoundCompletes,
    OneBlockStays,
    RecordForgotten,
    ParksTheFirst,
    ReasonIgnored,
    ListingTakesAway,
    ListForgetsItsOrder,
    ListBeginsAgain,
    FindsAnother,
    ParkedAgainIsDropped,
    ParkedGoesTooSoon,
    ForgetsMoreThanAsked,
    ParkedIsNotCounted,
    RestoreForgotten,

    LosesEvents,
    SendsTheBeginningOfABatch,
    KnowsOldEventsAndDropsThem,
    RoomOutOfOrder,
    RoomInTwoHands,
    DroppedToTheEnd,
    DeliveredTwice,
    BatchTooLarge,
    AckedAtReceive,
    AckedComesAgain,
    PartAcksTheBatch,
    RetryIsNoAttempt,
    RetryAtOnce,
    LongestDelayForAll,
    GrowsWithoutBound,

    LiveLosesInSilence,
    LiveOutOfOrder,
    LiveBlocksOnTheSlow,
    SeqOnlyForEveryone,
    SeqOnlyIsLost,
    HasSessionIsAskedOnce,
    ConfirmedToAllGateways,
    ChangesOfUsersWhoAreHereOnly,

    DeadLeasesCount,
    LapseIsNotTold,
    AttachedByUser,
    AttachShowsLate,
    DetachTakesAllSessions,
    ReplacedStillCounts,
    LastSeenIsAlwaysNow,
    ForgetsTheConnected,
    UnknownIsOffline,
    ProofForAnyone,
    ProofsAreCutOff,
    LeaseToEveryone,
}

/// These engines with that defect.
pub(crate) fn faulty(engines: Engines, defect: Defect) -> Engines {
    let kept = Arc::new(Mutex::default());
    let mut store = engines.store;
    store.intake = FaultyEngine::new(store.intake, defect, &kept);
    store.messages = FaultyEngine::new(store.messages, defect, &kept);
    store.rooms = FaultyEngine::new(store.rooms, defect, &kept);
    store.positions = FaultyEngine::new(store.positions, defect, &kept);
    store.devices = FaultyEngine::new(store.devices, defect, &kept);
    store.users = FaultyEngine::new(store.users, defect, &kept);
    store.pushes = FaultyEngine::new(store.pushes, defect, &kept);
    store.epochs = FaultyEngine::new(store.epochs, defect, &kept);
    Engines {
        store,
        bus: faulty_bus(engines.bus, defect, &kept),
        live: FaultyEngine::new(engines.live, defect, &kept),
        presence: FaultyEngine::new(engines.presence, defect, &kept),
        proofs: FaultyEngine::new(engines.proofs, defect, &kept),
        leases: FaultyEngine::new(engines.leases, defect, &kept),
    }
}

fn faulty_bus(bus: Bus, defect: Defect, kept: &Arc<Mutex<Kept>>) -> Bus {
    match defect {
        Defect::LosesEvents => naru_faults::losing(bus, 1, 0.5),
        // What a reassignment may do is a defect when there was none.
        Defect::RoomOutOfOrder => naru_faults::reordering(bus, 1, 1.0),
        _ => Bus {
            accepted: FaultyEngine::new(bus.accepted, defect, kept),
            saved: FaultyEngine::new(bus.saved, defect, kept),
            offline: FaultyEngine::new(bus.offline, defect, kept),
            push_fcm: FaultyEngine::new(bus.push_fcm, defect, kept),
            push_apns: FaultyEngine::new(bus.push_apns, defect, kept),
            push_webhook: FaultyEngine::new(bus.push_webhook, defect, kept),
        },
    }
}

/// A part of the engines.
struct FaultyEngine<T: ?Sized> {
    inner: Arc<T>,
    defect: Defect,
    kept: Arc<Mutex<Kept>>,
}

/// What a defect needs to remember.
#[derive(Default)]
struct Kept {
    outcomes: HashMap<MessageId, Outcome>,
    after: HashMap<MessageId, Option<MessageId>>,
    dropped: HashSet<MessageId>,
    deleted: HashMap<MessageId, Timestamp>,
    heads: HashMap<RoomId, Seq>,
    rooms: HashMap<RoomId, Arc<Room>>,
    steps: HashMap<(RoomId, UserId), Advance>,
    members: Vec<UserId>,
    claims: Vec<Device>,
    tokens_not_before: HashMap<UserId, Timestamp>,
    events: HashSet<EventId>,
    gateways: Vec<GatewayId>,
    bumped: HashMap<RoomId, Timestamp>,
    unread: Vec<Weak<AtomicUsize>>,
    sessions: Vec<PresenceEntry>,
    online: HashMap<UserId, bool>,
    proven: HashSet<MessageId>,
}

impl<T: ?Sized> FaultyEngine<T> {
    fn new(inner: Arc<T>, defect: Defect, kept: &Arc<Mutex<Kept>>) -> Arc<Self> {
        Arc::new(Self { inner, defect, kept: kept.clone() })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        locked(&self.kept)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic in here")
}

#[async_trait]
impl Intake for FaultyEngine<dyn Intake> {
    async fn append(&self, entries: &[Accepted]) -> EngineResult<Vec<Appended>> {
        let mut answers = self.inner.append(entries).await?;
        if self.defect == Defect::AfterAResend {
            self.kept().after.extend(entries.iter().map(|entry| (entry.id, entry.after)));
        }
        for answer in &mut answers {
            match (self.defect, &answer) {
                (Defect::RejectedStays, Appended::Reopened(id)) => {
                    let first = self.inner.get(&[*id]).await?.remove(0).expect("it is there");
                    *answer = Appended::Resend(Box::new(first));
                }
                (Defect::ConflictOfNothing, Appended::Resend(first)) if first.accepted.content.is_empty() => {
                    *answer = Appended::Conflict;
                }
                (Defect::ResendIsNew, Appended::Resend(_))
                | (Defect::ConflictUnnoticed, Appended::Conflict) => {
                    *answer = Appended::New;
                }
                _ => {}
            }
        }
        if self.defect == Defect::AnswersOutOfOrder {
            answers.reverse();
        }
        Ok(answers)
    }

    async fn find(&self, entries: &[Accepted]) -> EngineResult<Vec<Option<IntakeRecord>>> {
        if self.defect == Defect::FindsNoResend {
            return Ok(vec![None; entries.len()]);
        }
        self.inner.find(entries).await
    }

    async fn get(&self, ids: &[MessageId]) -> EngineResult<Vec<Option<IntakeRecord>>> {
        let mut records = self.inner.get(ids).await?;
        let kept = self.kept();
        for record in records.iter_mut().flatten() {
            record.outcome = kept.outcomes.get(&record.accepted.id).copied().or(record.outcome);
            record.accepted.after =
                kept.after.get(&record.accepted.id).copied().unwrap_or(record.accepted.after);
            if kept.dropped.contains(&record.accepted.id) {
                (record.accepted.sender_name, record.accepted.content) = Default::default();
            }
        }
        Ok(records)
    }

    async fn open(
        &self,
        after: Option<IntakePlace>,
        up_to: Option<IntakePlace>,
        limit: usize,
    ) -> EngineResult<OpenPage> {
        let mut page = self.inner.open(after, up_to, limit).await?;
        match self.defect {
            Defect::OpenForgetsOrder => page.entries.reverse(),
            Defect::OpenEndsEarly => page.next = None,
            _ => {}
        }
        Ok(page)
    }

    async fn newest_open(&self) -> EngineResult<Option<IntakePlace>> {
        let newest = self.inner.newest_open().await?;
        let later = |IntakePlace(place)| IntakePlace(place + 10);
        Ok(if self.defect == Defect::NewestIsNot { newest.map(later) } else { newest })
    }

    async fn close(&self, closings: &[Closing]) -> EngineResult<()> {
        self.inner.close(closings).await?;
        if self.defect == Defect::CloseOverwrites {
            self.kept().outcomes.extend(closings.iter().map(|end| (end.id, end.outcome)));
        }
        Ok(())
    }

    async fn drop_contents(&self, ids: &[MessageId]) -> EngineResult<()> {
        if self.defect == Defect::OpenContentsDropped {
            self.kept().dropped.extend(ids);
        }
        if self.defect == Defect::ContentStays { Ok(()) } else { self.inner.drop_contents(ids).await }
    }

    async fn forget_contents(
        &self,
        after: Option<MessageId>,
        before: Timestamp,
        limit: usize,
    ) -> EngineResult<Walked> {
        let late = before.after(Duration::from_secs(2));
        match self.defect {
            Defect::ContentsStay => Ok(Walked::default()),
            Defect::ContentsGoTooSoon => self.inner.forget_contents(after, late, limit).await,
            Defect::ContentsWalkEndsEarly => {
                Ok(Walked { next: None, ..self.inner.forget_contents(after, before, limit).await? })
            }
            _ => self.inner.forget_contents(after, before, limit).await,
        }
    }

    async fn of_sender(
        &self,
        room: &RoomId,
        sender: &UserId,
        after: Option<&ClientMessageId>,
        limit: usize,
    ) -> EngineResult<Vec<IntakeRecord>> {
        let after = after.filter(|_| self.defect != Defect::SendersWalkBeginsAgain);
        self.inner.of_sender(room, sender, after, limit).await
    }
}

#[async_trait]
impl Messages for FaultyEngine<dyn Messages> {
    async fn find(&self, ids: &[MessageId]) -> EngineResult<Vec<Option<Message>>> {
        let mut found = self.inner.find(ids).await?;
        for message in found.iter_mut().flatten() {
            message.deleted_at = self.kept().deleted.get(&message.id).copied().or(message.deleted_at);
        }
        Ok(found)
    }

    async fn heads(&self, rooms: &[RoomId]) -> EngineResult<Vec<Seq>> {
        let heads = self.inner.heads(rooms).await?;
        if self.defect != Defect::HeadsStale {
            return Ok(heads);
        }
        let mut kept = self.kept();
        Ok(rooms
            .iter()
            .zip(heads)
            .map(|(room, head)| *kept.heads.entry(room.clone()).or_insert(head))
            .collect())
    }

    async fn append_run(&self, run: &[Message]) -> EngineResult<RunResult> {
        let answer = self.inner.append_run(run).await?;
        match (self.defect, &answer.stopped_by) {
            (Defect::RunGoesOnAfterConflict, Some(_)) => {
                let mut rest = &run[answer.stored + 1..];
                while let RunResult { stored, stopped_by: Some(_) } = self.inner.append_run(rest).await? {
                    rest = &rest[stored + 1..];
                }
                Ok(answer)
            }
            (Defect::TakenPlaceAccepted, Some(RunConflict::SeqTaken))
            | (Defect::RepeatedIdAccepted, Some(RunConflict::AlreadySaved(_))) => {
                Ok(RunResult { stored: run.len(), stopped_by: None })
            }
            _ => Ok(answer),
        }
    }

    async fn bump(&self, newest: &[Message]) -> EngineResult<()> {
        let bumped = newest.iter().map(|message| (message.chat_room_id.clone(), message.timestamp));
        self.kept().bumped.extend(bumped);
        self.inner.bump(newest).await
    }

    async fn range(&self, room: &RoomId, window: Window, limit: usize) -> EngineResult<(Vec<Message>, bool)> {
        let (mut messages, more) = self.inner.range(room, window, limit).await?;
        if self.defect == Defect::DeletedIsRemoved {
            messages.retain(|message| message.deleted_at.is_none());
        }
        Ok((messages, more && self.defect != Defect::WindowSaysThereIsNoMore))
    }

    async fn delete(&self, ids: &[MessageId], at: Timestamp) -> EngineResult<()> {
        if self.defect == Defect::DeletedAgain {
            self.kept().deleted.extend(ids.iter().map(|id| (*id, at)));
        }
        self.inner.delete(ids, at).await
    }

    async fn expire(
        &self,
        after: Option<MessageId>,
        before: Timestamp,
        limit: usize,
    ) -> EngineResult<Walked> {
        let late = before.after(Duration::from_secs(2));
        match self.defect {
            Defect::ExpiredStay => Ok(Walked::default()),
            Defect::ExpiresTooSoon => self.inner.expire(after, late, limit).await,
            Defect::ExpiryEndsEarly => {
                Ok(Walked { next: None, ..self.inner.expire(after, before, limit).await? })
            }
            _ => self.inner.expire(after, before, limit).await,
        }
    }
}

impl FaultyEngine<dyn Rooms> {
    fn counted(&self, mut summary: RoomSummary) -> RoomSummary {
        if self.defect == Defect::UnreadNotCounted {
            summary.unread_count = 0;
        }
        if self.defect == Defect::ExpiredIsUnread {
            summary.unread_count = summary.last_seq.0;
        }
        summary
    }
}

impl FaultyEngine<dyn Rooms> {
    fn as_first_seen(&self, mut rooms: Vec<Option<Arc<Room>>>) -> Vec<Option<Arc<Room>>> {
        let mut kept = self.kept();
        for room in rooms.iter_mut().flatten() {
            *room = kept.rooms.entry(room.id.clone()).or_insert_with(|| room.clone()).clone();
        }
        rooms
    }
}

#[async_trait]
impl Rooms for FaultyEngine<dyn Rooms> {
    async fn create(&self, room: NewRoom) -> EngineResult<Created> {
        Ok(match self.inner.create(room).await? {
            Created::Existing(room) if self.defect == Defect::MadeTwice => Created::New(room),
            answer => answer,
        })
    }

    async fn current(&self, ids: &[RoomId]) -> EngineResult<Vec<Option<Arc<Room>>>> {
        let rooms = self.inner.current(ids).await?;
        Ok(if self.defect == Defect::CurrentStale { self.as_first_seen(rooms) } else { rooms })
    }

    async fn current_since(
        &self,
        ids: &[RoomId],
        not_before: Option<StoreTime>,
    ) -> EngineResult<Vec<Option<Arc<Room>>>> {
        let rooms = self.inner.current_since(ids, not_before).await?;
        Ok(if self.defect == Defect::SinceStale { self.as_first_seen(rooms) } else { rooms })
    }

    async fn members_at(&self, room: &RoomId, version: MemberVersion) -> EngineResult<Option<Arc<[UserId]>>> {
        let members = self.inner.members_at(room, version).await?;
        let is_wrong = match self.defect {
            Defect::MembersOfTheLatestVersion => members.is_some(),
            Defect::ForgottenIsTheLatest => members.is_none(),
            _ => false,
        };
        if !is_wrong {
            return Ok(members);
        }
        let now = self.inner.current(std::slice::from_ref(room)).await?.remove(0);
        Ok(now.map(|room| room.member_ids.clone()))
    }

    async fn change(&self, room: &RoomId, change: MemberChange, max: usize) -> EngineResult<Changed> {
        self.inner.change(room, change, max).await
    }

    async fn of_user(
        &self,
        user: &UserId,
        cursor: Option<&RoomCursor>,
        limit: usize,
    ) -> EngineResult<(Vec<RoomSummary>, Option<RoomCursor>)> {
        let (rooms, next) = self.inner.of_user(user, cursor, limit).await?;
        let mut rooms: Vec<_> = rooms.into_iter().map(|summary| self.counted(summary)).collect();
        match self.defect {
            // An order of its own.
            Defect::BumpIgnored => rooms.sort_by_key(|summary| summary.room.id.clone()),
            Defect::BumpGoesBack => {
                let bumped = &self.kept().bumped;
                rooms.sort_by_key(|summary| std::cmp::Reverse(bumped.get(&summary.room.id).copied()));
            }
            Defect::ListByTheClock => rooms.sort_by_key(|summary| {
                std::cmp::Reverse(summary.last_message.as_ref().map(|message| message.timestamp))
            }),
            _ => {}
        }
        Ok((rooms, next.filter(|_| self.defect != Defect::ListEndsEarly)))
    }

    async fn summary(&self, room: &RoomId, user: &UserId) -> EngineResult<Option<RoomSummary>> {
        Ok(self.inner.summary(room, user).await?.map(|summary| self.counted(summary)))
    }

    async fn configure(&self, room: &RoomId, user: &UserId, settings: MemberSettings) -> EngineResult<bool> {
        // Its count of unread messages does not see the muting.
        let muted = settings.muted && self.defect != Defect::MutedCounts;
        let done = self.inner.configure(room, user, MemberSettings { muted, ..settings }).await?;
        if self.defect == Defect::SettingsShared && done {
            for room in self.inner.current(std::slice::from_ref(room)).await?.into_iter().flatten() {
                for member in room.member_ids.iter() {
                    self.inner.configure(&room.id, member, settings).await?;
                }
            }
        }
        Ok(done)
    }

    async fn ever_of(
        &self,
        user: &UserId,
        after: Option<&RoomId>,
        limit: usize,
    ) -> EngineResult<Vec<RoomId>> {
        let mut rooms = self.inner.ever_of(user, after, limit).await?;
        if self.defect == Defect::LeftRoomsForgotten {
            let now = self.inner.current(&rooms).await?;
            rooms.retain(|id| now.iter().flatten().any(|room| room.id == *id && room.has(user)));
        }
        Ok(rooms)
    }

    async fn share_a_room(&self, user: &UserId, others: &[UserId]) -> EngineResult<Vec<bool>> {
        self.inner.share_a_room(user, others).await
    }

    async fn forget_versions(&self, left_before: Timestamp, limit: usize) -> EngineResult<u64> {
        match self.defect {
            Defect::VersionsStay => Ok(0),
            Defect::VersionsGoTooSoon => {
                self.inner.forget_versions(left_before.after(Duration::from_secs(3_600)), limit).await
            }
            _ => self.inner.forget_versions(left_before, limit).await,
        }
    }

    async fn have_rooms(&self, users: &[UserId], at_least: usize) -> EngineResult<Vec<bool>> {
        let more = usize::from(self.defect == Defect::RoomsMiscounted);
        self.inner.have_rooms(users, at_least + more).await
    }
}

#[async_trait]
impl Positions for FaultyEngine<dyn Positions> {
    async fn advance(&self, steps: &[Advance]) -> EngineResult<Vec<Moved>> {
        let mut answers = self.inner.advance(steps).await?;
        self.kept().members.extend(steps.iter().map(|step| step.user.clone()));
        for (step, moved) in steps.iter().zip(&mut answers) {
            let told = Moved { received: Some(step.received), read: Some(step.read) };
            let is_member =
                !self.inner.of_device(&step.user, &DeviceId::new("-").expect("an id")).await?.is_empty();
            if self.defect == Defect::MoveToldAlways || self.defect == Defect::StrangersMove && !is_member {
                *moved = told;
            }
        }
        if matches!(self.defect, Defect::PositionsGoBackward | Defect::PositionBeyondHead) {
            let last = |step: &Advance| ((step.room.clone(), step.user.clone()), step.clone());
            self.kept().steps.extend(steps.iter().map(last));
        }
        Ok(answers)
    }

    async fn get(&self, members: &[(RoomId, UserId, Seq)]) -> EngineResult<Vec<MemberPosition>> {
        let mut asked = members.to_vec();
        if self.defect == Defect::PositionsOfTheFirstRoom {
            asked.iter_mut().for_each(|(room, ..)| room.clone_from(&members[0].0));
        }
        let mut positions = self.inner.get(&asked).await?;
        let kept = self.kept();
        for ((room, user, _), position) in members.iter().zip(&mut positions) {
            if self.defect == Defect::SendingIsNotReading {
                position.read = Seq::ZERO;
            }
            let Some(step) = kept.steps.get(&(room.clone(), user.clone())) else { continue };
            let goes = if self.defect == Defect::PositionsGoBackward { Seq::min } else { Seq::max };
            position.read = goes(position.read, step.read);
            position.received = goes(position.received, step.received);
        }
        Ok(positions)
    }

    async fn unread(&self, users: &[UserId]) -> EngineResult<Vec<u64>> {
        let mut unread = self.inner.unread(users).await?;
        match self.defect {
            Defect::UnreadNotCounted => unread.fill(0),
            Defect::UnreadOfTheFirst => {
                let first = unread.first().copied().unwrap_or(0);
                unread.fill(first);
            }
            _ => {}
        }
        Ok(unread)
    }

    async fn forget(&self, user: &UserId, rooms: &[RoomId]) -> EngineResult<()> {
        if self.defect == Defect::ForgetsAllMembers {
            let all: Vec<_> = self.kept().members.clone();
            for other in all {
                self.inner.forget(&other, rooms).await?;
            }
        }
        self.inner.forget(user, rooms).await
    }

    async fn of_device(&self, user: &UserId, device: &DeviceId) -> EngineResult<Vec<DevicePosition>> {
        self.inner.of_device(user, device).await
    }
}

#[async_trait]
impl Devices for FaultyEngine<dyn Devices> {
    async fn claim(&self, device: Device) -> EngineResult<()> {
        self.kept().claims.push(device.clone());
        self.inner.claim(device).await
    }

    async fn of_users(&self, users: &[UserId]) -> EngineResult<Vec<Device>> {
        let mut devices = self.inner.of_users(users).await?;
        if self.defect == Defect::TokenWithTwoOwners {
            let kept = self.kept();
            let had =
                kept.claims.iter().filter(|claim| users.contains(&claim.user) && !devices.contains(claim));
            let had: Vec<_> = had.cloned().collect();
            devices.extend(had);
        }
        if self.defect == Defect::SpellingsAreTwoTokens {
            let kept = self.kept();
            let spelled = |claim: &&Device| claim.platform.canonical(&claim.token) != claim.token;
            let had = kept.claims.iter().filter(spelled).filter(|claim| users.contains(&claim.user));
            devices.extend(had.cloned());
        }
        if self.defect == Defect::ContentShown {
            devices.iter_mut().for_each(|device| device.hides_content = false);
        }
        Ok(devices)
    }

    async fn remove(&self, user: &UserId, device: &DeviceId) -> EngineResult<bool> {
        self.inner.remove(user, device).await
    }

    async fn remove_token(&self, platform: Platform, token: &str, before: Timestamp) -> EngineResult<bool> {
        let any = Timestamp::now().after(Duration::from_secs(3_600));
        let before = if self.defect == Defect::NewTokenRemoved { any } else { before };
        self.inner.remove_token(platform, token, before).await
    }

    async fn forget_unseen(&self, before: Timestamp) -> EngineResult<u64> {
        let late = before.after(Duration::from_millis(1));
        self.inner
            .forget_unseen(if self.defect == Defect::SeenDevicesForgotten { late } else { before })
            .await
    }
}

#[async_trait]
impl Users for FaultyEngine<dyn Users> {
    async fn get(&self, users: &[UserId]) -> EngineResult<Vec<UserRecord>> {
        let mut asked = users.to_vec();
        if let (Defect::RecordOfTheFirst, Some(first)) = (self.defect, users.first()) {
            asked.fill(first.clone());
        }
        let mut records = self.inner.get(&asked).await?;
        let kept = self.kept();
        for (user, record) in users.iter().zip(&mut records) {
            match self.defect {
                Defect::SessionsEndOnce => record.session_epoch = record.session_epoch.min(1),
                Defect::TokensComeBack => {
                    record.tokens_not_before = kept.tokens_not_before.get(user).copied();
                }
                _ => {}
            }
        }
        Ok(records)
    }

    async fn blocked_by(&self, user: &UserId, others: &[UserId]) -> EngineResult<Vec<bool>> {
        self.inner.blocked_by(user, others).await
    }

    async fn end_sessions(&self, user: &UserId, tokens_not_before: Option<Timestamp>) -> EngineResult<()> {
        if let Some(not_before) = tokens_not_before {
            self.kept().tokens_not_before.insert(user.clone(), not_before);
        }
        self.inner.end_sessions(user, tokens_not_before).await
    }

    async fn block(&self, user: &UserId, other: &UserId, max: usize) -> EngineResult<bool> {
        if self.defect == Defect::BlocksBothWays {
            self.inner.block(other, user, max).await?;
        }
        let max = if self.defect == Defect::BlockListGrows { usize::MAX } else { max };
        self.inner.block(user, other, max).await
    }

    async fn unblock(&self, user: &UserId, other: &UserId) -> EngineResult<()> {
        self.inner.unblock(user, other).await
    }

    async fn unblock_all(&self, user: &UserId) -> EngineResult<()> {
        if self.defect == Defect::OneBlockStays {
            let record = self.inner.get(std::slice::from_ref(user)).await?.remove(0);
            for other in record.blocked.iter().skip(1) {
                self.inner.unblock(user, other).await?;
            }
            return Ok(());
        }
        self.inner.unblock_all(user).await
    }

    async fn begin_erasure(&self, user: &UserId, at: Timestamp) -> EngineResult<()> {
        self.inner.begin_erasure(user, at).await
    }

    async fn erasure(&self, user: &UserId) -> EngineResult<Option<Erasure>> {
        self.inner.erasure(user).await
    }

    async fn erasures(&self, after: Option<&UserId>, limit: usize) -> EngineResult<Vec<(UserId, Erasure)>> {
        self.inner.erasures(after, limit).await
    }

    async fn complete_erasure(&self, user: &UserId, round: u64, at: Timestamp) -> EngineResult<bool> {
        let last = self.inner.erasure(user).await?.map_or(round, |erasure| erasure.round);
        let round = if self.defect == Defect::AnyRoundCompletes { last } else { round };
        self.inner.complete_erasure(user, round, at).await
    }
}

#[async_trait]
impl Epochs for FaultyEngine<dyn Epochs> {
    async fn get(&self) -> EngineResult<StoreEpoch> {
        self.inner.get().await
    }

    async fn restored(&self) -> EngineResult<StoreEpoch> {
        if self.defect == Defect::RestoreForgotten {
            return self.inner.get().await.map(|epoch| epoch.next(Timestamp::now()));
        }
        self.inner.restored().await
    }
}

#[async_trait]
impl Pushes for FaultyEngine<dyn Pushes> {
    async fn done(&self, events: &[EventId]) -> EngineResult<Vec<bool>> {
        self.inner.done(events).await
    }

    async fn record(&self, taken: &[(EventId, String)]) -> EngineResult<()> {
        if self.defect == Defect::RecordForgotten { Ok(()) } else { self.inner.record(taken).await }
    }

    async fn park(&self, pushes: &[ParkedPush]) -> EngineResult<()> {
        let max = if self.defect == Defect::ParksTheFirst { 1 } else { usize::MAX };
        self.inner.park(&pushes[..pushes.len().min(max)]).await
    }

    async fn parked_because(&self, reason: &str, limit: usize) -> EngineResult<Vec<ParkedPush>> {
        if self.defect == Defect::ReasonIgnored {
            return self.inner.parked(None, limit).await;
        }
        self.inner.parked_because(reason, limit).await
    }

    async fn parked(&self, after: Option<&ParkedCursor>, limit: usize) -> EngineResult<Vec<ParkedPush>> {
        let after = after.filter(|_| self.defect != Defect::ListBeginsAgain);
        let mut parked = self.inner.parked(after, limit).await?;
        if self.defect == Defect::ListForgetsItsOrder {
            parked.sort_by_key(|push| push.event_id.0);
        }
        if self.defect == Defect::ListingTakesAway {
            for push in &parked {
                self.inner.drop_parked(push.event_id).await?;
            }
        }
        Ok(parked)
    }

    async fn find_parked(&self, event: EventId) -> EngineResult<Option<ParkedPush>> {
        if self.defect == Defect::FindsAnother {
            return Ok(self.inner.parked(None, 1).await?.pop());
        }
        self.inner.find_parked(event).await
    }

    async fn drop_parked(&self, event: EventId) -> EngineResult<bool> {
        self.inner.drop_parked(event).await
    }

    async fn drop_parked_at(&self, place: &ParkedCursor) -> EngineResult<bool> {
        if self.defect == Defect::ParkedAgainIsDropped {
            return self.inner.drop_parked(place.event_id).await;
        }
        self.inner.drop_parked_at(place).await
    }

    async fn forget_parked(&self, before: Timestamp, limit: usize) -> EngineResult<u64> {
        let late = before.after(Duration::from_millis(1));
        let before = if self.defect == Defect::ParkedGoesTooSoon { late } else { before };
        let limit = if self.defect == Defect::ForgetsMoreThanAsked { usize::MAX } else { limit };
        self.inner.forget_parked(before, limit).await
    }

    async fn parked_count(&self) -> EngineResult<u64> {
        let count = self.inner.parked_count().await?;
        Ok(if self.defect == Defect::ParkedIsNotCounted { 0 } else { count })
    }
}

#[async_trait]
impl<T: Payload> Queue<T> for FaultyEngine<dyn Queue<T>> {
    async fn send(&self, mut events: Vec<Event<T>>) -> EngineResult<()> {
        match self.defect {
            Defect::SendsTheBeginningOfABatch => events.truncate(256),
            Defect::KnowsOldEventsAndDropsThem => {
                let mut kept = self.kept();
                events.retain(|event| kept.events.insert(event.event_id));
            }
            Defect::DeliveredTwice => self.inner.send(events.clone()).await?,
            _ => {}
        }
        self.inner.send(events).await
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>> {
        let inner = self.inner.receiver().await?;
        let (queue, defect) = (self.inner.clone(), self.defect);
        let held = Held { defect, queue, deliveries: Mutex::default(), longest: Mutex::default() };
        Ok(Box::new(FaultyReceiver { inner, held: Arc::new(held), next_tag: 0 }))
    }
}

struct FaultyReceiver<T: Payload> {
    inner: Box<dyn Receiver<T>>,
    held: Arc<Held<T>>,
    next_tag: u64,
}

#[async_trait]
impl<T: Payload> Receiver<T> for FaultyReceiver<T> {
    async fn receive(&mut self, max: usize) -> EngineResult<Vec<Delivery<T>>> {
        let defect = self.held.defect;
        let max = if defect == Defect::BatchTooLarge { 1_000 } else { max };
        let mut deliveries = Vec::new();
        let batch = self.next_tag;
        for Delivery { event, attempt, ack_handle } in self.inner.receive(max).await? {
            let attempt = if defect == Defect::RetryIsNoAttempt { 1 } else { attempt };
            let ack_handle = if matches!(defect, Defect::AckedAtReceive | Defect::RoomInTwoHands) {
                ack([ack_handle]).await?;
                None
            } else {
                Some(ack_handle)
            };
            let held = HeldDelivery { batch, event: event.clone(), ack_handle };
            locked(&self.held.deliveries).insert(self.next_tag, held);
            let ack_handle = AckHandle::new(self.next_tag, self.held.clone());
            deliveries.push(Delivery { event, attempt, ack_handle });
            self.next_tag += 1;
        }
        Ok(deliveries)
    }
}

struct Held<T: Payload> {
    defect: Defect,
    queue: Arc<dyn Queue<T>>,
    /// By tag.
    deliveries: Mutex<HashMap<u64, HeldDelivery<T>>>,
    longest: Mutex<Duration>,
}

struct HeldDelivery<T: Payload> {
    batch: u64,
    event: Event<T>,
    /// None: it was acknowledged when it was received.
    ack_handle: Option<AckHandle>,
}

impl<T: Payload> Held<T> {
    fn take(&self, tags: &[u64]) -> Vec<HeldDelivery<T>> {
        let mut deliveries = locked(&self.deliveries);
        let mut taken: Vec<_> = tags.iter().filter_map(|tag| deliveries.remove(tag)).collect();
        if self.defect == Defect::PartAcksTheBatch {
            let batches: HashSet<_> = taken.iter().map(|delivery| delivery.batch).collect();
            let rest = deliveries.extract_if(|_, delivery| batches.contains(&delivery.batch));
            taken.extend(rest.map(|(_, delivery)| delivery));
        }
        taken
    }
}

impl<T: Payload> std::fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.defect)
    }
}

#[async_trait]
impl<T: Payload> Acknowledge for Held<T> {
    async fn ack(&self, tags: Vec<u64>) -> EngineResult<()> {
        for HeldDelivery { event, ack_handle, .. } in self.take(&tags) {
            ack(ack_handle).await?;
            if self.defect == Defect::AckedComesAgain {
                self.queue.send(vec![event]).await?;
            }
        }
        Ok(())
    }

    async fn retry(&self, tags: Vec<u64>, after: Duration) -> EngineResult<()> {
        let after = match self.defect {
            Defect::RetryAtOnce => Duration::ZERO,
            Defect::LongestDelayForAll => {
                let mut longest = locked(&self.longest);
                *longest = after.max(*longest);
                *longest
            }
            _ => after,
        };
        for HeldDelivery { event, ack_handle, .. } in self.take(&tags) {
            match ack_handle {
                Some(ack_handle) => retry([ack_handle], after).await?,
                None => self.queue.send(vec![event]).await?,
            }
        }
        Ok(())
    }

    fn dropped(&self, tag: u64) {
        let held = locked(&self.deliveries).remove(&tag);
        if let (Defect::RoomInTwoHands | Defect::DroppedToTheEnd, Some(held)) = (self.defect, held) {
            let queue = self.queue.clone();
            tokio::spawn(async move {
                ack(held.ack_handle).await?;
                queue.send(vec![held.event]).await
            });
        }
    }
}

#[async_trait]
impl Live for FaultyEngine<dyn Live> {
    async fn publish(&self, mut events: Vec<LiveEvent>) -> EngineResult<()> {
        if self.defect == Defect::LiveOutOfOrder {
            events.reverse();
        }
        if self.defect == Defect::LiveBlocksOnTheSlow {
            let unread: Vec<_> = self.kept().unread.iter().filter_map(Weak::upgrade).collect();
            for count in unread {
                while count.load(Ordering::SeqCst) > 100 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                count.fetch_add(events.len(), Ordering::SeqCst);
            }
        }
        self.inner.publish(events).await
    }

    async fn confirm(&self, gateway: &GatewayId, confirmations: Vec<Confirmation>) -> EngineResult<()> {
        let gateways = self.kept().gateways.clone();
        for other in
            gateways.iter().filter(|other| self.defect == Defect::ConfirmedToAllGateways && *other != gateway)
        {
            self.inner.confirm(other, confirmations.clone()).await?;
        }
        self.inner.confirm(gateway, confirmations).await
    }

    async fn evict(&self, gateway: &GatewayId, session: &SessionId) -> EngineResult<()> {
        self.inner.evict(gateway, session).await
    }

    async fn user_changed(&self, user: &UserId) -> EngineResult<()> {
        self.inner.user_changed(user).await
    }

    async fn subscribe(
        &self,
        gateway: &GatewayId,
        has_session: HasSession,
    ) -> EngineResult<Box<dyn Subscription>> {
        let unread = Arc::new(AtomicUsize::new(0));
        let inner = self.inner.subscribe(gateway, has_session.clone()).await?;
        let mut kept = self.kept();
        kept.gateways.push(gateway.clone());
        kept.unread.push(Arc::downgrade(&unread));
        let (defect, were_here) = (self.defect, HashMap::new());
        Ok(Box::new(FaultySubscription { inner, defect, has_session, were_here, unread }))
    }
}

struct FaultySubscription {
    inner: Box<dyn Subscription>,
    defect: Defect,
    has_session: HasSession,
    /// What was answered for each user when it was first asked.
    were_here: HashMap<UserId, bool>,
    unread: Arc<AtomicUsize>,
}

impl FaultySubscription {
    /// Whether no recipient is here, as far as this engine knows.
    fn is_elsewhere(&mut self, event: &LiveEvent) -> bool {
        let Self { defect, has_session, were_here, .. } = self;
        let mut has_session = |user: &UserId| match defect {
            Defect::HasSessionIsAskedOnce => {
                *were_here.entry(user.clone()).or_insert_with(|| has_session(user.as_str()))
            }
            _ => has_session(user.as_str()),
        };
        !event.recipients.iter().any(&mut has_session)
    }
}

#[async_trait]
impl Subscription for FaultySubscription {
    async fn next(&mut self) -> Option<Signal> {
        loop {
            let signal = self.inner.next().await?;
            let event = match (self.defect, &signal) {
                (Defect::LiveLosesInSilence, Signal::Interrupted | Signal::Restored) => continue,
                (Defect::ChangesOfUsersWhoAreHereOnly, Signal::UserChanged(user))
                    if !(self.has_session)(user.as_str()) =>
                {
                    continue;
                }
                (_, Signal::Event(event)) => event.clone(),
                _ => return Some(signal),
            };
            if self.defect == Defect::LiveBlocksOnTheSlow {
                self.unread.fetch_sub(1, Ordering::SeqCst);
            }
            let News::Chat(message) = &event.news else { return Some(signal) };
            let seq_only = Signal::SeqOnly { room: message.chat_room_id.clone(), seq: message.seq };
            match (self.defect, self.is_elsewhere(&event)) {
                (Defect::SeqOnlyForEveryone, _) | (Defect::HasSessionIsAskedOnce, true) => {
                    return Some(seq_only);
                }
                (Defect::SeqOnlyIsLost, true) => {}
                _ => return Some(signal),
            }
        }
    }
}

#[async_trait]
impl Presence for FaultyEngine<dyn Presence> {
    async fn renew(&self, gateway: &GatewayId, ttl: Duration) -> EngineResult<Renewal> {
        let ttl = if self.defect == Defect::DeadLeasesCount { Duration::from_secs(600) } else { ttl };
        let renewal = self.inner.renew(gateway, ttl).await?;
        Ok(if self.defect == Defect::LapseIsNotTold { Renewal::Unbroken } else { renewal })
    }

    async fn resign(&self, gateway: &GatewayId) -> EngineResult<()> {
        self.inner.resign(gateway).await
    }

    async fn attach(&self, session: &PresenceEntry) -> EngineResult<Option<PresenceEntry>> {
        self.kept().sessions.push(session.clone());
        if self.defect == Defect::ReplacedStillCounts {
            return self.inner.attach(&PresenceEntry { device: None, ..session.clone() }).await;
        }
        self.inner.attach(session).await
    }

    async fn detach(&self, session: &PresenceEntry) -> EngineResult<()> {
        if self.defect == Defect::DetachTakesAllSessions {
            let all = self.kept().sessions.clone();
            for other in all.iter().filter(|other| other.user == session.user) {
                self.inner.detach(other).await?;
            }
        }
        self.inner.detach(session).await
    }

    async fn attached(&self, sessions: &[PresenceEntry]) -> EngineResult<Vec<bool>> {
        if self.defect == Defect::AttachedByUser {
            let users: Vec<UserId> = sessions.iter().map(|session| session.user.clone()).collect();
            return self.inner.online(&users).await;
        }
        self.inner.attached(sessions).await
    }

    async fn online(&self, users: &[UserId]) -> EngineResult<Vec<bool>> {
        match (self.defect, self.inner.online(users).await) {
            (Defect::UnknownIsOffline, Err(_)) => Ok(vec![false; users.len()]),
            (Defect::AttachShowsLate, Ok(now)) => {
                let mut kept = self.kept();
                let before =
                    |(user, now): (&UserId, bool)| kept.online.insert(user.clone(), now).unwrap_or_default();
                Ok(users.iter().zip(now).map(before).collect())
            }
            (_, answer) => answer,
        }
    }

    async fn seen(&self, users: &[UserId]) -> EngineResult<Vec<Seen>> {
        let mut seen = self.inner.seen(users).await?;
        if self.defect == Defect::LastSeenIsAlwaysNow {
            seen.iter_mut().for_each(|seen| seen.last_seen_at = Some(Timestamp::now()));
        }
        Ok(seen)
    }

    async fn forget(&self, user: &UserId) -> EngineResult<bool> {
        if self.defect == Defect::ForgetsTheConnected {
            let all = self.kept().sessions.clone();
            for session in all.iter().filter(|session| session.user == *user) {
                self.inner.detach(session).await?;
            }
        }
        self.inner.forget(user).await
    }
}

#[async_trait]
impl Proofs for FaultyEngine<dyn Proofs> {
    async fn record(&self, proofs: &[(MessageId, UserId)], keep: Duration) -> EngineResult<()> {
        self.kept().proven.extend(proofs.iter().map(|(message, _)| message));
        let max = if self.defect == Defect::ProofsAreCutOff { 1_000 } else { usize::MAX };
        self.inner.record(&proofs[..proofs.len().min(max)], keep).await
    }

    async fn proven(&self, asked: &[(MessageId, UserId)]) -> EngineResult<Vec<bool>> {
        let mut proven = self.inner.proven(asked).await?;
        if self.defect == Defect::ProofForAnyone {
            let kept = self.kept();
            proven = asked.iter().map(|(message, _)| kept.proven.contains(message)).collect();
        }
        Ok(proven)
    }
}

#[async_trait]
impl Leases for FaultyEngine<dyn Leases> {
    async fn hold(&self, name: &str, holder: &str, ttl: Duration) -> EngineResult<bool> {
        Ok(self.inner.hold(name, holder, ttl).await? || self.defect == Defect::LeaseToEveryone)
    }
}
