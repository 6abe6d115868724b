//! A batch of saved messages: offline events first, then the live layer; beside both, one *owed* event for each message
//! with recipients who are here; then the intake entry is closed.
//!
//! What if the process dies here? Before the batch is settled as done: it comes again, and at worst a recipient gets
//! both a push and the message, or the same message twice, and is owed the same push twice. After it, before the intake
//! entry is closed: the sweep hands the message on once more, with the same end. What happens to an owed event, the
//! notifier's `push` says.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use naru_engines::bus::{Delivery, Receipt, Verdict, settle, work_on};
use naru_engines::store::Settlement;
use naru_engines::{EngineResult, Engines};
use naru_model::hops::{Offline, Owed, Saved};
use naru_model::live::{LiveEvent, News};
use naru_model::message::Outcome;
use naru_model::{Event, Message, RoomId, Trace, UserId};
use naru_runtime::backoff::full_jitter;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use crate::members::{MemberCache, Members, Version};
use crate::route::{Route, Whereabouts, route};
use crate::telemetry::Telemetry;

/// How many messages a batch holds at most.
const BATCH: usize = 256;
/// How many intake entries are closed in one write.
const SETTLE_BATCH: usize = 1024;
/// How long the first of them waits for others: an entry that stays open a little longer costs nothing, a write for each
/// message costs a sync of the disk.
const SETTLE_LINGER: Duration = Duration::from_millis(200);
/// The wait before entries that could not be closed are tried again.
const SETTLE_RETRY: Duration = Duration::from_millis(500);
/// How many may wait to be closed; beyond, batches wait.
const SETTLE_QUEUE: usize = 65_536;
/// The wait before a failed batch comes again: this, doubling with each failure in a row, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The worker. Clones share what they remember.
#[derive(Clone)]
pub(crate) struct Fanout {
    /// How long a recipient who is here has to prove that they got a message; none: nobody has to.
    grace: Option<Duration>,
    engines: Engines,
    members: MemberCache,
    settlements: mpsc::Sender<Settlement>,
    telemetry: Telemetry,
}

/// One message on its way to its people.
struct Routed {
    saved: Saved,
    trace: Trace,
    route: Route,
}

impl Fanout {
    /// A fanout whose recipients have `grace` to prove that they got a message; zero: presence alone decides.
    pub(crate) fn new(grace: Duration, engines: Engines, telemetry: Telemetry) -> (Self, Settler) {
        let grace = Some(grace).filter(|grace| !grace.is_zero());
        let (settlements, queue) = mpsc::channel(SETTLE_QUEUE);
        let members = MemberCache::new(engines.store.rooms.clone());
        let settler = Settler {
            engines: engines.clone(),
            queue: Arc::new(Mutex::new(queue)),
            telemetry: telemetry.clone(),
        };
        (Self { grace, engines, members, settlements, telemetry }, settler)
    }

    /// Works until told to stop; then finishes the batches it holds.
    pub(crate) async fn run(self, stop: CancellationToken) -> EngineResult<()> {
        let queue = self.engines.bus.saved.clone();
        work_on(&*queue, BATCH, stop.cancelled(), |deliveries| {
            let fanout = self.clone();
            async move { fanout.work(deliveries).await }
        })
        .await
    }

    async fn work(&self, deliveries: Vec<Delivery<Saved>>) {
        self.telemetry.batch.observe(deliveries.len() as f64);
        let attempt = deliveries.iter().map(|delivery| delivery.attempt).max().unwrap_or(1);
        let (events, receipts): (Vec<Event<Saved>>, Vec<Receipt>) =
            deliveries.into_iter().map(|delivery| (delivery.event, delivery.receipt)).unzip();
        let settlements: Vec<Settlement> = events.iter().map(|event| outcome(&event.payload)).collect();
        if let Err(error) = self.fan_out(events).await {
            let delay = full_jitter(RETRY.0, RETRY.1, attempt, &mut rand::rng());
            tracing::warn!(%error, messages = receipts.len(), ?delay, "a batch was not published; trying again");
            self.telemetry.retried.inc();
            if let Err(error) = settle(receipts, Verdict::RetryAfter(delay)).await {
                tracing::warn!(%error, "a batch was not put off; it comes again");
            }
            return;
        }
        match settle(receipts, Verdict::Done).await {
            Ok(()) => {
                for settlement in settlements {
                    // The settler lives as long as the fanout does; without it the sweep finds the entry.
                    let _gone = self.settlements.send(settlement).await;
                }
            }
            Err(error) => tracing::warn!(%error, "a batch was not settled; it comes again"),
        }
    }

