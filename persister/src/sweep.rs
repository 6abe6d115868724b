//! Resends the messages that were accepted and then lost, by a worker that died or by a broker.
//!
//! The intake's open entries are the only source: an entry is open from its acceptance until every recipient is accounted
//! for. An entry is resent to the persister if it is open for three seconds and not saved, and to the fanout if it is saved and
//! still open after the grace time and five seconds, when a fanout that did not die must have closed it. How long it has been open is what this sweep
//! has seen by its own monotonic clock: no time of day counts, of no machine. So a sweep that has just begun waits as long.
//! One persister sweeps, by an advisory lease; two at once would only cost work.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use naru_engines::store::{IntakePlace, OpenEntry};
use naru_engines::{EngineResult, Engines, retention};
use naru_model::hops::{Accepted, Saved};
use naru_model::{Event, HolderId, MemberVersion, Message, MessageId, RoomId};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// The shortest pause between two sweeps.
const EVERY: Duration = Duration::from_secs(1);
/// An entry that is open for longer is resent unless it is saved.
const OPEN_FOR: Duration = Duration::from_secs(3);
/// A saved entry is left to the fanout for the grace time and this.
const FANOUT_MARGIN: Duration = Duration::from_secs(5);
/// An entry that stays open is resent after twice as long each time, up to this: it may be waiting in a long queue.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Where no entry was open, a sweep looks again after this: one may be opened again, or become visible late.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How many entries are read at a time, oldest first.
const PAGE: usize = 1_000;
/// How many entries may be under way: handed on lately, and still open. A sweep goes no further, because queues that are
/// behind need no more. One that stays open after it was handed on again and again counts no longer, and so hides none.
const MAX_UNDER_WAY: usize = 10_000;
/// An entry that waits for longer counts no longer.
const LATELY: Duration = Duration::from_secs(12);
/// The lease and its duration. Where a pause is longer, another persister sweeps, and pauses too.
const LEASE: (&str, Duration) = ("sweep", Duration::from_secs(3));

/// Hands on the oldest open intake entries, however young: at the start of a process whose bus loses its events when it dies.
/// Call it while a persister runs and before a gateway does. Returns the count. The sweep finds those after them.
///
/// # Errors
/// When the store or the bus does not answer.
pub async fn recover(engines: &Engines) -> EngineResult<usize> {
    let (mut after, mut count) = (None, 0);
    loop {
        let page = engines.store.intake.open(after, None, PAGE).await?;
        count += page.entries.len();
        resend(engines, page.entries).await?;
        after = page.next;
        if after.is_none() || count >= MAX_UNDER_WAY {
            return Ok(count);
        }
    }
}

pub(crate) async fn run(
    engines: Engines,
    grace: Duration,
    telemetry: Telemetry,
    stop: CancellationToken,
) -> EngineResult<()> {
    let mut sweep = Sweep::new(engines, grace + FANOUT_MARGIN, telemetry);
    let mut is_failing = false;
    let mut pause = Duration::ZERO;
    while stop.run_until_cancelled(sleep(pause)).await.is_some() {
        let began = Instant::now();
        // A failed sweep is not put off further: for messages that wait, an outage ends with the next sweep.
        pause = EVERY;
        match sweep.once().await {
            Ok(()) => {
                is_failing = false;
                // Where thousands are open, the store is behind.
                pause = retention::pause(EVERY, began);
            }
            Err(error) if !error.is_transient() => return Err(error),
            Err(error) => {
                if !is_failing {
                    tracing::warn!(%error, "open intake entries can't be swept; trying again every second");
                }
                is_failing = true;
            }
        }
    }
    Ok(())
}

struct Sweep {
    engines: Engines,
    /// How long a saved entry is left to the fanout.
    closed_after: Duration,
    telemetry: Telemetry,
    holder: HolderId,
    ages: Ages,
    schedule: ResendSchedule,
    /// Up to this place no entry was open, and when.
    empty: Option<(IntakePlace, Instant)>,
}

impl Sweep {
    fn new(engines: Engines, closed_after: Duration, telemetry: Telemetry) -> Self {
        let (holder, ages, schedule) = (HolderId::generate(), Ages::default(), ResendSchedule::default());
        Self { engines, closed_after, telemetry, holder, ages, schedule, empty: None }
    }

