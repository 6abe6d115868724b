//! The rules for every hop.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::*;

pub(super) async fn b1_what_was_sent_arrives<T: Payload + PartialEq>(on: On<T>) {
    let events = on.scattered(20);
    on.send(&events[..15]).await;
    on.send(&events[15..]).await;
    on.send(&[]).await;
    let mut receiver = on.receiver().await;
    assert_eq!(sorted(drained(&mut receiver, 20, 6).await), sorted(events));
}

/// However many events an engine carries together, and however large they are.
pub(super) async fn b1_however_much_is_sent_together_it_arrives_whole<T: Payload + PartialEq>(on: On<T>) {
    let events = on.events(&room(), 400);
    on.send(&events).await;
    let mut receiver = on.receiver().await;
    let received = drained(&mut receiver, 400, 64).await;
    match on.hop.kind {
        HopKind::Ordered => assert_eq!(received, events),
        HopKind::Durable => assert_eq!(sorted(received), sorted(events)),
    }
}

pub(super) async fn b1_a_waiting_receiver_is_woken<T: Payload + PartialEq>(on: On<T>) {
    let mut receiver = on.receiver().await;
    let waiting = tokio::spawn(async move { drained(&mut receiver, 1, 9).await });
    tokio::task::yield_now().await;
    let events = on.scattered(1);
    on.send(&events).await;
    assert_eq!(waiting.await.unwrap(), events);
}

/// A sender that can't know whether an event was sent sends it again, with the same id: it must not be taken for a
/// duplicate.
pub(super) async fn b1_sent_again_it_comes_again<T: Payload + PartialEq>(on: On<T>) {
    let events = on.scattered(1);
    let mut receiver = on.receiver().await;
    for _ in 0..2 {
        on.send(&events).await;
        assert_eq!(drained(&mut receiver, 1, 9).await, events);
    }
}

pub(super) async fn b3_what_comes_again_has_the_same_event_id<T: Payload + PartialEq>(on: On<T>) {
    let events = on.scattered(1);
    on.send(&events).await;
    let mut receiver = on.receiver().await;
    for _ in 0..3 {
        let delivery = one(&mut receiver).await;
        assert_eq!(delivery.event, events[0]);
        drop(delivery);
    }
    assert_eq!(drained(&mut receiver, 1, 9).await, events);
}

pub(super) async fn b5_receivers_share_the_events<T: Payload + PartialEq>(on: On<T>) {
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let mut receivers = JoinSet::new();
    for _ in 0..2 {
        let (mut receiver, arrived) = (on.receiver().await, arrived.clone());
        receivers.spawn(async move {
            loop {
                let event = drained(&mut receiver, 1, 3).await.remove(0);
                arrived.send(event).unwrap();
            }
        });
    }
    let (first, last) = (on.scattered(20), on.scattered(1));
    let mut received = Vec::new();
    on.send(&first).await;
    for _ in &first {
        received.push(arrivals.recv().await.expect("a receiver"));
    }
    assert_eq!(sorted(received), sorted(first), "each goes to one of them");
    on.send(&last).await;
    assert_eq!(arrivals.recv().await.as_ref(), last.first(), "and to no other");
}

pub(super) async fn c1_a_batch_has_at_most_as_many_as_asked<T: Payload + PartialEq>(on: On<T>) {
    let events = on.scattered(10);
    on.send(&events).await;
    let mut receiver = on.receiver().await;
    let mut held = Vec::new();
    while held.len() < events.len() {
        let batch = receiver.receive(4).await.unwrap();
        assert!((1..=4).contains(&batch.len()), "{} of 1 to 4", batch.len());
        held.extend(batch);
    }
    assert_eq!(sorted(held.iter().map(|delivery| delivery.event.clone())), sorted(events));
    assert!(held.iter().all(|delivery| delivery.attempt == 1), "each for the first time");
}

pub(super) async fn c1_a_cancelled_receive_loses_nothing<T: Payload + PartialEq>(on: On<T>) {
    let mut receiver = on.receiver().await;
    let events = on.scattered(24);
    let sending = events.clone();
    let sender = tokio::spawn(async move {
        for event in sending {
            on.send(&[event]).await;
        }
    });
    let mut received = Vec::new();
    // The time limit grows and falls back: the wait ends before, while and after an event is available.
    for wait in (0..12).cycle() {
        if let Ok(batch) = timeout(Duration::from_millis(wait), receiver.receive(2)).await {
            for Delivery { event, ack_handle, .. } in batch.unwrap() {
                received.push(event);
                ack([ack_handle]).await.unwrap();
            }
        }
        if received.len() >= events.len() {
            break;
        }
    }
    sender.await.unwrap();
    assert_eq!(sorted(received), sorted(events));
}

pub(super) async fn c2_what_a_dropped_receiver_held_comes_again<T: Payload + PartialEq>(on: On<T>) {
    let events = on.together(6);
    on.send(&events).await;
    let mut first = on.receiver().await;
    let mut kept = held(&mut first, 4).await;
    let done = kept.remove(0);
    ack([done.ack_handle]).await.unwrap();
    drop(first);
    drop(kept);
    let mut second = on.receiver().await;
    let rest: Vec<_> = events.into_iter().filter(|event| *event != done.event).collect();
    // The acknowledged event may come again with those that it was sent with.
    drained_at_least(&mut second, &rest, &[done.event]).await;
}