    async fn fan_out(&self, events: Vec<Event<Saved>>) -> EngineResult<()> {
        let versions: HashSet<Version> = events.iter().map(|event| version(&event.payload)).collect();
        let members = self.members.of(versions).await?;
        let whereabouts = self.locate(&members).await;
        let routed = events.into_iter().map(|event| {
            let saved = event.payload;
            let members = members.get(&version(&saved)).map_or(&[][..], |members| members);
            Routed {
                route: route(&saved.message.sender_id, members, &whereabouts),
                saved,
                trace: event.trace,
            }
        });
        let routed: Vec<Routed> = routed.collect();

        // Rooms in which everybody is here need not wait for the others' offline events.
        let waiting: HashSet<RoomId> = routed
            .iter()
            .filter(|message| !message.route.offline.is_empty())
            .map(|message| message.saved.message.chat_room_id.clone())
            .collect();
        let (later, now): (Vec<Routed>, Vec<Routed>) =
            routed.into_iter().partition(|message| waiting.contains(&message.saved.message.chat_room_id));
        let telling = async {
            self.publish(&now).await?;
            if !later.is_empty() {
                let missed = later
                    .iter()
                    .map(|Routed { saved, route, trace }| (&saved.message, route.offline.clone(), *trace));
                self.warn(missed).await?;
                self.publish(&later).await?;
            }
            Ok(())
        };
        let both = || now.iter().chain(&later);
        match self.grace {
            Some(grace) => {
                // Both to their end: neither is given up because the other fails.
                let (told, owed) = tokio::join!(telling, self.owe(grace, both()));
                told.and(owed)
            }
            None => {
                telling.await?;
                self.warn_who_left(both()).await
            }
        }
    }

    /// Puts down what recipients who are here are owed if they don't prove to have their messages, in one hand-over.
    async fn owe(&self, grace: Duration, messages: impl Iterator<Item = &Routed>) -> EngineResult<()> {
        let owing = messages.filter(|routed| !routed.route.owed.is_empty());
        let events = owing.map(|Routed { saved, route, trace }| {
            self.telemetry.owed.inc_by(route.owed.len() as u64);
            Event::new(Owed { message: saved.message.clone(), recipients: route.owed.clone() }, *trace)
        });
        let events: Vec<_> = events.collect();
        match events.is_empty() {
            true => Ok(()),
            false => self.engines.bus.owed.send_later(grace, events).await,
        }
    }

    /// Where nobody has to prove anything: whoever was here before the publish and is gone after it may not have heard (a
    /// session leaves presence before it stops taking messages), and gets a push like everybody who is not here.
    async fn warn_who_left(&self, messages: impl Iterator<Item = &Routed> + Clone) -> EngineResult<()> {
        let here: HashSet<&UserId> = messages.clone().flat_map(|routed| &routed.route.owed).collect();
        if here.is_empty() {
            return Ok(());
        }
        let whereabouts = self.whereabouts(here.into_iter().cloned().collect()).await;
        let left = messages.map(|Routed { saved: Saved { message, .. }, route: before, trace }| {
            (message, route(&message.sender_id, &before.owed, &whereabouts).offline, *trace)
        });
        self.warn(left.filter(|(_, left, _)| !left.is_empty())).await
    }

    /// Where everybody of a batch is, in one look-up.
    async fn locate(&self, members: &Members) -> Whereabouts {
        let users: HashSet<&UserId> = members.values().flat_map(|members| members.iter()).collect();
        self.whereabouts(users.into_iter().cloned().collect()).await
    }

