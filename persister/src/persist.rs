//! A batch of accepted messages is ordered, saved and confirmed.
//!
//! If the process dies before the run is stored, the batch is delivered again. In the middle of it, a prefix is stored, never
//! a hole, and the batch is delivered again. After it, the batch is delivered again, recognised by its ids, confirmed and
//! enqueued for the fanout once more.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use naru_engines::store::{Closing, RunConflict};
use naru_engines::work::{Work, work_on};
use naru_engines::{Applied, EngineError, EngineResult, Engines};
use naru_model::hops::{Accepted, Saved};
use naru_model::live::Confirmation;
use naru_model::message::{Outcome, Rejection};
use naru_model::{
    Event, GatewayId, MemberVersion, Message, MessageId, Origin, Room, RoomId, Seq, StoreTime, Timestamp,
};
use naru_runtime::backoff::full_jitter;
use quick_cache::sync::Cache;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::order::Order;
use crate::retention::may_have_expired;
use crate::telemetry::Telemetry;

/// How many messages a batch holds at most.
const BATCH: usize = 256;
/// How many rooms' heads, and how many recently saved ids, are cached.
const CACHE_CAPACITY: usize = 65_536;
/// How often a run that conflicts with another persister's is tried before its batch is retried.
const TRIES: usize = 32;
/// One batch is in flight: events that come meanwhile form the next one.
const WORK: Work =
    Work { name: "persist", max_batch: BATCH, max_in_flight: 1, backoff, is_rederivable: true };

/// The wait before a failed batch comes again: up to 100 ms, doubling with each failure in a row, up to 5 s.
fn backoff(attempt: u32) -> Duration {
    full_jitter(Duration::from_millis(100), Duration::from_secs(5), attempt, &mut rand::rng())
}

/// Takes accepted messages from the bus, saves and confirms them. Clones share their caches.
#[derive(Clone)]
pub struct Persister {
    engines: Engines,
    /// How long messages are kept in `chat_messages`; none: for ever.
    message_ttl: Option<Duration>,
    telemetry: Telemetry,
    /// The head of each room as last seen. Another persister may have moved it: the store then reports a conflict.
    heads: Arc<Cache<RoomId, Seq>>,
    /// The messages that this persister saved lately: most that come `after` another come after one of these, and one that
    /// comes again is as a rule one of these.
    saved_lately: Arc<Cache<MessageId, SavedLately>>,
}

/// A message that was saved lately.
#[derive(Clone, Copy)]
struct SavedLately {
    seq: Seq,
    /// Whether it is enqueued for the fanout. Then it comes again only because of a backlog: what the bus loses after that, the
    /// sweep hands to the fanout itself.
    is_enqueued: bool,
}

/// A batch after all look-ups.
struct Batch {
    /// The messages to save, in order.
    run: Vec<Accepted>,
    /// Messages of senders who are not members.
    rejected: Vec<Accepted>,
    /// The rooms as they were at the look-up.
    rooms: HashMap<RoomId, Arc<Room>>,
}

impl Persister {
    pub(crate) fn new(config: &Config, engines: Engines, telemetry: Telemetry) -> Self {
        let message_ttl = config.message_ttl.map(|ttl| ttl.0);
        let (heads, saved_lately) =
            (Arc::new(Cache::new(CACHE_CAPACITY)), Arc::new(Cache::new(CACHE_CAPACITY)));
        Self { engines, message_ttl, telemetry, heads, saved_lately }
    }

    /// Works until stopped; then finishes the batch in flight.
    pub(crate) async fn run(self, stop: CancellationToken) -> EngineResult<()> {
        let queue = self.engines.bus.accepted.clone();
        let work = move |events| {
            let persister = self.clone();
            async move { persister.work(events).await }
        };
        work_on(&*queue, WORK, stop.cancelled(), work).await
    }