    async fn once(&mut self) -> EngineResult<()> {
        // The lease only saves work. Where it can't be asked for, every persister sweeps.
        if let Ok(false) = self.engines.leases.hold(LEASE.0, self.holder.as_str(), LEASE.1).await {
            return Ok(());
        }
        let newest = self.engines.store.intake.newest_open().await?;
        let now = Instant::now();
        self.ages.note(now, newest, self.closed_after);
        let Some(up_to) = self.ages.open_for(OPEN_FOR, now) else { return Ok(()) };
        if self.empty.is_some_and(|(place, at)| up_to <= place && now - at < LOOK_AGAIN) {
            return Ok(());
        }
        let (mut after, mut count, mut under_way) = (None, 0, 0);
        let mut seen = HashSet::new();
        loop {
            let page = self.engines.store.intake.open(after, Some(up_to), PAGE).await?;
            let ids: Vec<MessageId> = page.entries.iter().map(|entry| entry.accepted.id).collect();
            count += self.take(page.entries, now).await?;
            under_way += ids.iter().filter(|id| self.schedule.is_under_way(**id)).count();
            seen.extend(ids);
            after = page.next;
            if after.is_none() || under_way >= MAX_UNDER_WAY {
                break;
            }
        }
        self.schedule.keep(&seen);
        self.empty = seen.is_empty().then_some((up_to, now));
        if count > 0 {
            tracing::info!(count, "open intake entries are resent");
        }
        Ok(())
    }

    /// Hands on the due ones of these entries; how many they were.
    async fn take(&mut self, open: Vec<OpenEntry>, now: Instant) -> EngineResult<usize> {
        let due = self.schedule.due(open, now);
        if due.is_empty() {
            return Ok(0);
        }
        let ids: Vec<MessageId> = due.iter().map(|entry| entry.accepted.id).collect();
        let count = self.hand_on(&ids, due, now).await.inspect_err(|_| {
            ids.iter().for_each(|id| self.schedule.reschedule(*id, now));
        })?;
        self.telemetry.swept.inc_by(count as u64);
        Ok(count)
    }

    /// Hands entries that are not saved to the persister, and those that the fanout must have closed by now to the fanout: to the
    /// persister they would be news of nothing. The fanout can be about to close the others, and keeps them for its time.
    async fn hand_on(&mut self, ids: &[MessageId], due: Vec<OpenEntry>, now: Instant) -> EngineResult<usize> {
        let saved = self.engines.store.messages.find(ids).await?;
        let (mut unsaved, mut unclosed) = (Vec::new(), Vec::new());
        for (entry, message) in due.into_iter().zip(saved) {
            let time_left = self.closed_after.saturating_sub(self.ages.age(entry.place, now));
            match message {
                None => unsaved.push(entry),
                Some(message) if time_left.is_zero() => unclosed.push((message, entry.accepted)),
                Some(_) => self.schedule.reschedule(entry.accepted.id, now + time_left),
            }
        }
        let count = unsaved.len() + unclosed.len();
        resend(&self.engines, unsaved).await?;
        self.fan_out(unclosed).await?;
        Ok(count)
    }

    /// Enqueues saved messages for the fanout, each for the members of now: those of the time when it was saved may be forgotten.
    async fn fan_out(&self, unclosed: Vec<(Message, Accepted)>) -> EngineResult<()> {
        if unclosed.is_empty() {
            return Ok(());
        }
        let rooms: HashSet<&RoomId> = unclosed.iter().map(|(message, _)| &message.chat_room_id).collect();
        let rooms: Vec<RoomId> = rooms.into_iter().cloned().collect();
        let current = self.engines.store.rooms.current(&rooms).await?;
        let versions: HashMap<RoomId, MemberVersion> =
            current.into_iter().flatten().map(|room| (room.id.clone(), room.member_version)).collect();
        let events = unclosed.into_iter().map(|(message, Accepted { origin, trace, .. })| {
            let version = versions.get(&message.chat_room_id).copied();
            let member_version = version.unwrap_or(MemberVersion::FIRST);
            Event::new(Saved { message, member_version, origin }, trace)
        });
        self.engines.bus.saved.send(events.collect()).await
    }
}

async fn resend(engines: &Engines, open: Vec<OpenEntry>) -> EngineResult<()> {
    if open.is_empty() {
        return Ok(());
    }
    // They were read, so the store had them at this time.
    let store_time = engines.store.clock.latest();
    let events = open.into_iter().map(|OpenEntry { accepted, .. }| {
        let trace = accepted.trace;
        Event::new(accepted, trace).stored_at(store_time)
    });
    engines.bus.accepted.send(events.collect()).await
}

