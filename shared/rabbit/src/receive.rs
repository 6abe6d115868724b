//! Receiving a hop.
//!
//! Every partition has a subscription of its own, on a channel of its own, kept up by a task of its own; a durable hop is one
//! partition. A message is acked when all its events are acknowledged, together with other messages finished within 50 ms,
//! since the broker writes each ack down like a message. If the process dies before the ack, the message is redelivered and
//! recognised, like one whose worker died before it acknowledged.
//!
//! **Ordered hops.** The broker has one active subscriber per partition and pushes to it alone, up to the prefetch; of the
//! pushed events, one batch at a time is unacknowledged (delivered to a worker). A retried event waits here, under its key, and
//! the broker is not notified. If the process dies here, the connection ends and the broker delivers all unacked messages
//! to the next subscriber, in order. If it hangs instead, the broker detects that after two missed heartbeats.
//!
//! **Durable hops.** Receivers compete. A retried event is published to a wait queue, confirmed, and only then acknowledged.
//! If the process dies before the confirm, the broker delivers the event again, with the same attempt; between confirm and
//! ack, at once and once more after the delay. A receiver whose `receive` is not called for long publishes its buffered
//! events once more, and takes no more until the next call: no event waits here while another receiver could work on it, and
//! the broker, which closes a channel that holds a message for half an hour, has no reason to do so.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::ReadyChunks;
use lapin::options::BasicCancelOptions;
use lapin::types::ShortString;
use lapin::{Channel, Consumer};
use naru_engines::bus::{AckHandle, Acknowledge, Delivery, Receiver, Taken};
use naru_engines::{Applied, BoxError, EngineError, EngineResult};
use naru_model::hops::{Hop, HopKind, Payload};
use naru_model::{Event, Timestamp};
use rand::seq::SliceRandom;
use tokio::sync::Notify;
use tokio::time::{Instant, interval, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::ENGINE;
use crate::broker::Broker;
use crate::declare::Failure;
use crate::envelope;
use crate::link::Session;
use crate::outage::Outage;
use crate::state::{Keyed, ReceiverState, Shared, lock};
use crate::subscription::{CHUNK, close, consume, failed, subscribe};

/// A receiver of a durable hop buffers no events once `receive` was not called for so long.
const UNASKED_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages finished within this time are acked together; a quarter of the prefetch is acked at once.
const ACK_DELAY: Duration = Duration::from_millis(50);

/// How many messages of a partition, each of at most 256 events, a receiver may hold, unacknowledged or buffered. On a durable
/// hop also how many pushes of one lane, if they were sent one by one, one process can work on concurrently.
fn prefetch(kind: HopKind) -> u16 {
    match kind {
        HopKind::Ordered => 64,
        HopKind::Durable => 128,
    }
}

pub(crate) struct RabbitReceiver<T: Payload> {
    acknowledger: Arc<Acknowledger<T>>,
    /// Its subscriptions end with it.
    _subscriptions: DropGuard,
}

/// Why a subscription ended without a failure.
enum Ended {
    /// The partition was left.
    Left,
    /// The receiver is gone.
    Stopped,
}

/// One subscription. Tasks spawned for it end with it.
#[derive(Clone)]
struct Subscription {
    partition: usize,
    number: u64,
    queue: ShortString,
    ends: CancellationToken,
}

impl<T: Payload> RabbitReceiver<T> {
    /// Subscribes, now or when there is a connection.
    pub(crate) fn open(hop: Hop, broker: Arc<Broker>) -> Self {
        let count = broker.layout.partitions(&hop);
        let state = Mutex::new(ReceiverState::new(&hop, count, prefetch(hop.kind)));
        let (changed, finished) = (Notify::new(), Notify::new());
        let shared = Arc::new(Shared { hop, broker, state, changed, finished });
        let stop = CancellationToken::new();
        // In random order: receivers that start together share the partitions from the start.
        let mut partitions: Vec<u32> = (0..count).collect();
        partitions.shuffle(&mut rand::rng());
        for partition in partitions {
            tokio::spawn(shared.clone().keep_subscribed(partition, stop.clone()));
        }
        tokio::spawn(stop.clone().run_until_cancelled_owned(shared.clone().keep_acking()));
        if hop.kind == HopKind::Ordered {
            tokio::spawn(shared.clone().keep_sharing(stop.clone()));
        }
        Self { acknowledger: Arc::new(Acknowledger(shared)), _subscriptions: stop.drop_guard() }
    }
}

/// Marks that `receive` waits.
struct ReceiveGuard<'a, T: Payload>(&'a Shared<T>);

