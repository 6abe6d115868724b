//! Deleted queues, unreadable messages and late receivers, while the broker works.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use naru_engines::bus::{Delivery, Receiver, ack, retry};
use naru_engines::{Applied, EngineError};
use naru_model::hops::{Accepted, Offline, Saved};
use naru_model::{Event, MemberVersion, Seq};
use naru_rabbit::Rabbit;
use naru_services::{Kind, Service};
use tokio::time::Instant;

use super::fixtures::{
    DELAYS, Deployment, accepted, done, next, number, offline, partition, room, rooms_apart, soon, until_ok,
};

async fn delete(channel: &Channel, queue: String) {
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

#[tokio::test]
async fn what_no_queue_takes_is_not_sent_and_the_next_try_finds_a_queue() {
    // A broker of its own: see `Deployment` for what the deletion of a wait queue may do to one.
    let broker = Service::start(Kind::Rabbitmq);
    let deployment = Deployment::at(broker.url());
    let process = deployment.process().await;
    let bus = process.bus();
    let (room, (_connection, channel)) = (room(), deployment.channel().await);
    bus.accepted.send(vec![accepted(&room, 1)]).await.unwrap();
    bus.offline.send(vec![offline()]).await.unwrap();
    delete(&channel, deployment.queue(&format!("accepted.{}", partition(&room)))).await;
    let mut offline_receiver = bus.offline.receiver().await.unwrap();
    let unacknowledged = soon("an event", offline_receiver.receive(1)).await.unwrap().remove(0);
    delete(&channel, deployment.queue("offline.wait.150ms")).await;

    let error = bus.accepted.send(vec![accepted(&room, 2)]).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("there is no queue"), "{error}");
    let error = retry([unacknowledged.ack_handle], DELAYS[0]).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(next(&mut offline_receiver).await, unacknowledged.event, "it waits here");

    bus.accepted.send(vec![accepted(&room, 3)]).await.unwrap();
    let mut receiver = bus.accepted.receiver().await.unwrap();
    assert_eq!(number(&next(&mut receiver).await), 3);
}

/// Acks are put together for 50 ms. What a process that dies had finished half a second before does not come again.
#[tokio::test]
async fn what_is_finished_is_acked_soon_though_nothing_follows() {
    let deployment = Deployment::shared();
    let (process, room) = (deployment.process().await, room());
    process.bus().accepted.send((1..=3).map(|number| accepted(&room, number)).collect()).await.unwrap();
    process.bus().offline.send(vec![offline()]).await.unwrap();
    let mut ordered = process.bus().accepted.receiver().await.unwrap();
    let mut durable = process.bus().offline.receiver().await.unwrap();
    ack(soon("events", ordered.receive(9)).await.unwrap().into_iter().map(|one| one.ack_handle))
        .await
        .unwrap();
    ack(soon("an event", durable.receive(9)).await.unwrap().into_iter().map(|one| one.ack_handle))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    process.cable.cut();

    let successor = deployment.process().await;
    let (mut ordered, mut durable) = (
        successor.bus().accepted.receiver().await.unwrap(),
        successor.bus().offline.receiver().await.unwrap(),
    );
    let last = offline();
    successor.bus().accepted.send(vec![accepted(&room, 4)]).await.unwrap();
    successor.bus().offline.send(vec![last.clone()]).await.unwrap();
    assert_eq!(number(&next(&mut ordered).await), 4);
    assert_eq!(next(&mut durable).await, last);
}

#[tokio::test]
async fn a_queue_that_is_deleted_under_its_receivers_is_declared_and_subscribed_again() {
    let deployment = Deployment::shared();
    let process = deployment.process().await;
    let bus = process.bus();
    let (room, (_connection, channel)) = (room(), deployment.channel().await);
    let mut ordered = bus.accepted.receiver().await.unwrap();
    let mut durable = bus.offline.receiver().await.unwrap();
    bus.accepted.send(vec![accepted(&room, 1)]).await.unwrap();
    bus.offline.send(vec![offline()]).await.unwrap();
    assert_eq!(number(&next(&mut ordered).await), 1);
    next(&mut durable).await;

    delete(&channel, deployment.queue(&format!("accepted.{}", partition(&room)))).await;
    delete(&channel, deployment.queue("offline")).await;
    let (_, ordered_again) = until_ok(async || bus.accepted.send(vec![accepted(&room, 2)]).await).await;
    let (_, durable_again) = until_ok(async || bus.offline.send(vec![offline()]).await).await;
    println!("sent again after {ordered_again:?} and {durable_again:?}");
    assert_eq!(number(&next(&mut ordered).await), 2);
    next(&mut durable).await;
}

