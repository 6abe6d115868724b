//! One provider's queue of pushes, worked off as fast as the provider takes them.
//!
//! **Settled after the effect**: a push is done once the provider has taken it, which is recorded first, or once it is
//! parked. What comes again after that is recognised by its event id.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use naru_engines::EngineResult;
use naru_engines::bus::{Delivery, Queue, Receipt, Receiver, Verdict as Settled};
use naru_engines::store::{ParkedPush, Platform, Store};
use naru_model::hops::{self, PushJob};
use naru_model::{Event, EventId, Stage, Timestamp};
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::breaker::Breaker;
use crate::decide::{Action, Ladder, before_sending, decide};
use crate::provider::Provider;
use crate::telemetry::Telemetry;
use crate::trouble::{Trouble, note, settle};
use crate::verdict::Verdict;

/// A lane that has a provider.
pub(crate) struct Lane {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) queue: Arc<dyn Queue<PushJob>>,
    pub(crate) store: Store,
    pub(crate) concurrency: NonZeroUsize,
    pub(crate) ladder: Ladder,
    pub(crate) telemetry: Telemetry,
}

/// What one push told of the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    /// It was not asked.
    None,
    /// It works.
    Working,
    /// It does not.
    Failing,
}

/// The pushes under way, each in a task of its own.
#[derive(Default)]
struct InHand {
    tasks: JoinSet<Sign>,
    events: HashMap<task::Id, EventId>,
}

impl InHand {
    fn start(&mut self, event: EventId, push: impl Future<Output = Sign> + Send + 'static) {
        self.events.insert(self.tasks.spawn(push).id(), event);
    }

    fn holds(&self, event: EventId) -> bool {
        self.events.values().any(|held| *held == event)
    }

    /// How the next one ended; none when there is none. Cancelling loses nothing.
    async fn next(&mut self) -> Option<Sign> {
        let (id, sign) = match self.tasks.join_next_with_id().await? {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "a push panicked; it comes again");
                (error.id(), Sign::Failing)
            }
        };
        self.events.remove(&id);
        Some(sign)
    }
}