impl<'a, T: Payload> ReceiveGuard<'a, T> {
    fn begin(shared: &'a Shared<T>) -> Self {
        lock(&shared.state).is_asked = true;
        shared.changed.notify_waiters();
        Self(shared)
    }
}

impl<T: Payload> Drop for ReceiveGuard<'_, T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        (state.is_asked, state.asked_at) = (false, Instant::now());
    }
}

#[async_trait]
impl<T: Payload> Receiver<T> for RabbitReceiver<T> {
    async fn receive(&mut self, max: usize) -> EngineResult<Vec<Delivery<T>>> {
        let Acknowledger(shared) = &*self.acknowledger;
        let _asking = ReceiveGuard::begin(shared);
        loop {
            let mut changed = std::pin::pin!(shared.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let taken = {
                let mut state = lock(&shared.state);
                if let Some(reason) = &state.refused {
                    return Err(EngineError::permanent(ENGINE, reason.clone()));
                }
                state.take(max.max(1), Instant::now())
            };
            match taken {
                Ok(batch) => {
                    let deliver = |Taken { tag, event, attempt }| {
                        let ack_handle = AckHandle::new(tag, self.acknowledger.clone());
                        Delivery { event, attempt, ack_handle }
                    };
                    return Ok(batch.into_iter().map(deliver).collect());
                }
                Err(Some(due)) => tokio::select! { () = changed => {}, () = sleep_until(due) => {} },
                Err(None) => changed.await,
            }
        }
    }
}

impl<T: Payload> Drop for RabbitReceiver<T> {
    fn drop(&mut self) {
        lock(&self.acknowledger.0.state).close();
    }
}

/// Receives the acks and retries of one receiver's deliveries.
struct Acknowledger<T: Payload>(Arc<Shared<T>>);

impl<T: Payload> fmt::Debug for Acknowledger<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acknowledger").field("hop", &self.0.hop.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl<T: Payload> Acknowledge for Acknowledger<T> {
    async fn ack(&self, tags: Vec<u64>) -> EngineResult<()> {
        let some_are_gone = lock(&self.0.state).ack(tags);
        self.0.changed.notify_waiters();
        self.0.finished.notify_one();
        answer(some_are_gone)
    }

    async fn retry(&self, tags: Vec<u64>, after: Duration) -> EngineResult<()> {
        let Self(shared) = self;
        if shared.hop.kind == HopKind::Ordered {
            let some_are_gone = lock(&shared.state).retry(tags, after, Instant::now());
            shared.changed.notify_waiters();
            return answer(some_are_gone);
        }
        let (mut events, number, some_are_gone) = lock(&shared.state).remove(tags);
        events.iter_mut().for_each(|event| event.attempt += 1);
        let due = (!after.is_zero()).then(|| Timestamp::now().after(after));
        // To its end, even if the caller is cancelled: half done, the events would be neither unacknowledged nor waiting.
        let publishing = tokio::spawn(shared.clone().publish_again(number, events, due));
        let published = publishing.await.unwrap_or_else(|ended| Err(unavailable(Applied::Unknown, ended)));
        published.and(answer(some_are_gone))
    }

    fn dropped(&self, tag: u64) {
        lock(&self.0.state).put_back(tag);
        self.0.changed.notify_waiters();
    }
}

fn answer(some_are_gone: bool) -> EngineResult<()> {
    if some_are_gone {
        return Err(unavailable(Applied::No, "the subscription of some has ended, so they come again"));
    }
    Ok(())
}

