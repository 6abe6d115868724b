//! What goes wrong with queues and messages while the broker is well.

use std::time::Duration;

use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use naru_engines::bus::{Receiver, Verdict};
use naru_engines::conformance::bus::SHORT;
use naru_engines::{Applied, EngineError};
use naru_model::hops::Accepted;
use naru_model::partition_of;
use naru_rabbit::Rabbit;
use naru_services::{Kind, Service};
use tokio::time::Instant;

use super::given::{Place, accepted, next, number, offline, room, soon, until_ok};

async fn delete(channel: &Channel, queue: String) {
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

#[tokio::test]
async fn what_no_queue_takes_is_not_sent_and_the_next_try_finds_a_queue() {
    // A broker of its own: see `Place` for what the deletion of a wait queue may do to one.
    let broker = Service::start(Kind::Rabbitmq);
    let place = Place::at(broker.url());
    let process = place.process().await;
    let bus = process.bus();
    let (room, (_connection, channel)) = (room(), place.channel().await);
    bus.accepted.send(vec![accepted(&room, 1)]).await.unwrap();
    bus.offline.send(vec![offline()]).await.unwrap();
    delete(&channel, place.queue(&format!("accepted.{}", partition_of(&room, 32)))).await;
    delete(&channel, place.queue("offline.wait.150ms")).await;

    let error = bus.accepted.send(vec![accepted(&room, 2)]).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("there is no queue"), "{error}");
    let error = bus.offline.send_later(SHORT, vec![offline()]).await.unwrap_err();
    assert!(error.is_transient(), "{error}");

    bus.accepted.send(vec![accepted(&room, 3)]).await.unwrap();
    let mut receiver = bus.accepted.receiver().await.unwrap();
    assert_eq!(number(&next(&mut receiver).await), 3);
}

