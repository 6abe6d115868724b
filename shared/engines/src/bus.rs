//! What carries work from worker to worker. An engine may carry it in memory, in a table or in a broker; exchanges,
//! wait queues and SQL never show here.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use naru_model::Event;
use naru_model::hops::{Accepted, Lane, Offline, Owed, Payload, PushJob, PushOutcome, Saved};
use tokio::task::JoinSet;

use crate::EngineResult;

/// Every hop of `naru_model::hops`, each a queue of its own payload.
#[derive(Clone)]
pub struct Bus {
    /// gateway → persister.
    pub accepted: Arc<dyn Queue<Accepted>>,
    /// persister → fanout.
    pub saved: Arc<dyn Queue<Saved>>,
    /// fanout → notifier.
    pub offline: Arc<dyn Queue<Offline>>,
    /// fanout → notifier, after the grace time.
    pub owed: Arc<dyn Queue<Owed>>,
    /// notifier → its FCM lane.
    pub push_fcm: Arc<dyn Queue<PushJob>>,
    /// notifier → its APNs lane.
    pub push_apns: Arc<dyn Queue<PushJob>>,
    /// notifier → its webhook lane.
    pub push_webhook: Arc<dyn Queue<PushJob>>,
    /// notifier → whoever follows a push.
    pub outcome: Arc<dyn Queue<PushOutcome>>,
}

impl Bus {
    /// The queue of a push lane.
    pub fn push(&self, lane: Lane) -> &Arc<dyn Queue<PushJob>> {
        match lane {
            Lane::Fcm => &self.push_fcm,
            Lane::Apns => &self.push_apns,
            Lane::Webhook => &self.push_webhook,
        }
    }
}

/// One hop's queue.
///
/// - **B1 handed over** – an event that `send` answered `Ok` for is delivered to a receiver, and delivered again until
///   it is settled as done. (On a re-derivable hop an engine may lose it when a process dies.)
/// - **B2 durable** – on a durable hop it survives the death of any process; on a newest-only hop too, but for B8.
/// - **B3 at least once** – an event may be delivered more than once, with the same `event_id`.
/// - **B4 order** – on a hop ordered by room, events of one room come in the order they were sent while one receiver
///   has the room; events of one room are never in two unsettled batches at once; an event that is given back or
///   retried there comes again before later ones of its room. A hand-over to another receiver may reorder.
/// - **B5 delay** – `send_later` delivers not before the delay is over, and soon after (within a second when idle).
/// - **B6 shared** – receivers of one queue share its events: each event goes to one of them.
/// - **B7 bounded** – a queue that can't take more makes `send` wait rather than grow without bound. (A
///   newest-only hop: B8.)
/// - **B8 newest** – on a newest-only hop `send` never waits for a receiver: when it is full, its oldest events make place
///   for the newest, settled or not.
#[async_trait]
pub trait Queue<T: Payload>: Send + Sync {
    /// Hands events over, in order; returns when the engine has them (B1, B2, B7).
    async fn send(&self, events: Vec<Event<T>>) -> EngineResult<()>;

    /// The same, to be delivered after a delay (B5). For durable hops; others refuse.
    async fn send_later(&self, delay: Duration, events: Vec<Event<T>>) -> EngineResult<()>;

    /// A new receiver of this queue.
    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>>;
}

/// A worker's end of a queue.
///
/// - **C1 batches** – `receive` waits until there is something, then answers what is there, at most `most`; of a room
///   with an unsettled batch it answers nothing (B4). Cancelling the future loses nothing.
/// - **C2 given back** – what is not settled when its delivery or the receiver is dropped is delivered again.
#[async_trait]
pub trait Receiver<T: Payload>: Send {
    /// See C1. Never empty.
    async fn receive(&mut self, most: usize) -> EngineResult<Vec<Delivery<T>>>;
}