impl Lane {
    /// Works until told to stop, and then finishes the pushes it has in hand.
    ///
    /// # Errors
    /// When the queue can't be read.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) -> EngineResult<()> {
        let mut receiver = self.queue.receiver().await?;
        let mut in_hand = InHand::default();
        let taken = self.take(&mut *receiver, &mut in_hand, &stop).await;
        // The receiver has to outlive them: what is not settled before it is dropped comes again.
        while in_hand.next().await.is_some() {}
        taken
    }

    async fn take(
        self: &Arc<Self>,
        receiver: &mut dyn Receiver<PushJob>,
        in_hand: &mut InHand,
        stop: &CancellationToken,
    ) -> EngineResult<()> {
        let mut breaker = Breaker::new(self.ladder);
        let mut trouble = Trouble::new(self.name().hop().name, self.telemetry.clone());
        loop {
            let now = Instant::now();
            let pause = breaker.pause(now);
            let places = breaker.places(self.concurrency.get(), now).saturating_sub(in_hand.tasks.len());
            self.telemetry.paused(self.name(), pause.is_some());
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(sign) = in_hand.next() => match sign {
                    Sign::None => {}
                    Sign::Working => breaker.close(),
                    Sign::Failing => {
                        if breaker.fail(Instant::now()) {
                            tracing::warn!(lane = self.name().as_str(), "the provider keeps failing; its lane pauses");
                        }
                    }
                },
                () = sleep_until(pause.unwrap_or(now)), if pause.is_some() => {}
                batch = receiver.receive(places), if places > 0 => self.begin(batch?, in_hand, &mut trouble, stop).await,
            }
        }
    }

    /// Starts the pushes of a batch that were not done before.
    async fn begin(
        self: &Arc<Self>,
        batch: Vec<Delivery<PushJob>>,
        in_hand: &mut InHand,
        trouble: &mut Trouble,
        stop: &CancellationToken,
    ) {
        let ids: Vec<_> = batch.iter().map(|delivery| delivery.event.event_id).collect();
        let done = match self.store.pushes.done(&ids).await {
            Ok(done) => done,
            Err(error) => {
                let receipts = batch.into_iter().map(|delivery| delivery.receipt).collect();
                return trouble.give_back(receipts, error, stop).await;
            }
        };
        trouble.is_over();
        let (mut repeated, mut doubled) = (Vec::new(), Vec::new());
        for (delivery, done) in batch.into_iter().zip(done) {
            let event_id = delivery.event.event_id;
            if done {
                repeated.push(delivery.receipt);
            } else if in_hand.holds(event_id) {
                // By its next turn the one in hand has been recorded, or has failed.
                doubled.push(delivery.receipt);
            } else {
                in_hand.start(event_id, self.clone().push(delivery));
            }
        }
        self.telemetry.repeated(self.name(), repeated.len());
        settle(repeated, Settled::Done, &self.telemetry).await;
        settle(doubled, Settled::RetryAfter(self.ladder.rung(1)), &self.telemetry).await;
    }

    /// One push, from the queue to its end or its next try.
    async fn push(self: Arc<Self>, delivery: Delivery<PushJob>) -> Sign {
        let Delivery { event, attempt, receipt } = delivery;
        let (verdict, action) = match before_sending(&event.payload, Timestamp::now()) {
            Some(action) => (None, action),
            None => {
                let called = Instant::now();
                let verdict = self.provider.push(&event).await;
                self.telemetry.answered(self.name(), called.elapsed());
                let now = Timestamp::now();
                let action = decide(&verdict, attempt, now, event.payload.expires_at, &self.ladder);
                (Some(verdict), action)
            }
        };
        self.log(&event, attempt, verdict.as_ref(), &action);
        if let Some(verdict) = &verdict {
            self.note(verdict, &event).await;
        }
        self.act(action, event, attempt, receipt).await;
        match verdict {
            None => Sign::None,
            Some(verdict) if verdict.is_failing() => Sign::Failing,
            Some(_) => Sign::Working,
        }
    }

    fn log(&self, event: &Event<PushJob>, attempt: u32, verdict: Option<&Verdict>, action: &Action) {
        let (lane, Event { event_id, trace, payload, .. }) = (self.name().as_str(), event);
        let message_id = payload.message_id;
        match (verdict, action) {
            (Some(Verdict::Delivered { provider_id }), _) => {
                tracing::debug!(lane, %event_id, %message_id, %trace, attempt, provider_id, "pushed");
            }
            // A provider's wait is not over.
            (None, Action::RetryAfter(_)) => {}
            _ => {
                tracing::warn!(lane, %event_id, %message_id, %trace, attempt, ?verdict, ?action, "not pushed")
            }
        }
    }

    /// Writes down what the verdict says beyond this try of this push.
    async fn note(&self, verdict: &Verdict, event: &Event<PushJob>) {
        if let Verdict::Delivered { provider_id } = verdict {
            let recorded = self.store.pushes.record(&[(event.event_id, provider_id.clone())]).await;
            // Sending it again would be no better.
            note(recorded, "a push was sent and could not be recorded", &self.telemetry);
        }
        if let (Verdict::TokenDead { since }, Some(target)) = (verdict, &event.payload.target) {
            let platform = match self.name() {
                hops::Lane::Fcm => Platform::Fcm,
                hops::Lane::Apns => Platform::Apns,
                hops::Lane::Webhook => return,
            };
            let removed = self.store.devices.remove_token(platform, &target.token, *since).await;
            note(removed.map(drop), "a dead token stays; the next push meets it again", &self.telemetry);
        }
    }

    async fn act(&self, action: Action, event: Event<PushJob>, attempt: u32, receipt: Receipt) {
        let settled = match action {
            Action::Done => {
                self.telemetry.ended(self.name(), Stage::Pushed);
                Settled::Done
            }
            Action::RetryAfter(delay) => {
                self.telemetry.retried(self.name());
                Settled::RetryAfter(delay)
            }
            Action::Postpone(delay, not_before) => {
                self.telemetry.retried(self.name());
                let job = PushJob { not_before: Some(not_before), ..event.payload };
                let postponed = self.queue.send_later(delay, vec![Event { payload: job, ..event }]).await;
                let settled = if postponed.is_ok() { Settled::Done } else { Settled::RetryAfter(delay) };
                note(postponed, "a push could not be postponed; it comes again too early", &self.telemetry);
                settled
            }
            Action::Park(stage, reason) => {
                let parked = ParkedPush {
                    event_id: event.event_id,
                    job: event.payload,
                    reason: reason.into_owned(),
                    attempts: attempt,
                    parked_at: Timestamp::now(),
                };
                let parked = self.store.pushes.park(parked).await;
                let settled = if parked.is_ok() {
                    Settled::Done
                } else {
                    Settled::RetryAfter(self.ladder.rung(attempt))
                };
                if parked.is_ok() {
                    self.telemetry.ended(self.name(), stage);
                }
                note(parked, "a push could not be parked; it is tried again", &self.telemetry);
                settled
            }
        };
        settle(vec![receipt], settled, &self.telemetry).await;
    }

    fn name(&self) -> hops::Lane {
        self.provider.lane()
    }
}