    async fn work(&self, events: Vec<Event<Accepted>>) -> EngineResult<()> {
        self.telemetry.batch.observe(events.len() as f64);
        // The rooms are not to be from before any of these was accepted.
        let not_before = events.iter().filter_map(|event| event.store_time).max();
        let messages: Vec<Accepted> = events.into_iter().map(|event| event.payload).collect();
        let rooms: HashSet<RoomId> = messages.iter().map(|message| message.chat_room_id.clone()).collect();
        self.persist(messages, not_before).await.inspect_err(|_| {
            self.telemetry.retried.inc();
            // It is unknown whether the run was stored, and so are the heads.
            rooms.iter().for_each(|room| drop(self.heads.remove(room)));
        })
    }

    pub(crate) async fn persist(
        &self,
        messages: Vec<Accepted>,
        not_before: Option<StoreTime>,
    ) -> EngineResult<()> {
        let messages = self.without_expired(messages).await?;
        let Batch { run, rejected, rooms } = self.look_up(messages, not_before).await?;
        let saved = self.save(&run).await?;
        let now = Timestamp::now();
        let mut confirmations = Confirmations::default();
        let mut events = Vec::with_capacity(run.len());
        for (accepted, message) in run.into_iter().zip(saved) {
            self.telemetry.accepted_to_saved_seconds.observe(now.since(message.timestamp).as_secs_f64());
            let outcome = Outcome::Saved { seq: message.seq };
            confirmations.add(accepted.origin.as_ref(), message.id, outcome);
            if self.is_enqueued(message.id) {
                continue;
            }
            let room = rooms.get(&message.chat_room_id);
            let member_version = room.map_or(MemberVersion::FIRST, |room| room.member_version);
            events
                .push(Event::new(Saved { message, member_version, origin: accepted.origin }, accepted.trace));
        }
        self.reject(&rejected, &mut confirmations).await?;
        let (enqueued, ()) = join(self.enqueue(events), self.confirm(confirmations)).await;
        enqueued
    }

    /// Without those that need nothing more and may have been removed: they would be saved once more, as new ones. As a rule no
    /// message is as old, and nothing is asked.
    async fn without_expired(&self, mut messages: Vec<Accepted>) -> EngineResult<Vec<Accepted>> {
        let now = Timestamp::now();
        let old = messages.iter().map(|message| message.id);
        let old: Vec<MessageId> = old.filter(|id| may_have_expired(*id, self.message_ttl, now)).collect();
        if !old.is_empty() {
            let records = self.engines.store.intake.get(&old).await?;
            let closed = records.into_iter().flatten().filter(|record| record.outcome.is_some());
            let closed: HashSet<MessageId> = closed.map(|record| record.accepted.id).collect();
            messages.retain(|message| !closed.contains(&message.id));
        }
        Ok(messages)
    }

    /// Closes rejected messages; only their senders are notified, and only once that is stored. Otherwise a message that
    /// comes again could be saved after all, if its sender was added meanwhile.
    async fn reject(&self, rejected: &[Accepted], confirmations: &mut Confirmations) -> EngineResult<()> {
        if rejected.is_empty() {
            return Ok(());
        }
        let outcome = Outcome::Rejected { reason: Rejection::NotAMember };
        let closings: Vec<_> = rejected.iter().map(|message| Closing { id: message.id, outcome }).collect();
        self.engines.store.intake.close(&closings).await?;
        self.telemetry.rejected.inc_by(rejected.len() as u64);
        for message in rejected {
            confirmations.add(message.origin.as_ref(), message.id, outcome);
        }
        Ok(())
    }