fn unavailable(applied: Applied, reason: impl Into<BoxError>) -> EngineError {
    EngineError::unavailable(ENGINE, applied, reason)
}

impl<T: Payload> Shared<T> {
    /// Acks finished messages, soon after they are finished.
    async fn keep_acking(self: Arc<Self>) {
        loop {
            self.finished.notified().await;
            sleep(ACK_DELAY).await;
            drop(lock(&self.state).ack_finished());
        }
    }

    /// Subscribes to one partition, again and again, until the receiver is gone.
    async fn keep_subscribed(self: Arc<Self>, partition: u32, stop: CancellationToken) {
        let queue = self.broker.layout.queue(&self.hop, partition);
        let mut outage = Outage::new(format!("the subscription to {queue}"));
        while let Some(session) = stop.run_until_cancelled(self.broker.receiving.up()).await {
            match self.subscription(&session, &queue, partition as usize, &stop, &mut outage).await {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Left) => {}
                Err(failure) => {
                    if let Failure::Refused { .. } = failure {
                        lock(&self.state).refused = Some(failure.to_string());
                        self.changed.notify_waiters();
                    }
                    stop.run_until_cancelled(failed(&self.hop, &session, &failure, &mut outage)).await;
                }
            }
        }
    }

    async fn subscription(
        self: &Arc<Self>,
        session: &Session,
        queue: &ShortString,
        partition: usize,
        stop: &CancellationToken,
        outage: &mut Outage,
    ) -> Result<Ended, Failure> {
        let (channel, consumer) =
            subscribe(&self.broker, session, &self.hop, queue, prefetch(self.hop.kind)).await?;
        outage.ended();
        let (number, may_leave) = lock(&self.state).begin(partition, channel.clone());
        let ends = CancellationToken::new();
        let _ends = ends.clone().drop_guard();
        let this = Subscription { partition, number, queue: queue.clone(), ends };
        // Outlives the channel, see `close`.
        let mut deliveries = consumer.ready_chunks(CHUNK);
        let left = async {
            may_leave.notified().await;
            // A retry may have come in between.
            while !lock(&self.state).leaves(partition) {
                may_leave.notified().await;
            }
        };
        let ended = tokio::select! {
            () = stop.cancelled() => Ok(Ended::Stopped),
            () = left => Ok(Ended::Left),
            Err(failure) = self.serve(&channel, &mut deliveries, &this) => Err(failure),
        };
        lock(&self.state).end(partition);
        close(&channel).await;
        ended
    }

    async fn serve(
        self: &Arc<Self>,
        channel: &Channel,
        deliveries: &mut ReadyChunks<Consumer>,
        this: &Subscription,
    ) -> Result<Infallible, Failure> {
        let is_durable = self.hop.kind == HopKind::Durable;
        let mut check = interval(UNASKED_TIMEOUT / 4);
        loop {
            tokio::select! {
                chunk = deliveries.next() => self.take_over(chunk.ok_or(Failure::Cancelled)?, this)?,
                _ = check.tick(), if is_durable => {
                    if lock(&self.state).is_unasked(UNASKED_TIMEOUT) {
                        self.pause(channel, deliveries, this).await?;
                        *deliveries = consume(channel, &this.queue).await?.ready_chunks(CHUNK);
                    }
                }
            }
        }
    }

    /// Publishes buffered events once more, and returns when `receive` waits again. Unacknowledged events stay so.
    async fn pause(
        self: &Arc<Self>,
        channel: &Channel,
        deliveries: &mut ReadyChunks<Consumer>,
        this: &Subscription,
    ) -> Result<(), Failure> {
        let consumer = deliveries.get_ref().tag();
        channel.basic_cancel(consumer, BasicCancelOptions::default()).await?;
        // The rest of what the broker pushed before it received the cancel.
        while let Some(chunk) = deliveries.next().await {
            self.take_over(chunk, this)?;
        }
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let taken = {
                let mut state = lock(&self.state);
                if state.is_asked {
                    return Ok(());
                }
                let taken = state.take(usize::MAX, Instant::now());
                taken.map(|batch| state.remove(batch.into_iter().map(|taken| taken.tag)))
            };
            match taken {
                Ok((events, number, _)) => {
                    if let Err(error) = self.clone().publish_again(number, events, None).await {
                        tracing::warn!(hop = self.hop.name, %error, "unrequested events could not be requeued");
                        return Ok(());
                    }
                }
                Err(Some(due)) => tokio::select! { () = changed => {}, () = sleep_until(due) => {} },
                Err(None) => changed.await,
            }
        }
    }

    /// Takes over pushed deliveries.
    fn take_over(
        self: &Arc<Self>,
        chunk: Vec<lapin::Result<lapin::message::Delivery>>,
        this: &Subscription,
    ) -> Result<(), Failure> {
        let Subscription { partition, number, .. } = *this;
        let read = |delivery: lapin::Result<lapin::message::Delivery>| {
            delivery.map(|delivery| (delivery.delivery_tag, envelope::read::<T>(delivery)))
        };
        let read = chunk.into_iter().map(read).collect::<lapin::Result<Vec<_>>>()?;
        let (now, wall_clock) = (Instant::now(), Timestamp::now());
        let (layout, mut state) = (&self.broker.layout, lock(&self.state));
        for (tag, mut incoming) in read {
            let dead_letters = incoming.dead_letters(&this.queue, &layout.parked());
            let count = incoming.events.len() + dead_letters.len();
            let events = state.delivered(partition, tag, count, incoming.events, incoming.attempt, now);
            if !dead_letters.is_empty() {
                let shared = self.clone();
                tokio::spawn(this.ends.clone().run_until_cancelled_owned(async move {
                    let count = dead_letters.len();
                    shared.broker.dead_letter(&shared.hop, dead_letters).await;
                    lock(&shared.state).finish_unreadable(partition, number, tag, count);
                    shared.finished.notify_one();
                }));
            }
            let remaining = incoming.not_before.map_or(Duration::ZERO, |due| due.since(wall_clock));
            if !remaining.is_zero() && layout.delays.next(remaining).is_some() {
                let (hop, again) =
                    (self.hop, self.clone().publish_again(number, events, incoming.not_before));
                tokio::spawn(this.ends.clone().run_until_cancelled_owned(async move {
                    if let Err(error) = again.await {
                        tracing::warn!(hop = hop.name, %error, "delayed events could not be moved to a wait queue");
                    }
                }));
            } else {
                state.push(partition, number, events, (!remaining.is_zero()).then(|| now + remaining));
            }
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// Publishes events of a durable hop once more, not to be delivered before `due`; then acknowledges the originals. If the
    /// broker can't take them, they wait here.
    async fn publish_again(
        self: Arc<Self>,
        number: u64,
        events: Vec<Keyed<T>>,
        due: Option<Timestamp>,
    ) -> EngineResult<()> {
        let mut by_attempt: BTreeMap<u32, Vec<&Event<T>>> = BTreeMap::new();
        for keyed in &events {
            by_attempt.entry(keyed.attempt).or_default().push(&keyed.event);
        }
        let mut messages = Vec::new();
        for (attempt, events) in by_attempt {
            messages.extend(self.broker.messages(&self.hop, 0, events, attempt, due)?);
        }
        let published = self.broker.publish(&self.hop, messages).await;
        let (mut acks, mut some_are_gone) = (Vec::new(), false);
        {
            let mut state = lock(&self.state);
            match &published {
                Ok(()) if state.finish(0, number, events.iter().map(|keyed| keyed.key).collect()) => {
                    // At once: if the process dies before these acks, the events are redelivered before they are due.
                    acks = state.ack_finished();
                }
                Ok(()) => some_are_gone = true,
                Err(_) => {
                    let remaining = due.map(|due| Instant::now() + due.since(Timestamp::now()));
                    state.push(0, number, events, remaining);
                }
            }
        }
        self.changed.notify_waiters();
        published?;
        for ack in acks {
            ack.end().await.map_err(|error| unavailable(Applied::Unknown, error))?;
        }
        answer(some_are_gone)
    }
}
