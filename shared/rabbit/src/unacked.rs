//! Which deliveries of a channel the broker still waits for, and the fewest acks that tell it more.

use std::collections::BTreeSet;

/// The delivery tags of one channel that were neither acked nor given back.
#[derive(Debug, Default)]
pub(crate) struct Unacked(BTreeSet<u64>);

/// One `basic.ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) tag: u64,
    /// This one and all before it.
    pub(crate) multiple: bool,
}

impl Unacked {
    pub(crate) fn delivered(&mut self, tag: u64) {
        self.0.insert(tag);
    }

    pub(crate) fn given_back(&mut self, tag: u64) {
        self.0.remove(&tag);
    }

    /// The acks that settle these tags and no other. They are only true in this order: an ack of a tag that an earlier
    /// one included closes the channel.
    pub(crate) fn done(&mut self, mut tags: Vec<u64>) -> Vec<Ack> {
        tags.retain(|tag| self.0.remove(tag));
        tags.sort_unstable();
        let oldest = self.0.first().copied().unwrap_or(u64::MAX);
        let prefix = tags.partition_point(|tag| *tag < oldest);
        let first = prefix.checked_sub(1).map(|last| Ack { tag: tags[last], multiple: prefix > 1 });
        first.into_iter().chain(tags[prefix..].iter().map(|tag| Ack { tag: *tag, multiple: false })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(count: u64) -> Unacked {
        Unacked((1..=count).collect())
    }

    const fn one(tag: u64) -> Ack {
        Ack { tag, multiple: false }
    }

    #[test]
    fn a_prefix_is_one_ack() {
        let mut unacked = of(6);
        assert_eq!(unacked.done(vec![3, 1, 2]), [Ack { tag: 3, multiple: true }]);
        assert_eq!(unacked.done(vec![4]), [one(4)]);
        assert_eq!(unacked.done(vec![5, 6]), [Ack { tag: 6, multiple: true }]);
        assert_eq!(unacked.done(vec![6]), [], "it is settled");
    }

    #[test]
    fn what_is_still_out_is_not_acked() {
        let mut unacked = of(6);
        assert_eq!(unacked.done(vec![1, 2, 4, 6]), [Ack { tag: 2, multiple: true }, one(4), one(6)]);
        unacked.given_back(3);
        assert_eq!(unacked.done(vec![5]), [one(5)]);
    }
}
