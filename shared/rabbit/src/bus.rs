//! The bus: which hop is carried how, and what all hops share.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join;
use lapin::types::ShortString;
use lapin::uri::AMQPUri;
use naru_engines::bus::{Bus, Queue, Receiver};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::hops::{self, Hop, Keep, Order, Payload};
use naru_model::{Event, Timestamp};
use tokio::time::timeout;

use crate::declare::Turn;
use crate::envelope::{self, Outgoing, Unreadable};
use crate::free::FreeReceiver;
use crate::layout::Layout;
use crate::link::Link;
use crate::ordered::OrderedReceiver;
use crate::outage::Outage;
use crate::publish::{Publisher, Unpublished};
use crate::{ENGINE, Options};

/// The broker's idea of a heartbeat, in seconds: who is silent for about twice as long is dead.
const HEARTBEAT: u16 = 2;

/// What all hops share.
pub(crate) struct Broker {
    pub(crate) layout: Layout,
    pub(crate) prefetch_ordered: u16,
    pub(crate) prefetch_free: u16,
    /// The connection that receives.
    pub(crate) receiving: Link,
    sending: Link,
    publisher: Publisher,
}

impl Broker {
    pub(crate) async fn open(mut uri: AMQPUri, options: &Options) -> EngineResult<Self> {
        uri.query.heartbeat = Some(HEARTBEAT);
        let turn = Turn::default();
        let sending = Link::open(uri.clone(), "sending", turn.clone());
        let (sending, receiving) = join(sending, Link::open(uri, "receiving", turn)).await;
        Ok(Self {
            layout: Layout::new(options),
            prefetch_ordered: options.prefetch_ordered.max(1),
            prefetch_free: options.prefetch_free.max(1),
            receiving: receiving?,
            sending: sending?,
            publisher: Publisher::new(options.publish_timeout),
        })
    }

    pub(crate) async fn ping(&self) -> EngineResult<()> {
        for link in [&self.sending, &self.receiving] {
            let session = link.now()?;
            let answer = async { session.connection.create_channel().await?.close(200, "pong".into()).await };
            answer.await.map_err(|error| EngineError::unavailable(ENGINE, Applied::No, error))?;
        }
        Ok(())
    }

    pub(crate) async fn close(&self) {
        self.publisher.settle().await;
        join(self.sending.close(), self.receiving.close()).await;
    }

    /// Publishes to queues of this hop, in order; returns when the broker has them all.
    pub(crate) async fn publish(&self, hop: &Hop, messages: Vec<Outgoing>) -> EngineResult<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let session = self.sending.now()?;
        let declared = session.declared.ensure(&session.connection, &self.layout, hop);
        let late = |_late| EngineError::unavailable(ENGINE, Applied::No, "its queues are not declared yet");
        timeout(self.publisher.timeout(), declared).await.map_err(late)??;
        let Err(failure) = self.publisher.publish(&session, messages).await else { return Ok(()) };
        if let Unpublished::Unroutable(_) = failure {
            // The next try declares it.
            session.declared.missed(hop).await;
        }
        Err(EngineError::unavailable(ENGINE, failure.applied(), failure))
    }

    /// An event that comes to a hop's queue after a delay, rounded up to a rung, and not before.
    ///
    /// # Errors
    /// `Permanent` when the event has no JSON, or there are no rungs.
    pub(crate) fn later<T: Payload>(
        &self,
        hop: &Hop,
        event: &Event<T>,
        attempt: u32,
        delay: Duration,
    ) -> EngineResult<Outgoing> {
        if delay.is_zero() {
            return envelope::write(hop, self.layout.queue(hop), event, attempt, None);
        }
        let rung = self.layout.ladder(hop).rung(delay);
        let rung = rung.ok_or_else(|| EngineError::permanent(ENGINE, "no rungs are configured"))?;
        let not_before = Timestamp::now().after(delay);
        envelope::write(hop, self.layout.wait_queue(hop, rung), event, attempt, Some(not_before))
    }

    /// Sets aside what can't be read; returns when it is safe there.
    pub(crate) async fn park(&self, hop: &Hop, queue: &ShortString, unreadable: Box<Unreadable>) {
        let reason = &unreadable.reason;
        tracing::error!(queue = queue.as_str(), reason, "an event can't be read; it is parked");
        let message = envelope::park(unreadable, queue, self.layout.parked());
        let mut outage = Outage::new(format!("parking an event of {queue}"));
        while let Err(error) = self.publish(hop, vec![message.clone()]).await {
            outage.began(&error);
            outage.wait().await;
        }
        outage.ended();
    }
}

pub(crate) fn bus(broker: &Arc<Broker>) -> Bus {
    Bus {
        accepted: queue(broker, hops::ACCEPTED),
        saved: queue(broker, hops::SAVED),
        offline: queue(broker, hops::OFFLINE),
        owed: queue(broker, hops::OWED),
        push_fcm: queue(broker, hops::PUSH_FCM),
        push_apns: queue(broker, hops::PUSH_APNS),
        push_webhook: queue(broker, hops::PUSH_WEBHOOK),
        outcome: queue(broker, hops::OUTCOME),
    }
}

fn queue<T: Payload>(broker: &Arc<Broker>, hop: Hop) -> Arc<dyn Queue<T>> {
    Arc::new(RabbitQueue { hop, broker: broker.clone(), payload: PhantomData })
}

struct RabbitQueue<T> {
    hop: Hop,
    broker: Arc<Broker>,
    payload: PhantomData<fn() -> T>,
}

#[async_trait]
impl<T: Payload> Queue<T> for RabbitQueue<T> {
    async fn send(&self, events: Vec<Event<T>>) -> EngineResult<()> {
        let Self { hop, broker, .. } = self;
        let message = |event: &Event<T>| {
            let queue = broker.layout.queue_of(hop, event.payload.room());
            envelope::write(hop, queue, event, 1, None)
        };
        let messages = events.iter().map(message).collect::<EngineResult<_>>()?;
        broker.publish(hop, messages).await
    }

    async fn send_later(&self, delay: Duration, events: Vec<Event<T>>) -> EngineResult<()> {
        let Self { hop, broker, .. } = self;
        if hop.keep != Keep::Durable {
            return Err(EngineError::permanent(ENGINE, "only a durable hop can keep an event for later"));
        }
        let messages = events.iter().map(|event| broker.later(hop, event, 1, delay));
        let messages = messages.collect::<EngineResult<_>>()?;
        broker.publish(hop, messages).await
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>> {
        let (hop, broker) = (self.hop, self.broker.clone());
        Ok(match hop.order {
            Order::ByRoom => Box::new(OrderedReceiver::open(hop, broker)),
            Order::Free => Box::new(FreeReceiver::open(hop, broker)),
        })
    }
}
