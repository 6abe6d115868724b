//! A batch of accepted messages is ordered, saved and confirmed.
//!
//! What if the process dies here? Before the run is stored: the batch is delivered again. In the middle of it: a prefix
//! is stored, never a hole, and the batch is delivered again. After it: delivered again, recognised by its ids, and
//! confirmed and handed on once more.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use naru_engines::bus::{Delivery, Receipt, Verdict, settle};
use naru_engines::store::{RunConflict, Settlement};
use naru_engines::{EngineError, EngineResult, Engines};
use naru_model::hops::{Accepted, Saved};
use naru_model::live::Confirmation;
use naru_model::message::{Outcome, Rejection};
use naru_model::{
    Event, GatewayId, MemberVersion, Message, MessageId, Origin, Room, RoomId, Seq, Timestamp, Trace,
};
use naru_runtime::backoff::full_jitter;
use quick_cache::sync::Cache;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::order::Order;
use crate::telemetry::Telemetry;

/// How many messages a batch holds at most.
const BATCH: usize = 256;
/// How many rooms' heads, and how many recently saved ids, are remembered.
const REMEMBERED: usize = 65_536;
/// How often a run is tried that keeps meeting another persister's before it is given back.
const TRIES: usize = 32;
/// The wait before a failed batch comes again: this, doubling with each failure in a row, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The worker. Clones share what they remember.
#[derive(Clone)]
pub struct Persister {
    engines: Engines,
    telemetry: Telemetry,
    /// The head of each room, as far as this persister knows. Another one may have moved it: the store will say so.
    heads: Arc<Cache<RoomId, Seq>>,
    /// What was saved lately: most messages that come `after` another come after one of these.
    saved_lately: Arc<Cache<MessageId, ()>>,
}

/// A batch after all look-ups.
struct Batch {
    /// To be saved, in order.
    run: Vec<Accepted>,
    /// Saved before: to be confirmed and handed on once more, for whoever asked for it last.
    saved_before: Vec<(Message, Option<Origin>, Trace)>,
    /// Of people who are not members.
    rejected: Vec<Accepted>,
    /// The rooms, as they were when they were looked at.
    rooms: HashMap<RoomId, Arc<Room>>,
}

impl Persister {
    pub(crate) fn new(engines: Engines, telemetry: Telemetry) -> Self {
        let (heads, saved_lately) = (Arc::new(Cache::new(REMEMBERED)), Arc::new(Cache::new(REMEMBERED)));
        Self { engines, telemetry, heads, saved_lately }
    }

    /// Works until told to stop; then finishes the batches it holds.
    pub(crate) async fn run(self, stop: CancellationToken) -> EngineResult<()> {
        let mut receiver = self.engines.bus.accepted.receiver().await?;
        // A room is never in two unsettled batches, so batches can be worked on side by side.
        let mut batches = JoinSet::new();
        loop {
            while batches.try_join_next().is_some() {}
            let deliveries = tokio::select! {
                () = stop.cancelled() => break,
                deliveries = receiver.receive(BATCH) => deliveries?,
            };
            let persister = self.clone();
            batches.spawn(async move { persister.work(deliveries).await });
        }
        while batches.join_next().await.is_some() {}
        Ok(())
    }

    async fn work(&self, deliveries: Vec<Delivery<Accepted>>) {
        self.telemetry.batch.observe(deliveries.len() as f64);
        let attempt = deliveries.iter().map(|delivery| delivery.attempt).max().unwrap_or(1);
        let (messages, receipts): (Vec<Accepted>, Vec<Receipt>) =
            deliveries.into_iter().map(|delivery| (delivery.event.payload, delivery.receipt)).unzip();
        let rooms: HashSet<RoomId> = messages.iter().map(|message| message.chat_room_id.clone()).collect();
        let verdict = match self.persist(messages).await {
            Ok(()) => Verdict::Done,
            Err(error) => {
                let delay = full_jitter(RETRY.0, RETRY.1, attempt, &mut rand::rng());
                tracing::warn!(%error, messages = receipts.len(), ?delay, "a batch was not saved; trying again");
                self.telemetry.retried.inc();
                // Whether the run was stored is not known: neither are the heads.
                rooms.iter().for_each(|room| drop(self.heads.remove(room)));
                Verdict::RetryAfter(delay)
            }
        };
        if let Err(error) = settle(receipts, verdict).await {
            tracing::warn!(%error, "a batch was not settled; it comes again");
        }
    }

