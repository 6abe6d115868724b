//! Receiving a free hop.
//!
//! One subscription on one channel; several receivers compete. What is given back goes back to the broker. A retry is
//! published to a wait queue, confirmed, and only then acked. What if the process dies here? Before the confirm: the broker
//! delivers it again, with the same attempt. Between confirm and ack: it comes at once and once more after the delay.
//!
//! The broker closes a channel that holds a delivery for half an hour. A receiver that is not asked for long gives back what
//! it has buffered, and takes no more until it is asked again: nothing lies here while another receiver could work on it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::ReadyChunks;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicNackOptions};
use lapin::types::ShortString;
use lapin::{Channel, Consumer};
use naru_engines::bus::{Delivery, Ledger, Receipt, Receiver, Verdict};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::hops::{Hop, Payload};
use naru_model::{Event, Timestamp};
use tokio::sync::Notify;
use tokio::time::{Instant, interval, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::ENGINE;
use crate::begun::Begun;
use crate::bus::Broker;
use crate::declare::Failure;
use crate::envelope::{self, Incoming, Outgoing, Unreadable};
use crate::link::Session;
use crate::outage::Outage;
use crate::subscription::{CHUNK, close, consume, failed, given_back, lock, subscribe, untold};
use crate::unacked::Unacked;

/// A receiver that was not asked for so long gives back what it has buffered.
const UNASKED: Duration = Duration::from_secs(10);
/// An event that is not due is kept here for at most so long; one that is due later goes round again. It is more than
/// clocks differ, and less than anybody minds.
const KEEP_AT_MOST: Duration = Duration::from_secs(5);

pub(crate) struct FreeReceiver<T: Payload> {
    ledger: Arc<FreeLedger<T>>,
    /// Its subscription ends with it.
    _subscription: DropGuard,
}

struct Shared<T: Payload> {
    hop: Hop,
    queue: ShortString,
    broker: Arc<Broker>,
    buffer: Mutex<Buffer<T>>,
    /// There is more to receive.
    changed: Notify,
    /// Somebody wants to receive.
    asked: Notify,
}

/// What one receiver holds.
struct Buffer<T: Payload> {
    /// The subscription, and the number of those before it. None between two subscriptions.
    channel: Option<Channel>,
    subscription: u64,
    /// Delivered and not in hand, by delivery tag.
    waiting: BTreeMap<u64, Entry<T>>,
    unacked: Unacked,
    /// By receipt.
    in_hand: HashMap<u64, InHand<T>>,
    next_receipt: u64,
    /// Whether somebody waits in `receive`, and when somebody last did.
    asking: bool,
    asked_at: Instant,
    /// Why the queue can't be received from, if it never will.
    refused: Option<String>,
}

struct Entry<T: Payload> {
    attempt: u32,
    event: Event<T>,
    due: Option<Instant>,
}

/// Only ever of the present subscription.
struct InHand<T: Payload> {
    tag: u64,
    entry: Entry<T>,
}

type Answer = Begun<lapin::Result<()>>;

impl<T: Payload> Buffer<T> {
    /// The subscription has ended, or will: the broker delivers what is not acked again.
    fn end(&mut self) {
        self.channel = None;
        self.subscription += 1;
        self.waiting.clear();
        self.unacked = Unacked::default();
        self.in_hand.clear();
    }

    /// Everything that is due, at most `most`. When that is nothing: when the next one is.
    fn take(&mut self, most: usize, now: Instant) -> Result<Vec<(u64, Entry<T>)>, Option<Instant>> {
        let due: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, entry)| entry.due.is_none_or(|due| due <= now))
            .map(|(tag, _)| *tag)
            .take(most)
            .collect();
        if due.is_empty() {
            return Err(self.waiting.values().filter_map(|entry| entry.due).min());
        }
        let mut batch = Vec::with_capacity(due.len());
        for tag in due {
            let Some(entry) = self.waiting.remove(&tag) else { continue };
            let receipt = self.next_receipt;
            self.next_receipt += 1;
            batch.push((receipt, Entry { event: entry.event.clone(), ..entry }));
            self.in_hand.insert(receipt, InHand { tag, entry });
        }
        Ok(batch)
    }

    /// Acks are put in line while the buffer is locked: in another order they would not be true. None of a subscription
    /// that has ended.
    fn ack(&mut self, subscription: u64, tags: Vec<u64>) -> Option<Vec<Answer>> {
        let channel = self.channel.clone().filter(|_| self.subscription == subscription)?;
        let begin = |channel: Channel, tag, multiple| {
            Begun::begin(async move { channel.basic_ack(tag, BasicAckOptions { multiple }).await })
        };
        let acks = self.unacked.done(tags).into_iter();
        Some(acks.map(|ack| begin(channel.clone(), ack.tag, ack.multiple)).collect())
    }

    /// Gives these back to the broker. Of a subscription that has ended, that has happened.
    fn give_back(&mut self, subscription: u64, tags: Vec<u64>) {
        let Some(channel) = self.channel.clone().filter(|_| self.subscription == subscription) else {
            return;
        };
        for tag in tags {
            self.unacked.given_back(tag);
            let channel = channel.clone();
            let options = BasicNackOptions { requeue: true, multiple: false };
            // Not awaited: what is not given back now is given back with the channel.
            drop(Begun::begin(async move { channel.basic_nack(tag, options).await }));
        }
    }
}

