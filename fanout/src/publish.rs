//! Sends out a batch of saved messages. A room's messages reach the live layer only after the offline events of that room are
//! confirmed; a room in which every recipient is online has none, and waits for no other. A recipient that was published to has
//! to prove that the message has arrived (`delivery_tracker`).
//!
//! If the process dies before the batch is acknowledged, it comes again, and at worst a recipient gets both a push and the
//! message, or the same message twice. If it dies after that, before the intake entry is closed, the sweep resends the message.
//! It is then older than the grace time, so its proofs are asked for first; a recipient without one gets both.

use std::collections::HashSet;
use std::time::Duration;

use naru_engines::work::{Work, work_on};
use naru_engines::{EngineResult, Engines};
use naru_model::hops::{Offline, Saved};
use naru_model::live::{LiveEvent, News};
use naru_model::{Event, Message, MessageId, RoomId, Timestamp, Trace, UserId};
use naru_runtime::backoff::full_jitter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::delivery_tracker::Tracked;
use crate::members::{MemberCache, Members, Version};
use crate::pending_proofs::Published;
use crate::route::{Online, Route, route};
use crate::telemetry::Telemetry;

/// One batch is in flight: events that come meanwhile form the next one.
const WORK: Work = Work { name: "publish", max_batch: 256, max_in_flight: 1, backoff, is_rederivable: true };

/// The wait before a failed batch comes again: up to 100 ms, doubling with each failure in a row, up to 5 s.
fn backoff(attempt: u32) -> Duration {
    full_jitter(Duration::from_millis(100), Duration::from_secs(5), attempt, &mut rand::rng())
}

/// Takes saved messages from the bus and publishes them. Clones share their cache.
#[derive(Clone)]
pub(crate) struct Fanout {
    /// How long an online recipient has to prove that a message arrived; none: presence alone decides.
    grace: Option<Duration>,
    engines: Engines,
    members: MemberCache,
    published: mpsc::Sender<Vec<Published>>,
    tracked: Tracked,
    telemetry: Telemetry,
}

/// A saved message and its route.
struct Routed {
    saved: Saved,
    trace: Trace,
    route: Route,
}

impl Fanout {
    pub(crate) fn new(
        grace: Option<Duration>,
        engines: Engines,
        published: mpsc::Sender<Vec<Published>>,
        tracked: Tracked,
        telemetry: Telemetry,
    ) -> Self {
        let members = MemberCache::new(engines.store.rooms.clone());
        Self { grace, engines, members, published, tracked, telemetry }
    }

    /// Works until stopped; then finishes the batches in flight.
    pub(crate) async fn run(self, stop: CancellationToken) -> EngineResult<()> {
        let queue = self.engines.bus.saved.clone();
        let work = move |events| {
            let fanout = self.clone();
            async move { fanout.work(events).await }
        };
        work_on(&*queue, WORK, stop.cancelled(), work).await
    }

    async fn work(&self, mut events: Vec<Event<Saved>>) -> EngineResult<()> {
        self.telemetry.batch.observe(events.len() as f64);
        self.tracked.leave_out(&mut events);
        let published = self.fan_out(events).await.inspect_err(|_| {
            self.telemetry.retried.inc();
        })?;
        // The channel outlives every run of the tracker. Where the queue's connection breaks, this is dropped at an `await`, and the
        // batch comes again: what the tracker does not have must not count as tracked.
        if let Ok(place) = self.published.reserve().await {
            self.tracked.add(&published);
            place.send(published);
        }
        Ok(())
    }

    async fn fan_out(&self, mut events: Vec<Event<Saved>>) -> EngineResult<Vec<Published>> {
        let versions: HashSet<Version> = events.iter().map(|event| version(&event.payload)).collect();
        let members = self.members.of(versions).await?;
        let count = events.len();
        events.retain(|event| members.contains_key(&version(&event.payload)));
        if events.len() < count {
            tracing::warn!(
                messages = count - events.len(),
                "members are not known: the entries stay open for the sweep"
            );
        }
        let members_of = |saved: &Saved| members.get(&version(saved)).map_or(&[][..], |members| members);
        let online = self.members_online(&members).await;
        let mut routed: Vec<Routed> = events
            .into_iter()
            .map(|Event { payload: saved, trace, .. }| {
                let route = route(&saved.message.sender_id, members_of(&saved), &online);
                Routed { saved, trace, route }
            })
            .collect();
        self.ask_for_late_proofs(&mut routed).await;

        // Rooms in which every recipient is online need not wait for other rooms' offline events.
        let waiting: HashSet<RoomId> = routed
            .iter()
            .filter(|message| !message.route.offline.is_empty())
            .map(|message| message.saved.message.chat_room_id.clone())
            .collect();
        let (later, now): (Vec<Routed>, Vec<Routed>) =
            routed.into_iter().partition(|message| waiting.contains(&message.saved.message.chat_room_id));
        self.publish(&now).await?;
        if !later.is_empty() {
            let missed = later
                .iter()
                .map(|Routed { saved, route, trace }| (&saved.message, route.offline.clone(), *trace));
            enqueue_offline(&self.engines, &self.telemetry, missed).await?;
            self.publish(&later).await?;
        }
        let mut both = now;
        both.extend(later);
        if self.grace.is_none() {
            self.enqueue_disconnected(&both).await?;
        }
        let published = both.into_iter().map(|Routed { saved, trace, route }| {
            let unproven = if self.grace.is_some() { route.to_prove } else { Vec::new() };
            Published::new(saved.message, trace, unproven)
        });
        Ok(published.collect())
    }