/// Publishes to a queue what the driver would not; returns when it is there.
async fn publish(deployment: &Deployment, channel: &Channel, queue: &str, layout: Option<i32>, body: &[u8]) {
    let mut headers = FieldTable::default();
    if let Some(layout) = layout {
        headers.insert("layout".into(), AMQPValue::LongInt(layout));
    }
    let properties = BasicProperties::default().with_message_id("the-seventh".into()).with_headers(headers);
    let (queue, options) = (deployment.queue(queue).into(), BasicPublishOptions::default());
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let confirm = channel.basic_publish("".into(), queue, options, body, properties).await.unwrap();
    assert!(!confirm.await.unwrap().is_nack());
}

/// What was set aside: its body, the queue it came from and the reason.
async fn parked(deployment: &Deployment, channel: &Channel) -> (String, String, String) {
    let (message, _) = until_ok(async || {
        let message = channel
            .basic_get(deployment.queue("parked").into(), BasicGetOptions { no_ack: true })
            .await
            .unwrap();
        message.ok_or("nothing parked yet")
    })
    .await;
    assert_eq!(message.properties.message_id().as_ref().unwrap().as_str(), "the-seventh");
    let headers = message.properties.headers().clone().unwrap();
    let text = |name| headers.inner()[name].as_long_string().unwrap().to_string();
    (String::from_utf8(message.data.clone()).unwrap(), text("queue"), text("reason"))
}

