//! What lies in the broker: the names and arguments of all queues. Pure.
//!
//! A queue's arguments can't be changed once it is there (the broker refuses another declaration), so they are fixed from
//! day one, and nothing that configuration may change is among them: a rung's length is in its queue's name.
//!
//! | queue | for |
//! |---|---|
//! | `naru.accepted.0` … | a hop ordered by room: one queue per partition, one active consumer each |
//! | `naru.accepted.receivers` | always empty; every receiver of that hop consumes it, so its consumers are counted |
//! | `naru.offline` | a free hop |
//! | `naru.offline.wait.5s` … | what comes to `naru.offline` after five seconds |
//! | `naru.outcome` | a newest-only hop: its oldest make place when it is full |
//! | `naru.parked` | what could not be read, with the headers `queue` and `reason`: for an operator |

use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable, ShortString};
use naru_model::hops::{Hop, Keep, OWED, Order};
use naru_model::{RoomId, partition_of};

use crate::Options;
use crate::ladder::{self, Ladder};

/// How often a quorum queue may see one message come back before it drops it. Never: the broker has no word for that (in
/// 3.10 -1 means at once, and since 4.0 the default is 20), so it is more often than a message can come back.
const DELIVERY_LIMIT: i32 = 1_000_000_000;

/// The names and arguments of all queues of one deployment.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    namespace: String,
    partitions: u32,
    rungs: Ladder,
    rungs_of_owed: Ladder,
    max_length: Option<u32>,
    newest: u32,
}

/// A queue to declare.
pub(crate) struct Declaration {
    pub(crate) queue: ShortString,
    pub(crate) arguments: FieldTable,
}

impl Layout {
    pub(crate) fn new(options: &Options) -> Self {
        let rungs = || options.rungs.iter().copied();
        Self {
            namespace: options.namespace.clone(),
            partitions: options.partitions.max(1),
            rungs: Ladder::new(rungs()),
            rungs_of_owed: Ladder::new(rungs().chain([options.grace])),
            max_length: options.max_length,
            newest: options.newest,
        }
    }

    pub(crate) fn partitions(&self) -> u32 {
        self.partitions
    }

    pub(crate) fn ladder(&self, hop: &Hop) -> &Ladder {
        if hop.name == OWED.name { &self.rungs_of_owed } else { &self.rungs }
    }

    /// The queue that events of this room go to.
    pub(crate) fn queue_of(&self, hop: &Hop, room: &RoomId) -> ShortString {
        match hop.order {
            Order::ByRoom => self.partition(hop, partition_of(room, self.partitions)),
            Order::Free => self.queue(hop),
        }
    }

    pub(crate) fn partition(&self, hop: &Hop, partition: u32) -> ShortString {
        self.name(format_args!("{}.{partition}", hop.name))
    }

    pub(crate) fn queue(&self, hop: &Hop) -> ShortString {
        self.name(hop.name)
    }

    pub(crate) fn wait_queue(&self, hop: &Hop, rung: Duration) -> ShortString {
        self.name(format_args!("{}.wait.{}", hop.name, ladder::name(rung)))
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

    /// Everything that a hop needs.
    pub(crate) fn declarations(&self, hop: &Hop) -> Vec<Declaration> {
        let mut queues = vec![quorum(self.parked(), [])];
        match hop.order {
            Order::ByRoom => {
                queues.push(quorum(self.receivers(hop), []));
                let single = || ("x-single-active-consumer", AMQPValue::Boolean(true));
                let partitions = (0..self.partitions).map(|partition| self.partition(hop, partition));
                queues.extend(partitions.map(|queue| quorum(queue, self.bound().chain([single()]))));
            }
            Order::Free if hop.keep == Keep::Newest => {
                let overflow = ("x-overflow", text("drop-head"));
                queues.push(quorum(self.queue(hop), [most(self.newest), overflow]));
            }
            Order::Free => queues.push(quorum(self.queue(hop), self.bound())),
        }
        if hop.keep != Keep::Rederivable {
            let rungs = self.ladder(hop).rungs().iter();
            queues.extend(rungs.map(|rung| self.wait_queue_declaration(hop, *rung)));
        }
        queues
    }

    /// At-least-once dead-lettering needs an overflow that refuses, though most of these queues have no bound. (Those of a
    /// newest-only hop have its bound: what is retried there is given back where no more fit in.)
    fn wait_queue_declaration(&self, hop: &Hop, rung: Duration) -> Declaration {
        let millis = i64::try_from(ladder::millis(rung)).unwrap_or(i64::MAX);
        let arguments = [
            ("x-message-ttl", AMQPValue::LongLongInt(millis)),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text(self.queue(hop).as_str())),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ];
        let bound = (hop.keep == Keep::Newest).then(|| most(self.newest));
        quorum(self.wait_queue(hop, rung), arguments.into_iter().chain(bound))
    }

    /// Without a bound of its own a queue is bounded by the broker's memory and disk alarms.
    fn bound(&self) -> impl Iterator<Item = (&'static str, AMQPValue)> {
        let bound = self.max_length.map(|length| [most(length), ("x-overflow", text("reject-publish"))]);
        bound.into_iter().flatten()
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

fn most(length: u32) -> (&'static str, AMQPValue) {
    ("x-max-length", AMQPValue::LongLongInt(i64::from(length)))
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

#[cfg(test)]
mod tests {
    use naru_model::hops::{ACCEPTED, OFFLINE, OUTCOME, PUSH_FCM};

    use super::*;

    fn declarations(hop: &Hop) -> Vec<Declaration> {
        let options = Options {
            partitions: 2,
            rungs: [5, 1800].map(Duration::from_secs).into(),
            grace: Duration::from_secs(10),
            ..Options::default()
        };
        Layout::new(&options).declarations(hop)
    }

    fn names(hop: &Hop) -> Vec<String> {
        declarations(hop).into_iter().map(|declaration| declaration.queue.to_string()).collect()
    }

    #[test]
    fn operators_may_rely_on_the_names() {
        assert_eq!(
            names(&ACCEPTED),
            ["naru.parked", "naru.accepted.receivers", "naru.accepted.0", "naru.accepted.1"]
        );
        assert_eq!(
            names(&OFFLINE),
            ["naru.parked", "naru.offline", "naru.offline.wait.5s", "naru.offline.wait.30m"]
        );
        assert_eq!(
            names(&OWED)[1..],
            ["naru.owed", "naru.owed.wait.5s", "naru.owed.wait.10s", "naru.owed.wait.30m"]
        );
        assert_eq!(names(&PUSH_FCM)[1], "naru.push.fcm");
        assert_eq!(
            names(&OUTCOME)[1..],
            ["naru.outcome", "naru.outcome.wait.5s", "naru.outcome.wait.30m"],
            "what was taken from it can be retried"
        );
    }

    #[test]
    fn only_what_a_push_came_to_is_dropped_when_it_is_too_much() {
        for hop in naru_model::hops::ALL {
            let queue = Layout::new(&Options::default()).queue(&hop);
            let arguments = declarations(&hop).into_iter().filter(|one| one.queue == queue);
            let bounds = arguments.flat_map(|one| {
                ["x-max-length", "x-overflow"].map(|name| one.arguments.inner().get(name).cloned())
            });
            let bounds: Vec<_> = bounds.flatten().collect();
            let kept = [AMQPValue::LongLongInt(100_000), text("drop-head")];
            assert_eq!(bounds, if hop == OUTCOME { &kept[..] } else { &[] }, "{}", hop.name);
        }
    }
}
