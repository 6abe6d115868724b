//! The parts that all hops share: the connections, the queues' layout, publishing.

use std::sync::Arc;

use futures_util::future::join;
use lapin::options::{QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::uri::AMQPUri;
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::hops::{self, Hop, Payload};
use naru_model::{Event, Timestamp};

use crate::declare::{DeclareLock, Failure, declare_one};
use crate::envelope::{self, Outgoing};
use crate::layout::Layout;
use crate::link::Link;
use crate::outage::Outage;
use crate::publish::{Publisher, Unpublished};
use crate::{ENGINE, Options};

/// The heartbeat in seconds: a peer that is silent for about twice as long counts as dead.
const HEARTBEAT: u16 = 2;

/// What the broker says with `connection.blocked`, once a connection sends.
pub(crate) const TAKES_NOTHING: &str = "it is short of memory or disk, and takes no messages";

/// Shared by all hops.
pub(crate) struct Broker {
    pub(crate) layout: Layout,
    /// The connection that receives.
    pub(crate) receiving: Link,
    sending: Link,
    publisher: Publisher,
}

impl Broker {
    pub(crate) async fn open(mut uri: AMQPUri, options: &Options) -> EngineResult<Self> {
        uri.query.heartbeat = Some(HEARTBEAT);
        let declare_lock = DeclareLock::default();
        let sending = Link::open(uri.clone(), "sending", declare_lock.clone());
        let (sending, receiving) = join(sending, Link::open(uri, "receiving", declare_lock)).await;
        Ok(Self {
            layout: Layout::new(options),
            receiving: receiving?,
            sending: sending?,
            publisher: Publisher::new(options.publish_timeout),
        })
    }

    /// Whether it answers, on both connections, takes messages, and has no other layout.
    pub(crate) async fn ping(&self) -> EngineResult<()> {
        for link in [&self.sending, &self.receiving] {
            let session = link.now()?;
            if session.connection.status().blocked() {
                // It may answer nothing more on this connection.
                return Err(EngineError::unavailable(ENGINE, Applied::Unknown, TAKES_NOTHING));
            }
            let answer = async {
                let channel = session.connection.create_channel().await?;
                // All layouts have this queue, with arguments of their own.
                declare_one(&channel, self.layout.common()).await?;
                Ok::<_, Failure>(channel.close(200, "pong".into()).await?)
            };
            answer.await?;
        }
        Ok(())
    }

    /// Empties the queues of all hops, those of events that wait included, unless a worker receives from one; returns how many
    /// messages there were.
    pub(crate) async fn purge(&self) -> EngineResult<u64> {
        let session = self.sending.now()?;
        let mut purged = 0;
        for hop in hops::ALL {
            session.declared.ensure(&session.connection, &self.layout, &hop).await?;
            let purging = async {
                let channel = session.connection.create_channel().await?;
                let queues = self.layout.declarations(&hop).into_iter().map(|declaration| declaration.queue);
                for queue in queues.filter(|queue| *queue != self.layout.parked()) {
                    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                    let there = channel.queue_declare(queue.clone(), passive, FieldTable::default()).await?;
                    if there.consumer_count() > 0 {
                        return Ok(Err(queue));
                    }
                    let gone = channel.queue_purge(queue, QueuePurgeOptions::default()).await?;
                    purged += u64::from(gone);
                }
                channel.close(200, "purged".into()).await?;
                Ok::<_, lapin::Error>(Ok(()))
            };
            if let Err(queue) = purging.await.map_err(Failure::from)? {
                return Err(EngineError::permanent(
                    ENGINE,
                    format!("a worker receives from {queue}: stop all first"),
                ));
            }
        }
        Ok(purged)
    }

    /// Whether the broker has said that it takes no messages.
    pub(crate) fn is_blocked(&self) -> bool {
        self.sending.now().is_ok_and(|session| session.connection.status().blocked())
    }

    pub(crate) async fn close(&self) {
        self.publisher.finish().await;
        join(self.sending.close(), self.receiving.close()).await;
    }

    /// Messages for a hop's queue; with `due`, for the wait queue on the way to it, unless `due` is soon.
    ///
    /// # Errors
    /// `Permanent` when an event has no JSON.
    pub(crate) fn messages<'a, T: Payload>(
        &self,
        hop: &Hop,
        partition: u32,
        events: impl IntoIterator<Item = &'a Event<T>>,
        attempt: u32,
        due: Option<Timestamp>,
    ) -> EngineResult<Vec<Outgoing>> {
        let delay = due.and_then(|due| self.layout.delays.next(due.since(Timestamp::now())));
        let queue = match delay {
            Some(delay) => self.layout.wait_queue(hop, delay),
            None => self.layout.queue(hop, partition),
        };
        envelope::write(hop, &queue, events, attempt, due)
    }

    /// Publishes to queues of this hop, in order; returns when the broker has confirmed all.
    pub(crate) async fn publish(&self, hop: &Hop, messages: impl Into<Arc<[Outgoing]>>) -> EngineResult<()> {
        let messages = messages.into();
        if messages.is_empty() {
            return Ok(());
        }
        let session = self.sending.now()?;
        session.declared.ensure(&session.connection, &self.layout, hop).await?;
        let Err(failure) = self.publisher.publish(&session, messages).await else { return Ok(()) };
        if let Unpublished::Unroutable(_) = failure {
            // The next try declares it.
            session.declared.missed(hop).await;
        }
        Err(EngineError::unavailable(ENGINE, failure.applied(), failure))
    }

    /// Dead-letters unreadable events; returns when the broker has confirmed them.
    pub(crate) async fn dead_letter(&self, hop: &Hop, messages: Vec<Outgoing>) {
        let messages: Arc<[Outgoing]> = messages.into();
        let mut outage = Outage::new(format!("setting aside events of {}", hop.name));
        while let Err(error) = self.publish(hop, messages.clone()).await {
            outage.began(&error);
            outage.wait().await;
        }
        outage.ended();
    }
}
