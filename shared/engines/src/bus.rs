//! The queues between workers. An engine may keep them in memory, in a table or in a broker; exchanges, wait queues and
//! SQL do not appear here.

#[cfg(test)]
pub(crate) mod fixtures;
mod inbox;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use naru_model::Event;
use naru_model::hops::{Accepted, Lane, Offline, Payload, PushJob, Saved};

pub use self::inbox::{Inbox, Removed, Taken, Unacknowledged};
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
    /// notifier → its FCM lane.
    pub push_fcm: Arc<dyn Queue<PushJob>>,
    /// notifier → its APNs lane.
    pub push_apns: Arc<dyn Queue<PushJob>>,
    /// notifier → its webhook lane.
    pub push_webhook: Arc<dyn Queue<PushJob>>,
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
/// - **B1 delivered** – an event that `send` answered `Ok` for is delivered to a receiver, and delivered again until
///   it is acknowledged. (On an ordered hop an engine may lose it when a process dies.)
/// - **B2 durable** – on a durable hop an event survives the death of any process, and so does the delay of its retry.
/// - **B3 at least once** – an event may be delivered more than once, with the same `event_id`.
/// - **B4 order** – on an ordered hop, events of one room arrive in the order they were sent while one receiver has the
///   room; events of one room are never in two unacknowledged batches at once; an event that is dropped or retried
///   there is redelivered before later ones of its room. A room's reassignment to another receiver may reorder.
/// - **B5 shared** – receivers of one queue share its events: each event goes to one of them.
/// - **B6 bounded** – `send` waits while the engine can't take more events, and fails without an effect on those before if
///   that lasts. The engine sets the bound: its own capacity, a disk or a broker's memory. Embedded ordered hops have one for
///   each queue.
#[async_trait]
pub trait Queue<T: Payload>: Send + Sync {
    /// Enqueues events, in order; returns when the engine has them (B1, B2, B6). An engine carries the events of one
    /// call as one batch: the cost is per batch, not per event.
    async fn send(&self, events: Vec<Event<T>>) -> EngineResult<()>;

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>>;
}

/// A worker's end of a queue.
///
/// - **C1 batches** – `receive` waits until events are there, then answers them, at most `max`; it answers none of a room
///   with an unacknowledged batch (B4). Cancelling the future loses nothing.
/// - **C2 dropped** – an event that is not acknowledged when its delivery is dropped is delivered again; where a broker
///   holds it, when the receiver is dropped.
#[async_trait]
pub trait Receiver<T: Payload>: Send {
    /// The next batch (C1), which is never empty.
    async fn receive(&mut self, max: usize) -> EngineResult<Vec<Delivery<T>>>;
}

/// An event that a worker has received. It must be acknowledged or retried; if dropped, it is redelivered.
#[must_use = "a delivery that is not acknowledged comes again"]
#[derive(Debug)]
pub struct Delivery<T: Payload> {
    pub event: Event<T>,
    /// The number of this attempt, from 1. It counts retries, not crashes.
    pub attempt: u32,
    /// Acknowledges the event.
    pub ack_handle: AckHandle,
}

/// An engine's interface for the outcomes of deliveries.
///
/// - **S1 acknowledged** – an acknowledged delivery is not delivered again, unless its process dies within a moment, or
///   its receiver ends before all that was sent together with it is acknowledged: then it may come with the rest (B3).
/// - **S2 retried** – a retried delivery comes again no sooner than its delay is over, and soon after (within a second
///   when idle), with `attempt` one higher; a long delay does not hold up a short one.
/// - **S3 dropped** – a dropped delivery comes again soon, with the same `attempt`.
#[async_trait]
pub trait Acknowledge: Send + Sync + std::fmt::Debug {
    /// Acknowledges these deliveries.
    async fn ack(&self, tags: Vec<u64>) -> EngineResult<()>;

    /// Redelivers these after a delay.
    async fn retry(&self, tags: Vec<u64>, after: Duration) -> EngineResult<()>;

    /// Redelivers a delivery that was dropped.
    fn dropped(&self, tag: u64);
}

/// The handle that acknowledges one delivery; it must be used.
#[must_use = "an ack handle that is dropped brings its delivery again"]
#[derive(Debug)]
pub struct AckHandle {
    tag: u64,
    engine: Option<Arc<dyn Acknowledge>>,
}

impl AckHandle {
    /// For engines: the ack handle of the delivery with this `tag` of `engine`.
    pub fn new(tag: u64, engine: Arc<dyn Acknowledge>) -> Self {
        Self { tag, engine: Some(engine) }
    }

    fn into_parts(mut self) -> Option<(Arc<dyn Acknowledge>, u64)> {
        let engine = self.engine.take()?;
        Some((engine, self.tag))
    }
}

impl Drop for AckHandle {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.dropped(self.tag);
        }
    }
}

/// Acknowledges deliveries of one receiver, in one round trip. Call it after the effect, not before.
///
/// # Errors
/// When the engine can't be reached; the deliveries then may come again.
pub async fn ack(ack_handles: impl IntoIterator<Item = AckHandle>) -> EngineResult<()> {
    match tags(ack_handles) {
        Some((engine, tags)) => engine.ack(tags).await,
        None => Ok(()),
    }
}

/// Redelivers deliveries of one receiver after a delay, in one round trip.
///
/// # Errors
/// When the engine can't be reached; the deliveries then come again, perhaps at once.
pub async fn retry(ack_handles: impl IntoIterator<Item = AckHandle>, after: Duration) -> EngineResult<()> {
    match tags(ack_handles) {
        Some((engine, tags)) => engine.retry(tags, after).await,
        None => Ok(()),
    }
}

fn tags(ack_handles: impl IntoIterator<Item = AckHandle>) -> Option<(Arc<dyn Acknowledge>, Vec<u64>)> {
    let mut parts = ack_handles.into_iter().filter_map(AckHandle::into_parts);
    let (engine, first) = parts.next()?;
    let rest = parts.map(|(other, tag)| {
        debug_assert!(Arc::ptr_eq(&engine, &other), "ack handles of one call come from one receiver");
        tag
    });
    let tags = std::iter::once(first).chain(rest).collect();
    Some((engine, tags))
}