    /// A message that comes here when its grace time is over was published before, as a rule, by a fanout that died. A
    /// recipient with a proof gets no push, the others do at once, and no more proofs are waited for.
    async fn ask_for_late_proofs(&self, routed: &mut [Routed]) {
        let Some(grace) = self.grace else { return };
        let now = Timestamp::now();
        let mut late: Vec<&mut Routed> =
            routed.iter_mut().filter(|message| now.since(message.saved.message.timestamp) >= grace).collect();
        let asked: Vec<(MessageId, UserId)> = late
            .iter()
            .flat_map(|Routed { saved, route, .. }| {
                route.recipients().map(|user| (saved.message.id, user.clone()))
            })
            .collect();
        if asked.is_empty() {
            return;
        }
        let proven = match self.engines.proofs.proven(&asked).await {
            Ok(proven) => proven,
            Err(error) => {
                tracing::warn!(%error, "proof look-up failed; all recipients count as unproven");
                vec![false; asked.len()]
            }
        };
        let proven: HashSet<(MessageId, UserId)> =
            asked.into_iter().zip(proven).filter_map(|(asked, proven)| proven.then_some(asked)).collect();
        for Routed { saved, route, .. } in &mut late {
            route.late(|user| proven.contains(&(saved.message.id, user.clone())));
        }
    }

    /// Where nothing has to be proven, a recipient who was online before the publish and is not after it may have missed it
    /// (a session leaves presence before it stops taking messages), and gets a push like all offline recipients.
    async fn enqueue_disconnected(&self, messages: &[Routed]) -> EngineResult<()> {
        let online_before: HashSet<&UserId> =
            messages.iter().flat_map(|routed| &routed.route.to_prove).collect();
        if online_before.is_empty() {
            return Ok(());
        }
        let online = self.online(online_before.into_iter().cloned().collect()).await;
        let left = messages.iter().map(|Routed { saved: Saved { message, .. }, route: before, trace }| {
            (message, route(&message.sender_id, &before.to_prove, &online).offline, *trace)
        });
        enqueue_offline(&self.engines, &self.telemetry, left).await
    }

    /// Which members of a batch's rooms are online, in one look-up.
    async fn members_online(&self, members: &Members) -> Online {
        let users: HashSet<&UserId> = members.values().flat_map(|members| members.iter()).collect();
        self.online(users.into_iter().cloned().collect()).await
    }

    async fn online(&self, users: Vec<UserId>) -> Online {
        match self.engines.presence.online(&users).await {
            Ok(online) => Online::Known(users.into_iter().zip(online).collect()),
            Err(error) => {
                tracing::warn!(%error, "presence can't be asked: all recipients get both push and message");
                self.telemetry.presence_unknown.inc();
                Online::Unknown
            }
        }
    }

    /// Gives messages to the live layer. Those that it does not take become pushes: recipients thought to be online may miss
    /// them otherwise.
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
                let missed = messages
                    .iter()
                    .map(|Routed { saved, route, trace }| (&saved.message, route.to_prove.clone(), *trace));
                enqueue_offline(&self.engines, &self.telemetry, missed).await
            }
        }
    }
}

/// Sends the offline events of many messages in one call; a message without a recipient has none.
pub(crate) async fn enqueue_offline<'a>(
    engines: &Engines,
    telemetry: &Telemetry,
    missed: impl Iterator<Item = (&'a Message, Vec<UserId>, Trace)>,
) -> EngineResult<()> {
    let mut events = Vec::new();
    let mut recipients_count = 0;
    for (message, recipients, trace) in missed {
        recipients_count += recipients.len() as u64;
        events.extend(recipients.chunks(Offline::MAX_RECIPIENTS).map(|recipients| {
            Event::new(Offline { message: message.clone(), recipients: recipients.to_vec() }, trace)
        }));
    }
    if events.is_empty() {
        return Ok(());
    }
    engines.bus.offline.send(events).await?;
    telemetry.offline.inc_by(recipients_count);
    Ok(())
}

fn version(saved: &Saved) -> Version {
    (saved.message.chat_room_id.clone(), saved.member_version)
}