impl<T: Payload> FreeReceiver<T> {
    /// Subscribes, now or when there is a connection.
    pub(crate) fn open(hop: Hop, broker: Arc<Broker>) -> Self {
        let buffer = Buffer {
            channel: None,
            subscription: 0,
            waiting: BTreeMap::new(),
            unacked: Unacked::default(),
            in_hand: HashMap::new(),
            next_receipt: 0,
            asking: false,
            asked_at: Instant::now(),
            refused: None,
        };
        let shared = Arc::new(Shared {
            hop,
            queue: broker.layout.queue(&hop),
            broker,
            buffer: Mutex::new(buffer),
            changed: Notify::new(),
            asked: Notify::new(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(shared.clone().keep_subscribed(stop.clone()));
        Self { ledger: Arc::new(FreeLedger(shared)), _subscription: stop.drop_guard() }
    }
}

/// Somebody waits in `receive`.
struct Asking<'a, T: Payload>(&'a Shared<T>);

impl<'a, T: Payload> Asking<'a, T> {
    fn begin(shared: &'a Shared<T>) -> Self {
        lock(&shared.buffer).asking = true;
        shared.asked.notify_waiters();
        Self(shared)
    }
}

impl<T: Payload> Drop for Asking<'_, T> {
    fn drop(&mut self) {
        let mut buffer = lock(&self.0.buffer);
        (buffer.asking, buffer.asked_at) = (false, Instant::now());
    }
}

#[async_trait]
impl<T: Payload> Receiver<T> for FreeReceiver<T> {
    async fn receive(&mut self, most: usize) -> EngineResult<Vec<Delivery<T>>> {
        let ledger = &self.ledger;
        let FreeLedger(shared) = &**ledger;
        let _asking = Asking::begin(shared);
        loop {
            let mut changed = std::pin::pin!(shared.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let taken = {
                let mut buffer = lock(&shared.buffer);
                if let Some(reason) = &buffer.refused {
                    return Err(EngineError::permanent(ENGINE, reason.clone()));
                }
                buffer.take(most.max(1), Instant::now())
            };
            match taken {
                Ok(batch) => {
                    let deliver = |(receipt, Entry { attempt, event, .. })| Delivery {
                        event,
                        attempt,
                        receipt: Receipt::new(receipt, ledger.clone()),
                    };
                    return Ok(batch.into_iter().map(deliver).collect());
                }
                Err(Some(due)) => tokio::select! { () = changed => {}, () = sleep_until(due) => {} },
                Err(None) => changed.await,
            }
        }
    }
}

impl<T: Payload> Drop for FreeReceiver<T> {
    fn drop(&mut self) {
        lock(&self.ledger.0.buffer).end();
    }
}

/// Where one receiver is told of verdicts.
struct FreeLedger<T: Payload>(Arc<Shared<T>>);

impl<T: Payload> fmt::Debug for FreeLedger<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FreeLedger").field("hop", &self.0.hop.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl<T: Payload> Ledger for FreeLedger<T> {
    async fn settle(&self, verdicts: Vec<(u64, Verdict)>) -> EngineResult<()> {
        let Self(shared) = self;
        let (mut done, mut back, mut later) = (Vec::new(), Vec::new(), Vec::new());
        let mut too_late = false;
        let (subscription, acks) = {
            let mut buffer = lock(&shared.buffer);
            for (receipt, verdict) in verdicts {
                match (buffer.in_hand.remove(&receipt), verdict) {
                    (Some(held), Verdict::Done) => done.push(held.tag),
                    (Some(held), Verdict::GiveBack) => back.push(held.tag),
                    (Some(held), Verdict::RetryAfter(delay)) => later.push((held, delay)),
                    (None, verdict) => too_late |= verdict != Verdict::GiveBack,
                }
            }
            let subscription = buffer.subscription;
            let acks = buffer.ack(subscription, done).unwrap_or_default();
            buffer.give_back(subscription, back);
            (subscription, acks)
        };
        let mut outcome = if too_late { Err(given_back()) } else { Ok(()) };
        for ack in acks {
            outcome = outcome.and(ack.end().await.map_err(untold));
        }
        if !later.is_empty() {
            // To its end, though whoever settles may not wait for it: half done, nobody would hold these any more.
            let retrying = tokio::spawn(shared.clone().retry(subscription, later));
            let retried = retrying
                .await
                .unwrap_or_else(|ended| Err(EngineError::unavailable(ENGINE, Applied::Unknown, ended)));
            outcome = outcome.and(retried);
        }
        outcome
    }

