//! The waiting and the unacknowledged (taken, neither acknowledged nor put back) events of a queue: the bookkeeping that all
//! engines share. It never waits and does no input or output.
//!
//! On an ordered hop nothing is taken of a partition while an event of it is unacknowledged, and a redelivered event keeps its
//! key: so two workers never have events of one room at once, and its events keep their order.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use naru_model::Event;
use naru_model::hops::{HopKind, Payload};
use tokio::time::Instant;

/// The events of one queue, or of one receiver's part of it.
#[derive(Debug)]
pub struct Inbox<T: Payload> {
    kind: HopKind,
    partitions: Vec<Partition<T>>,
    /// By tag.
    unacknowledged: HashMap<u64, Unacknowledged<T>>,
    /// The next tag, or key.
    next_number: u64,
    /// The partition where the next batch begins, so that none is always served first.
    turn: usize,
}

#[derive(Debug)]
struct Partition<T: Payload> {
    /// By key, which is their order.
    waiting: BTreeMap<u64, Waiting<T>>,
    unacknowledged: usize,
    blocked_until: Option<Instant>,
    /// No event is taken of it.
    is_closed: bool,
    /// How often it was cleared: events that were unacknowledged then are discarded.
    generation: u64,
}

#[derive(Debug)]
struct Waiting<T: Payload> {
    event: Event<T>,
    attempt: u32,
    /// On durable hops: not taken before.
    due: Option<Instant>,
}

/// An event that was taken.
#[derive(Debug)]
pub struct Taken<T: Payload> {
    /// The tag of its ack handle.
    pub tag: u64,
    pub event: Event<T>,
    /// The number of this attempt.
    pub attempt: u32,
}

/// An event that was taken, and the key under which it had been waiting. If its partition was cleared meanwhile, it can't wait
/// there again.
#[derive(Debug)]
pub struct Unacknowledged<T: Payload> {
    pub partition: usize,
    /// Its key in the partition, as pushed.
    pub key: u64,
    pub event: Event<T>,
    /// The number of that attempt.
    pub attempt: u32,
    generation: u64,
}

/// Events that are no longer unacknowledged.
#[derive(Debug)]
pub struct Removed<T: Payload> {
    /// The events that were unacknowledged.
    pub events: Vec<Unacknowledged<T>>,
    /// Some were not: their partition was cleared, and they are redelivered.
    pub some_are_gone: bool,
}

impl<T: Payload> Inbox<T> {
    /// An empty inbox. For a durable hop one partition is enough.
    pub fn new(kind: HopKind, partitions: u32) -> Self {
        let partition = |_| Partition {
            waiting: BTreeMap::new(),
            unacknowledged: 0,
            blocked_until: None,
            is_closed: false,
            generation: 0,
        };
        Self {
            kind,
            partitions: (0..partitions.max(1)).map(partition).collect(),
            unacknowledged: HashMap::new(),
            next_number: 0,
            turn: 0,
        }
    }

    /// Adds an event behind all others of its partition.
    pub fn push_last(&mut self, partition: usize, event: Event<T>) {
        let key = self.next_number;
        self.next_number += 1;
        self.push(partition, key, event, 1, None);
    }

    /// Adds an event under a key, to be taken from `due` on. The caller chooses all keys of an inbox, or none.
    pub fn push(&mut self, partition: usize, key: u64, event: Event<T>, attempt: u32, due: Option<Instant>) {
        self.partitions[partition].waiting.insert(key, Waiting { event, attempt, due });
    }

