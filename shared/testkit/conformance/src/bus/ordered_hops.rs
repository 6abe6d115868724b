//! The rules for hops that are ordered by room.

use std::slice::from_ref;
use tokio::time::Instant;

use super::*;

pub(super) async fn b4_events_of_a_room_come_in_order<T: Payload + PartialEq>(on: On<T>) {
    let mut receiver = on.receiver().await;
    let rooms: Vec<_> = (0..3).map(|_| room()).collect();
    let events: Vec<_> = (0..60).map(|nth| on.event(&rooms[nth % 3])).collect();
    for part in events.chunks(8) {
        on.send(part).await;
    }
    let received = drained(&mut receiver, events.len(), 7).await;
    for room in &rooms {
        assert_eq!(of_room(&received, room), of_room(&events, room));
    }
}

pub(super) async fn b4_a_room_is_never_in_two_unacknowledged_batches<T: Payload + PartialEq>(on: On<T>) {
    let (mut one, mut other) = (on.receiver().await, on.receiver().await);
    let rooms = rooms_apart(6);
    let (busy, others) = rooms.split_first().expect("six");
    let events = on.events(busy, 5);
    on.send(&events).await;
    // Either receiver may get the room.
    let mut batch = tokio::select! {
        batch = one.receive(2) => batch.unwrap(),
        batch = other.receive(2) => { std::mem::swap(&mut one, &mut other); batch.unwrap() }
    };
    let first: Vec<_> = batch.iter().map(|delivery| delivery.event.clone()).collect();
    assert_eq!(first, events[..first.len()]);
    if batch.len() > 1 {
        // Acknowledging a part of a batch does not release the room.
        ack([batch.remove(0).ack_handle]).await.unwrap();
    }

    // Both receive, and meanwhile only events of other rooms come.
    for room in others {
        let passing = on.event(room);
        on.send(from_ref(&passing)).await;
        let arrived = tokio::select! {
            batch = one.receive(9) => batch.unwrap(),
            batch = other.receive(9) => batch.unwrap(),
        };
        for Delivery { event, ack_handle, .. } in arrived {
            assert_eq!(event, passing, "the only one whose room has no unacknowledged batch");
            ack([ack_handle]).await.unwrap();
        }
    }

    ack(split(batch).1).await.unwrap();
    drop(other);
    let rest = drained(&mut one, 5 - first.len(), 9).await;
    assert_eq!(rest, events[first.len()..]);
}

pub(super) async fn b4_what_is_dropped_comes_before_later_ones<T: Payload + PartialEq>(on: On<T>) {
    let mut receiver = on.receiver().await;
    let events = on.events(&room(), 6);
    on.send(&events).await;
    drop(one(&mut receiver).await);
    // The first event of a batch is acknowledged after the rest was dropped.
    let mut batch = receiver.receive(3).await.unwrap();
    let done = batch.remove(0);
    assert_eq!(done.event, events[0]);
    drop(batch);
    ack([done.ack_handle]).await.unwrap();
    assert_eq!(drained(&mut receiver, 5, 2).await, events[1..]);
}

pub(super) async fn b4_what_is_retried_comes_before_later_ones<T: Payload + PartialEq>(on: On<T>) {
    let mut receiver = on.receiver().await;
    let events = on.events(&room(), 4);
    on.send(&events).await;
    let first = one(&mut receiver).await;
    assert_eq!(first.event, events[0]);
    let asked = Instant::now();
    retry([first.ack_handle], SHORT).await.unwrap();
    let again = one(&mut receiver).await;
    assert_eq!((again.attempt, &again.event), (2, &events[0]));
    let waited = asked.elapsed() + ROUNDING;
    assert!(waited >= SHORT, "again after {waited:?}, {SHORT:?} was asked");
    ack([again.ack_handle]).await.unwrap();
    assert_eq!(drained(&mut receiver, 3, 2).await, events[1..]);
}

fn of_room<T: Payload>(events: &[Event<T>], room: &RoomId) -> Vec<Event<T>> {
    events.iter().filter(|event| event.payload.room() == room).cloned().collect()
}