pub(super) async fn s1_what_is_acknowledged_does_not_come_again<T: Payload + PartialEq>(on: On<T>) {
    let events = on.scattered(4);
    on.send(&events).await;
    let mut receiver = on.receiver().await;
    let (done, rest) = every_second(held(&mut receiver, 4).await);
    ack(done.into_iter().map(|delivery| delivery.ack_handle)).await.unwrap();
    let (again, ack_handles) = split(rest);
    drop(ack_handles);
    assert_eq!(sorted(drained(&mut receiver, 2, 9).await), sorted(again));
    nothing_more(&on, receiver).await;
}

pub(super) async fn s1_of_what_was_sent_together_only_the_rest_comes_again<T: Payload + PartialEq>(
    on: On<T>,
) {
    let mut rest = on.events(&room(), 7);
    on.send(&rest).await;
    let mut receiver = on.receiver().await;
    let batch = match on.hop.kind {
        // A room has one unacknowledged batch at a time.
        HopKind::Ordered => receiver.receive(7).await.unwrap(),
        HopKind::Durable => held(&mut receiver, 7).await,
    };
    let (done, dropped) = every_second(batch);
    let (done, ack_handles) = split(done);
    ack(ack_handles).await.unwrap();
    drop(dropped);
    rest.retain(|event| !done.contains(event));
    let received = drained(&mut receiver, rest.len(), 9).await;
    match on.hop.kind {
        HopKind::Ordered => assert_eq!(received, rest),
        HopKind::Durable => assert_eq!(sorted(received), sorted(rest)),
    }
    nothing_more(&on, receiver).await;
}

/// An event that must not come again would come before the event that is sent last.
async fn nothing_more<T: Payload + PartialEq>(on: &On<T>, receiver: Box<dyn Receiver<T>>) {
    drop(receiver);
    let last = on.scattered(1);
    on.send(&last).await;
    let mut receiver = on.receiver().await;
    assert_eq!(drained(&mut receiver, 1, 1).await, last);
}

pub(super) async fn s2_a_retry_comes_not_before_its_time_with_one_attempt_more<T: Payload + PartialEq>(
    on: On<T>,
) {
    let events = on.scattered(1);
    on.send(&events).await;
    let mut receiver = on.receiver().await;
    for attempt in 1..=2 {
        let delivery = one(&mut receiver).await;
        assert_eq!((delivery.attempt, &delivery.event), (attempt, &events[0]));
        let asked = Instant::now();
        retry([delivery.ack_handle], SHORT).await.unwrap();
        let again = one(&mut receiver).await;
        let waited = asked.elapsed() + ROUNDING;
        assert!((SHORT..SHORT + SOON).contains(&waited), "again after {waited:?}, {SHORT:?} was asked");
        assert_eq!((again.attempt, &again.event), (attempt + 1, &events[0]));
        // A drop does not count as an attempt.
        drop(again);
    }
}

pub(super) async fn s2_what_was_sent_together_is_retried_each_after_its_own_delay<T: Payload + PartialEq>(
    on: On<T>,
) {
    let events = on.together(4);
    on.send(&events).await;
    let mut receiver = on.receiver().await;
    let mut batch = held(&mut receiver, 4).await;
    let done = batch.remove(0);
    let asked = Instant::now();
    // The longest delay first: it does not hold up the others.
    let mut expected = Vec::new();
    for delay in [LONG, 3 * SHORT, SHORT] {
        let Delivery { event, ack_handle, .. } = batch.remove(0);
        retry([ack_handle], delay).await.unwrap();
        expected.push((delay, event));
    }
    ack([done.ack_handle]).await.unwrap();
    for _ in 0..2 {
        let again = one(&mut receiver).await;
        let waited = asked.elapsed() + ROUNDING;
        let (delay, _) = expected.iter().find(|(_, event)| *event == again.event).expect("it was retried");
        assert_eq!(again.attempt, 2);
        assert!((*delay..*delay + SOON).contains(&waited), "again after {waited:?}, {delay:?} was asked");
        ack([again.ack_handle]).await.unwrap();
    }
}

pub(super) async fn s3_what_is_dropped_comes_with_the_same_attempt<T: Payload + PartialEq>(on: On<T>) {
    let events = on.scattered(1);
    on.send(&events).await;
    let mut receiver = on.receiver().await;
    drop(one(&mut receiver).await);
    let again = one(&mut receiver).await;
    assert_eq!((again.attempt, &again.event), (1, &events[0]), "dropped");
    retry([again.ack_handle], Duration::ZERO).await.unwrap();
    drop(one(&mut receiver).await);
    let again = one(&mut receiver).await;
    assert_eq!((again.attempt, &again.event), (2, &events[0]), "retried, then dropped");
    ack([again.ack_handle]).await.unwrap();
}
