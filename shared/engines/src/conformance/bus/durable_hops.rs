//! What holds on durable hops.

use tokio::time::Instant;

use super::*;

pub(super) async fn b5_a_delay_is_kept_and_not_exceeded<T: Payload + PartialEq>(on: On<T>) {
    let mut receiver = on.receiver().await;
    let (later, at_once) = (on.scattered(3), on.scattered(1));
    let asked = Instant::now();
    on.queue.send_later(SHORT, later.clone()).await.unwrap();
    on.send(&at_once).await;
    let mut received = Vec::new();
    while received.len() < 4 {
        for event in drained(&mut receiver, 1, 1).await {
            received.push((asked.elapsed() + ROUNDING, event));
        }
    }
    received.retain(|(_, event)| *event != at_once[0]);
    for (waited, _) in &received {
        assert!((SHORT..SHORT + SOON).contains(waited), "after {waited:?}, {SHORT:?} was asked");
    }
    assert_eq!(sorted(received.into_iter().map(|(_, event)| event)), sorted(later));
}

pub(super) async fn b5_a_long_delay_does_not_hold_up_a_short_one<T: Payload + PartialEq>(on: On<T>) {
    let mut receiver = on.receiver().await;
    // In one room, so that whatever an engine sorts by, these are together.
    let room = room();
    let (long, short) = (on.event(&room), on.event(&room));
    on.queue.send_later(LONG, vec![long]).await.unwrap();
    on.queue.send_later(SHORT, vec![short.clone()]).await.unwrap();
    assert_eq!(drained(&mut receiver, 1, 9).await, [short]);
}
