//! Works off one provider's queue of pushes, as fast as the provider takes them.
//!
//! At its turn, a push is checked once more for whether its recipient still needs it: it may have waited for hours. Pushes
//! that come together share one look-up, and those that end together one write (`ended.rs`).
//!
//! **Acknowledged after the effect**: once the provider has taken a push, which is recorded first, or once it is parked. A
//! push that comes again after that is recognised by its event id.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;

use futures_util::future::try_join3;
use naru_engines::EngineResult;
use naru_engines::bus::{Delivery, Queue, Receiver};
use naru_engines::store::{MemberPosition, ParkedPush, Platform, Store};
use naru_model::hops::{self, PushJob};
use naru_model::{Event, EventId, Stage, Timestamp, UserId};
use naru_runtime::Backoff;
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::breaker::Breaker;
use crate::decide::{Action, RetryPolicy, decide};
use crate::ended::{Ended, Ending, ack, retry};
use crate::provider::Provider;
use crate::push::{BACKOFF_BASE, BACKOFF_CAP, positions, reason_to_spare};
use crate::telemetry::Telemetry;
use crate::verdict::{Reason, Verdict};

/// A lane that has a provider.
pub(crate) struct LaneWorker {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) queue: Arc<dyn Queue<PushJob>>,
    pub(crate) store: Store,
    pub(crate) concurrency: NonZeroUsize,
    pub(crate) retry_policy: RetryPolicy,
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
struct InHand {
    tasks: JoinSet<ProviderHealth>,
    events: HashMap<task::Id, EventId>,
}

impl InHand {
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
    /// Works until stopped, and then finishes the pushes it has in hand.
    ///
    /// # Errors
    /// When the queue can't be read.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) -> EngineResult<()> {
        let mut receiver = self.queue.receiver().await?;
        let mut in_hand = InHand::default();
        let ending = Ending::start(self.name(), self.store.clone(), self.telemetry.clone());
        let taken = self.take(&mut *receiver, &mut in_hand, &ending, &stop).await;
        // The receiver has to outlive them: a push not acknowledged before it is dropped comes again.
        while in_hand.next().await.is_some() {}
        taken
    }

    async fn take(
        self: &Arc<Self>,
        receiver: &mut dyn Receiver<PushJob>,
        in_hand: &mut InHand,
        ending: &Ending,
        stop: &CancellationToken,
    ) -> EngineResult<()> {
        let mut breaker = Breaker::new(self.retry_policy);
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP);
        // Pushes looked up and not begun: as many as there are places, so that places which become free one by one do not
        // cost a look-up each. If dropped, they come again.
        let mut ready: VecDeque<Delivery<PushJob>> = VecDeque::new();
        loop {
            let now = Instant::now();
            let pause = breaker.pause(now);
            let max = breaker.places(self.concurrency.get(), now);
            let places = max.saturating_sub(in_hand.tasks.len());
            self.telemetry.paused(self.name(), pause.is_some());
            for delivery in ready.drain(..places.min(ready.len())) {
                in_hand.start(delivery.event.event_id, self.clone().push(delivery, ending.clone()));
            }
            let takes = places > 0 && ready.is_empty();
            // Kept while pushes end one by one: on some engines a call that is dropped is a read for nothing.
            let mut receiving = receiver.receive(max);
            let batch = loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    Some(health) = in_hand.next() => {
                        if self.heed(health, &mut breaker) {
                            ready.clear();
                        }
                        if !takes || breaker.places(self.concurrency.get(), Instant::now()) != max {
                            break None;
                        }
                    }
                    () = sleep_until(pause.unwrap_or(now)), if pause.is_some() => break None,
                    batch = &mut receiving, if takes => break Some(batch?),
                }
            };
            drop(receiving);
            if let Some(batch) = batch {
                ready.extend(self.needed(batch, in_hand, &mut backoff, stop).await);
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

    /// The pushes of a batch that are not done, not in hand, and still needed by their recipients.
    async fn needed(
        &self,
        batch: Vec<Delivery<PushJob>>,
        in_hand: &InHand,
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
        for ((mut delivery, done), member) in batch.into_iter().zip(known.done).zip(known.members) {
            let (event_id, job) = (delivery.event.event_id, &mut delivery.event.payload);
            if done {
                repeated += 1;
                needless.push(delivery.ack_handle);
            } else if let Some(reason) = reason_to_spare(job.seq, member, now) {
                self.telemetry.count_spared(reason);
                needless.push(delivery.ack_handle);
            } else if in_hand.holds(event_id) || !seen.insert(event_id) {
                // By its next turn the push in hand has been recorded, or has failed.
                doubled.push(delivery.ack_handle);
            } else {
                job.badge = known.unread.get(&job.recipient_id).copied();
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
        let users: BTreeSet<_> = jobs().map(|job| &job.recipient_id).collect();
        let users: Vec<_> = users.into_iter().filter(|_| self.provider.shows_badge()).cloned().collect();
        let unread = async {
            if users.is_empty() { Ok(Vec::new()) } else { self.store.positions.unread(&users).await }
        };
        let (done, members, unread) =
            try_join3(self.store.pushes.done(&ids), positions(&self.store, members), unread).await?;
        let members = jobs().map(|job| members[&(&job.chat_room_id, &job.recipient_id)]).collect();
        Ok(LookedUp { done, members, unread: users.into_iter().zip(unread).collect() })
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
    async fn park(&self, event: Event<PushJob>, attempt: u32, stage: Stage, reason: Reason) -> Action {
        let parked = ParkedPush {
            event_id: event.event_id,
            job: event.payload,
            reason: reason.clone().into_owned(),
            attempts: attempt,
            parked_at: Timestamp::now(),
        };
        let parked = self.store.pushes.park(parked).await;
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

/// The results of the look-ups for a batch, in its order.
struct LookedUp {
    done: Vec<bool>,
    members: Vec<MemberPosition>,
    /// By recipient; empty where the provider shows no badge.
    unread: HashMap<UserId, u64>,
}
