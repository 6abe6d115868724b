//! Which messages of a channel the broker still waits for, and the fewest acks that tell it more.

use std::collections::BTreeMap;

/// The delivery tags of one channel that were not acked, each with how many of its events are not acknowledged yet.
#[derive(Debug, Default)]
pub(crate) struct Unacked(BTreeMap<u64, usize>);

/// One `basic.ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) tag: u64,
    /// This one and all before it.
    pub(crate) multiple: bool,
}

impl Unacked {
    pub(crate) fn delivered(&mut self, tag: u64, events: usize) {
        self.0.insert(tag, events);
    }

    /// One event each of these messages is acknowledged: the acks that tell it of those that have no other left. They are
    /// only true in this order: an ack of a tag that an earlier one included closes the channel.
    pub(crate) fn acknowledge(&mut self, events: impl IntoIterator<Item = u64>) -> Vec<Ack> {
        let mut finished = Vec::new();
        for tag in events {
            if let Some(left) = self.0.get_mut(&tag) {
                *left -= 1;
                if *left == 0 {
                    self.0.remove(&tag);
                    finished.push(tag);
                }
            }
        }
        finished.sort_unstable();
        let oldest = self.0.first_key_value().map_or(u64::MAX, |(tag, _)| *tag);
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

    #[test]
    fn a_prefix_is_one_ack() {
        let mut unacked = Unacked((1..=6).map(|tag| (tag, 1)).collect());
        assert_eq!(unacked.acknowledge([3, 1, 2]), [Ack { tag: 3, multiple: true }]);
        assert_eq!(unacked.acknowledge([4]), [one(4)]);
        assert_eq!(unacked.acknowledge([5, 6]), [Ack { tag: 6, multiple: true }]);
        assert_eq!(unacked.acknowledge([6]), [], "it was acked");
    }

    #[test]
    fn what_is_still_out_is_not_acked() {
        let mut unacked = Unacked((1..=6).map(|tag| (tag, 1)).collect());
        assert_eq!(unacked.acknowledge([1, 2, 4, 6]), [Ack { tag: 2, multiple: true }, one(4), one(6)]);
    }

    #[test]
    fn a_message_is_acked_with_its_last_event() {
        let mut unacked = Unacked([(1, 3), (2, 2)].into());
        assert_eq!(unacked.acknowledge([1, 2, 2]), [one(2)]);
        assert_eq!(unacked.acknowledge([1]), []);
        assert_eq!(unacked.acknowledge([1]), [one(1)]);
    }
}
