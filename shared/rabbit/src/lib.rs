//! The bus on RabbitMQ 3.10 or later: quorum queues, publisher confirms, partitions by room.
//!
//! - **Sending** is publishing with confirms on a connection of its own. The events of one send are one message for each
//!   queue: a JSON array, acked together. Without a confirm [`EngineResult`] states whether the send may have been applied.
//!   While there is no connection `send` fails at once: the store has what is needed, and its sweep sends it again.
//! - **Ordered hops** are `partitions` queues with one active consumer each. Every receiver subscribes to all of them, the
//!   broker activates one at a time, and receivers that hold more than their share leave some.
//! - **Durable hops** are one queue each, and a wait queue for each of some delays. A retry is a confirmed publish to a wait
//!   queue, then an acknowledgement: so it survives the process that requested it.
//! - **Unreadable events** are dead-lettered to `naru.parked` one by one, and hold up nothing.
//! - **No failure stays silent.** A lost connection, a closed channel and a cancelled subscription all end in a loop that
//!   declares and subscribes again; it is logged once when it begins and once when it is over.
//! - **The broker may be down at the start.** [`Rabbit::open`] then connects after it has returned, [`Rabbit::ping`] answers
//!   `Unavailable`, and receivers have nothing to receive. Only a broker that refuses is an error, and one that has queues of
//!   another layout of Naru.
//!
//! # Delays
//! A retried event is delivered not before its delay is over and at most half a second after it: it goes through the longest
//! wait queue that fits the rest of its delay, then through the next, and a receiver holds it for the last fraction of the
//! shortest one. On ordered hops the delay is exact, and the count of attempts starts over when a partition moves to another
//! receiver.
//!
//! An event that falls due while the broker is starting is late: if the hop's queue could not take it yet, the broker retries
//! after three minutes. Its setting `dead_letter_worker_publisher_confirm_timeout` (milliseconds, in `advanced.config`) makes
//! that less.

//! # What a batch costs
//! The cost of a batch depends on its queues, not on its events: a quorum queue writes and confirms each message, and each
//! ack. `examples/batches.rs` sends a batch over 1,000 rooms, receives and acknowledges all of it, then sends the next. On
//! RabbitMQ 3.10.8, one node, two cores that were busy with other work (so times are medians, and vary by half); CPU time of
//! the broker and of the driver per event, and the time until the last event is acknowledged:
//!
//! | partitions | 1 event | 4 | 16 | 64 | 256 |
//! |---|---|---|---|---|---|
//! | 8 | 610 + 210 µs, 1.0 ms | 280 + 100 µs, 2.0 ms | 82 + 26 µs, 1.4 ms | 21 + 10 µs, 1.7 ms | 7 + 5 µs, 2.3 ms |
//! | 16 | 590 + 230 µs, 0.7 ms | 270 + 85 µs, 1.1 ms | 107 + 37 µs, 1.8 ms | 35 + 14 µs, 2.5 ms | 11 + 6 µs, 3.2 ms |
//! | 32 | 780 + 280 µs, 1.1 ms | 302 + 98 µs, 1.4 ms | 133 + 39 µs, 2.6 ms | 60 + 21 µs, 4.7 ms | 18 + 8 µs, 5.1 ms |
//!
//! So one partition is the default, and at most as many processes as partitions share a hop. (The figures were taken when
//! each message was acked by itself.) The same 64 events as messages of their own in 32 queues cost the broker 102 µs each
//! (lapin alone, one channel per queue).

mod broker;
mod bus;
mod declare;
mod delays;
mod envelope;
mod layout;
mod link;
mod outage;
mod publish;
mod receive;
mod share;
mod started;
mod state;
mod subscription;
mod unacked;

use std::sync::Arc;
use std::time::Duration;

use lapin::uri::AMQPUri;
use naru_engines::bus::Bus;
use naru_engines::{Applied, EngineError, EngineResult};
use tokio::time::timeout;

use crate::broker::Broker;

