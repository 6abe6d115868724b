//! Receiving a hop that is ordered by room.
//!
//! Every partition has a subscription of its own, on a channel of its own, kept up by a task of its own. The broker has one
//! active subscriber per partition and pushes to it alone, up to the prefetch; of what was pushed, one batch at a time is in
//! a worker's hands. Retries and what is given back wait here, in their old place, and the broker does not hear of them.
//!
//! What if the process dies here? The broker sees the connection end and gives all that is not acked to the next in line, in
//! order. If it hangs instead, the broker sees it after two missed heartbeats.

mod partitions;
mod share;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::types::ShortString;
use naru_engines::bus::{Delivery, Ledger, Receipt, Receiver, Verdict};
use naru_engines::{EngineError, EngineResult};
use naru_model::hops::{Hop, Payload};
use rand::seq::SliceRandom;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::ENGINE;
use crate::bus::Broker;
use crate::declare::Failure;
use crate::envelope::{self, Incoming, Unreadable};
use crate::link::Session;
use crate::ordered::partitions::{Entry, Partitions};
use crate::outage::Outage;
use crate::subscription::{CHUNK, close, consumers, failed, given_back, lock, subscribe, untold};

/// How often a receiver looks whether it holds more than its share.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// While workers are busy, a batch that begins this much later holds what several partitions have, and so costs the store
/// one round trip and not several. Nobody who is idle waits.
const GATHER: Duration = Duration::from_millis(2);

pub(crate) struct OrderedReceiver<T: Payload> {
    shared: Arc<Shared<T>>,
    /// Its subscriptions end with it.
    _subscriptions: DropGuard,
}

struct Shared<T: Payload> {
    hop: Hop,
    broker: Arc<Broker>,
    partitions: Mutex<Partitions<T>>,
    /// Why the queues can't be received from, if they never will.
    refused: Mutex<Option<String>>,
    changed: Notify,
}

/// Why a subscription ended without a failure.
enum Ended {
    /// The partition was let go of.
    Left,
    /// The receiver is gone.
    Stopped,
}

impl<T: Payload> OrderedReceiver<T> {
    /// Subscribes, now or when there is a connection.
    pub(crate) fn open(hop: Hop, broker: Arc<Broker>) -> Self {
        let count = broker.layout.partitions();
        let shared = Arc::new(Shared {
            hop,
            broker,
            partitions: Mutex::new(Partitions::new(count)),
            refused: Mutex::new(None),
            changed: Notify::new(),
        });
        let stop = CancellationToken::new();
        // In an order of its own: receivers that start together share the partitions from the first.
        let mut partitions: Vec<u32> = (0..count).collect();
        partitions.shuffle(&mut rand::rng());
        for partition in partitions {
            tokio::spawn(shared.clone().keep_subscribed(partition, stop.clone()));
        }
        tokio::spawn(shared.clone().keep_sharing(stop.clone()));
        Self { shared, _subscriptions: stop.drop_guard() }
    }
}

#[async_trait]
impl<T: Payload> Receiver<T> for OrderedReceiver<T> {
    async fn receive(&mut self, most: usize) -> EngineResult<Vec<Delivery<T>>> {
        let shared = &self.shared;
        let mut gathered = false;
        loop {
            let mut changed = std::pin::pin!(shared.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(reason) = lock(&shared.refused).clone() {
                return Err(EngineError::permanent(ENGINE, reason));
            }
            if !gathered && lock(&shared.partitions).is_busy_and_ready(Instant::now()) {
                gathered = true;
                sleep(GATHER).await;
            }
            let taken = lock(&shared.partitions).take(most.max(1), Instant::now());
            match taken {
                Ok(batch) => {
                    let deliver = |(receipt, Entry { attempt, event })| Delivery {
                        event,
                        attempt,
                        receipt: Receipt::new(receipt, shared.clone()),
                    };
                    return Ok(batch.into_iter().map(deliver).collect());
                }
                Err(Some(opens_at)) => {
                    tokio::select! { () = changed => {}, () = sleep_until(opens_at) => {} }
                }
                Err(None) => changed.await,
            }
        }
    }
}

impl<T: Payload> Drop for OrderedReceiver<T> {
    fn drop(&mut self) {
        lock(&self.shared.partitions).close();
    }
}

impl<T: Payload> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrderedLedger").field("hop", &self.hop.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl<T: Payload> Ledger for Shared<T> {
    async fn settle(&self, verdicts: Vec<(u64, Verdict)>) -> EngineResult<()> {
        let settled = lock(&self.partitions).settle(verdicts, Instant::now());
        self.changed.notify_waiters();
        let mut outcome = if settled.too_late { Err(given_back()) } else { Ok(()) };
        for ack in settled.acks {
            outcome = outcome.and(ack.end().await.map_err(untold));
        }
        outcome
    }

    fn dropped(&self, receipt: u64) {
        lock(&self.partitions).settle([(receipt, Verdict::GiveBack)], Instant::now());
        self.changed.notify_waiters();
    }
}