/// Until the broker waits for no ack of a queue's messages, after its receivers are gone.
async fn until_empty(deployment: &Deployment, channel: &Channel, queue: &str) {
    until_ok(async || match deployment.depth(channel, queue).await {
        0 => Ok(()),
        left => Err(format!("{left} in {queue}")),
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_read_is_parked_and_holds_up_nothing() {
    let deployment = Deployment::shared();
    let process = deployment.process().await;
    let bus = process.bus();
    let (room, (_connection, channel)) = (room(), deployment.channel().await);
    let partition = format!("accepted.{}", partition(&room));
    bus.accepted.send(vec![accepted(&room, 1)]).await.unwrap();
    bus.offline.send(vec![offline()]).await.unwrap();
    for queue in [&*partition, "offline"] {
        publish(&deployment, &channel, queue, Some(2), b"[{\"version\":").await;
    }
    let mut ordered: Box<dyn Receiver<Accepted>> = bus.accepted.receiver().await.unwrap();
    assert_eq!(number(&next(&mut ordered).await), 1);
    bus.accepted.send(vec![accepted(&room, 2)]).await.unwrap();
    bus.offline.send(vec![offline()]).await.unwrap();
    assert_eq!(number(&next(&mut ordered).await), 2, "behind what can't be read");
    let mut durable = bus.offline.receiver().await.unwrap();
    next(&mut durable).await;
    next(&mut durable).await;

    let mut from = Vec::new();
    for _ in 0..2 {
        let (body, queue, reason) = parked(&deployment, &channel).await;
        assert_eq!(body, "[{\"version\":");
        assert!(reason.contains("EOF"), "{reason}");
        from.push(queue);
    }
    from.sort();
    assert_eq!(from, [deployment.queue(&partition), deployment.queue("offline")]);
    drop((ordered, durable));
    for queue in [&*partition, "offline"] {
        until_empty(&deployment, &channel, queue).await;
    }
}

#[tokio::test]
async fn of_an_array_only_what_cannot_be_read_is_parked() {
    let deployment = Deployment::shared();
    let process = deployment.process().await;
    let bus = process.bus();
    let (room, (_connection, channel)) = (room(), deployment.channel().await);
    let partition = format!("accepted.{}", partition(&room));
    let mut receiver = bus.accepted.receiver().await.unwrap();
    bus.accepted.send(vec![accepted(&room, 1)]).await.unwrap();
    assert_eq!(number(&next(&mut receiver).await), 1);
    let json = |number| serde_json::to_string(&accepted(&room, number)).unwrap();
    let body = format!("[{}, {{\"version\": 1}}, {}]", json(2), json(3));
    publish(&deployment, &channel, &partition, Some(2), body.as_bytes()).await;
    // A message of layout 1, an empty array, and one of a layout to come.
    publish(&deployment, &channel, &partition, None, json(4).as_bytes()).await;
    publish(&deployment, &channel, &partition, Some(2), b"[]").await;
    publish(&deployment, &channel, &partition, Some(3), format!("[{}]", json(5)).as_bytes()).await;
    bus.accepted.send(vec![accepted(&room, 6)]).await.unwrap();
    for expected in [2, 3, 6] {
        assert_eq!(number(&next(&mut receiver).await), expected);
    }
    let mut reasons = Vec::new();
    for _ in 0..4 {
        let (body, queue, reason) = parked(&deployment, &channel).await;
        assert_eq!(queue, deployment.queue(&partition));
        reasons.push(format!("{reason} {}", &body[..body.len().min(16)]));
    }
    reasons.sort();
    assert!(reasons[0].starts_with("it does not say that it is of layout 2"), "{reasons:?}");
    assert!(reasons[1].starts_with("it does not say that it is of layout 2"), "{reasons:?}");
    assert_eq!(reasons[2], "it holds no event []");
    assert!(
        reasons[3].starts_with("missing field") && reasons[3].ends_with(r#"[{"version": 1}]"#),
        "{reasons:?}"
    );
    drop(receiver);
    until_empty(&deployment, &channel, &partition).await;
}

/// The messages that lie in a queue: how many events are in each, and how long it is. They stay there.
async fn lengths(deployment: &Deployment, queue: &str) -> Vec<(usize, usize)> {
    let (connection, channel) = deployment.channel().await;
    let count = deployment.depth(&channel, queue).await as usize;
    let (queue, options) = (deployment.queue(queue).into(), BasicConsumeOptions::default());
    let consumer = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await.unwrap();
    let messages: Vec<_> = soon("the messages", consumer.take(count).collect()).await;
    connection.close(200, "done".into()).await.unwrap();
    let length = |message: lapin::Result<lapin::message::Delivery>| {
        let data = message.unwrap().data;
        (serde_json::from_slice::<Vec<serde_json::Value>>(&data).unwrap().len(), data.len())
    };
    messages.into_iter().map(length).collect()
}

#[tokio::test]
async fn what_is_sent_together_is_one_message_for_each_queue() {
    let deployment = Deployment::shared();
    let process = deployment.process().await;
    let bus = process.bus();
    let rooms = rooms_apart(2);
    let events: Vec<_> = (0..300).map(|number| accepted(&rooms[number as usize % 2], number)).collect();
    bus.accepted.send(events.clone()).await.unwrap();
    // 600 events are more than a message holds, and five of 300 kB longer than one may be.
    bus.offline.send((0..600).map(|_| offline()).collect()).await.unwrap();
    let long = |_| {
        let Event { mut payload, trace, .. } = accepted(&rooms[0], 1);
        payload.content = "x".repeat(300_000).into();
        Event::new(
            Saved { message: payload.at(Seq(1)), member_version: MemberVersion(1), origin: None },
            trace,
        )
    };
    bus.saved.send((0..5).map(long).collect()).await.unwrap();

    for room in &rooms {
        let queue = format!("accepted.{}", partition(room));
        assert_eq!(lengths(&deployment, &queue).await.iter().map(|one| one.0).collect::<Vec<_>>(), [150]);
    }
    let offline = lengths(&deployment, "offline").await;
    assert_eq!(offline.iter().map(|one| one.0).collect::<Vec<_>>(), [256, 256, 88]);
    let saved = lengths(&deployment, &format!("saved.{}", partition(&rooms[0]))).await;
    assert_eq!(saved.iter().map(|one| one.0).collect::<Vec<_>>(), [3, 2]);
    assert!(saved.iter().all(|one| one.1 <= 1 << 20), "{saved:?}");

    let mut receiver = bus.accepted.receiver().await.unwrap();
    let mut numbers: Vec<Vec<u32>> = vec![Vec::new(); 2];
    while numbers.iter().map(Vec::len).sum::<usize>() < 300 {
        // Not a whole message at a time.
        for event in done(soon("events", receiver.receive(7)).await.unwrap()).await {
            numbers[usize::from(event.payload.chat_room_id == rooms[1])].push(number(&event));
        }
    }
    for (room, numbers) in (0..2).zip(numbers) {
        assert_eq!(numbers, (0..150).map(|nth| 2 * nth + room).collect::<Vec<_>>());
    }
}

/// The first few of a message are acknowledged, and then the connection dies.
#[tokio::test]
async fn what_was_not_acknowledged_of_a_message_comes_again() {
    let deployment = Deployment::shared();
    let first = deployment.process().await;
    let room = room();
    let events: Vec<_> = (0..10).map(|number| accepted(&room, number)).collect();
    first.bus().accepted.send(events.clone()).await.unwrap();
    first.bus().accepted.send(vec![accepted(&room, 10)]).await.unwrap();
    let mut receiver = first.bus().accepted.receiver().await.unwrap();
    let mut acknowledged = 0;
    while acknowledged < 4 {
        acknowledged += done(soon("events", receiver.receive(4 - acknowledged)).await.unwrap()).await.len();
    }
    first.cable.cut();
    let second = deployment.process().await;
    let mut receiver = second.bus().accepted.receiver().await.unwrap();
    let mut numbers = Vec::new();
    while numbers.last() != Some(&10) {
        numbers.push(number(&next(&mut receiver).await));
    }
    let again = numbers.iter().position(|number| *number == 4).expect("4 was not acknowledged");
    assert_eq!(numbers[again..], (4..=10).collect::<Vec<_>>());
    // Acked with its last event: nothing is left.
    drop(receiver);
    let (_connection, channel) = deployment.channel().await;
    until_empty(&deployment, &channel, &format!("accepted.{}", partition(&room))).await;
}

#[tokio::test]
async fn dropped_events_of_a_message_come_again_by_themselves() {
    let deployment = Deployment::shared();
    let process = deployment.process().await;
    let bus = process.bus();
    bus.offline.send((0..5).map(|_| offline()).collect()).await.unwrap();
    let mut receiver = bus.offline.receiver().await.unwrap();
    let mut batch = soon("events", receiver.receive(5)).await.unwrap();
    let dropped = batch.remove(3);
    let event = dropped.event.clone();
    done(batch).await;
    drop(dropped);
    let again = soon("the dropped one", receiver.receive(5)).await.unwrap();
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].attempt, &again[0].event), (1, &event));
    done(again).await;
    drop(receiver);
    let (_connection, channel) = deployment.channel().await;
    until_empty(&deployment, &channel, "offline").await;
}

#[tokio::test]
async fn a_queue_that_was_declared_differently_is_named() {
    let deployment = Deployment::shared();
    let (_connection, channel) = deployment.channel().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    for queue in ["accepted.7", "offline"] {
        channel.queue_declare(deployment.queue(queue).into(), options, arguments.clone()).await.unwrap();
    }
    let process = deployment.process().await;
    let bus = process.bus();
    let permanent = |error: EngineError, queue| {
        assert!(matches!(error, EngineError::Permanent { .. }), "{error}");
        assert!(error.to_string().contains(&deployment.queue(queue)), "{error}");
    };
    permanent(bus.accepted.send(vec![accepted(&room(), 1)]).await.unwrap_err(), "accepted.7");
    permanent(bus.offline.send(vec![offline()]).await.unwrap_err(), "offline");
    let mut ordered = bus.accepted.receiver().await.unwrap();
    permanent(soon("a refusal", ordered.receive(1)).await.unwrap_err(), "accepted.7");
    let mut durable = bus.offline.receiver().await.unwrap();
    permanent(soon("a refusal", durable.receive(1)).await.unwrap_err(), "offline");
    // Nothing else is touched.
    bus.push_fcm.send(vec![]).await.unwrap();
    process.rabbit.ping().await.unwrap();
}

#[tokio::test]
async fn an_older_layout_is_refused() {
    let deployment = Deployment::shared();
    let (_connection, channel) = deployment.channel().await;
    // As layout 1 declared it.
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(1_000_000_000));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(deployment.queue("parked").into(), options, arguments).await.unwrap();
    let error = Rabbit::open(&deployment.url, deployment.options.clone()).await.err().expect("it is refused");
    assert!(matches!(error, EngineError::Permanent { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains(&deployment.queue("parked")) && message.contains("delete it"), "{message}");
    println!("{message}");
}

#[tokio::test]
async fn what_makes_no_sense_or_is_refused_is_an_error_at_the_start() {
    let deployment = Deployment::shared();
    let refused = async |url: &str, options| match Rabbit::open(url, options).await {
        Err(error @ EngineError::Permanent { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{url} was accepted"),
    };
    refused("not a url", deployment.options.clone()).await;
    refused("http://localhost", deployment.options.clone()).await;
    let message = refused("amqp:guest:wrong-secret", deployment.options.clone()).await;
    assert!(!message.contains("wrong-secret"), "{message}");
    let mut unnamed = deployment.options.clone();
    unnamed.namespace = "a b".to_owned();
    refused(&deployment.url, unnamed).await;
    let wrong_password = deployment.url.replace("amqp://", "amqp://guest:wrong-secret@");
    let message = refused(&wrong_password, deployment.options.clone()).await;
    assert!(!message.contains("wrong-secret"), "{message}");
    refused(&deployment.url.replace("/%2f", "/nowhere"), deployment.options.clone()).await;
}

/// Between two wait queues' delays, beyond the longest, and shorter than the shortest: each comes when it is due, whatever waits beside it.
#[tokio::test]
async fn delays_are_kept_exactly() {
    let mut deployment = Deployment::shared();
    deployment.options.wait_delays = vec![DELAYS[0], DELAYS[1]];
    let process = deployment.process().await;
    let bus = process.bus();
    let delays = [4_700, 1_700, 1_000, 620, 40].map(Duration::from_millis);
    // Two events each, which stay together.
    bus.offline.send((0..2 * delays.len()).map(|_| offline()).collect()).await.unwrap();
    let mut receiver = bus.offline.receiver().await.unwrap();
    let mut first: Vec<Delivery<Offline>> = soon("events", receiver.receive(100)).await.unwrap();
    assert_eq!(first.len(), 2 * delays.len(), "one message");
    let mut asked = HashMap::new();
    for delay in delays {
        let pair = first.split_off(first.len() - 2);
        asked.extend(pair.iter().map(|one| (one.event.event_id, (Instant::now(), delay))));
        retry(pair.into_iter().map(|one| one.ack_handle), delay).await.unwrap();
    }
    while !asked.is_empty() {
        let batch = soon("the second try", receiver.receive(100)).await.unwrap();
        for delivery in &batch {
            let (since, delay) = asked.remove(&delivery.event.event_id).expect("once");
            // The header is in whole milliseconds.
            let waited = since.elapsed() + Duration::from_millis(2);
            assert_eq!(delivery.attempt, 2);
            assert!((delay..delay + Duration::from_secs(1)).contains(&waited), "{delay:?}: {waited:?}");
            println!("{delay:?} was asked: {waited:?}");
        }
        done(batch).await;
    }
    drop(receiver);
    let (_connection, channel) = deployment.channel().await;
    until_empty(&deployment, &channel, "offline").await;
}

#[tokio::test]
async fn a_receiver_that_is_not_asked_keeps_nothing_from_the_others() {
    let deployment = Deployment::shared();
    let process = deployment.process().await;
    let bus = process.bus();
    let mut slow = bus.offline.receiver().await.unwrap();
    bus.offline.send((0..10).map(|_| offline()).collect()).await.unwrap();
    let unacknowledged = soon("one", slow.receive(1)).await.unwrap().remove(0);
    let mut other = bus.offline.receiver().await.unwrap();
    for _ in 0..9 {
        assert_ne!(next(&mut other).await.event_id, unacknowledged.event.event_id);
    }
    // It is asked again: its unacknowledged event is still its own, and it receives.
    drop(other);
    ack([unacknowledged.ack_handle]).await.unwrap();
    let last = offline();
    bus.offline.send(vec![last.clone()]).await.unwrap();
    assert_eq!(next(&mut slow).await, last);
}

#[tokio::test]
async fn after_it_is_closed_nothing_is_sent() {
    let deployment = Deployment::shared();
    let process = deployment.process().await;
    let bus = process.bus();
    bus.offline.send(vec![offline()]).await.unwrap();
    process.rabbit.ping().await.unwrap();
    soon("the end", process.rabbit.close()).await;
    let error = bus.offline.send(vec![offline()]).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { applied: Applied::No, .. }), "{error}");
    process.rabbit.ping().await.unwrap_err();
}