/// The engine's name in its errors.
const ENGINE: &str = "RabbitMQ";

/// How the bus is laid out in the broker.
#[derive(Clone, Debug)]
pub struct Options {
    /// Into how many partitions rooms are spread, from 1. It is the same for all processes and for the store, and changes only
    /// while all processes are stopped (`docs/decisions/0012-one-partition-unless-asked.md`).
    pub partitions: u32,
    /// The prefix of all queues' names: 1–64 characters of `A-Z a-z 0-9 . _ -`.
    pub namespace: String,
    /// The delays of the wait queues, in whole milliseconds: each durable hop has one wait queue for each.
    pub wait_delays: Vec<Duration>,
    /// How long a send may go without its confirms before it gives up. A broker that is out of memory or disk takes nothing
    /// and returns no error.
    pub publish_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            partitions: 1,
            namespace: "naru".to_owned(),
            wait_delays: [1, 5, 30, 120, 600, 1_800].map(Duration::from_secs).into(),
            publish_timeout: Duration::from_secs(5),
        }
    }
}

/// A process's two connections to the broker, one to send and one to receive, because a broker that is out of memory stops
/// reading from connections that send.
pub struct Rabbit {
    broker: Arc<Broker>,
}

impl Rabbit {
    /// Connects to the broker at an `amqp:` or `amqps:` URL (user, password, virtual host and TLS by the URL, the trusted
    /// roots are the system's). A broker that can't be reached yet is waited for after this returns.
    ///
    /// # Errors
    /// `Permanent`, when the URL or an option makes no sense, or the broker refuses the user or the virtual host, or has
    /// queues of another layout.
    pub async fn open(url: &str, options: Options) -> EngineResult<Self> {
        // Without the parser's reason, which may quote the URL, which may hold a password.
        let uri = url.parse::<AMQPUri>();
        let uri =
            uri.map_err(|_| refused("not an AMQP URL (amqp://user:password@host:port/vhost)".into()))?;
        let namespace = &options.namespace;
        let may_be_named = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=64).contains(&namespace.len()) || !namespace.bytes().all(may_be_named) {
            return Err(refused(format!("{namespace:?} can't be a name space")));
        }
        let rabbit = Self { broker: Arc::new(Broker::open(uri, &options).await?) };
        match rabbit.ping().await {
            Err(refused @ EngineError::Permanent { .. }) => Err(refused),
            _ => Ok(rabbit),
        }
    }

    pub fn bus(&self) -> Bus {
        bus::bus(&self.broker)
    }

    /// Whether the broker answers, on both connections, and takes messages.
    ///
    /// # Errors
    /// `Unavailable`, when it does not, or not within two seconds; `Permanent`, when it has queues of another layout.
    pub async fn ping(&self) -> EngineResult<()> {
        const PING_TIMEOUT: Duration = Duration::from_secs(2);
        let late = |_late| EngineError::unavailable(ENGINE, Applied::No, "it does not answer");
        timeout(PING_TIMEOUT, self.broker.ping()).await.map_err(late)?
    }

    /// Removes all events from the queues: after a restore of the store they tell of messages that it may not have. Returns how
    /// many messages of the broker they were. Unreadable events stay in `naru.parked`.
    ///
    /// # Errors
    /// `Permanent`, when a worker still receives; `Unavailable`, when the broker does not answer.
    pub async fn purge(&self) -> EngineResult<u64> {
        self.broker.purge().await
    }

    /// Whether the broker takes no messages, for want of memory or disk. It says so to a connection that sends.
    pub fn is_blocked(&self) -> bool {
        self.broker.is_blocked()
    }

    /// Waits for the confirms of sends in flight, at most [`Options::publish_timeout`], and closes both connections.
    /// Afterwards `send` fails and nothing is received.
    pub async fn close(&self) {
        self.broker.close().await;
    }
}

fn refused(reason: String) -> EngineError {
    EngineError::permanent(ENGINE, reason)
}