    fn dropped(&self, receipt: u64) {
        let mut buffer = lock(&self.0.buffer);
        if let Some(held) = buffer.in_hand.remove(&receipt) {
            let subscription = buffer.subscription;
            buffer.give_back(subscription, vec![held.tag]);
        }
    }
}

impl<T: Payload> Shared<T> {
    /// To the wait queues, then acked. Given back when they can't be reached.
    async fn retry(self: Arc<Self>, subscription: u64, held: Vec<(InHand<T>, Duration)>) -> EngineResult<()> {
        let tags: Vec<u64> = held.iter().map(|(held, _)| held.tag).collect();
        let again = |(held, delay): &(InHand<T>, Duration)| {
            self.broker.later(&self.hop, &held.entry.event, held.entry.attempt + 1, *delay)
        };
        let published = match held.iter().map(again).collect::<EngineResult<Vec<Outgoing>>>() {
            Ok(messages) => self.broker.publish(&self.hop, messages).await,
            Err(error) => Err(error),
        };
        if published.is_err() {
            lock(&self.buffer).give_back(subscription, tags);
            return published;
        }
        let acks = lock(&self.buffer).ack(subscription, tags).ok_or_else(given_back)?;
        let mut outcome = Ok(());
        for ack in acks {
            outcome = outcome.and(ack.end().await.map_err(untold));
        }
        outcome
    }

    /// The subscription, again and again, until the receiver is gone.
    async fn keep_subscribed(self: Arc<Self>, stop: CancellationToken) {
        let mut outage = Outage::new(format!("the subscription to {}", self.queue));
        while let Some(session) = stop.run_until_cancelled(self.broker.receiving.up()).await {
            let Err(failure) = self.subscription(&session, &stop, &mut outage).await else { return };
            if let Failure::Refused { .. } = failure {
                lock(&self.buffer).refused = Some(failure.to_string());
                self.changed.notify_waiters();
            }
            stop.run_until_cancelled(failed(&self.hop, &session, &failure, &mut outage)).await;
        }
    }

    /// Ends without a failure when the receiver is gone.
    async fn subscription(
        self: &Arc<Self>,
        session: &Session,
        stop: &CancellationToken,
        outage: &mut Outage,
    ) -> Result<(), Failure> {
        let prefetch = self.broker.prefetch_free;
        let (channel, consumer) = subscribe(&self.broker, session, &self.hop, &self.queue, prefetch).await?;
        outage.ended();
        let subscription = {
            let mut buffer = lock(&self.buffer);
            buffer.refused = None;
            buffer.channel = Some(channel.clone());
            buffer.subscription
        };
        // What belongs to this subscription ends with it.
        let ends = CancellationToken::new();
        let _ends = ends.clone().drop_guard();
        let serving = self.serve(&channel, consumer, subscription, &ends);
        let ended = stop.run_until_cancelled(serving).await;
        lock(&self.buffer).end();
        close(&channel).await;
        match ended {
            Some(Err(failure)) => Err(failure),
            None => Ok(()),
        }
    }

    async fn serve(
        self: &Arc<Self>,
        channel: &Channel,
        consumer: Consumer,
        subscription: u64,
        ends: &CancellationToken,
    ) -> Result<std::convert::Infallible, Failure> {
        let mut look = interval(UNASKED / 4);
        let mut tag = consumer.tag();
        let mut deliveries = consumer.ready_chunks(CHUNK);
        loop {
            tokio::select! {
                chunk = deliveries.next() => {
                    let chunk = chunk.ok_or(Failure::Cancelled)?;
                    self.take_over(chunk, subscription, ends)?;
                }
                _ = look.tick() => {
                    let unasked = {
                        let buffer = lock(&self.buffer);
                        !buffer.asking && !buffer.waiting.is_empty() && buffer.asked_at.elapsed() >= UNASKED
                    };
                    if unasked {
                        self.pause(channel, &mut deliveries, &tag, subscription, ends).await?;
                        let consumer = consume(channel, &self.queue).await?;
                        tag = consumer.tag();
                        deliveries = consumer.ready_chunks(CHUNK);
                    }
                }
            }
        }
    }

