//! What one receiver holds of each partition: what the broker has pushed, what is in a worker's hands, what is still to be
//! acked. No waiting and no input or output here; acks are put in line and handed out to be awaited.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lapin::Channel;
use lapin::options::BasicAckOptions;
use naru_engines::bus::Verdict;
use naru_model::Event;
use naru_model::hops::Payload;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::begun::Begun;
use crate::unacked::Unacked;

/// All partitions of one receiver.
pub(super) struct Partitions<T: Payload> {
    partitions: Vec<Partition<T>>,
    /// By receipt.
    in_hand: HashMap<u64, InHand<T>>,
    next_receipt: u64,
    /// Where the next batch begins, so that no partition is served first for ever.
    turn: usize,
}

/// A partition is closed while anything of it is in hand: so a room is never in two hands, and what is given back comes
/// before what is later.
struct Partition<T: Payload> {
    /// The subscription, and the number of those before it. None between two subscriptions.
    channel: Option<Channel>,
    subscription: u64,
    /// Delivered and not in hand, by delivery tag, which is their order in the queue.
    waiting: BTreeMap<u64, Entry<T>>,
    unacked: Unacked,
    /// How many are in hand, also of subscriptions that have ended: their workers still work.
    in_hand: usize,
    blocked_until: Option<Instant>,
    /// Since something was delivered on this subscription: since then this receiver is known to be the active one.
    held_since: Option<Instant>,
    /// It is to be let go of as soon as nothing of it is in hand.
    leaving: bool,
    may_leave: Arc<Notify>,
}

pub(super) struct Entry<T: Payload> {
    pub(super) attempt: u32,
    pub(super) event: Event<T>,
}

struct InHand<T: Payload> {
    partition: usize,
    subscription: u64,
    tag: u64,
    entry: Entry<T>,
}

/// What came of verdicts.
pub(super) struct Settled {
    /// Acks in line.
    pub(super) acks: Vec<Begun<lapin::Result<()>>>,
    /// Some were of a subscription that has ended, and come again though they were said to be done.
    pub(super) too_late: bool,
}

impl<T: Payload> Partitions<T> {
    pub(super) fn new(count: u32) -> Self {
        let partition = |_| Partition {
            channel: None,
            subscription: 0,
            waiting: BTreeMap::new(),
            unacked: Unacked::default(),
            in_hand: 0,
            blocked_until: None,
            held_since: None,
            leaving: false,
            may_leave: Arc::new(Notify::new()),
        };
        Self {
            partitions: (0..count).map(partition).collect(),
            in_hand: HashMap::new(),
            next_receipt: 0,
            turn: 0,
        }
    }

    /// A subscription begins; its number.
    pub(super) fn begin(&mut self, partition: usize, channel: Channel) -> u64 {
        let this = &mut self.partitions[partition];
        this.channel = Some(channel);
        this.subscription
    }

    /// The subscription has ended, or will: the broker gives what is not acked to another one. What is in hand stays in
    /// hand.
    pub(super) fn end(&mut self, partition: usize) {
        let this = &mut self.partitions[partition];
        this.channel = None;
        this.subscription += 1;
        this.waiting.clear();
        this.unacked = Unacked::default();
        this.blocked_until = None;
        this.held_since = None;
        this.leaving = false;
    }

    /// Something was pushed, with these delivery tags. What can't be read has a tag, too, and no entry: it is acked once it
    /// is parked.
    pub(super) fn delivered(
        &mut self,
        partition: usize,
        deliveries: Vec<(u64, Option<Entry<T>>)>,
        now: Instant,
    ) {
        let this = &mut self.partitions[partition];
        this.held_since.get_or_insert(now);
        for (tag, entry) in deliveries {
            this.unacked.delivered(tag);
            this.waiting.extend(entry.map(|entry| (tag, entry)));
        }
    }

    /// Whether there is something to take while workers still work on what was taken before.
    pub(super) fn is_busy_and_ready(&self, now: Instant) -> bool {
        let ready = |this: &Partition<T>| {
            this.is_open() && !this.waiting.is_empty() && this.blocked_until.is_none_or(|until| until <= now)
        };
        !self.in_hand.is_empty() && self.partitions.iter().any(ready)
    }

    /// Everything that waits in open partitions, at most `most`. When that is nothing: when to look again, if only time
    /// stands in the way.
    pub(super) fn take(
        &mut self,
        most: usize,
        now: Instant,
    ) -> Result<Vec<(u64, Entry<T>)>, Option<Instant>> {
        let (mut batch, mut opens_at) = (Vec::new(), None::<Instant>);
        let count = self.partitions.len();
        for partition in (self.turn..self.turn + count).map(|turn| turn % count) {
            let this = &mut self.partitions[partition];
            if !this.is_open() || this.waiting.is_empty() {
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
                this.in_hand += 1;
                let receipt = self.next_receipt;
                self.next_receipt += 1;
                batch.push((receipt, Entry { attempt: entry.attempt, event: entry.event.clone() }));
                let subscription = this.subscription;
                self.in_hand.insert(receipt, InHand { partition, subscription, tag, entry });
            }
            if batch.len() >= most {
                break;
            }
        }
        if batch.is_empty() { Err(opens_at) } else { Ok(batch) }
    }

