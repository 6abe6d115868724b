//! What all subscriptions share: begin, close, count consumers, fail.

use std::time::Duration;

use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use naru_model::hops::Hop;
use tokio::time::{sleep, timeout};

use crate::broker::Broker;
use crate::declare::Failure;
use crate::link::Session;
use crate::outage::Outage;

/// How many deliveries are taken over together.
pub(crate) const CHUNK: usize = 64;
/// How long the broker may take to close a channel.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The wait before the next attempt at a broker that refused: an operator has to act first.
const REFUSED_DELAY: Duration = Duration::from_secs(5);

/// Subscribes to one of a hop's queues, which is declared first if need be.
///
/// **Not to be cancelled**: lapin keeps a consumer whose beginning was not awaited, and with it the channel. The broker would
/// push messages to it for ever, and nothing would take them.
pub(crate) async fn subscribe(
    broker: &Broker,
    session: &Session,
    hop: &Hop,
    queue: &ShortString,
    prefetch: u16,
) -> Result<(Channel, Consumer), Failure> {
    session.declared.ensure(&session.connection, &broker.layout, hop).await?;
    let channel = session.connection.create_channel().await?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let consumer = consume(&channel, queue).await?;
    Ok((channel, consumer))
}

pub(crate) async fn consume(channel: &Channel, queue: &ShortString) -> lapin::Result<Consumer> {
    channel
        .basic_consume(queue.clone(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
}

/// Closes a channel on which a consumer is still subscribed: a consumer that is dropped first is cancelled first, and the
/// broker then pushes new events to the next subscriber before those that it pushed to this one.
pub(crate) async fn close(channel: &Channel) {
    // A broker that does not receive this closes the channel with the connection.
    let _late = timeout(CLOSE_TIMEOUT, channel.close(200, "done".into())).await;
}

/// The number of a queue's consumers; of a queue with a single active consumer, 0 or 1.
pub(crate) async fn consumers(channel: &Channel, queue: &ShortString) -> lapin::Result<u32> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(queue.clone(), passive, FieldTable::default()).await?;
    Ok(declared.consumer_count())
}

/// A subscription failed: logs it, and waits before the next attempt.
pub(crate) async fn failed(hop: &Hop, session: &Session, failure: &Failure, outage: &mut Outage) {
    if let Failure::Refused { .. } = failure {
        // `receive` answers with it.
        return sleep(REFUSED_DELAY).await;
    }
    // The link logs the connection's end, once for all its subscriptions.
    if session.is_up() {
        outage.began(failure);
        // The queue may have been deleted.
        session.declared.missed(hop).await;
    }
    outage.wait().await;
}
