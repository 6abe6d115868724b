//! The waiting and the unacknowledged ("in hand") events of a queue: the bookkeeping that all engines share. It never
//! waits and does no input or output.
//!
//! On an ordered hop nothing is taken of a partition while an event of it is in hand, and a redelivered event takes its old
//! place: so two workers never have events of one room at once, and its events keep their order.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use naru_model::Event;
use naru_model::hops::{Kind, Payload};
use tokio::time::Instant;

/// The events of one queue, or of one receiver's part of it.
#[derive(Debug)]
pub struct Inbox<T: Payload> {
    kind: Kind,
    partitions: Vec<Partition<T>>,
    /// By tag.
    in_hand: HashMap<u64, Place<T>>,
    /// The next tag, or place.
    next_number: u64,
    /// The partition where the next batch begins, so that none is always served first.
    turn: usize,
}

#[derive(Debug)]
struct Partition<T: Payload> {
    /// By place, which is their order.
    waiting: BTreeMap<u64, Waiting<T>>,
    in_hand: usize,
    blocked_until: Option<Instant>,
    /// No event is taken of it.
    is_closed: bool,
    /// How often it was cleared: events that were in hand then are discarded.
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

/// An event that is no longer in hand, and the place where it had been waiting. If its partition was cleared meanwhile, it
/// can't wait there again.
#[derive(Debug)]
pub struct Place<T: Payload> {
    pub partition: usize,
    /// Its place in the partition, as pushed.
    pub place: u64,
    pub event: Event<T>,
    /// The number of that attempt.
    pub attempt: u32,
    generation: u64,
}

/// Events that are no longer in hand.
#[derive(Debug)]
pub struct Removed<T: Payload> {
    /// The events that were in hand.
    pub places: Vec<Place<T>>,
    /// Some were not: their partition was cleared, and they are redelivered.
    pub some_are_gone: bool,
}

impl<T: Payload> Inbox<T> {
    /// An empty inbox. For a durable hop one partition is enough.
    pub fn new(kind: Kind, partitions: u32) -> Self {
        let partition = |_| Partition {
            waiting: BTreeMap::new(),
            in_hand: 0,
            blocked_until: None,
            is_closed: false,
            generation: 0,
        };
        Self {
            kind,
            partitions: (0..partitions.max(1)).map(partition).collect(),
            in_hand: HashMap::new(),
            next_number: 0,
            turn: 0,
        }
    }

    /// Adds an event behind all others of its partition.
    pub fn push_last(&mut self, partition: usize, event: Event<T>) {
        let place = self.next_number;
        self.next_number += 1;
        self.push(partition, place, event, 1, None);
    }

    /// Adds an event at a place, to be taken from `due` on. The caller chooses all places of an inbox, or none.
    pub fn push(
        &mut self,
        partition: usize,
        place: u64,
        event: Event<T>,
        attempt: u32,
        due: Option<Instant>,
    ) {
        self.partitions[partition].waiting.insert(place, Waiting { event, attempt, due });
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
            let is_in_hand = self.kind == Kind::Ordered && this.in_hand > 0;
            if this.is_closed || is_in_hand || this.waiting.is_empty() {
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
                .map(|(place, _)| *place)
                .take(max - batch.len())
                .collect();
            if due.is_empty() {
                let next = this.waiting.values().filter_map(|waiting| waiting.due).min();
                opens_at = opens_at.into_iter().chain(next).min();
            }
            for place in due {
                let Some(Waiting { event, attempt, .. }) = this.waiting.remove(&place) else { continue };
                let tag = self.next_number;
                self.next_number += 1;
                this.in_hand += 1;
                batch.push(Taken { tag, event: event.clone(), attempt });
                let place = Place { partition, place, event, attempt, generation: this.generation };
                self.in_hand.insert(tag, place);
            }
            if batch.len() >= max {
                break;
            }
        }
        if batch.is_empty() { Err(opens_at) } else { Ok(batch) }
    }

    /// Removes these from those in hand: they are acknowledged, or will be retried or restored.
    pub fn remove(&mut self, tags: impl IntoIterator<Item = u64>) -> Removed<T> {
        let mut removed = Removed { places: Vec::new(), some_are_gone: false };
        for tag in tags {
            let Some(place) = self.in_hand.remove(&tag) else {
                removed.some_are_gone = true;
                continue;
            };
            let partition = &mut self.partitions[place.partition];
            partition.in_hand -= 1;
            if partition.generation == place.generation {
                removed.places.push(place);
            } else {
                removed.some_are_gone = true;
            }
        }
        removed
    }

    /// Puts a removed event back at its old place, for one more attempt after a delay: on an ordered hop the whole partition
    /// is delayed.
    pub fn retry(&mut self, place: Place<T>, after: Duration, now: Instant) {
        let due = now + after;
        let this = &mut self.partitions[place.partition];
        if self.kind == Kind::Ordered && this.generation == place.generation {
            this.blocked_until = this.blocked_until.max(Some(due));
        }
        let due = (self.kind == Kind::Durable && !after.is_zero()).then_some(due);
        self.wait_again(Place { attempt: place.attempt + 1, ..place }, due);
    }

    /// Puts the events of dropped deliveries back at their old places, as if they had not been taken.
    pub fn put_back(&mut self, tags: impl IntoIterator<Item = u64>) {
        self.remove(tags).places.into_iter().for_each(|place| self.wait_again(place, None));
    }

    fn wait_again(&mut self, place: Place<T>, due: Option<Instant>) {
        let Place { partition, place, event, attempt, generation } = place;
        if self.partitions[partition].generation == generation {
            self.push(partition, place, event, attempt, due);
        }
    }

    /// Discards a partition's waiting events, and those in hand once they are removed. Opens the partition again.
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

    /// How many events of a partition are in hand.
    pub fn in_hand(&self, partition: usize) -> usize {
        self.partitions[partition].in_hand
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
        self.in_hand.clear();
        self.partitions.iter_mut().for_each(|partition| partition.in_hand = 0);
    }
}