impl<T: Payload> Shared<T> {
    /// One partition's subscription, again and again, until the receiver is gone.
    async fn keep_subscribed(self: Arc<Self>, partition: u32, stop: CancellationToken) {
        let queue = self.broker.layout.partition(&self.hop, partition);
        let mut outage = Outage::new(format!("the subscription to {queue}"));
        while let Some(session) = stop.run_until_cancelled(self.broker.receiving.up()).await {
            match self.subscription(&session, &queue, partition as usize, &stop, &mut outage).await {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Left) => {}
                Err(failure) => {
                    if let Failure::Refused { .. } = failure {
                        *lock(&self.refused) = Some(failure.to_string());
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
        let prefetch = self.broker.prefetch_ordered;
        let (channel, consumer) = subscribe(&self.broker, session, &self.hop, queue, prefetch).await?;
        outage.ended();
        lock(&self.refused).take();
        let subscription = lock(&self.partitions).begin(partition, channel.clone());
        // What belongs to this subscription ends with it.
        let ends = CancellationToken::new();
        let _ends = ends.clone().drop_guard();
        let may_leave = lock(&self.partitions).may_leave(partition);
        let mut deliveries = consumer.ready_chunks(CHUNK);
        let ended = loop {
            tokio::select! {
                () = stop.cancelled() => break Ok(Ended::Stopped),
                () = may_leave.notified() => {
                    if lock(&self.partitions).leaves(partition) {
                        break Ok(Ended::Left);
                    }
                }
                chunk = deliveries.next() => {
                    let taken = match chunk {
                        Some(chunk) => self.take_over(chunk, partition),
                        None => Err(Failure::Cancelled),
                    };
                    match taken {
                        Ok(unreadable) => for (tag, unreadable) in unreadable {
                            let parking = self.clone().park(queue.clone(), partition, subscription, tag, unreadable);
                            tokio::spawn(ends.clone().run_until_cancelled_owned(parking));
                        },
                        Err(failure) => break Err(failure),
                    }
                }
            }
        };
        lock(&self.partitions).end(partition);
        close(&channel).await;
        ended
    }

    /// Takes over what the broker pushed; what of it can't be read.
    fn take_over(
        &self,
        chunk: Vec<lapin::Result<lapin::message::Delivery>>,
        partition: usize,
    ) -> Result<Vec<(u64, Box<Unreadable>)>, Failure> {
        let (mut read, mut unreadable) = (Vec::with_capacity(chunk.len()), Vec::new());
        for delivery in chunk {
            let delivery = delivery?;
            let tag = delivery.delivery_tag;
            match envelope::read(delivery) {
                Ok(Incoming { event, attempt, .. }) => read.push((tag, Some(Entry { attempt, event }))),
                Err(message) => {
                    read.push((tag, None));
                    unreadable.push((tag, message));
                }
            }
        }
        lock(&self.partitions).delivered(partition, read, Instant::now());
        self.changed.notify_waiters();
        Ok(unreadable)
    }

    async fn park(
        self: Arc<Self>,
        queue: ShortString,
        partition: usize,
        subscription: u64,
        tag: u64,
        unreadable: Box<Unreadable>,
    ) {
        self.broker.park(&self.hop, &queue, unreadable).await;
        lock(&self.partitions).parked(partition, subscription, tag);
    }

    /// Steps back from what is more than this receiver's share, until the receiver is gone.
    async fn keep_sharing(self: Arc<Self>, stop: CancellationToken) {
        let mut outage = Outage::new(format!("counting the receivers of {}", self.hop.name));
        while let Some(session) = stop.run_until_cancelled(self.broker.receiving.up()).await {
            let Err(failure) = self.share(&session, &stop, &mut outage).await else { return };
            stop.run_until_cancelled(failed(&self.hop, &session, &failure, &mut outage)).await;
        }
    }

    /// A partition's own consumers can't be counted: of a queue with a single active consumer the broker counts only that
    /// one (checked on 3.10.8). So all receivers also consume a queue that stays empty.
    ///
    /// Ends without a failure when the receiver is gone.
    async fn share(
        &self,
        session: &Session,
        stop: &CancellationToken,
        outage: &mut Outage,
    ) -> Result<(), Failure> {
        let queue = self.broker.layout.receivers(&self.hop);
        let (channel, _counted) = subscribe(&self.broker, session, &self.hop, &queue, 1).await?;
        outage.ended();
        let mut before = 0;
        while stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_some() {
            let receivers = consumers(&channel, &queue).await? as usize;
            // Not on a number that only one look has seen.
            if receivers == before {
                let mut partitions = lock(&self.partitions);
                let held = partitions.held();
                let leaving = share::to_leave(held, self.broker.layout.partitions() as usize, receivers);
                if leaving > 0 {
                    tracing::info!(hop = self.hop.name, receivers, held, leaving, "sharing partitions");
                    partitions.leave(leaving);
                }
            }
            before = receivers;
        }
        close(&channel).await;
        Ok(())
    }
}
