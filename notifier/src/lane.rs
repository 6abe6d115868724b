//! Works off one provider's queue of pushes, as fast as the provider takes them.
//!
//! Right before it is sent, at its first try and at each further one, a push is checked once more, since it may have waited
//! for hours: is its device still its recipient's, is its recipient still in the room, is the message still unread and not
//! deleted, and the room not muted? Pushes that come together share one look-up, and those that end together one write (`ended.rs`). A push that has
//! waited in the lane itself for longer than [`FRESH`] is looked up again; what changes later, while a call is under way
//! ([`CALL_TIMEOUT`](crate::transport::CALL_TIMEOUT) at most), comes too late.
//!
//! **Acknowledged after the effect**: once the provider has taken a push, which is recorded first, or once it is parked. A
//! push that comes again after that is recognised by its event id.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{try_join, try_join5};
use naru_engines::EngineResult;
use naru_engines::bus::{Delivery, Queue, Receiver};
use naru_engines::store::{Device, MemberPosition, ParkedPush, Platform, Store};
use naru_model::hops::{self, PushJob};
use naru_model::{DeviceId, Event, EventId, MessageId, PushStage, Room, RoomId, Timestamp, UserId};
use naru_runtime::Backoff;
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::breaker::Breaker;
use crate::decide::{Action, RetryPolicy, decide};
use crate::deleted::{self, deleted, may_be_deleted};
use crate::ended::{Ended, Ending, ack, retry};
use crate::provider::Provider;
use crate::push::{BACKOFF_BASE, BACKOFF_CAP, positions, reason_to_spare};
use crate::render;
use crate::telemetry::Telemetry;
use crate::verdict::{Reason, Verdict};

/// For so long a look-up counts as made right before the send. A provider that answers fast then costs one look-up for all
/// pushes that were looked up together, and one that is slow costs ten a second at most.
const FRESH: Duration = Duration::from_millis(100);

/// A lane that has a provider.
pub(crate) struct LaneWorker {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) queue: Arc<dyn Queue<PushJob>>,
    pub(crate) store: Store,
    pub(crate) concurrency: NonZeroUsize,
    pub(crate) retry_policy: RetryPolicy,
    /// No phone shows the content, whatever it asked for.
    pub(crate) hides_content: bool,
    pub(crate) telemetry: Telemetry,
}

/// The provider's health, as one push showed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProviderHealth {
    /// The provider was not called.
    Unknown,
    Working,
    /// It fails, and may have named an end.
    Failing(Option<Timestamp>),
}

/// The pushes under way, each in a task of its own.
#[derive(Default)]
struct InFlight {
    tasks: JoinSet<ProviderHealth>,
    events: HashMap<task::Id, EventId>,
}

impl InFlight {
    fn start(&mut self, event: EventId, push: impl Future<Output = ProviderHealth> + Send + 'static) {
        self.events.insert(self.tasks.spawn(push).id(), event);
    }

    fn holds(&self, event: EventId) -> bool {
        self.events.values().any(|held| *held == event)
    }

    /// How the next push ended; none if there is none. Cancelling loses nothing.
    async fn next(&mut self) -> Option<ProviderHealth> {
        let (id, health) = match self.tasks.join_next_with_id().await? {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "a push panicked; it comes again");
                (error.id(), ProviderHealth::Failing(None))
            }
        };
        self.events.remove(&id);
        Some(health)
    }
}

