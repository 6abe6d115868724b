//! A hop in memory, ordered by room. It is empty after a restart; the intake's open entries fill it again.
//!
//! Rooms are spread over partitions. A partition with an unsettled delivery is closed, and what is given back takes
//! its old place in the partition's order: so a room's events are never in two hands, and never overtake each other.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::bus::{Delivery, Ledger, Queue, Receipt, Receiver, Verdict};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::hops::Payload;
use naru_model::{Event, partition_of};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::database::{ENGINE, lock};

pub(crate) struct MemoryQueue<T: Payload>(Arc<Shared<T>>);

struct Shared<T: Payload> {
    /// One permit for each event that may still be sent (B7).
    room: Semaphore,
    capacity: u32,
    state: Mutex<State<T>>,
    changed: Notify,
}

struct State<T: Payload> {
    partitions: Vec<Partition<T>>,
    /// By tag, which is the event's place in the order of sending.
    in_flight: HashMap<u64, InFlight<T>>,
    next_tag: u64,
    next_receiver: u64,
    /// Where the next batch begins, so that no partition is served first for ever.
    turn: usize,
}

struct Partition<T: Payload> {
    waiting: BTreeMap<u64, Entry<T>>,
    unsettled: usize,
    blocked_until: Option<Instant>,
}

struct Entry<T: Payload> {
    attempt: u32,
    event: Event<T>,
}

struct InFlight<T: Payload> {
    receiver: u64,
    partition: usize,
    entry: Entry<T>,
}

impl<T: Payload> MemoryQueue<T> {
    pub(crate) fn new(partitions: u32, capacity: u32) -> Self {
        let partition = |_| Partition { waiting: BTreeMap::new(), unsettled: 0, blocked_until: None };
        let state = State {
            partitions: (0..partitions.max(1)).map(partition).collect(),
            in_flight: HashMap::new(),
            next_tag: 0,
            next_receiver: 0,
            turn: 0,
        };
        Self(Arc::new(Shared {
            room: Semaphore::new(capacity.max(1) as usize),
            capacity: capacity.max(1),
            state: Mutex::new(state),
            changed: Notify::new(),
        }))
    }
}

impl<T: Payload> State<T> {
    fn push(&mut self, event: Event<T>) {
        let partitions = u32::try_from(self.partitions.len()).unwrap_or(u32::MAX);
        let partition = partition_of(event.payload.room(), partitions) as usize;
        self.partitions[partition].waiting.insert(self.next_tag, Entry { attempt: 1, event });
        self.next_tag += 1;
    }

    /// Everything that waits in open partitions, at most `most`. When that is nothing: when to look again, if only
    /// time stands in the way.
    fn take(
        &mut self,
        receiver: u64,
        most: usize,
        now: Instant,
    ) -> Result<Vec<(u64, Entry<T>)>, Option<Instant>> {
        let (mut batch, mut opens_at) = (Vec::new(), None::<Instant>);
        let count = self.partitions.len();
        for partition in (self.turn..self.turn + count).map(|turn| turn % count) {
            let this = &mut self.partitions[partition];
            if this.unsettled > 0 || this.waiting.is_empty() {
                continue;
            }
            if let Some(until) = this.blocked_until.filter(|until| now < *until) {
                opens_at = Some(opens_at.map_or(until, |other| other.min(until)));
                continue;
            }
            this.blocked_until = None;
            self.turn = partition + 1;
            while batch.len() < most
                && let Some((tag, entry)) = this.waiting.pop_first()
            {
                this.unsettled += 1;
                batch.push((tag, Entry { attempt: entry.attempt, event: entry.event.clone() }));
                self.in_flight.insert(tag, InFlight { receiver, partition, entry });
            }
            if batch.len() >= most {
                break;
            }
        }
        if batch.is_empty() { Err(opens_at) } else { Ok(batch) }
    }