    async fn whereabouts(&self, users: Vec<UserId>) -> Whereabouts {
        match self.engines.presence.locate(&users).await {
            Ok(locations) => Whereabouts::Known(users.into_iter().zip(locations).collect()),
            Err(error) => {
                tracing::warn!(%error, "presence can't be asked: everybody gets both push and message");
                self.telemetry.presence_unknown.inc();
                Whereabouts::Unknown
            }
        }
    }

    /// Emits the offline events of many messages, in one hand-over.
    async fn warn<'a>(
        &self,
        missed: impl Iterator<Item = (&'a Message, Vec<UserId>, Trace)>,
    ) -> EngineResult<()> {
        let mut events = Vec::new();
        for (message, recipients, trace) in missed {
            self.telemetry.offline.inc_by(recipients.len() as u64);
            events.extend(recipients.chunks(Offline::MOST_RECIPIENTS).map(|recipients| {
                Event::new(Offline { message: message.clone(), recipients: recipients.to_vec() }, trace)
            }));
        }
        match events.is_empty() {
            true => Ok(()),
            false => self.engines.bus.offline.send(events).await,
        }
    }

    /// Gives messages to the live layer. What it does not take becomes pushes: whoever was thought to be here may not
    /// hear of it otherwise.
    async fn publish(&self, messages: &[Routed]) -> EngineResult<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let events = messages.iter().map(|Routed { saved, route, .. }| LiveEvent {
            recipients: route.live.as_slice().into(),
            origin: saved.origin.as_ref().and_then(|origin| origin.session.clone()),
            news: News::Chat(saved.message.clone()),
        });
        match self.engines.live.publish(events.collect()).await {
            Ok(()) => {
                self.telemetry.published.inc_by(messages.len() as u64);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, messages = messages.len(), "not published: their recipients get pushes");
                self.telemetry.unpublished.inc_by(messages.len() as u64);
                let unheard = messages
                    .iter()
                    .map(|Routed { saved, route, trace }| (&saved.message, route.owed.clone(), *trace));
                self.warn(unheard.filter(|(_, owed, _)| !owed.is_empty())).await
            }
        }
    }
}

fn version(saved: &Saved) -> Version {
    (saved.message.chat_room_id.clone(), saved.member_version)
}

fn outcome(saved: &Saved) -> Settlement {
    Settlement { id: saved.message.id, outcome: Outcome::Saved { seq: saved.message.seq } }
}

/// Closes intake entries in groups, behind everybody's back: what it has not closed when it dies, the sweep hands on.
#[derive(Clone)]
pub(crate) struct Settler {
    engines: Engines,
    queue: Arc<Mutex<mpsc::Receiver<Settlement>>>,
    telemetry: Telemetry,
}

impl Settler {
    /// Works until the fanout has ended and everything is closed. What can't be closed now is closed when it can; told to
    /// stop, it leaves that to the sweep.
    pub(crate) async fn run(self, stop: CancellationToken) -> EngineResult<()> {
        let mut queue = self.queue.lock().await;
        let mut batch = Vec::with_capacity(SETTLE_BATCH);
        while let Some(first) = queue.recv().await {
            batch.push(first);
            let others = async {
                while batch.len() < SETTLE_BATCH
                    && let Some(next) = queue.recv().await
                {
                    batch.push(next);
                }
            };
            let _enough_waited = tokio::time::timeout(SETTLE_LINGER, others).await;
            while let Err(error) = self.engines.store.intake.settle(&batch).await {
                if !error.is_transient() || stop.is_cancelled() {
                    return Err(error);
                }
                tracing::warn!(%error, entries = batch.len(), "intake entries were not closed; trying again");
                let _told_to_stop = stop.run_until_cancelled(tokio::time::sleep(SETTLE_RETRY)).await;
            }
            self.telemetry.settled.inc_by(batch.len() as u64);
            batch.clear();
        }
        Ok(())
    }
}
