//! How many partitions a receiver steps back from. Pure.
//!
//! RabbitMQ gives a partition to whoever subscribed first, so the first receiver has them all. One that holds more than its
//! share lets some go and subscribes again, behind all others. Whoever holds no more than a share never lets go, so a
//! partition wanders until it meets a receiver with room, and then stays.

/// At most so many are let go at a time: each hand-over delivers again what was buffered, and may reorder it.
const MOST: usize = 8;

/// How many to let go now, of those held, with so many receivers.
pub(super) fn to_leave(held: usize, partitions: usize, receivers: usize) -> usize {
    let share = partitions.div_ceil(receivers.max(1));
    held.saturating_sub(share).min(MOST)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn whoever_has_its_share_keeps_it() {
        assert_eq!(to_leave(32, 32, 1), 0);
        assert_eq!(to_leave(32, 32, 0), 0);
        assert_eq!(to_leave(16, 32, 2), 0);
        assert_eq!(to_leave(11, 32, 3), 0);
        assert_eq!(to_leave(12, 32, 3), 1);
        assert_eq!(to_leave(32, 32, 3), 8);
        assert_eq!(to_leave(1, 32, 64), 0, "more receivers than partitions");
    }

    /// A partition's line of receivers, the active one in front, and when it was last handed over.
    #[derive(Clone, Default)]
    struct Line {
        receivers: VecDeque<usize>,
        handed_over: usize,
    }

    #[derive(Default)]
    struct Broker {
        lines: Vec<Line>,
        hand_overs: usize,
    }

    impl Broker {
        fn held(&self, receiver: usize) -> Vec<usize> {
            let held = (0..self.lines.len()).filter(|line| self.lines[*line].receivers[0] == receiver);
            held.collect()
        }

        /// All receivers look once; whether one of them let go. What came last goes first.
        fn look(&mut self, receivers: &[usize]) -> bool {
            let before = self.hand_overs;
            for receiver in receivers {
                let mut held = self.held(*receiver);
                held.sort_by_key(|line| std::cmp::Reverse(self.lines[*line].handed_over));
                for line in &held[..to_leave(held.len(), self.lines.len(), receivers.len())] {
                    self.hand_overs += 1;
                    self.lines[*line].receivers.rotate_left(1);
                    self.lines[*line].handed_over = self.hand_overs;
                }
            }
            self.hand_overs > before
        }

        /// After so many looks with these receivers it comes to rest; others have gone, new ones subscribed.
        fn settles(&mut self, receivers: &[usize]) -> usize {
            for line in &mut self.lines {
                line.receivers.retain(|receiver| receivers.contains(receiver));
                let new = receivers.iter().filter(|receiver| !line.receivers.contains(receiver)).copied();
                line.receivers.extend(new.collect::<Vec<_>>());
            }
            let looks = (1..50).find(|_| !self.look(receivers)).expect("it comes to rest");
            let share = self.lines.len().div_ceil(receivers.len());
            assert!(receivers.iter().all(|receiver| self.held(*receiver).len() <= share));
            looks
        }
    }

    #[test]
    fn shares_even_out_as_receivers_come_and_go() {
        let mut broker = Broker { lines: vec![Line::default(); 32], hand_overs: 0 };
        assert_eq!(broker.settles(&[0]), 1);
        assert!(broker.settles(&[0, 1]) <= 3);
        assert!(broker.settles(&[0, 1, 2]) <= 4);
        assert!(broker.settles(&[0, 2]) <= 3);
        assert!(broker.settles(&[0, 2, 3, 4]) <= 6);
        assert_eq!(broker.settles(&[4]), 1);
        assert!(broker.hand_overs <= 90, "{} hand-overs", broker.hand_overs);
    }
}
