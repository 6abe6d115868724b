//! A hop in memory, ordered by room. It is empty after a restart; the intake's open entries fill it again.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::bus::{Acknowledge, Delivery, Inbox, Queue, Receipt, Receiver, Taken};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::hops::{Kind, Payload};
use naru_model::{Event, partition_of};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::database::{ENGINE, lock};

pub(crate) struct MemoryQueue<T: Payload>(Arc<Shared<T>>);

/// Rooms of different partitions can be in different batches at once.
const PARTITIONS: u32 = 32;

struct Shared<T: Payload> {
    max_events: u32,
    /// One permit for each event that may still be sent (B6).
    capacity: Semaphore,
    state: Mutex<State<T>>,
    changed: Notify,
}

struct State<T: Payload> {
    inbox: Inbox<T>,
    next_place: u64,
    next_holder: u64,
}

impl<T: Payload> MemoryQueue<T> {
    pub(crate) fn new(max_events: u32) -> Self {
        let max_events = max_events.max(1);
        let inbox = Inbox::new(Kind::Ordered, PARTITIONS);
        Self(Arc::new(Shared {
            max_events,
            capacity: Semaphore::new(max_events as usize),
            state: Mutex::new(State { inbox, next_place: 0, next_holder: 0 }),
            changed: Notify::new(),
        }))
    }
}

impl<T: Payload> Shared<T> {
    /// Changes the inbox and wakes the receivers.
    fn change<R>(&self, change: impl FnOnce(&mut Inbox<T>) -> R) -> R {
        let answer = change(&mut lock(&self.state).inbox);
        self.changed.notify_waiters();
        answer
    }
}

#[async_trait]
impl<T: Payload> Queue<T> for MemoryQueue<T> {
    async fn send(&self, mut events: Vec<Event<T>>) -> EngineResult<()> {
        let shared = &self.0;
        while !events.is_empty() {
            let count = u32::try_from(events.len()).unwrap_or(u32::MAX).min(shared.max_events);
            let permits = shared.capacity.acquire_many(count).await;
            permits.map_err(|error| EngineError::unavailable(ENGINE, Applied::No, error))?.forget();
            let mut state = lock(&shared.state);
            for event in events.drain(..count as usize) {
                let partition = partition_of(event.payload.room(), PARTITIONS) as usize;
                let place = state.next_place;
                state.next_place += 1;
                state.inbox.push(partition, place, event, 1, None);
            }
            drop(state);
            shared.changed.notify_waiters();
        }
        Ok(())
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>> {
        let mut state = lock(&self.0.state);
        state.next_holder += 1;
        let holder = Holder { shared: self.0.clone(), number: state.next_holder };
        Ok(Box::new(MemoryReceiver(Arc::new(holder))))
    }
}

struct MemoryReceiver<T: Payload>(Arc<Holder<T>>);

#[async_trait]
impl<T: Payload> Receiver<T> for MemoryReceiver<T> {
    async fn receive(&mut self, max: usize) -> EngineResult<Vec<Delivery<T>>> {
        let Holder { shared, number } = &*self.0;
        loop {
            let mut changed = std::pin::pin!(shared.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let taken = lock(&shared.state).inbox.take(*number, max.max(1), Instant::now());
            match taken {
                Ok(batch) => {
                    let deliver = |Taken { tag, event, attempt }| Delivery {
                        event,
                        attempt,
                        receipt: Receipt::new(tag, self.0.clone()),
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

impl<T: Payload> Drop for MemoryReceiver<T> {
    fn drop(&mut self) {
        let Holder { shared, number } = &*self.0;
        shared.change(|inbox| inbox.release(*number));
    }
}

/// One receiver, as its receipts know it.
struct Holder<T: Payload> {
    shared: Arc<Shared<T>>,
    number: u64,
}

impl<T: Payload> fmt::Debug for Holder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holder").field("number", &self.number).finish_non_exhaustive()
    }
}

#[async_trait]
impl<T: Payload> Acknowledge for Holder<T> {
    async fn ack(&self, tags: Vec<u64>) -> EngineResult<()> {
        let removed = self.shared.change(|inbox| inbox.remove(self.number, tags));
        self.shared.capacity.add_permits(removed.places.len());
        if removed.some_are_gone { Err(super::not_in_hand()) } else { Ok(()) }
    }

    async fn retry(&self, tags: Vec<u64>, after: Duration) -> EngineResult<()> {
        let some_are_gone = self.shared.change(|inbox| {
            let removed = inbox.remove(self.number, tags);
            removed.places.into_iter().for_each(|place| inbox.retry(place, after, Instant::now()));
            removed.some_are_gone
        });
        if some_are_gone { Err(super::not_in_hand()) } else { Ok(()) }
    }

    fn dropped(&self, tag: u64) {
        self.shared.change(|inbox| inbox.put_back(self.number, [tag]));
    }
}