impl LaneWorker {
    /// Works until stopped, and then finishes the pushes it has in flight.
    ///
    /// # Errors
    /// When the queue can't be read.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) -> EngineResult<()> {
        let mut receiver = self.queue.receiver().await?;
        let mut in_flight = InFlight::default();
        let ending = Ending::start(self.name(), self.store.clone(), self.telemetry.clone());
        let taken = self.take(&mut *receiver, &mut in_flight, &ending, &stop).await;
        // The receiver has to outlive them: a push not acknowledged before it is dropped comes again.
        while in_flight.next().await.is_some() {}
        taken
    }

    async fn take(
        self: &Arc<Self>,
        receiver: &mut dyn Receiver<PushJob>,
        in_flight: &mut InFlight,
        ending: &Ending,
        stop: &CancellationToken,
    ) -> EngineResult<()> {
        let mut breaker = Breaker::new(self.retry_policy);
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP);
        // Pushes looked up and not begun: as many as there are slots, so that slots which become free one by one do not
        // cost a look-up each. If dropped, they come again.
        let mut ready: VecDeque<Delivery<PushJob>> = VecDeque::new();
        let mut looked_up = Instant::now();
        loop {
            let now = Instant::now();
            let pause = breaker.pause(now);
            let max = breaker.slots(self.concurrency.get(), now);
            let slots = max.saturating_sub(in_flight.tasks.len());
            self.telemetry.paused(self.name(), pause.is_some());
            if slots > 0 && !ready.is_empty() && looked_up.elapsed() > FRESH {
                let waited = ready.drain(..).collect();
                ready.extend(self.needed(waited, in_flight, &mut backoff, stop).await);
                looked_up = Instant::now();
            }
            for delivery in ready.drain(..slots.min(ready.len())) {
                in_flight.start(delivery.event.event_id, self.clone().push(delivery, ending.clone()));
            }
            let takes = slots > 0 && ready.is_empty();
            // Kept while pushes end one by one: on some engines a call that is dropped is a read for nothing.
            let mut receiving = receiver.receive(max);
            let batch = loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    Some(health) = in_flight.next() => {
                        if self.heed(health, &mut breaker) {
                            ready.clear();
                        }
                        if !takes || breaker.slots(self.concurrency.get(), Instant::now()) != max {
                            break None;
                        }
                    }
                    () = sleep_until(pause.unwrap_or(now)), if pause.is_some() => break None,
                    batch = &mut receiving, if takes => break Some(batch?),
                }
            };
            drop(receiving);
            if let Some(batch) = batch {
                ready.extend(self.needed(batch, in_flight, &mut backoff, stop).await);
                looked_up = Instant::now();
            }
        }
    }

    /// Tells the breaker how a push ended; returns whether a pause began.
    fn heed(&self, health: ProviderHealth, breaker: &mut Breaker) -> bool {
        match health {
            ProviderHealth::Unknown => false,
            ProviderHealth::Working => {
                breaker.close();
                false
            }
            ProviderHealth::Failing(until) => {
                let asked = until.map(|until| until.since(Timestamp::now())).unwrap_or_default();
                let pauses = breaker.fail(Instant::now(), asked);
                if pauses {
                    tracing::warn!(
                        lane = self.name().as_str(),
                        "the provider keeps failing; its lane pauses"
                    );
                }
                pauses
            }
        }
    }

    /// The pushes of a batch that are not done, not in flight, and still needed by their recipients, as they go out now.
    async fn needed(
        &self,
        batch: Vec<Delivery<PushJob>>,
        in_flight: &InFlight,
        backoff: &mut Backoff,
        stop: &CancellationToken,
    ) -> Vec<Delivery<PushJob>> {
        let known = match self.look_up(&batch).await {
            Ok(known) => known,
            Err(error) => {
                let delay = backoff.next_delay();
                self.telemetry.log_failure(Err(error), "a lane's look-up failed; its pushes come again");
                retry(
                    &self.telemetry,
                    batch.into_iter().map(|delivery| delivery.ack_handle).collect(),
                    delay,
                )
                .await;
                // Nothing more is read meanwhile: its look-up would fail, too.
                stop.run_until_cancelled(sleep(delay)).await;
                return Vec::new();
            }
        };
        backoff.reset();
        let now = Timestamp::now();
        let (mut needed, mut needless, mut doubled) =
            (Vec::with_capacity(batch.len()), Vec::new(), Vec::new());
        let (mut seen, mut repeated) = (HashSet::new(), 0);
        for (place, mut delivery) in batch.into_iter().enumerate() {
            let event_id = delivery.event.event_id;
            if known.done[place] {
                repeated += 1;
                needless.push(delivery.ack_handle);
            } else if let Err(reason) = known.renew(place, &mut delivery.event.payload, now) {
                self.telemetry.count_spared(reason);
                needless.push(delivery.ack_handle);
            } else if in_flight.holds(event_id) || !seen.insert(event_id) {
                // By its next turn the push in flight has been recorded, or has failed.
                doubled.push(delivery.ack_handle);
            } else {
                if self.hides_content && delivery.event.payload.target.is_some() {
                    render::hide(&mut delivery.event.payload);
                }
                needed.push(delivery);
            }
        }
        self.telemetry.repeated(self.name(), repeated);
        ack(&self.telemetry, needless).await;
        retry(&self.telemetry, doubled, self.retry_policy.delay(1)).await;
        needed
    }

    /// The look-ups for a batch, one of each kind, all at the same time.
    async fn look_up(&self, batch: &[Delivery<PushJob>]) -> EngineResult<LookedUp> {
        let jobs = || batch.iter().map(|delivery| &delivery.event.payload);
        let ids: Vec<_> = batch.iter().map(|delivery| delivery.event.event_id).collect();
        let members = jobs().map(|job| (&job.chat_room_id, &job.recipient_id, job.seq));
        let rooms: BTreeSet<_> = jobs().map(|job| &job.chat_room_id).collect();
        let rooms: Vec<_> = rooms.into_iter().cloned().collect();
        let users: BTreeSet<_> = jobs().map(|job| &job.recipient_id).collect();
        let users: Vec<_> = users.into_iter().cloned().collect();
        let has_devices = self.name() != hops::Lane::Webhook;
        let now = Timestamp::now();
        let may_be_deleted = batch.iter().filter_map(|delivery| {
            let id = delivery.event.payload.message_id;
            may_be_deleted(id.made_at(), delivery.attempt, now).then_some(id)
        });
        let Store { pushes, devices, rooms: all_rooms, .. } = &self.store;
        let look_ups = try_join5(
            pushes.done(&ids),
            positions(&self.store, members),
            all_rooms.current(&rooms),
            async { if has_devices { devices.of_users(&users).await } else { Ok(Vec::new()) } },
            async {
                let shows_badge = self.provider.shows_badge();
                if shows_badge { self.store.positions.unread(&users).await } else { Ok(Vec::new()) }
            },
        );
        let ((done, members, current, devices, unread), deleted) =
            try_join(look_ups, deleted(&self.store, may_be_deleted.collect())).await?;
        let members = jobs().map(|job| members[&(&job.chat_room_id, &job.recipient_id)]).collect();
        let current = current.into_iter().flatten().map(|room| (room.id.clone(), room));
        let devices = devices.into_iter().filter(|device| device.platform.lane() == self.name());
        Ok(LookedUp {
            done,
            members,
            rooms: current.collect(),
            devices: devices.map(|device| ((device.user.clone(), device.id.clone()), device)).collect(),
            unread: users.into_iter().zip(unread).collect(),
            deleted,
        })
    }

    /// Takes one push from the queue to its end or its next try.
    async fn push(self: Arc<Self>, delivery: Delivery<PushJob>, ending: Ending) -> ProviderHealth {
        let Delivery { event, attempt, ack_handle } = delivery;
        let expires_at = event.payload.expires_at;
        let (verdict, action) = if Timestamp::now() >= expires_at {
            (None, Action::EXPIRED)
        } else {
            let called = Instant::now();
            let verdict = self.provider.push(&event).await;
            self.telemetry.answered(self.name(), called.elapsed());
            let (now, chance) = (Timestamp::now(), rand::random());
            let action = decide(&verdict, attempt, now, expires_at, &self.retry_policy, chance);
            (Some(verdict), action)
        };
        self.log(&event, attempt, verdict.as_ref(), &action);
        if let Some(verdict) = &verdict {
            self.note(verdict, &event).await;
        }
        let health = match &verdict {
            Some(verdict) if verdict.is_failing() => ProviderHealth::Failing(match verdict {
                Verdict::SlowDown { until, .. } => Some(*until),
                _ => None,
            }),
            Some(_) => ProviderHealth::Working,
            None => ProviderHealth::Unknown,
        };
        let event_id = event.event_id;
        let action = match action {
            Action::Park(stage, reason) => self.park(event, attempt, stage, reason).await,
            action => action,
        };
        ending.of(Ended { ack_handle, event_id, action }).await;
        health
    }

    fn log(&self, event: &Event<PushJob>, attempt: u32, verdict: Option<&Verdict>, action: &Action) {
        let (lane, Event { event_id, trace, payload, .. }) = (self.name().as_str(), event);
        let message_id = payload.message_id;
        match (verdict, action) {
            (Some(Verdict::Delivered { provider_id }), _) => {
                tracing::debug!(lane, %event_id, %message_id, %trace, attempt, provider_id, "pushed");
            }
            // An operator has to correct it.
            (Some(Verdict::OurConfiguration { reason, scope }), _) => {
                tracing::error!(lane, %event_id, %message_id, %trace, attempt, %reason, ?scope, "our configuration is refused");
            }
            _ => {
                tracing::warn!(lane, %event_id, %message_id, %trace, attempt, ?verdict, ?action, "not pushed")
            }
        }
    }

    /// Records what the verdict means beyond this push.
    async fn note(&self, verdict: &Verdict, event: &Event<PushJob>) {
        if let Verdict::OurConfiguration { .. } = verdict {
            self.telemetry.misconfigured(self.name());
        }
        if let (Verdict::TokenDead { since }, Some(target)) = (verdict, &event.payload.target) {
            let platform = match self.name() {
                hops::Lane::Fcm => Platform::Fcm,
                hops::Lane::Apns => Platform::Apns,
                hops::Lane::Webhook => return,
            };
            let removed = self.store.devices.remove_token(platform, &target.token, *since).await;
            if let Ok(true) = removed {
                self.telemetry.token_removed(self.name());
            }
            let consequence = "a dead token stays; the next push meets it again";
            self.telemetry.log_failure(removed.map(drop), consequence);
        }
    }

    /// Parks a push in the store, or retries it where that fails.
    async fn park(&self, event: Event<PushJob>, attempt: u32, stage: PushStage, reason: Reason) -> Action {
        let parked = ParkedPush {
            event_id: event.event_id,
            job: event.payload,
            reason: reason.clone().into_owned(),
            attempts: attempt,
            parked_at: Timestamp::now(),
        };
        let parked = self.store.pushes.park(&[parked]).await;
        let is_parked = parked.is_ok();
        self.telemetry.log_failure(parked, "a push could not be parked; it is tried again");
        match is_parked {
            true => Action::Park(stage, reason),
            false => Action::RetryAfter(self.retry_policy.delay(attempt)),
        }
    }

    fn name(&self) -> hops::Lane {
        self.provider.lane()
    }
}