    /// Takes verdicts on receipts.
    pub(super) fn settle(
        &mut self,
        verdicts: impl IntoIterator<Item = (u64, Verdict)>,
        now: Instant,
    ) -> Settled {
        let mut done: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        let mut too_late = false;
        for (receipt, verdict) in verdicts {
            let Some(InHand { partition, subscription, tag, mut entry }) = self.in_hand.remove(&receipt)
            else {
                too_late |= verdict != Verdict::GiveBack;
                continue;
            };
            let this = &mut self.partitions[partition];
            this.in_hand -= 1;
            if this.subscription != subscription {
                too_late |= verdict != Verdict::GiveBack;
                continue;
            }
            match verdict {
                Verdict::Done => {
                    done.entry(partition).or_default().push(tag);
                    continue;
                }
                Verdict::GiveBack => {}
                Verdict::RetryAfter(delay) => {
                    entry.attempt += 1;
                    this.blocked_until = this.blocked_until.max(Some(now + delay));
                    // Whoever gets it next would not know of the delay.
                    this.leaving = false;
                }
            }
            this.waiting.insert(tag, entry);
        }
        let acks = done.into_iter().flat_map(|(partition, tags)| self.ack(partition, tags)).collect();
        self.partitions.iter().for_each(Partition::leave_if_it_can);
        Settled { acks, too_late }
    }

    /// What could not be read was parked: it is acked, if its subscription has not ended.
    pub(super) fn parked(&mut self, partition: usize, subscription: u64, tag: u64) {
        if self.partitions[partition].subscription == subscription {
            // Not awaited: if it does not get there, it is parked once more.
            drop(self.ack(partition, vec![tag]));
        }
    }

    /// Acks are put in line while the partitions are locked: in another order they would not be true.
    fn ack(&mut self, partition: usize, tags: Vec<u64>) -> Vec<Begun<lapin::Result<()>>> {
        let this = &mut self.partitions[partition];
        let Some(channel) = &this.channel else { return Vec::new() };
        let begin = |channel: Channel, tag, multiple| {
            Begun::begin(async move { channel.basic_ack(tag, BasicAckOptions { multiple }).await })
        };
        let acks = this.unacked.done(tags).into_iter();
        acks.map(|ack| begin(channel.clone(), ack.tag, ack.multiple)).collect()
    }

    /// How many partitions this receiver is known to hold and is not about to let go of.
    pub(super) fn held(&self) -> usize {
        self.partitions.iter().filter(|this| this.held_since.is_some() && !this.leaving).count()
    }

    /// Lets go of so many partitions, each when nothing of it is in hand; idle ones first, then those that came last,
    /// so that most stay where they are. One with an event that waits to
    /// be tried again stays: its delay and its attempts are known only here.
    pub(super) fn leave(&mut self, count: usize) {
        let may_go = |this: &&mut Partition<T>| {
            this.held_since.is_some()
                && !this.leaving
                && this.waiting.first_key_value().is_none_or(|(_, entry)| entry.attempt == 1)
        };
        let mut candidates: Vec<_> = self.partitions.iter_mut().filter(may_go).collect();
        candidates.sort_by_key(|this| (this.in_hand > 0, !this.waiting.is_empty(), Reverse(this.held_since)));
        for this in candidates.into_iter().take(count) {
            this.leaving = true;
            this.leave_if_it_can();
        }
    }

    /// Tells when this partition is to be left and nothing of it is in hand.
    pub(super) fn may_leave(&self, partition: usize) -> Arc<Notify> {
        self.partitions[partition].may_leave.clone()
    }

    /// Whether it is still so: a retry may have come in between.
    pub(super) fn leaves(&self, partition: usize) -> bool {
        let this = &self.partitions[partition];
        this.leaving && this.in_hand == 0
    }

    /// The receiver is gone: nothing is in hand any more, and nothing will be.
    pub(super) fn close(&mut self) {
        (0..self.partitions.len()).for_each(|partition| self.end(partition));
        self.in_hand.clear();
    }
}

impl<T: Payload> Partition<T> {
    fn is_open(&self) -> bool {
        self.in_hand == 0 && !self.leaving
    }

    fn leave_if_it_can(&self) {
        if self.leaving && self.in_hand == 0 {
            self.may_leave.notify_one();
        }
    }
}