    /// Settles what this receiver holds under this tag; `None` if it holds nothing.
    fn settle(&mut self, receiver: u64, tag: u64, verdict: Verdict) -> Option<()> {
        self.in_flight.get(&tag).filter(|held| held.receiver == receiver)?;
        let InFlight { partition, mut entry, .. } = self.in_flight.remove(&tag)?;
        let partition = &mut self.partitions[partition];
        partition.unsettled -= 1;
        match verdict {
            Verdict::Done => return Some(()),
            Verdict::GiveBack => {}
            Verdict::RetryAfter(delay) => {
                entry.attempt += 1;
                partition.blocked_until = partition.blocked_until.max(Some(Instant::now() + delay));
            }
        }
        partition.waiting.insert(tag, entry);
        Some(())
    }
}

#[async_trait]
impl<T: Payload> Queue<T> for MemoryQueue<T> {
    async fn send(&self, mut events: Vec<Event<T>>) -> EngineResult<()> {
        let shared = &self.0;
        while !events.is_empty() {
            let count = u32::try_from(events.len()).unwrap_or(u32::MAX).min(shared.capacity);
            let permits = shared.room.acquire_many(count).await;
            permits.map_err(|error| EngineError::unavailable(ENGINE, Applied::No, error))?.forget();
            let mut state = lock(&shared.state);
            events.drain(..count as usize).for_each(|event| state.push(event));
            drop(state);
            shared.changed.notify_waiters();
        }
        Ok(())
    }

    async fn send_later(&self, _: Duration, _: Vec<Event<T>>) -> EngineResult<()> {
        Err(super::not_for_later())
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>> {
        let mut state = lock(&self.0.state);
        state.next_receiver += 1;
        let ledger = MemoryLedger { shared: self.0.clone(), receiver: state.next_receiver };
        Ok(Box::new(MemoryReceiver(Arc::new(ledger))))
    }
}

struct MemoryReceiver<T: Payload>(Arc<MemoryLedger<T>>);

#[async_trait]
impl<T: Payload> Receiver<T> for MemoryReceiver<T> {
    async fn receive(&mut self, most: usize) -> EngineResult<Vec<Delivery<T>>> {
        let MemoryLedger { shared, receiver } = &*self.0;
        loop {
            let mut changed = std::pin::pin!(shared.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let taken = lock(&shared.state).take(*receiver, most.max(1), Instant::now());
            match taken {
                Ok(batch) => {
                    let deliver = |(tag, Entry { attempt, event })| Delivery {
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
        let MemoryLedger { shared, receiver } = &*self.0;
        let mut state = lock(&shared.state);
        let held = state.in_flight.iter().filter(|(_, held)| held.receiver == *receiver);
        for tag in held.map(|(tag, _)| *tag).collect::<Vec<_>>() {
            state.settle(*receiver, tag, Verdict::GiveBack);
        }
        drop(state);
        shared.changed.notify_waiters();
    }
}

/// What one receiver holds.
struct MemoryLedger<T: Payload> {
    shared: Arc<Shared<T>>,
    receiver: u64,
}

impl<T: Payload> fmt::Debug for MemoryLedger<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryLedger").field("receiver", &self.receiver).finish_non_exhaustive()
    }
}

#[async_trait]
impl<T: Payload> Ledger for MemoryLedger<T> {
    async fn settle(&self, verdicts: Vec<(u64, Verdict)>) -> EngineResult<()> {
        let (mut done, mut unknown) = (0, false);
        let mut state = lock(&self.shared.state);
        for (tag, verdict) in verdicts {
            match state.settle(self.receiver, tag, verdict) {
                Some(()) => done += usize::from(verdict == Verdict::Done),
                None => unknown |= verdict != Verdict::GiveBack,
            }
        }
        drop(state);
        self.shared.room.add_permits(done);
        self.shared.changed.notify_waiters();
        if unknown { Err(super::given_back()) } else { Ok(()) }
    }

    fn dropped(&self, tag: u64) {
        lock(&self.shared.state).settle(self.receiver, tag, Verdict::GiveBack);
        self.shared.changed.notify_waiters();
    }
}