    /// Finds, in one look-up each, the rooms' members and the messages missing before the batch's.
    ///
    /// It does not ask whether a message is saved already: as a rule it is not, and the store reports it if so.
    ///
    /// A message that is missing before one of the batch was not accepted later than that one, so the rooms are not too old for
    /// it either.
    async fn look_up(&self, messages: Vec<Accepted>, not_before: Option<StoreTime>) -> EngineResult<Batch> {
        let mut order = Order::default();
        for message in messages {
            order.add(message);
        }
        let missing = order.missing().into_iter().filter(|id| self.saved_lately.get(id).is_none()).collect();
        let mut batch = order.into_run();
        let room_ids: HashSet<&RoomId> = batch.iter().map(|message| &message.chat_room_id).collect();
        let room_ids: Vec<RoomId> = room_ids.into_iter().cloned().collect();
        let rooms = self.engines.store.rooms.current_since(&room_ids, not_before);
        let (unsaved_predecessors, rooms) = join(self.unsaved_predecessors(missing), rooms).await;
        let (unsaved_predecessors, rooms) = (unsaved_predecessors?, rooms?);
        if !unsaved_predecessors.is_empty() {
            let mut order = Order::default();
            for message in unsaved_predecessors.into_iter().chain(batch) {
                order.add(message);
            }
            batch = order.into_run();
        }

        let rooms: HashMap<RoomId, Arc<Room>> =
            rooms.into_iter().flatten().map(|room| (room.id.clone(), room)).collect();
        let is_member = |message: &Accepted| {
            rooms.get(&message.chat_room_id).is_some_and(|room| room.has(&message.sender_id))
        };
        let non_members: Vec<MessageId> =
            batch.iter().filter(|message| !is_member(message)).map(|message| message.id).collect();
        if non_members.is_empty() {
            return Ok(Batch { run: batch, rejected: Vec::new(), rooms });
        }
        // A message that comes again is not refused if it was saved while its sender was still a member.
        let saved = self.engines.store.messages.find(&non_members).await?;
        let refused: HashSet<MessageId> = non_members
            .into_iter()
            .zip(saved)
            .filter_map(|(id, saved)| saved.is_none().then_some(id))
            .collect();
        let (rejected, run) = batch.into_iter().partition(|message| refused.contains(&message.id));
        Ok(Batch { run, rejected, rooms })
    }

    /// Of these ids, the messages that are open in the intake and not saved, and in turn those that they come after: accepted
    /// before, delivered later or lost by the bus. An id that the intake lacks was never accepted.
    async fn unsaved_predecessors(&self, mut ids: Vec<MessageId>) -> EngineResult<Vec<Accepted>> {
        let store = &self.engines.store;
        let (mut unsaved_predecessors, mut asked) = (Vec::<Accepted>::new(), HashSet::new());
        while !ids.is_empty() {
            asked.extend(ids.iter().copied());
            let saved = store.messages.find(&ids).await?;
            ids =
                ids.into_iter().zip(saved).filter_map(|(id, saved)| saved.is_none().then_some(id)).collect();
            let records = store.intake.get(&ids).await?;
            let open = records.into_iter().flatten().filter(|record| record.outcome.is_none());
            unsaved_predecessors.extend(open.map(|record| record.accepted));
            let before = unsaved_predecessors.iter().filter_map(|message| message.after);
            ids = before.filter(|id| !asked.contains(id) && self.saved_lately.get(id).is_none()).collect();
        }
        Ok(unsaved_predecessors)
    }

    /// Gives a run its places and stores it, resolving conflicts with earlier saves and with other persisters. Returns the
    /// messages as stored, in the order of the run.
    ///
    /// A message that this persister saved lately costs the store nothing. One that took long comes again, from the sweep and
    /// from the gateway that waits for it, and would load a slow store further.
    async fn save(&self, run: &[Accepted]) -> EngineResult<Vec<Message>> {
        let store = &self.engines.store.messages;
        let mut stored: HashMap<MessageId, Message> = HashMap::with_capacity(run.len());
        let mut left: Vec<&Accepted> = Vec::with_capacity(run.len());
        for message in run {
            match self.saved_lately.get(&message.id) {
                Some(lately) => {
                    self.telemetry.seen_again.inc();
                    stored.insert(message.id, message.at(lately.seq));
                }
                None => left.push(message),
            }
        }
        let mut heads = self.heads_of(&left).await?;
        for _ in 0..TRIES {
            if left.is_empty() {
                break;
            }
            let numbered = number(&left, heads.clone());
            let answer = store.append_run(&numbered).await?;
            self.telemetry.saved.inc_by(answer.stored as u64);
            for (accepted, message) in left.drain(..answer.stored).zip(numbered) {
                self.heads.insert(message.chat_room_id.clone(), message.seq);
                self.saved_lately.insert(message.id, SavedLately { seq: message.seq, is_enqueued: false });
                heads.insert(&accepted.chat_room_id, message.seq);
                stored.insert(message.id, message);
            }
            let (Some(conflict), Some(first)) = (answer.stopped_by, left.first()) else { continue };
            let room = &first.chat_room_id;
            match conflict {
                // A message that comes again seldom comes alone: all the others are looked up at once. They are not cached:
                // one that another persister stored a moment ago may not count yet, and must be offered if it comes again.
                RunConflict::AlreadySaved(_) => {
                    let ids: Vec<MessageId> = left.iter().map(|message| message.id).collect();
                    for message in store.find(&ids).await?.into_iter().flatten() {
                        self.telemetry.seen_again.inc();
                        stored.insert(message.id, message);
                    }
                    left.retain(|message| !stored.contains_key(&message.id));
                }
                RunConflict::SeqTaken => {
                    self.telemetry.contended.inc();
                }
            }
            self.heads.remove(room);
            for head in store.heads(std::slice::from_ref(room)).await? {
                heads.insert(room, head);
            }
        }
        let saved: Option<Vec<Message>> = run.iter().map(|message| stored.remove(&message.id)).collect();
        saved.ok_or_else(|| {
            let why = "another persister kept taking the places";
            EngineError::unavailable("persister", Applied::Unknown, why)
        })
    }

