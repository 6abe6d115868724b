//! The messages of a channel whose acks the broker waits for, and the fewest acks for the finished ones.

use std::collections::BTreeMap;

/// The delivery tags of one channel that were not acked.
#[derive(Debug, Default)]
pub(crate) struct Unacked {
    /// How many events of each message are not acknowledged yet.
    unacknowledged: BTreeMap<u64, usize>,
    /// The messages without such an event that are not acked yet.
    finished: Vec<u64>,
}

/// One `basic.ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) tag: u64,
    /// Acks this one and all before it.
    pub(crate) multiple: bool,
}

impl Unacked {
    pub(crate) fn delivered(&mut self, tag: u64, events: usize) {
        self.unacknowledged.insert(tag, events);
    }

    /// One event of each of these messages is acknowledged; returns how many messages there are to ack now.
    pub(crate) fn acknowledge(&mut self, events: impl IntoIterator<Item = u64>) -> usize {
        for tag in events {
            if let Some(left) = self.unacknowledged.get_mut(&tag) {
                *left -= 1;
                if *left == 0 {
                    self.unacknowledged.remove(&tag);
                    self.finished.push(tag);
                }
            }
        }
        self.finished.len()
    }

    /// The acks of finished messages. They are valid only in this order: an ack of a tag that an earlier one included closes
    /// the channel.
    pub(crate) fn acks(&mut self) -> Vec<Ack> {
        let mut finished = std::mem::take(&mut self.finished);
        finished.sort_unstable();
        let oldest = self.unacknowledged.first_key_value().map_or(u64::MAX, |(tag, _)| *tag);
        let prefix = finished.partition_point(|tag| *tag < oldest);
        let first = prefix.checked_sub(1).map(|last| Ack { tag: finished[last], multiple: prefix > 1 });
        first
            .into_iter()
            .chain(finished[prefix..].iter().map(|tag| Ack { tag: *tag, multiple: false }))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn one(tag: u64) -> Ack {
        Ack { tag, multiple: false }
    }

    fn delivered(messages: impl IntoIterator<Item = (u64, usize)>) -> Unacked {
        Unacked { unacknowledged: messages.into_iter().collect(), finished: Vec::new() }
    }

    #[test]
    fn a_prefix_is_one_ack() {
        let mut unacked = delivered((1..=6).map(|tag| (tag, 1)));
        assert_eq!(unacked.acknowledge([3, 1]), 2);
        assert_eq!(unacked.acknowledge([2]), 3, "whenever it was finished");
        assert_eq!(unacked.acks(), [Ack { tag: 3, multiple: true }]);
        assert_eq!((unacked.acknowledge([4]), unacked.acks()), (1, vec![one(4)]));
        unacked.acknowledge([5, 6]);
        assert_eq!(unacked.acks(), [Ack { tag: 6, multiple: true }]);
        assert_eq!((unacked.acknowledge([6]), unacked.acks()), (0, vec![]), "it was acked");
    }

    #[test]
    fn what_is_unacknowledged_is_not_acked() {
        let mut unacked = delivered((1..=6).map(|tag| (tag, 1)));
        unacked.acknowledge([1, 2, 4, 6]);
        assert_eq!(unacked.acks(), [Ack { tag: 2, multiple: true }, one(4), one(6)]);
    }

    #[test]
    fn a_message_is_acked_with_its_last_event() {
        let mut unacked = delivered([(1, 3), (2, 2)]);
        unacked.acknowledge([1, 2, 2]);
        assert_eq!(unacked.acks(), [one(2)]);
        assert_eq!(unacked.acknowledge([1]), 0);
        assert_eq!(unacked.acknowledge([1]), 1);
        assert_eq!(unacked.acks(), [one(1)]);
    }
}