/// The results of the look-ups for a batch.
struct LookedUp {
    /// In the batch's order, and so are the members.
    done: Vec<bool>,
    members: Vec<MemberPosition>,
    rooms: HashMap<RoomId, Arc<Room>>,
    /// The devices that are registered for this lane, by owner and id.
    devices: HashMap<(UserId, DeviceId), Device>,
    /// By recipient; empty where the provider shows no badge.
    unread: HashMap<UserId, u64>,
    deleted: HashSet<MessageId>,
}

impl LookedUp {
    /// Brings the push at this place up to date: it goes to its device's present token, and hides what the device now wants
    /// hidden. An error is the reason why its recipient needs none, or must not get it.
    fn renew(&self, place: usize, job: &mut PushJob, now: Timestamp) -> Result<(), &'static str> {
        if self.deleted.contains(&job.message_id) {
            return Err(deleted::REASON);
        }
        let room = self.rooms.get(&job.chat_room_id).filter(|room| room.has(&job.recipient_id));
        let room = room.ok_or("left")?;
        if let Some(reason) = reason_to_spare(job.seq, self.members[place], now) {
            return Err(reason);
        }
        if let Some(target) = &mut job.target {
            // Its owner has signed out, or it has another owner.
            let device = (job.recipient_id.clone(), target.device_id.clone());
            let device = self.devices.get(&device).ok_or("unregistered")?;
            *target = render::target(device);
            if device.hides_content {
                render::hide(job);
            }
        }
        job.badge = self.unread.get(&job.recipient_id).copied();
        job.room_name.clone_from(&room.name);
        Ok(())
    }
}