    /// The heads of a run's rooms, from the cache or else by one look-up.
    async fn heads_of<'a>(&self, run: &[&'a Accepted]) -> EngineResult<HashMap<&'a RoomId, Seq>> {
        let mut heads = HashMap::new();
        let mut unknown = HashSet::new();
        for room in run.iter().map(|message| &message.chat_room_id) {
            match self.heads.get(room) {
                Some(head) => drop(heads.insert(room, head)),
                None => drop(unknown.insert(room)),
            }
        }
        if !unknown.is_empty() {
            let rooms: Vec<RoomId> = unknown.iter().map(|room| (*room).clone()).collect();
            let found = self.engines.store.messages.heads(&rooms).await?;
            heads.extend(unknown.into_iter().zip(found));
        }
        Ok(heads)
    }

    fn is_enqueued(&self, id: MessageId) -> bool {
        self.saved_lately.get(&id).is_some_and(|lately| lately.is_enqueued)
    }

    /// Enqueues saved messages for the fanout.
    async fn enqueue(&self, events: Vec<Event<Saved>>) -> EngineResult<()> {
        if events.is_empty() {
            return Ok(());
        }
        let places =
            events.iter().map(|Event { payload: Saved { message, .. }, .. }| (message.id, message.seq));
        let places: Vec<(MessageId, Seq)> = places.collect();
        self.engines.bus.saved.send(events).await?;
        for (id, seq) in places {
            self.saved_lately.insert(id, SavedLately { seq, is_enqueued: true });
        }
        Ok(())
    }

    /// Notifies the gateways, all at once. A gateway that does not receive it reads the store.
    async fn confirm(&self, confirmations: Confirmations) {
        let send = |(gateway, confirmations)| async move {
            if let Err(error) = self.engines.live.confirm(&gateway, confirmations).await {
                tracing::debug!(%error, %gateway, "confirmation not delivered; the gateway will query the store");
            }
        };
        join_all(confirmations.0.into_iter().map(send)).await;
    }
}

/// Gives messages the places after their rooms' heads.
fn number<'a>(messages: &[&'a Accepted], mut heads: HashMap<&'a RoomId, Seq>) -> Vec<Message> {
    let numbered = messages.iter().copied().map(|message| {
        let head = heads.entry(&message.chat_room_id).or_default();
        *head = head.next();
        message.at(*head)
    });
    numbered.collect()
}

/// The confirmations for each gateway.
#[derive(Default)]
struct Confirmations(HashMap<GatewayId, Vec<Confirmation>>);

impl Confirmations {
    fn add(&mut self, origin: Option<&Origin>, id: MessageId, outcome: Outcome) {
        if let Some(origin) = origin {
            self.0.entry(origin.gateway.clone()).or_default().push(Confirmation { id, outcome });
        }
    }
}

#[cfg(test)]
mod tests;