    /// Gives back what is buffered, and returns when somebody asks again. What is in hand stays in hand.
    async fn pause(
        self: &Arc<Self>,
        channel: &Channel,
        deliveries: &mut ReadyChunks<Consumer>,
        tag: &ShortString,
        subscription: u64,
        ends: &CancellationToken,
    ) -> Result<(), Failure> {
        channel.basic_cancel(tag.clone(), BasicCancelOptions::default()).await?;
        // The rest of what was pushed before the broker heard of it.
        while let Some(chunk) = deliveries.next().await {
            self.take_over(chunk, subscription, ends)?;
        }
        let mut asked = std::pin::pin!(self.asked.notified());
        asked.as_mut().enable();
        {
            let mut buffer = lock(&self.buffer);
            let tags = std::mem::take(&mut buffer.waiting).into_keys().collect();
            buffer.give_back(subscription, tags);
            if buffer.asking {
                return Ok(());
            }
        }
        asked.await;
        Ok(())
    }

    /// Takes over what the broker pushed.
    fn take_over(
        self: &Arc<Self>,
        chunk: Vec<lapin::Result<lapin::message::Delivery>>,
        subscription: u64,
        ends: &CancellationToken,
    ) -> Result<(), Failure> {
        let (now, today) = (Instant::now(), Timestamp::now());
        let (mut tags, mut waiting) = (Vec::with_capacity(chunk.len()), Vec::with_capacity(chunk.len()));
        let (mut early, mut unreadable) = (Vec::new(), Vec::new());
        for delivery in chunk {
            let delivery = delivery?;
            let tag = delivery.delivery_tag;
            tags.push(tag);
            match envelope::read(delivery) {
                Ok(Incoming { event, attempt, not_before }) => {
                    let wait = not_before.map_or(Duration::ZERO, |not_before| not_before.since(today));
                    let due = (!wait.is_zero()).then(|| now + wait);
                    let entry = Entry { attempt, event, due };
                    if wait > KEEP_AT_MOST {
                        early.push((tag, entry, wait));
                    } else {
                        waiting.push((tag, entry));
                    }
                }
                Err(message) => unreadable.push((tag, message)),
            }
        }
        {
            let mut buffer = lock(&self.buffer);
            tags.into_iter().for_each(|tag| buffer.unacked.delivered(tag));
            buffer.waiting.extend(waiting);
        }
        self.changed.notify_waiters();
        if !early.is_empty() {
            tokio::spawn(ends.clone().run_until_cancelled_owned(self.clone().go_round(subscription, early)));
        }
        for (tag, message) in unreadable {
            let parking = self.clone().park(subscription, tag, message);
            tokio::spawn(ends.clone().run_until_cancelled_owned(parking));
        }
        Ok(())
    }

    /// Back to the wait queues, for the rest of a delay that is longer than the last rung.
    async fn go_round(self: Arc<Self>, subscription: u64, early: Vec<(u64, Entry<T>, Duration)>) {
        let tags: Vec<u64> = early.iter().map(|(tag, ..)| *tag).collect();
        let again = |(_, entry, wait): &(u64, Entry<T>, Duration)| {
            self.broker.later(&self.hop, &entry.event, entry.attempt, *wait)
        };
        let published = match early.iter().map(again).collect::<EngineResult<Vec<Outgoing>>>() {
            Ok(messages) => self.broker.publish(&self.hop, messages).await,
            Err(error) => Err(error),
        };
        let mut buffer = lock(&self.buffer);
        match published {
            Ok(()) => drop(buffer.ack(subscription, tags)),
            Err(error) => {
                tracing::warn!(hop = self.hop.name, %error, "an event that is not due was given back");
                buffer.give_back(subscription, tags);
            }
        }
    }

    async fn park(self: Arc<Self>, subscription: u64, tag: u64, unreadable: Box<Unreadable>) {
        self.broker.park(&self.hop, &self.queue, unreadable).await;
        // Not awaited: if it does not get there, it is parked once more.
        drop(lock(&self.buffer).ack(subscription, vec![tag]));
    }
}