/// How long entries have been open at least: when which place was the newest one.
#[derive(Default)]
struct Ages(VecDeque<(Instant, Option<IntakePlace>)>);

impl Ages {
    /// Notes the place of the newest open entry. What is older than `keep` is not told apart.
    fn note(&mut self, now: Instant, newest: Option<IntakePlace>, keep: Duration) {
        // The newest entry may have been closed, and an older one be the newest now.
        let newest = newest.max(self.0.back().and_then(|(_, newest)| *newest));
        self.0.push_back((now, newest));
        while self.0.get(1).is_some_and(|(at, _)| now - *at >= keep) {
            self.0.pop_front();
        }
    }

    /// Entries up to this place have been open for at least so long.
    fn open_for(&self, time: Duration, now: Instant) -> Option<IntakePlace> {
        self.0.iter().rev().find(|(at, _)| now - *at >= time)?.1
    }

    /// How long the entry at a place has been open at least.
    fn age(&self, place: IntakePlace, now: Instant) -> Duration {
        let seen = self.0.iter().find(|(_, newest)| *newest >= Some(place));
        seen.map(|(at, _)| now - *at).unwrap_or_default()
    }
}

/// When each open entry is to be resent next, and how long it waits after that.
#[derive(Default)]
struct ResendSchedule(HashMap<MessageId, (Instant, Duration)>);

impl ResendSchedule {
    /// The open entries that are due now.
    fn due(&mut self, mut open: Vec<OpenEntry>, now: Instant) -> Vec<OpenEntry> {
        open.retain(|entry| {
            let (at, wait) = self.0.entry(entry.accepted.id).or_insert((now, OPEN_FOR));
            let is_due = *at <= now;
            if is_due {
                (*at, *wait) = (now + *wait, (*wait * 2).min(MAX_WAIT));
            }
            is_due
        });
        open
    }

    /// Makes an entry that was not resent due again at `at`.
    fn reschedule(&mut self, id: MessageId, at: Instant) {
        self.0.insert(id, (at, OPEN_FOR));
    }

    /// Whether an entry was handed on lately.
    fn is_under_way(&self, id: MessageId) -> bool {
        self.0.get(&id).is_some_and(|(_, wait)| (OPEN_FOR + OPEN_FOR..=LATELY).contains(wait))
    }

    /// Removes the entries that a sweep did not see: as a rule they are open no more.
    fn keep(&mut self, seen: &HashSet<MessageId>) {
        self.0.retain(|id, _| seen.contains(id));
    }
}

