//! The loop of every worker: receive a batch, process it, acknowledge it, or retry it.

#[cfg(test)]
mod tests;

use std::pin::pin;
use std::time::Duration;

use naru_model::Event;
use naru_model::hops::Payload;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::EngineResult;
use crate::bus::{AckHandle, Delivery, Queue, ack, retry};

/// How a worker receives batches.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// The worker's name in log lines.
    pub name: &'static str,
    /// The most events in a batch.
    pub max_batch: usize,
    /// The most batches in flight. Meanwhile the next one forms: so batches grow with the load, and a lone event does not
    /// wait for others.
    pub max_in_flight: usize,
    /// The delay before a batch is retried, by its attempt, counted from 1.
    pub backoff: fn(u32) -> Duration,
    /// Whether the store restores events that this queue loses, as it does for an ordered hop: an event that fails by its own
    /// fault is then acknowledged, so that it holds up no other.
    pub is_rederivable: bool,
}

/// The delay of an event that failed by its own fault, on a durable hop: an operator has to repair something first. A
/// second, doubling, up to half an hour.
fn wait_at_fault(attempt: u32) -> Duration {
    Duration::from_secs(1 << attempt.saturating_sub(1).min(11)).min(Duration::from_secs(30 * 60))
}

/// Receives batches from a queue and processes them until `stop`; then finishes those in flight.
///
/// A batch whose `work` succeeded is acknowledged. One that failed is retried after a [backoff](Work::backoff), and where
/// the failure is transient the queue is not read meanwhile: its events would fail, too. A failure that is not transient
/// is the fault of some event: the batch is halved until that event is alone. On a durable hop it is retried by itself, ever
/// more rarely; on one that is [re-derivable](Work::is_rederivable) it is left to the sweep, which does the same.
///
/// # Errors
/// When the queue can't be received from; the batches in flight are dropped, and so redelivered.
pub async fn work_on<T, Done>(
    queue: &dyn Queue<T>,
    options: Work,
    stop: impl Future<Output = ()>,
    work: impl Fn(Vec<Event<T>>) -> Done + Clone + Send + 'static,
) -> EngineResult<()>
where
    T: Payload,
    Done: Future<Output = EngineResult<()>> + Send + 'static,
{
    let mut receiver = queue.receiver().await?;
    let mut stop = pin!(stop);
    let mut in_flight: JoinSet<Option<Duration>> = JoinSet::new();
    let mut paused_until = None;
    loop {
        let is_free = paused_until.is_none() && in_flight.len() < options.max_in_flight.max(1);
        tokio::select! {
            biased;
            () = &mut stop => break,
            Some(ended) = in_flight.join_next() => {
                paused_until = propagate(ended).map(|pause| Instant::now() + pause).max(paused_until);
            }
            () = sleep_until(paused_until.unwrap_or_else(Instant::now)), if paused_until.is_some() => paused_until = None,
            deliveries = receiver.receive(options.max_batch), if is_free => {
                in_flight.spawn(finish(deliveries?, options, work.clone()));
            }
        }
    }
    while let Some(ended) = in_flight.join_next().await {
        propagate(ended);
    }
    Ok(())
}

/// Resumes a batch's panic in the worker.
fn propagate<T: Default>(ended: Result<T, JoinError>) -> T {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(answer) => answer,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // Cancelled with its runtime: the answer is not awaited.
        Err(Err(_)) => T::default(),
    }
}

/// Processes one batch until it is acknowledged or retried. Answers how long not to read the queue: more would fail, too.
async fn finish<T, Done>(
    deliveries: Vec<Delivery<T>>,
    options: Work,
    work: impl Fn(Vec<Event<T>>) -> Done + Send,
) -> Option<Duration>
where
    T: Payload,
    Done: Future<Output = EngineResult<()>> + Send,
{
    let mut pause = None;
    let mut batches = vec![deliveries];
    while let Some(batch) = batches.pop() {
        let attempt = batch.iter().map(|delivery| delivery.attempt).max().unwrap_or(1);
        let events = batch.iter().map(|delivery| delivery.event.clone()).collect();
        match work(events).await {
            Ok(()) => log_unacknowledged(options, ack(ack_handles(batch)).await),
            Err(error) if error.is_transient() => {
                let (delay, worker, events) = ((options.backoff)(attempt), options.name, batch.len());
                tracing::warn!(worker, %error, attempt, events, ?delay, "a batch failed; it comes again");
                pause = pause.max(Some(delay));
                log_unacknowledged(options, retry(ack_handles(batch), delay).await);
            }
            Err(_) if batch.len() > 1 => {
                let mut first = batch;
                let second = first.split_off(first.len() / 2);
                // Batches are popped from the end: this keeps the order of arrival.
                batches.extend([second, first]);
            }
            Err(error) if options.is_rederivable => {
                tracing::error!(worker = options.name, %error, "an event can't be handled; it is left to the sweep");
                log_unacknowledged(options, ack(ack_handles(batch)).await);
            }
            Err(error) => {
                let (delay, worker) = (wait_at_fault(attempt), options.name);
                tracing::error!(worker, %error, attempt, ?delay, "an event can't be handled; it comes again");
                log_unacknowledged(options, retry(ack_handles(batch), delay).await);
            }
        }
    }
    pause
}

fn ack_handles<T: Payload>(batch: Vec<Delivery<T>>) -> impl Iterator<Item = AckHandle> {
    batch.into_iter().map(|delivery| delivery.ack_handle)
}

fn log_unacknowledged(options: Work, answer: EngineResult<()>) {
    if let Err(error) = answer {
        tracing::warn!(worker = options.name, %error, "a batch was not acknowledged; it comes again");
    }
}
