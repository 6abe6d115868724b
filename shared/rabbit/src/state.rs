//! The state of one receiver: its events, and the messages they came in, whose acks the broker waits for. It never waits and
//! does no input or output; acks are queued on the connection.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapin::Channel;
use lapin::options::BasicAckOptions;
use naru_engines::bus::{Inbox, Removed, Taken, Unacknowledged};
use naru_model::Event;
use naru_model::hops::{Hop, Payload};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};

use crate::broker::Broker;
use crate::started::Started;
use crate::unacked::{Ack, Unacked};

/// An event's key is its message's delivery tag, then, in so many bits, its index in the message. So many events are longer than
/// the longest message that a broker accepts.
const INDEX_BITS: u32 = 20;

/// An event and its key.
pub(crate) struct Keyed<T: Payload> {
    pub(crate) key: u64,
    pub(crate) event: Event<T>,
    pub(crate) attempt: u32,
}

/// Shared by the tasks of one receiver.
pub(crate) struct Shared<T: Payload> {
    pub(crate) hop: Hop,
    pub(crate) broker: Arc<Broker>,
    pub(crate) state: Mutex<ReceiverState<T>>,
    /// There is more to receive, or `receive` waits.
    pub(crate) changed: Notify,
    /// A message may be finished.
    pub(crate) finished: Notify,
}

pub(crate) struct ReceiverState<T: Payload> {
    inbox: Inbox<T>,
    /// So many finished messages of a partition are acked at once, before the interval is over.
    max_finished: usize,
    /// By partition.
    subscriptions: Vec<Subscription>,
    /// Why the queues can't be received from, if they never will.
    pub(crate) refused: Option<String>,
    /// Whether `receive` waits, and when it last did.
    pub(crate) is_asked: bool,
    pub(crate) asked_at: Instant,
}

/// A partition's subscription.
#[derive(Default)]
struct Subscription {
    /// None between two subscriptions.
    channel: Option<Channel>,
    /// How many subscriptions came before.
    number: u64,
    unacked: Unacked,
    /// Since the first delivery: since then this receiver is known to be the active one.
    held_since: Option<Instant>,
    /// It is to be left as soon as none of its events is unacknowledged.
    is_leaving: bool,
    may_leave: Arc<Notify>,
}

impl Subscription {
    /// Queues the acks of finished messages. One caller at a time: in another order they would be wrong.
    fn ack(&mut self) -> Vec<Started<lapin::Result<()>>> {
        let Some(channel) = &self.channel else { return Vec::new() };
        let begin = |Ack { tag, multiple }| {
            let channel = channel.clone();
            Started::begin(async move { channel.basic_ack(tag, BasicAckOptions { multiple }).await })
        };
        self.unacked.acks().into_iter().map(begin).collect()
    }
}

impl<T: Payload> ReceiverState<T> {
    /// `prefetch`: how many messages of a partition the broker pushes before it waits for an ack.
    pub(crate) fn new(hop: &Hop, partitions: u32, prefetch: u16) -> Self {
        Self {
            inbox: Inbox::new(hop.kind, partitions),
            max_finished: usize::from(prefetch / 4),
            subscriptions: (0..partitions).map(|_| Subscription::default()).collect(),
            refused: None,
            is_asked: false,
            asked_at: Instant::now(),
        }
    }

    /// Begins a subscription. Returns its number, and the notification that its partition may be left.
    pub(crate) fn begin(&mut self, partition: usize, channel: Channel) -> (u64, Arc<Notify>) {
        self.refused = None;
        let this = &mut self.subscriptions[partition];
        this.channel = Some(channel);
        (this.number, this.may_leave.clone())
    }

    /// The subscription has ended, or will: the broker redelivers unacked messages. Unacknowledged events remain so.
    pub(crate) fn end(&mut self, partition: usize) {
        // Not awaited, here and below: a message whose ack is lost is redelivered.
        drop(self.subscriptions[partition].ack());
        let Subscription { number, may_leave, .. } = std::mem::take(&mut self.subscriptions[partition]);
        self.subscriptions[partition] = Subscription { number: number + 1, may_leave, ..Default::default() };
        self.inbox.clear(partition);
    }

    /// The receiver is gone: no event is unacknowledged, now or later.
    pub(crate) fn close(&mut self) {
        (0..self.subscriptions.len()).for_each(|partition| self.end(partition));
        self.inbox.clear_all();
    }

    /// A message of `count` events was delivered. Gives the readable ones their keys.
    pub(crate) fn delivered(
        &mut self,
        partition: usize,
        tag: u64,
        count: usize,
        events: Vec<Event<T>>,
        attempt: u32,
        now: Instant,
    ) -> Vec<Keyed<T>> {
        let this = &mut self.subscriptions[partition];
        this.held_since.get_or_insert(now);
        this.unacked.delivered(tag, count);
        let keyed = |(event, index)| Keyed { key: (tag << INDEX_BITS) + index, event, attempt };
        events.into_iter().zip(0..).map(keyed).collect()
    }

    /// Buffers these events unchanged, unless their subscription has ended.
    pub(crate) fn push(
        &mut self,
        partition: usize,
        number: u64,
        events: Vec<Keyed<T>>,
        due: Option<Instant>,
    ) {
        if self.subscriptions[partition].number == number {
            for Keyed { key, event, attempt } in events {
                self.inbox.push(partition, key, event, attempt, due);
            }
        }
    }