#[cfg(test)]
mod tests {
    use naru_engines::bus::{Receiver, ack};
    use naru_engines::store::{MemberChange, NewRoom};
    use naru_model::room::sorted_members;
    use naru_model::{RoomKind, Seq, StoreTime, Timestamp, Trace};
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3_600);

    fn entry() -> OpenEntry {
        let id = MessageId::generate();
        let accepted = Accepted {
            id,
            chat_room_id: "ada_ben".parse().expect("a room"),
            sender_id: "ada".parse().expect("a user"),
            sender_name: "Ada".into(),
            content: "lost again".into(),
            timestamp: Timestamp::now(),
            client_message_id: id.into(),
            after: None,
            origin: None,
            trace: Trace::start(),
        };
        OpenEntry { place: IntakePlace(1), accepted }
    }

    /// When an entry that stays open for five minutes is resent, in seconds from its first sweep.
    fn resent_at(schedule: &mut ResendSchedule, entry: &OpenEntry) -> Vec<u64> {
        let start = Instant::now();
        let is_due = |schedule: &mut ResendSchedule, second: u64| {
            !schedule.due(vec![entry.clone()], start + Duration::from_secs(second)).is_empty()
        };
        (0..300).filter(|second| is_due(schedule, *second)).collect()
    }

    #[test]
    fn what_stays_open_is_resent_ever_more_seldom_and_never_given_up() {
        let (mut schedule, entry) = (ResendSchedule::default(), entry());
        assert_eq!(resent_at(&mut schedule, &entry), [0, 3, 9, 21, 45, 93, 153, 213, 273]);
        assert!(!schedule.is_under_way(entry.accepted.id), "it hides no other one");
    }

    #[test]
    fn what_is_open_no_more_is_forgotten() {
        let (mut schedule, entry, now) = (ResendSchedule::default(), entry(), Instant::now());
        assert_eq!(schedule.due(vec![entry.clone()], now).len(), 1);
        assert!(schedule.is_under_way(entry.accepted.id));
        assert!(schedule.due(vec![entry.clone()], now).is_empty());
        schedule.keep(&HashSet::new());
        assert_eq!(schedule.due(vec![entry], now).len(), 1, "as if it had never been seen");
    }

    #[test]
    fn what_could_not_be_resent_is_due_at_once() {
        let (mut schedule, entry, now) = (ResendSchedule::default(), entry(), Instant::now());
        schedule.due(vec![entry.clone()], now);
        schedule.reschedule(entry.accepted.id, now);
        assert_eq!(schedule.due(vec![entry], now).len(), 1);
    }

    #[test]
    fn an_entry_is_as_old_as_the_first_look_that_could_have_seen_it() {
        let (mut ages, start) = (Ages::default(), Instant::now());
        let at = |second: u64| start + Duration::from_secs(second);
        for (second, newest) in [(0, None), (1, Some(5)), (2, Some(7)), (3, Some(6)), (4, None), (5, Some(9))]
        {
            ages.note(at(second), newest.map(IntakePlace), 10 * SECOND);
        }
        let of = |place: u64| ages.age(IntakePlace(place), at(6)).as_secs();
        assert_eq!([5, 6, 7, 8, 9, 10].map(of), [5, 4, 4, 1, 1, 0]);
        let open_for = |seconds: u64| ages.open_for(Duration::from_secs(seconds), at(6)).map(|place| place.0);
        assert_eq!(
            [0, 1, 2, 4, 5, 6, 7].map(open_for),
            [Some(9), Some(9), Some(7), Some(7), Some(5), None, None]
        );
        ages.note(at(14), None, 10 * SECOND);
        assert_eq!(ages.0.front().map(|(at, _)| *at), Some(at(4)), "what is older is not told apart");
    }

    struct World {
        sweep: Sweep,
        queue: Box<dyn Receiver<Accepted>>,
        /// The fanout's.
        saved_queue: Box<dyn Receiver<Saved>>,
        /// What the fanout has received.
        fanned_out: Vec<Saved>,
        _directory: tempfile::TempDir,
    }

    impl World {
        async fn new() -> Self {
            let directory = tempfile::tempdir().expect("a folder");
            let options = naru_embedded::Options { buffered_events: 100_000, ..Default::default() };
            let engines =
                naru_embedded::Embedded::open(directory.path(), options).expect("it opens").engines();
            let telemetry = Telemetry::new(&naru_runtime::telemetry::Metrics::new());
            let queue = engines.bus.accepted.receiver().await.expect("a receiver");
            let new_room = NewRoom {
                id: entry().accepted.chat_room_id,
                kind: RoomKind::Group,
                name: None,
                member_ids: sorted_members(["ada", "ben"].map(|name| name.parse().expect("a user"))),
                maker_id: None,
            };
            engines.store.rooms.create(new_room).await.expect("a room");
            let saved_queue = engines.bus.saved.receiver().await.expect("a receiver");
            let (sweep, fanned_out) = (Sweep::new(engines, 15 * SECOND, telemetry), Vec::new());
            Self { sweep, queue, saved_queue, fanned_out, _directory: directory }
        }

        /// Entries that are accepted now, by a gateway whose clock says this.
        async fn accept(&self, timestamps: &[Timestamp]) -> Vec<MessageId> {
            let entry = |timestamp: &Timestamp| Accepted { timestamp: *timestamp, ..entry().accepted };
            let entries: Vec<Accepted> = timestamps.iter().map(entry).collect();
            self.sweep.engines.store.intake.append(&entries).await.expect("it is appended");
            entries.iter().map(|entry| entry.id).collect()
        }

        async fn save(&self, id: MessageId, seq: u64) {
            let store = &self.sweep.engines.store;
            let record = store.intake.get(&[id]).await.expect("an answer").remove(0).expect("it is there");
            store.messages.append_run(&[record.accepted.at(Seq(seq))]).await.expect("it is saved");
        }

        /// What a sweep hands on to the persister, that many seconds later.
        async fn sweep_after(&mut self, seconds: u64) -> Vec<MessageId> {
            advance(Duration::from_secs(seconds)).await;
            let before = self.sweep.telemetry.swept.get();
            self.sweep.once().await.expect("it sweeps");
            let count = self.sweep.telemetry.swept.get() - before;
            self.received(usize::try_from(count).expect("a small number")).await
        }

        async fn received(&mut self, count: usize) -> Vec<MessageId> {
            let (mut handed_on, before) = (Vec::new(), self.fanned_out.len());
            while handed_on.len() + self.fanned_out.len() - before < count {
                let ack_handles: Vec<_> = tokio::select! {
                    batch = self.queue.receive(1_000) => {
                        let taken = batch.expect("a batch").into_iter();
                        taken.map(|delivery| (handed_on.push(delivery.event.payload.id), delivery.ack_handle).1).collect()
                    }
                    batch = self.saved_queue.receive(1_000) => {
                        let taken = batch.expect("a batch").into_iter();
                        taken.map(|delivery| (self.fanned_out.push(delivery.event.payload), delivery.ack_handle).1).collect()
                    }
                };
                ack(ack_handles).await.expect("they are acknowledged");
            }
            handed_on
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_saved_is_left_to_the_fanout_for_its_time() {
        let mut world = World::new().await;
        let [saved, lost] = world.accept(&[Timestamp::now(); 2]).await[..] else { panic!("two") };
        world.save(saved, 1).await;
        assert_eq!(world.sweep_after(0).await, []);
        assert_eq!(world.sweep_after(2).await, [], "not sooner");
        assert_eq!(world.sweep_after(1).await, [lost]);
        assert_eq!(world.sweep_after(1).await, []);
        assert_eq!(world.sweep_after(2).await, [lost]);
        assert_eq!(world.sweep_after(8).await, [lost], "of the saved one nothing for 14 s");
        let change = MemberChange::Add("cleo".parse().expect("a user"));
        world
            .sweep
            .engines
            .store
            .rooms
            .change(&entry().accepted.chat_room_id, change, 9)
            .await
            .expect("an answer");
        assert_eq!(world.sweep_after(1).await, []);
        let fanned_out =
            world.fanned_out.iter().map(|saved| (saved.message.id, saved.message.seq, saved.member_version));
        assert_eq!(
            fanned_out.collect::<Vec<_>>(),
            [(saved, Seq(1), MemberVersion(2))],
            "for the members of now"
        );
    }

    /// Neither a gateway's clock nor a step of this machine's puts a sweep off, or brings it forward.
    #[tokio::test(start_paused = true)]
    async fn no_time_of_day_counts() {
        let mut world = World::new().await;
        let now = Timestamp::now();
        let all = world.accept(&[now.after(HOUR), now.before(HOUR), now]).await;
        world.save(all[1], 1).await;
        assert_eq!(world.sweep_after(0).await, []);
        assert_eq!(world.sweep_after(2).await, []);
        assert_eq!(world.sweep_after(1).await, [all[0], all[2]]);
        assert_eq!(world.sweep_after(12).await, [all[0], all[2]]);
        assert_eq!(world.fanned_out.len(), 1);
    }

    /// The process was started again with its clock an hour back.
    #[tokio::test(start_paused = true)]
    async fn what_was_accepted_by_a_later_clock_is_recovered() {
        let mut world = World::new().await;
        let accepted = world.accept(&[Timestamp::now().after(HOUR)]).await;
        assert_eq!(recover(&world.sweep.engines).await.expect("it is recovered"), 1);
        assert_eq!(world.received(1).await, accepted);
    }

    /// So the persister reads no room that is older than what the sweep found.
    #[tokio::test(start_paused = true)]
    async fn what_is_handed_on_tells_the_time_of_the_look() {
        let mut world = World::new().await;
        world.accept(&[Timestamp::now()]).await;
        world.sweep.engines.store.clock.note(StoreTime(7));
        recover(&world.sweep.engines).await.expect("it is recovered");
        let batch = world.queue.receive(1).await.expect("a batch");
        assert_eq!(batch[0].event.store_time, Some(StoreTime(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_stay_open_hide_no_younger_one() {
        let mut world = World::new().await;
        let now = Timestamp::now();
        let old = world.accept(&vec![now; MAX_UNDER_WAY + 2 * PAGE]).await;
        let young = world.accept(&[now]).await;
        assert_eq!(world.sweep_after(0).await, []);
        // A queue that is behind gets no more than this.
        assert_eq!(world.sweep_after(3).await, old[..MAX_UNDER_WAY]);
        assert_eq!(world.sweep_after(3).await, old[..MAX_UNDER_WAY]);
        assert_eq!(world.sweep_after(1).await, []);
        assert_eq!(world.sweep_after(5).await, [&old, &young[..]].concat());
    }
}
