//! What of a queue waits and what is in a worker's hands: the one bookkeeping that all engines share. It never waits and
//! does no input or output.
//!
//! On an ordered hop a partition is closed while anything of it is in hand, and what comes again takes its old place: so
//! a room is never in two hands, and its events never overtake each other.

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
    /// Where the next batch begins, so that no partition is served first for ever.
    turn: usize,
}

#[derive(Debug)]
struct Partition<T: Payload> {
    /// By place, which is their order.
    waiting: BTreeMap<u64, Waiting<T>>,
    in_hand: usize,
    blocked_until: Option<Instant>,
    /// Nothing more is taken of it.
    is_closed: bool,
    /// Counts how often it was cleared: what was in hand then is forgotten.
    generation: u64,
}

#[derive(Debug)]
struct Waiting<T: Payload> {
    event: Event<T>,
    attempt: u32,
    /// On durable hops: not before.
    due: Option<Instant>,
}

/// An event that was taken.
#[derive(Debug)]
pub struct Taken<T: Payload> {
    /// What its receipt says.
    pub tag: u64,
    pub event: Event<T>,
    /// Which try this is.
    pub attempt: u32,
}

/// An event that is in hand no longer, and where it had been waiting. If that was cleared meanwhile, it waits there no
/// more, whatever is asked.
#[derive(Debug)]
pub struct Place<T: Payload> {
    pub partition: usize,
    /// Its place there, as it was pushed.
    pub place: u64,
    pub event: Event<T>,
    /// Which try it was.
    pub attempt: u32,
    generation: u64,
}

/// What was taken out of a worker's hands.
#[derive(Debug)]
pub struct Removed<T: Payload> {
    /// Those that were there.
    pub places: Vec<Place<T>>,
    /// Some were not: their partition was cleared, and they come again.
    pub some_are_gone: bool,
}

impl<T: Payload> Inbox<T> {
    /// An empty one. Of a durable hop one partition is enough.
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

    /// An event waits behind all others of its partition.
    pub fn push_last(&mut self, partition: usize, event: Event<T>) {
        let place = self.next_number;
        self.next_number += 1;
        self.push(partition, place, event, 1, None);
    }

    /// An event waits at a place, from `due` on. Places are the caller's: of one inbox all, or none.
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

    /// What may be taken now, at most `max`. When that is nothing: when to look again, if only time stands in
    /// the way.
    ///
    /// # Errors
    /// Nothing may be taken.
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

    /// Takes these out of a worker's hands: they are acknowledged, or will be retried or restored.
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

    /// A removed event waits at its old place again, for one more attempt, after a delay: on an ordered hop the whole
    /// partition does.
    pub fn retry(&mut self, place: Place<T>, after: Duration, now: Instant) {
        let due = now + after;
        let this = &mut self.partitions[place.partition];
        if self.kind == Kind::Ordered && this.generation == place.generation {
            this.blocked_until = this.blocked_until.max(Some(due));
        }
        let due = (self.kind == Kind::Durable && !after.is_zero()).then_some(due);
        self.wait_again(Place { attempt: place.attempt + 1, ..place }, due);
    }

    /// Deliveries were dropped: their events wait at their old places again, as if they had not been taken.
    pub fn put_back(&mut self, tags: impl IntoIterator<Item = u64>) {
        self.remove(tags).places.into_iter().for_each(|place| self.wait_again(place, None));
    }

    fn wait_again(&mut self, place: Place<T>, due: Option<Instant>) {
        let Place { partition, place, event, attempt, generation } = place;
        if self.partitions[partition].generation == generation {
            self.push(partition, place, event, attempt, due);
        }
    }

    /// Forgets a partition: what waits, and, once it is removed, what is in hand. It opens again.
    pub fn clear(&mut self, partition: usize) {
        let this = &mut self.partitions[partition];
        this.waiting.clear();
        this.blocked_until = None;
        this.is_closed = false;
        this.generation += 1;
    }

    /// Takes nothing more of a partition, until it is cleared or opened.
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

    /// The attempt of the event that comes next in a partition; none when nothing waits there.
    pub fn next_attempt(&self, partition: usize) -> Option<u32> {
        self.partitions[partition].waiting.first_key_value().map(|(_, waiting)| waiting.attempt)
    }

    pub fn clear_all(&mut self) {
        (0..self.partitions.len()).for_each(|partition| self.clear(partition));
        self.in_hand.clear();
        self.partitions.iter_mut().for_each(|partition| partition.in_hand = 0);
    }
}