    /// Takes the events that may be taken now, at most `max`. The error is when to call again, if an event only has to wait
    /// for its time.
    ///
    /// # Errors
    /// When no event may be taken.
    pub fn take(&mut self, max: usize, now: Instant) -> Result<Vec<Taken<T>>, Option<Instant>> {
        let (mut batch, mut opens_at) = (Vec::new(), None::<Instant>);
        let count = self.partitions.len();
        for partition in (self.turn..self.turn + count).map(|turn| turn % count) {
            let this = &mut self.partitions[partition];
            let is_blocked = self.kind == HopKind::Ordered && this.unacknowledged > 0;
            if this.is_closed || is_blocked || this.waiting.is_empty() {
                continue;
            }
            if let Some(until) = this.blocked_until.filter(|until| now < *until) {
                opens_at = Some(opens_at.map_or(until, |other| other.min(until)));
                continue;
            }
            this.blocked_until = None;
            self.turn = partition + 1;
            let is_due = |waiting: &Waiting<T>| waiting.due.is_none_or(|due| due <= now);
            let due: Vec<u64> = this
                .waiting
                .iter()
                .filter(|(_, waiting)| is_due(waiting))
                .map(|(key, _)| *key)
                .take(max - batch.len())
                .collect();
            if due.is_empty() {
                let next = this.waiting.values().filter_map(|waiting| waiting.due).min();
                opens_at = opens_at.into_iter().chain(next).min();
            }
            for key in due {
                let Some(Waiting { event, attempt, .. }) = this.waiting.remove(&key) else { continue };
                let tag = self.next_number;
                self.next_number += 1;
                this.unacknowledged += 1;
                batch.push(Taken { tag, event: event.clone(), attempt });
                let taken = Unacknowledged { partition, key, event, attempt, generation: this.generation };
                self.unacknowledged.insert(tag, taken);
            }
            if batch.len() >= max {
                break;
            }
        }
        if batch.is_empty() { Err(opens_at) } else { Ok(batch) }
    }

    /// Removes these from the unacknowledged events: they are acknowledged, or will be retried or restored.
    pub fn remove(&mut self, tags: impl IntoIterator<Item = u64>) -> Removed<T> {
        let mut removed = Removed { events: Vec::new(), some_are_gone: false };
        for tag in tags {
            let Some(event) = self.unacknowledged.remove(&tag) else {
                removed.some_are_gone = true;
                continue;
            };
            let partition = &mut self.partitions[event.partition];
            partition.unacknowledged -= 1;
            if partition.generation == event.generation {
                removed.events.push(event);
            } else {
                removed.some_are_gone = true;
            }
        }
        removed
    }

    /// Puts a removed event back under its key, for one more attempt after a delay: on an ordered hop the whole partition is
    /// delayed.
    pub fn retry(&mut self, event: Unacknowledged<T>, after: Duration, now: Instant) {
        let due = now + after;
        let this = &mut self.partitions[event.partition];
        if self.kind == HopKind::Ordered && this.generation == event.generation {
            this.blocked_until = this.blocked_until.max(Some(due));
        }
        let due = (self.kind == HopKind::Durable && !after.is_zero()).then_some(due);
        self.wait_again(Unacknowledged { attempt: event.attempt + 1, ..event }, due);
    }

    /// Puts the events of dropped deliveries back under their keys, as if they had not been taken.
    pub fn put_back(&mut self, tags: impl IntoIterator<Item = u64>) {
        self.remove(tags).events.into_iter().for_each(|event| self.wait_again(event, None));
    }

    fn wait_again(&mut self, unacknowledged: Unacknowledged<T>, due: Option<Instant>) {
        let Unacknowledged { partition, key, event, attempt, generation } = unacknowledged;
        if self.partitions[partition].generation == generation {
            self.push(partition, key, event, attempt, due);
        }
    }

    /// Discards a partition's waiting events, and its unacknowledged ones once they are removed. Opens the partition again.
    pub fn clear(&mut self, partition: usize) {
        let this = &mut self.partitions[partition];
        this.waiting.clear();
        this.blocked_until = None;
        this.is_closed = false;
        this.generation += 1;
    }

    /// Closes a partition, so that no event is taken of it until it is cleared or opened; or opens it.
    pub fn set_closed(&mut self, partition: usize, is_closed: bool) {
        self.partitions[partition].is_closed = is_closed;
    }

    /// How many events of a partition are unacknowledged.
    pub fn unacknowledged(&self, partition: usize) -> usize {
        self.partitions[partition].unacknowledged
    }

    /// How many events wait, in all partitions.
    pub fn waiting(&self) -> usize {
        self.partitions.iter().map(|partition| partition.waiting.len()).sum()
    }

    /// The attempt of the next event in a partition; none when no event waits there.
    pub fn next_attempt(&self, partition: usize) -> Option<u32> {
        self.partitions[partition].waiting.first_key_value().map(|(_, waiting)| waiting.attempt)
    }

    pub fn clear_all(&mut self) {
        (0..self.partitions.len()).for_each(|partition| self.clear(partition));
        self.unacknowledged.clear();
        self.partitions.iter_mut().for_each(|partition| partition.unacknowledged = 0);
    }
}