    async fn persist(&self, messages: Vec<Accepted>) -> EngineResult<()> {
        let Batch { run, saved_before, rejected, rooms } = self.look_up(messages).await?;
        self.telemetry.seen_again.inc_by(saved_before.len() as u64);
        let mut confirmations = Confirmations::default();
        let mut events = Vec::with_capacity(run.len() + saved_before.len());
        let mut hand_on = |message: Message, origin: Option<Origin>, trace| {
            confirmations.add(origin.as_ref(), message.id, Outcome::Saved { seq: message.seq });
            let room = rooms.get(&message.chat_room_id);
            let member_version = room.map_or(MemberVersion::FIRST, |room| room.member_version);
            events.push(Event::new(Saved { message, member_version, origin }, trace));
        };
        for (message, origin, trace) in saved_before {
            hand_on(message, origin, trace);
        }
        let places = self.save(&run).await?;
        let now = Timestamp::now();
        for (accepted, message) in run.into_iter().zip(places) {
            self.telemetry.accepted_to_saved.observe(now.since(message.timestamp).as_secs_f64());
            hand_on(message, accepted.origin, accepted.trace);
        }
        let rejection = Outcome::Rejected { reason: Rejection::NotAMember };
        for message in &rejected {
            confirmations.add(message.origin.as_ref(), message.id, rejection);
        }

        let (handed_on, _) =
            join(self.hand_on(events, &rejected, rejection), self.confirm(confirmations)).await;
        handed_on
    }

    /// Finds out, in one look-up each, what is saved already, who is in the rooms, and what is missing before what.
    async fn look_up(&self, messages: Vec<Accepted>) -> EngineResult<Batch> {
        let store = &self.engines.store;
        let mut order = Order::default();
        for message in messages {
            order.add(message);
        }
        let before = order.missing().into_iter().filter(|id| self.saved_lately.get(id).is_none());
        let before: Vec<MessageId> = before.collect();
        let mut batch = order.into_run();
        let ids: Vec<MessageId> =
            batch.iter().map(|message| message.id).chain(before.iter().copied()).collect();
        let room_ids: HashSet<&RoomId> = batch.iter().map(|message| &message.chat_room_id).collect();
        let room_ids: Vec<RoomId> = room_ids.into_iter().cloned().collect();
        let (found, rooms) = join(store.messages.find(&ids), store.rooms.current(&room_ids)).await;
        let (mut found, rooms) = (found?, rooms?);

        let found_before = found.split_off(batch.len());
        let unsaved =
            before.into_iter().zip(found_before).filter_map(|(id, found)| found.is_none().then_some(id));
        let forgotten = self.forgotten(unsaved.collect()).await?;
        let mut saved: HashMap<MessageId, Message> =
            found.into_iter().flatten().map(|message| (message.id, message)).collect();
        if !forgotten.is_empty() {
            let mut order = Order::default();
            for message in forgotten.into_iter().chain(batch) {
                order.add(message);
            }
            batch = order.into_run();
        }

        let rooms: HashMap<RoomId, Arc<Room>> =
            rooms.into_iter().flatten().map(|room| (room.id.clone(), room)).collect();
        let (mut run, mut saved_before, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
        for message in batch {
            let is_member =
                || rooms.get(&message.chat_room_id).is_some_and(|room| room.has(&message.sender_id));
            match saved.remove(&message.id) {
                Some(place) => saved_before.push((place, message.origin, message.trace)),
                None if is_member() => run.push(message),
                None => rejected.push(message),
            }
        }
        Ok(Batch { run, saved_before, rejected, rooms })
    }

    /// The messages of these ids that the intake holds open, and whatever they come after: accepted before, delivered
    /// later or lost by the bus. What the intake does not have was never accepted.
    async fn forgotten(&self, mut ids: Vec<MessageId>) -> EngineResult<Vec<Accepted>> {
        let mut forgotten: Vec<Accepted> = Vec::new();
        while !ids.is_empty() {
            let records = self.engines.store.intake.get(&ids).await?;
            let open = records.into_iter().flatten().filter(|record| record.outcome.is_none());
            let open: Vec<Accepted> = open.map(|record| record.accepted).collect();
            let known: HashSet<MessageId> = forgotten.iter().chain(&open).map(|message| message.id).collect();
            let before: Vec<MessageId> = open
                .iter()
                .filter_map(|message| message.after)
                .filter(|id| !known.contains(id) && self.saved_lately.get(id).is_none())
                .collect();
            let saved = match before.is_empty() {
                true => Vec::new(),
                false => self.engines.store.messages.find(&before).await?,
            };
            ids = before
                .into_iter()
                .zip(saved)
                .filter_map(|(id, saved)| saved.is_none().then_some(id))
                .collect();
            forgotten.extend(open);
        }
        Ok(forgotten)
    }

    /// Gives a run its places and stores it, meeting whatever another persister has done meanwhile; answers the
    /// messages as stored, in the order of the run.
    async fn save(&self, run: &[Accepted]) -> EngineResult<Vec<Message>> {
        let mut stored: Vec<Message> = Vec::with_capacity(run.len());
        let mut heads = self.heads_of(run).await?;
        for _ in 0..TRIES {
            if stored.len() == run.len() {
                break;
            }
            let mut places = heads.clone();
            let numbered: Vec<Message> = run[stored.len()..]
                .iter()
                .map(|message| {
                    let place = places.entry(&message.chat_room_id).or_default();
                    *place = place.next();
                    message.at(*place)
                })
                .collect();
            let answer = self.engines.store.messages.append_run(&numbered).await?;
            self.telemetry.saved.inc_by(answer.stored as u64);
            let stopped_at = numbered.get(answer.stored).map(|message| message.chat_room_id.clone());
            for message in numbered.into_iter().take(answer.stored) {
                self.remember(&message);
                if let Some(head) = heads.get_mut(&message.chat_room_id) {
                    *head = message.seq;
                }
                stored.push(message);
            }
            let Some(conflict) = answer.stopped_by else { continue };
            self.telemetry.contended.inc();
            if let RunConflict::AlreadySaved(message) = conflict {
                self.saved_lately.insert(message.id, ());
                stored.push(message);
            }
            if let Some(room) = stopped_at {
                let head = self.engines.store.messages.heads(std::slice::from_ref(&room)).await?;
                if let (Some(head), Some(known)) = (head.first(), heads.get_mut(&room)) {
                    *known = *head;
                }
                drop(self.heads.remove(&room));
            }
        }
        if stored.len() < run.len() {
            return Err(EngineError::unavailable(
                "persister",
                naru_engines::Applied::Unknown,
                "another persister kept taking the places",
            ));
        }
        Ok(stored)
    }

    /// The heads of a run's rooms: remembered, or asked for in one look-up.
    async fn heads_of<'a>(&self, run: &'a [Accepted]) -> EngineResult<HashMap<&'a RoomId, Seq>> {
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

