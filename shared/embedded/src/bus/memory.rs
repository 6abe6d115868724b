//! A hop in memory, ordered by room. It is empty after a restart; the intake's open entries fill it again.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::bus::{AckHandle, Acknowledge, Delivery, Inbox, Queue, Receiver, Taken};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::hops::{HopKind, Payload};
use naru_model::{Event, partition_of};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::database::ENGINE;
use crate::lock::lock;

pub(crate) struct MemoryQueue<T: Payload>(Arc<Memory<T>>);

/// Rooms of different partitions can be in different batches at once.
const PARTITIONS: u32 = 32;

struct Memory<T: Payload> {
    max_events: u32,
    /// One permit for each event that may still be sent (B6).
    capacity: Semaphore,
    inbox: Mutex<Inbox<T>>,
    changed: Notify,
}

impl<T: Payload> fmt::Debug for Memory<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("max_events", &self.max_events).finish_non_exhaustive()
    }
}

impl<T: Payload> MemoryQueue<T> {
    pub(crate) fn new(max_events: u32) -> Self {
        let max_events = max_events.max(1);
        Self(Arc::new(Memory {
            max_events,
            capacity: Semaphore::new(max_events as usize),
            inbox: Mutex::new(Inbox::new(HopKind::Ordered, PARTITIONS)),
            changed: Notify::new(),
        }))
    }
}

impl<T: Payload> Memory<T> {
    /// Changes the inbox and wakes the receivers.
    fn change<R>(&self, change: impl FnOnce(&mut Inbox<T>) -> R) -> R {
        let answer = change(&mut lock(&self.inbox));
        self.changed.notify_waiters();
        answer
    }
}

#[async_trait]
impl<T: Payload> Queue<T> for MemoryQueue<T> {
    async fn send(&self, mut events: Vec<Event<T>>) -> EngineResult<()> {
        let memory = &self.0;
        while !events.is_empty() {
            let count = u32::try_from(events.len()).unwrap_or(u32::MAX).min(memory.max_events);
            let permits = memory.capacity.acquire_many(count).await;
            permits.map_err(|error| EngineError::unavailable(ENGINE, Applied::No, error))?.forget();
            memory.change(|inbox| {
                for event in events.drain(..count as usize) {
                    let partition = partition_of(event.payload.room(), PARTITIONS) as usize;
                    inbox.push_last(partition, event);
                }
            });
        }
        Ok(())
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>> {
        Ok(Box::new(MemoryReceiver(self.0.clone())))
    }
}

struct MemoryReceiver<T: Payload>(Arc<Memory<T>>);

#[async_trait]
impl<T: Payload> Receiver<T> for MemoryReceiver<T> {
    async fn receive(&mut self, max: usize) -> EngineResult<Vec<Delivery<T>>> {
        let Self(memory) = self;
        loop {
            let mut changed = std::pin::pin!(memory.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let taken = lock(&memory.inbox).take(max.max(1), Instant::now());
            match taken {
                Ok(batch) => {
                    let deliver = |Taken { tag, event, attempt }| Delivery {
                        event,
                        attempt,
                        ack_handle: AckHandle::new(tag, memory.clone()),
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

#[async_trait]
impl<T: Payload> Acknowledge for Memory<T> {
    async fn ack(&self, tags: Vec<u64>) -> EngineResult<()> {
        let count = self.change(|inbox| inbox.remove(tags).events.len());
        self.capacity.add_permits(count);
        Ok(())
    }

    async fn retry(&self, tags: Vec<u64>, after: Duration) -> EngineResult<()> {
        self.change(|inbox| {
            let removed = inbox.remove(tags);
            removed.events.into_iter().for_each(|event| inbox.retry(event, after, Instant::now()));
        });
        Ok(())
    }

    fn dropped(&self, tag: u64) {
        self.change(|inbox| inbox.put_back([tag]));
    }
}