/// A worker's loop: takes batches of at most `most` from a queue and works on them side by side (a room is never in two of
/// them, see B4) until `stop`; then finishes those in hand.
///
/// # Errors
/// When the queue can't be received from; the batches in hand are dropped, and so given back.
pub async fn work_on<T, Work>(
    queue: &dyn Queue<T>,
    most: usize,
    stop: impl Future<Output = ()>,
    mut work: impl FnMut(Vec<Delivery<T>>) -> Work,
) -> EngineResult<()>
where
    T: Payload,
    Work: Future<Output = ()> + Send + 'static,
{
    let mut receiver = queue.receiver().await?;
    let mut batches = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        while batches.try_join_next().is_some() {}
        let deliveries = tokio::select! {
            () = &mut stop => break,
            deliveries = receiver.receive(most) => deliveries?,
        };
        batches.spawn(work(deliveries));
    }
    while batches.join_next().await.is_some() {}
    Ok(())
}

/// An event in a worker's hands. It must be settled; dropped, it is given back.
#[must_use = "a delivery that is not settled comes again"]
#[derive(Debug)]
pub struct Delivery<T: Payload> {
    /// The event.
    pub event: Event<T>,
    /// Which try this is, from 1. It counts [`Verdict::RetryAfter`], not crashes.
    pub attempt: u32,
    /// What settles it.
    pub receipt: Receipt,
}

/// What a worker says of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its effect has happened: never again. Said after the effect, not before.
    Done,
    /// Again, after this long.
    RetryAfter(Duration),
    /// Again, at once, perhaps to another receiver.
    GiveBack,
}

/// Where an engine is told of verdicts.
///
/// - **S1 after the effect** – a delivery said to be `Done` is not delivered again.
/// - **S2 retried** – one said to be `RetryAfter` comes again not before that long, with `attempt` one higher.
/// - **S3 given back** – one said to be `GiveBack`, or dropped, comes again soon, with the same `attempt`.
#[async_trait]
pub trait Ledger: Send + Sync + std::fmt::Debug {
    /// Takes verdicts on tags.
    async fn settle(&self, verdicts: Vec<(u64, Verdict)>) -> EngineResult<()>;

    /// A delivery was dropped without a verdict.
    fn dropped(&self, tag: u64);
}

/// The right and the duty to settle one delivery.
#[must_use = "a receipt that is not settled gives its delivery back"]
#[derive(Debug)]
pub struct Receipt {
    tag: u64,
    ledger: Option<Arc<dyn Ledger>>,
}

impl Receipt {
    /// For engines: the receipt of the delivery that `ledger` knows as `tag`.
    pub fn new(tag: u64, ledger: Arc<dyn Ledger>) -> Self {
        Self { tag, ledger: Some(ledger) }
    }

    /// Settles this one.
    ///
    /// # Errors
    /// When the engine can't be told; the delivery then comes again.
    pub async fn settle(self, verdict: Verdict) -> EngineResult<()> {
        settle(vec![self], verdict).await
    }

    fn redeem(mut self) -> Option<(Arc<dyn Ledger>, u64)> {
        let ledger = self.ledger.take()?;
        Some((ledger, self.tag))
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(ledger) = self.ledger.take() {
            ledger.dropped(self.tag);
        }
    }
}

/// Settles many deliveries of one receiver with one verdict, in one round trip.
///
/// # Errors
/// When the engine can't be told; the deliveries then come again.
pub async fn settle(receipts: Vec<Receipt>, verdict: Verdict) -> EngineResult<()> {
    let redeemed: Vec<_> = receipts.into_iter().filter_map(Receipt::redeem).collect();
    let Some((ledger, _)) = redeemed.first() else { return Ok(()) };
    let ledger = ledger.clone();
    debug_assert!(
        redeemed.iter().all(|(other, _)| Arc::ptr_eq(&ledger, other)),
        "receipts of one call come from one receiver"
    );
    ledger.settle(redeemed.into_iter().map(|(_, tag)| (tag, verdict)).collect()).await
}
