//! The names and arguments of all queues in the broker. Pure.
//!
//! A queue's arguments can't be changed once it exists (the broker refuses another declaration), so they hold nothing that
//! configuration may change: a wait queue's delay is in its name.
//!
//! | queue | for |
//! |---|---|
//! | `naru.accepted.0` … | an ordered hop: one queue per partition, one active consumer each |
//! | `naru.accepted.receivers` | always empty; every receiver of that hop consumes it, so its consumers are counted |
//! | `naru.offline` | a durable hop |
//! | `naru.offline.wait.5s` … | events that return to `naru.offline` after five seconds |
//! | `naru.parked` | unreadable events, with the headers `queue` and `reason`: for an operator |

use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable, ShortString};
use naru_model::hops::{Hop, HopKind};
use naru_model::{RoomId, partition_of};

use crate::Options;
use crate::delays::{self, WaitDelays};

/// The version of names, arguments and messages. Version 1 had one event in each message.
pub(crate) const LAYOUT: i32 = 2;

/// How often a message may return to a quorum queue before the queue drops it. No value means never (in 3.10 -1 means at
/// once, and since 4.0 the default is 20), so this is more often than a message can return. Of all arguments this is the one
/// whose exact value does not matter, so it distinguishes the layouts: the broker refuses to declare the queue of another
/// layout, so its messages are not read by the wrong version.
const DELIVERY_LIMIT: i32 = 1_000_000_000 + LAYOUT;

/// The names and arguments of all queues of one deployment.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    namespace: String,
    partitions: u32,
    pub(crate) delays: WaitDelays,
}

pub(crate) struct Declaration {
    pub(crate) queue: ShortString,
    pub(crate) arguments: FieldTable,
}

impl Layout {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            namespace: options.namespace.clone(),
            partitions: options.partitions.max(1),
            delays: WaitDelays::new(&options.wait_delays),
        }
    }

    /// How many queues a hop's events are spread over.
    pub(crate) fn partitions(&self, hop: &Hop) -> u32 {
        match hop.kind {
            HopKind::Ordered => self.partitions,
            HopKind::Durable => 1,
        }
    }

    pub(crate) fn partition_of(&self, hop: &Hop, room: &RoomId) -> u32 {
        partition_of(room, self.partitions(hop))
    }

    pub(crate) fn queue(&self, hop: &Hop, partition: u32) -> ShortString {
        match hop.kind {
            HopKind::Ordered => self.name(format_args!("{}.{partition}", hop.name)),
            HopKind::Durable => self.name(hop.name),
        }
    }

    pub(crate) fn wait_queue(&self, hop: &Hop, delay: Duration) -> ShortString {
        self.name(format_args!("{}.wait.{}", hop.name, delays::name(delay)))
    }

    pub(crate) fn receivers(&self, hop: &Hop) -> ShortString {
        self.name(format_args!("{}.receivers", hop.name))
    }

    pub(crate) fn parked(&self) -> ShortString {
        self.name("parked")
    }

    fn name(&self, below: impl std::fmt::Display) -> ShortString {
        format!("{}.{below}", self.namespace).into()
    }

    /// The queue of every deployment, whichever hops it uses.
    pub(crate) fn common(&self) -> Declaration {
        quorum(self.parked(), [])
    }

    /// All queues of a hop. None has a bound of its own: the broker's memory and disk alarms bound them.
    pub(crate) fn declarations(&self, hop: &Hop) -> Vec<Declaration> {
        let mut queues = vec![self.common()];
        let single =
            (hop.kind == HopKind::Ordered).then_some(("x-single-active-consumer", AMQPValue::Boolean(true)));
        let partitions = (0..self.partitions(hop)).map(|partition| self.queue(hop, partition));
        queues.extend(partitions.map(|queue| quorum(queue, single.clone())));
        match hop.kind {
            HopKind::Ordered => queues.push(quorum(self.receivers(hop), [])),
            HopKind::Durable => {
                queues.extend(self.delays.all().iter().map(|delay| self.wait_queue_declaration(hop, *delay)))
            }
        }
        queues
    }

    /// At-least-once dead-lettering needs an overflow policy that rejects, though these queues have no bound.
    fn wait_queue_declaration(&self, hop: &Hop, delay: Duration) -> Declaration {
        let millis = i64::try_from(delays::millis(delay)).unwrap_or(i64::MAX);
        let arguments = [
            ("x-message-ttl", AMQPValue::LongLongInt(millis)),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text(self.queue(hop, 0).as_str())),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ];
        quorum(self.wait_queue(hop, delay), arguments)
    }
}

fn quorum(queue: ShortString, more: impl IntoIterator<Item = (&'static str, AMQPValue)>) -> Declaration {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
    for (name, value) in more {
        arguments.insert(name.into(), value);
    }
    Declaration { queue, arguments }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

#[cfg(test)]
mod tests {
    use naru_model::hops::{ACCEPTED, OFFLINE, PUSH_FCM};

    use super::*;

    #[test]
    fn operators_may_rely_on_the_names() {
        let wait_delays = [5, 1800].map(Duration::from_secs).into();
        let layout = Layout::new(&Options { partitions: 2, wait_delays, ..Options::default() });
        let names = |hop| layout.declarations(hop).into_iter().map(|one| one.queue.to_string()).collect();
        let (accepted, offline, fcm): (Vec<_>, Vec<_>, Vec<_>) =
            (names(&ACCEPTED), names(&OFFLINE), names(&PUSH_FCM));
        assert_eq!(
            accepted,
            ["naru.parked", "naru.accepted.0", "naru.accepted.1", "naru.accepted.receivers"]
        );
        assert_eq!(offline, ["naru.parked", "naru.offline", "naru.offline.wait.5s", "naru.offline.wait.30m"]);
        assert_eq!(fcm[1], "naru.push.fcm");
    }
}
