//! How receivers of an ordered hop come to even shares of its partitions.
//!
//! RabbitMQ gives a partition to the first subscriber, so the first receiver has them all. A receiver that holds more than
//! its share leaves some and subscribes again, behind all others. One that holds no more than its share never leaves, so a
//! partition moves on until a receiver with less than its share has it, and then stays.

use std::sync::Arc;
use std::time::Duration;

use naru_model::hops::Payload;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::declare::Failure;
use crate::link::Session;
use crate::outage::Outage;
use crate::state::{Shared, lock};
use crate::subscription::{close, consumers, failed, subscribe};

/// How often a receiver checks whether it holds more than its share.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// At most so many are left at a time: each reassignment redelivers buffered events, and may reorder them.
const MAX_AT_ONCE: usize = 8;

impl<T: Payload> Shared<T> {
    /// Leaves the partitions beyond this receiver's share, until the receiver is gone.
    pub(crate) async fn keep_sharing(self: Arc<Self>, stop: CancellationToken) {
        let mut outage = Outage::new(format!("counting the receivers of {}", self.hop.name));
        while let Some(session) = stop.run_until_cancelled(self.broker.receiving.up()).await {
            let Err(failure) = self.share(&session, &stop, &mut outage).await else { return };
            stop.run_until_cancelled(failed(&self.hop, &session, &failure, &mut outage)).await;
        }
    }

    /// A partition's own consumers can't be counted: of a queue with a single active consumer the broker counts only that one
    /// (checked on 3.10.8). So all receivers also consume a queue that stays empty.
    ///
    /// Ends without a failure when the receiver is gone.
    async fn share(
        &self,
        session: &Session,
        stop: &CancellationToken,
        outage: &mut Outage,
    ) -> Result<(), Failure> {
        let queue = self.broker.layout.receivers(&self.hop);
        let partitions = self.broker.layout.partitions(&self.hop) as usize;
        let (channel, _counted) = subscribe(&self.broker, session, &self.hop, &queue, 1).await?;
        outage.ended();
        let (mut before, mut reported) = (0, 0);
        while stop.run_until_cancelled(sleep(CHECK_INTERVAL)).await.is_some() {
            let receivers = consumers(&channel, &queue).await? as usize;
            if receivers > partitions.max(reported) {
                reported = receivers;
                let hop = self.hop.name;
                tracing::info!(
                    hop,
                    receivers,
                    partitions,
                    "more receivers than partitions: the others stand by"
                );
            }
            // Only on a number that two checks in a row have found.
            if receivers == before {
                let mut state = lock(&self.state);
                let leaving = to_leave(state.partitions(), partitions, receivers);
                if leaving > 0 {
                    let held_now = state.partitions();
                    tracing::info!(hop = self.hop.name, receivers, held_now, leaving, "sharing partitions");
                    state.leave(leaving);
                }
            }
            before = receivers;
        }
        close(&channel).await;
        Ok(())
    }
}

/// How many of the held partitions to leave now.
fn to_leave(held: usize, partitions: usize, receivers: usize) -> usize {
    let share = partitions.div_ceil(receivers.max(1));
    held.saturating_sub(share).min(MAX_AT_ONCE)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn a_receiver_keeps_its_share() {
        assert_eq!(to_leave(32, 32, 1), 0);
        assert_eq!(to_leave(32, 32, 0), 0);
        assert_eq!(to_leave(16, 32, 2), 0);
        assert_eq!(to_leave(11, 32, 3), 0);
        assert_eq!(to_leave(12, 32, 3), 1);
        assert_eq!(to_leave(32, 32, 3), 8);
        assert_eq!(to_leave(1, 32, 64), 0, "more receivers than partitions");
    }

    /// A partition's receivers, the active one first, and when it was last reassigned.
    #[derive(Clone, Default)]
    struct Partition {
        receivers: VecDeque<usize>,
        reassigned_at: usize,
    }

    #[derive(Default)]
    struct Broker {
        partitions: Vec<Partition>,
        reassignments: usize,
    }

    impl Broker {
        fn held(&self, receiver: usize) -> Vec<usize> {
            let held = (0..self.partitions.len())
                .filter(|partition| self.partitions[*partition].receivers[0] == receiver);
            held.collect()
        }

        /// All receivers check once; returns whether one left a partition. The last acquired is left first.
        fn check(&mut self, receivers: &[usize]) -> bool {
            let before = self.reassignments;
            for receiver in receivers {
                let mut held = self.held(*receiver);
                held.sort_by_key(|partition| std::cmp::Reverse(self.partitions[*partition].reassigned_at));
                for partition in &held[..to_leave(held.len(), self.partitions.len(), receivers.len())] {
                    self.reassignments += 1;
                    self.partitions[*partition].receivers.rotate_left(1);
                    self.partitions[*partition].reassigned_at = self.reassignments;
                }
            }
            self.reassignments > before
        }

        /// The number of checks until shares are stable; other receivers have gone, new ones subscribed.
        fn comes_to_rest(&mut self, receivers: &[usize]) -> usize {
            for partition in &mut self.partitions {
                partition.receivers.retain(|receiver| receivers.contains(receiver));
                let new =
                    receivers.iter().filter(|receiver| !partition.receivers.contains(receiver)).copied();
                partition.receivers.extend(new.collect::<Vec<_>>());
            }
            let checks = (1..50).find(|_| !self.check(receivers)).expect("it comes to rest");
            let share = self.partitions.len().div_ceil(receivers.len());
            assert!(receivers.iter().all(|receiver| self.held(*receiver).len() <= share));
            checks
        }
    }

    #[test]
    fn shares_even_out_as_receivers_come_and_go() {
        let mut broker = Broker { partitions: vec![Partition::default(); 32], reassignments: 0 };
        assert_eq!(broker.comes_to_rest(&[0]), 1);
        assert!(broker.comes_to_rest(&[0, 1]) <= 3);
        assert!(broker.comes_to_rest(&[0, 1, 2]) <= 4);
        assert!(broker.comes_to_rest(&[0, 2]) <= 3);
        assert!(broker.comes_to_rest(&[0, 2, 3, 4]) <= 6);
        assert_eq!(broker.comes_to_rest(&[4]), 1);
        assert!(broker.reassignments <= 90, "{} reassignments", broker.reassignments);
    }
}
