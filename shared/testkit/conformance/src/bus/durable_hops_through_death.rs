//! The rules for durable hops when the process dies.

use tokio::time::Instant;

use super::*;

/// Selects a hop of a bus.
type Find<T> = fn(&Bus) -> On<T>;

pub(super) async fn b2_what_is_not_acknowledged_survives_death<T: Payload + PartialEq>(
    subject: Of<'_, Bus>,
    find: Find<T>,
) {
    let bus = subject.open().await;
    let on = find(&bus);
    let events = on.scattered(4);
    on.send(&events).await;
    let mut receiver = on.receiver().await;
    // Two deliveries are unacknowledged.
    let held = held(&mut receiver, 2).await;
    drop((held, receiver, on));

    let bus = reopened(subject, bus).await;
    let on = find(&bus);
    let mut receiver = on.receiver().await;
    assert_eq!(sorted(drained(&mut receiver, 4, 9).await), sorted(events), "on {}", on.hop.name);
}

/// Acknowledged events may come again, too, since an engine may carry events that were sent together as one.
pub(super) async fn b2_the_rest_of_what_was_sent_together_survives_death<T: Payload + PartialEq>(
    subject: Of<'_, Bus>,
    find: Find<T>,
) {
    let bus = subject.open().await;
    let on = find(&bus);
    let events = on.together(7);
    on.send(&events).await;
    let mut receiver = on.receiver().await;
    let (done, mut rest) = every_second(held(&mut receiver, 7).await);
    let retried = rest.remove(0);
    let (done, ack_handles) = split(done);
    ack(ack_handles).await.unwrap();
    retry([retried.ack_handle], SHORT).await.unwrap();
    drop((rest, receiver, on));

    let bus = reopened(subject, bus).await;
    let mut receiver = find(&bus).receiver().await;
    let rest: Vec<_> = events.into_iter().filter(|event| !done.contains(event)).collect();
    // Between the publishing of a retry and its acknowledgement, the event is stored twice.
    let perhaps: Vec<_> = done.into_iter().chain([retried.event]).collect();
    drained_at_least(&mut receiver, &rest, &perhaps).await;
}

pub(super) async fn b2_a_retry_and_its_delay_survive_death<T: Payload + PartialEq>(
    subject: Of<'_, Bus>,
    find: Find<T>,
) {
    let bus = subject.open().await;
    let on = find(&bus);
    let events = on.scattered(1);
    on.send(&events).await;
    let mut receiver = on.receiver().await;
    let asked = Instant::now();
    retry([one(&mut receiver).await.ack_handle], SHORT).await.unwrap();
    drop((receiver, on));

    let bus = reopened(subject, bus).await;
    let on = find(&bus);
    let mut receiver = on.receiver().await;
    let again = one(&mut receiver).await;
    assert_eq!((again.attempt, &again.event), (2, &events[0]), "on {}", on.hop.name);
    let waited = asked.elapsed() + ROUNDING;
    assert!(waited >= SHORT, "on {}: after {waited:?}, {SHORT:?} was asked", on.hop.name);
    ack([again.ack_handle]).await.unwrap();
}