#[tokio::test]
async fn a_queue_that_is_deleted_under_its_receivers_is_declared_and_subscribed_again() {
    let place = Place::shared();
    let process = place.process().await;
    let bus = process.bus();
    let (room, (_connection, channel)) = (room(), place.channel().await);
    let mut ordered = bus.accepted.receiver().await.unwrap();
    let mut free = bus.offline.receiver().await.unwrap();
    bus.accepted.send(vec![accepted(&room, 1)]).await.unwrap();
    bus.offline.send(vec![offline()]).await.unwrap();
    assert_eq!(number(&next(&mut ordered).await), 1);
    next(&mut free).await;

    delete(&channel, place.queue(&format!("accepted.{}", partition_of(&room, 32)))).await;
    delete(&channel, place.queue("offline")).await;
    let (_, ordered_again) = until_ok(async || bus.accepted.send(vec![accepted(&room, 2)]).await).await;
    let (_, free_again) = until_ok(async || bus.offline.send(vec![offline()]).await).await;
    println!("sent again after {ordered_again:?} and {free_again:?}");
    assert_eq!(number(&next(&mut ordered).await), 2);
    next(&mut free).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_parked_and_holds_up_nothing() {
    let place = Place::shared();
    let process = place.process().await;
    let bus = process.bus();
    let (room, (_connection, channel)) = (room(), place.channel().await);
    let partition = format!("accepted.{}", partition_of(&room, 32));
    bus.accepted.send(vec![accepted(&room, 1)]).await.unwrap();
    bus.offline.send(vec![offline()]).await.unwrap();
    for queue in [&*partition, "offline"] {
        let (queue, options) = (place.queue(queue).into(), BasicPublishOptions::default());
        let properties = BasicProperties::default().with_message_id("the-seventh".into());
        channel.basic_publish("".into(), queue, options, b"{\"version\":", properties).await.unwrap();
    }
    let mut ordered: Box<dyn Receiver<Accepted>> = bus.accepted.receiver().await.unwrap();
    assert_eq!(number(&next(&mut ordered).await), 1);
    bus.accepted.send(vec![accepted(&room, 2)]).await.unwrap();
    bus.offline.send(vec![offline()]).await.unwrap();
    assert_eq!(number(&next(&mut ordered).await), 2, "behind what can't be read");
    let mut free = bus.offline.receiver().await.unwrap();
    next(&mut free).await;
    next(&mut free).await;

    let mut from = Vec::new();
    for _ in 0..2 {
        let (parked, _) = until_ok(async || {
            let options = BasicGetOptions { no_ack: true };
            channel
                .basic_get(place.queue("parked").into(), options)
                .await
                .unwrap()
                .ok_or("nothing parked yet")
        })
        .await;
        assert_eq!(parked.data, b"{\"version\":");
        assert_eq!(parked.properties.message_id().as_ref().unwrap().as_str(), "the-seventh");
        let headers = parked.properties.headers().clone().unwrap();
        let text = |name| headers.inner()[name].as_long_string().unwrap().to_string();
        assert!(text("reason").contains("EOF"), "{}", text("reason"));
        from.push(text("queue"));
    }
    from.sort();
    assert_eq!(from, [place.queue(&partition), place.queue("offline")]);
    drop((ordered, free));
    for queue in [&*partition, "offline"] {
        until_ok(async || match place.depth(&channel, queue).await {
            0 => Ok(()),
            left => Err(format!("{left} in {queue}")),
        })
        .await;
    }
}

#[tokio::test]
async fn a_queue_that_was_declared_differently_is_named() {
    let place = Place::shared();
    let (_connection, channel) = place.channel().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    for queue in ["accepted.7", "offline"] {
        channel.queue_declare(place.queue(queue).into(), options, arguments.clone()).await.unwrap();
    }
    let process = place.process().await;
    let bus = process.bus();
    let permanent = |error: EngineError, queue| {
        assert!(matches!(error, EngineError::Permanent { .. }), "{error}");
        assert!(error.to_string().contains(&place.queue(queue)), "{error}");
    };
    permanent(bus.accepted.send(vec![accepted(&room(), 1)]).await.unwrap_err(), "accepted.7");
    permanent(bus.offline.send(vec![offline()]).await.unwrap_err(), "offline");
    let mut ordered = bus.accepted.receiver().await.unwrap();
    permanent(soon("a refusal", ordered.receive(1)).await.unwrap_err(), "accepted.7");
    let mut free = bus.offline.receiver().await.unwrap();
    permanent(soon("a refusal", free.receive(1)).await.unwrap_err(), "offline");
    // Nothing else is touched.
    bus.owed.send(vec![]).await.unwrap();
    process.rabbit.ping().await.unwrap();
}

#[tokio::test]
async fn what_makes_no_sense_or_is_refused_is_an_error_at_the_start() {
    let place = Place::shared();
    let refused = async |url: &str, options| match Rabbit::open(url, options).await {
        Err(error @ EngineError::Permanent { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{url} was accepted"),
    };
    refused("not a url", place.options.clone()).await;
    refused("http://localhost", place.options.clone()).await;
    let told = refused("amqp:guest:wrong-secret", place.options.clone()).await;
    assert!(!told.contains("wrong-secret"), "{told}");
    let mut unnamed = place.options.clone();
    unnamed.namespace = "a b".to_owned();
    refused(&place.url, unnamed).await;
    let stranger = place.url.replace("amqp://", "amqp://guest:wrong-secret@");
    let told = refused(&stranger, place.options.clone()).await;
    assert!(!told.contains("wrong-secret"), "{told}");
    refused(&place.url.replace("/%2f", "/nowhere"), place.options.clone()).await;
}

#[tokio::test]
async fn only_durable_hops_keep_events_for_later() {
    let place = Place::shared();
    let process = place.process().await;
    let error = process.bus().accepted.send_later(SHORT, vec![accepted(&room(), 1)]).await.unwrap_err();
    assert!(matches!(error, EngineError::Permanent { .. }), "{error}");
}

#[tokio::test]
async fn a_delay_beyond_the_last_rung_goes_round_again() {
    const DELAY: Duration = Duration::from_millis(6_500);
    let mut place = Place::shared();
    place.options.rungs = vec![SHORT];
    place.options.grace = SHORT;
    let process = place.process().await;
    let bus = process.bus();
    let mut receiver = bus.offline.receiver().await.unwrap();
    let event = offline();
    let asked = Instant::now();
    bus.offline.send_later(DELAY, vec![event.clone()]).await.unwrap();
    let batch = soon("the event", receiver.receive(1)).await.unwrap();
    let waited = asked.elapsed() + Duration::from_millis(2);
    assert_eq!((batch[0].attempt, &batch[0].event), (1, &event));
    assert!((DELAY..DELAY + Duration::from_secs(4)).contains(&waited), "{waited:?}");
    drop(batch);
}

#[tokio::test]
async fn a_receiver_that_is_not_asked_keeps_nothing_from_the_others() {
    let place = Place::shared();
    let process = place.process().await;
    let bus = process.bus();
    let mut slow = bus.offline.receiver().await.unwrap();
    bus.offline.send((0..10).map(|_| offline()).collect()).await.unwrap();
    let in_hand = soon("one", slow.receive(1)).await.unwrap().remove(0);
    let mut other = bus.offline.receiver().await.unwrap();
    for _ in 0..9 {
        assert_ne!(next(&mut other).await.event_id, in_hand.event.event_id);
    }
    // It is asked again: what it had in hand is still its own, and it receives.
    drop(other);
    in_hand.receipt.settle(Verdict::Done).await.unwrap();
    let last = offline();
    bus.offline.send(vec![last.clone()]).await.unwrap();
    assert_eq!(next(&mut slow).await, last);
}

#[tokio::test]
async fn after_it_is_closed_nothing_is_sent() {
    let place = Place::shared();
    let process = place.process().await;
    let bus = process.bus();
    bus.offline.send(vec![offline()]).await.unwrap();
    process.rabbit.ping().await.unwrap();
    soon("the end", process.rabbit.close()).await;
    let error = bus.offline.send(vec![offline()]).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { applied: Applied::No, .. }), "{error}");
    process.rabbit.ping().await.unwrap_err();
}
