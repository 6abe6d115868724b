//! What holds on newest-only hops, whether or not their bound can be reached.

use super::*;
use crate::EngineError;

pub(super) async fn b8_nothing_is_kept_for_later<T: Payload + PartialEq>(on: On<T>) {
    let events = on.scattered(2);
    let refused = on.queue.send_later(SHORT, events[..1].to_vec()).await;
    assert!(matches!(refused, Err(EngineError::Permanent { .. })), "{refused:?}");
    on.send(&events[1..]).await;
    let mut receiver = on.receiver().await;
    assert_eq!(drained(&mut receiver, 1, 9).await, events[1..], "and nothing of what was refused");
}
