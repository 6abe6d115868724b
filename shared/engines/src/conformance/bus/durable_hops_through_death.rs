//! What a durable hop keeps when the process dies.

use tokio::time::Instant;

use super::*;

/// Where a hop is in a bus.
type Find<T> = fn(&Bus) -> On<T>;

pub(super) async fn b2_what_is_not_done_survives_death<T: Payload + PartialEq>(
    subject: Of<'_, Bus>,
    find: Find<T>,
) {
    let bus = subject.open().await;
    let on = find(&bus);
    let events = on.scattered(4);
    on.send(&events).await;
    let mut receiver = on.receiver().await;
    // Two are in hand.
    let held = held(&mut receiver, 2).await;
    drop((held, receiver, on));

    let bus = reopened(subject, bus).await;
    let on = find(&bus);
    let mut receiver = on.receiver().await;
    assert_eq!(sorted(drained(&mut receiver, 4, 9).await), sorted(events), "on {}", on.hop.name);
}

pub(super) async fn b2_a_delay_survives_death<T: Payload + PartialEq>(subject: Of<'_, Bus>, find: Find<T>) {
    let bus = subject.open().await;
    let on = find(&bus);
    let events = on.scattered(1);
    let asked = Instant::now();
    on.queue.send_later(SHORT, events.clone()).await.unwrap();
    drop(on);

    let bus = reopened(subject, bus).await;
    let on = find(&bus);
    let mut receiver = on.receiver().await;
    assert_eq!(drained(&mut receiver, 1, 9).await, events, "on {}", on.hop.name);
    let waited = asked.elapsed() + ROUNDING;
    assert!(waited >= SHORT, "on {}: after {waited:?}, {SHORT:?} was asked", on.hop.name);
}

pub(super) async fn b2_a_retry_survives_death<T: Payload + PartialEq>(subject: Of<'_, Bus>, find: Find<T>) {
    let bus = subject.open().await;
    let on = find(&bus);
    let events = on.scattered(1);
    on.send(&events).await;
    let mut receiver = on.receiver().await;
    let asked = Instant::now();
    one(&mut receiver).await.receipt.settle(Verdict::RetryAfter(SHORT)).await.unwrap();
    drop((receiver, on));

    let bus = reopened(subject, bus).await;
    let on = find(&bus);
    let mut receiver = on.receiver().await;
    let again = one(&mut receiver).await;
    assert_eq!((again.attempt, &again.event), (2, &events[0]), "on {}", on.hop.name);
    let waited = asked.elapsed() + ROUNDING;
    assert!(waited >= SHORT, "on {}: after {waited:?}, {SHORT:?} was asked", on.hop.name);
    again.receipt.settle(Verdict::Done).await.unwrap();
}
