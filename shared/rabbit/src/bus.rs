//! The bus: each hop, and how its events are spread over partitions.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::bus::{Bus, Queue, Receiver};
use naru_model::Event;
use naru_model::hops::{self, Hop, Payload};

use crate::broker::Broker;
use crate::receive::RabbitReceiver;

pub(crate) fn bus(broker: &Arc<Broker>) -> Bus {
    Bus {
        accepted: queue(broker, hops::ACCEPTED),
        saved: queue(broker, hops::SAVED),
        offline: queue(broker, hops::OFFLINE),
        push_fcm: queue(broker, hops::PUSH_FCM),
        push_apns: queue(broker, hops::PUSH_APNS),
        push_webhook: queue(broker, hops::PUSH_WEBHOOK),
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
        let mut partitions: BTreeMap<u32, Vec<&Event<T>>> = BTreeMap::new();
        for event in &events {
            let partition = broker.layout.partition_of(hop, event.payload.room());
            partitions.entry(partition).or_default().push(event);
        }
        let mut messages = Vec::with_capacity(partitions.len());
        for (partition, events) in partitions {
            messages.extend(broker.messages(hop, partition, events, 1, None)?);
        }
        broker.publish(hop, messages).await
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>> {
        Ok(Box::new(RabbitReceiver::open(self.hop, self.broker.clone())))
    }
}