    fn remember(&self, message: &Message) {
        self.heads.insert(message.chat_room_id.clone(), message.seq);
        self.saved_lately.insert(message.id, ());
    }

    /// Hands saved messages to the fanout, and closes rejected ones: nobody has to know of them but their senders.
    async fn hand_on(
        &self,
        events: Vec<Event<Saved>>,
        rejected: &[Accepted],
        rejection: Outcome,
    ) -> EngineResult<()> {
        if !rejected.is_empty() {
            self.telemetry.rejected.inc_by(rejected.len() as u64);
            let settlement = |message: &Accepted| Settlement { id: message.id, outcome: rejection };
            let settlements: Vec<_> = rejected.iter().map(settlement).collect();
            self.engines.store.intake.settle(&settlements).await?;
        }
        match events.is_empty() {
            true => Ok(()),
            false => self.engines.bus.saved.send(events).await,
        }
    }

    /// Tells the gateways, one call each. A gateway that does not hear it looks in the store.
    async fn confirm(&self, confirmations: Confirmations) {
        for (gateway, confirmations) in confirmations.0 {
            if let Err(error) = self.engines.live.confirm(&gateway, confirmations).await {
                tracing::debug!(%error, %gateway, "a gateway was not told; it will look");
            }
        }
    }
}

/// What each gateway is to be told.
#[derive(Default)]
struct Confirmations(HashMap<GatewayId, Vec<Confirmation>>);

impl Confirmations {
    fn add(&mut self, origin: Option<&Origin>, id: MessageId, outcome: Outcome) {
        if let Some(origin) = origin {
            self.0.entry(origin.gateway.clone()).or_default().push(Confirmation { id, outcome });
        }
    }
}