    /// See [`Inbox::take`].
    pub(crate) fn take(&mut self, max: usize, now: Instant) -> Result<Vec<Taken<T>>, Option<Instant>> {
        self.inbox.take(max, now)
    }

    /// Whether events wait although `receive` was not called for `span`.
    pub(crate) fn is_unasked(&self, span: Duration) -> bool {
        !self.is_asked && self.asked_at.elapsed() >= span && self.inbox.waiting() > 0
    }

    /// Removes unacknowledged events of a durable hop, whose subscription has the returned number.
    pub(crate) fn remove(&mut self, tags: impl IntoIterator<Item = u64>) -> (Vec<Keyed<T>>, u64, bool) {
        let Removed { events, some_are_gone } = self.inbox.remove(tags);
        let keyed = |Unacknowledged { key, event, attempt, .. }| Keyed { key, event, attempt };
        (events.into_iter().map(keyed).collect(), self.subscriptions[0].number, some_are_gone)
    }

    /// These events are finished; returns whether some are redelivered nevertheless.
    pub(crate) fn ack(&mut self, tags: Vec<u64>) -> bool {
        let Removed { events, some_are_gone } = self.inbox.remove(tags);
        let mut by_partition: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for Unacknowledged { partition, key, .. } in events {
            by_partition.entry(partition).or_default().push(key);
        }
        for (partition, keys) in by_partition {
            self.acknowledge(partition, keys);
        }
        self.leave_where_possible();
        some_are_gone
    }

    /// The events of these keys are finished; `false` if their subscription has ended.
    pub(crate) fn finish(&mut self, partition: usize, number: u64, keys: Vec<u64>) -> bool {
        let is_here = self.subscriptions[partition].number == number;
        if is_here {
            self.acknowledge(partition, keys);
        }
        is_here
    }

    /// `count` events of this message that have no key are finished.
    pub(crate) fn finish_unreadable(&mut self, partition: usize, number: u64, tag: u64, count: usize) {
        self.finish(partition, number, vec![tag << INDEX_BITS; count]);
    }

    fn acknowledge(&mut self, partition: usize, keys: Vec<u64>) {
        let this = &mut self.subscriptions[partition];
        if this.unacked.acknowledge(keys.into_iter().map(|key| key >> INDEX_BITS)) >= self.max_finished {
            drop(this.ack());
        }
    }

    /// Queues the acks of finished messages, which may be awaited.
    pub(crate) fn ack_finished(&mut self) -> Vec<Started<lapin::Result<()>>> {
        self.subscriptions.iter_mut().flat_map(Subscription::ack).collect()
    }

    /// These events wait here for their retry; returns whether some are gone.
    pub(crate) fn retry(&mut self, tags: Vec<u64>, after: Duration, now: Instant) -> bool {
        let Removed { events, some_are_gone } = self.inbox.remove(tags);
        for event in events {
            // The next receiver would not have the delay.
            self.subscriptions[event.partition].is_leaving = false;
            self.inbox.set_closed(event.partition, false);
            self.inbox.retry(event, after, now);
        }
        self.leave_where_possible();
        some_are_gone
    }

    /// A delivery was dropped.
    pub(crate) fn put_back(&mut self, tag: u64) {
        self.inbox.put_back([tag]);
        self.leave_where_possible();
    }

    /// How many partitions this receiver is known to hold and is not about to leave.
    pub(crate) fn partitions(&self) -> usize {
        self.subscriptions.iter().filter(|this| this.held_since.is_some() && !this.is_leaving).count()
    }

    /// Leaves `count` partitions, each when none of its events is unacknowledged; idle ones first, then the last acquired, so
    /// that most stay where they are. A partition with an event that waits for a retry stays: the delay and the attempts are
    /// known only here.
    pub(crate) fn leave(&mut self, count: usize) {
        let inbox = &mut self.inbox;
        let may_go = |(partition, this): &(usize, &mut Subscription)| {
            this.held_since.is_some()
                && !this.is_leaving
                && inbox.next_attempt(*partition).is_none_or(|attempt| attempt == 1)
        };
        let mut candidates: Vec<_> = self.subscriptions.iter_mut().enumerate().filter(may_go).collect();
        candidates.sort_by_key(|(partition, this)| {
            let is_waiting = inbox.next_attempt(*partition).is_some();
            (inbox.unacknowledged(*partition) > 0, is_waiting, Reverse(this.held_since))
        });
        for (partition, this) in candidates.into_iter().take(count) {
            this.is_leaving = true;
            inbox.set_closed(partition, true);
        }
        self.leave_where_possible();
    }

    fn leave_where_possible(&self) {
        for (partition, this) in self.subscriptions.iter().enumerate() {
            if self.leaves(partition) {
                this.may_leave.notify_one();
            }
        }
    }

    /// Whether a partition is to be left and none of its events is unacknowledged.
    pub(crate) fn leaves(&self, partition: usize) -> bool {
        self.subscriptions[partition].is_leaving && self.inbox.unacknowledged(partition) == 0
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The guarded data is never left half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
