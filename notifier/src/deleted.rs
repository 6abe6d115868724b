//! Pushes of messages that were deleted meanwhile: none is sent, and none is parked, where its content would stay.
//!
//! A message that was just accepted is not looked up: the usual push, on its way at once, costs nothing more. So a push of a
//! message that is deleted within [`YOUNG`] of its acceptance may still go out, at its first try.

use std::collections::HashSet;
use std::time::Duration;

use naru_engines::EngineResult;
use naru_engines::store::Store;
use naru_model::{MessageId, Timestamp};

/// The reason why no push is sent.
pub(crate) const REASON: &str = "deleted";

/// Younger messages are not looked up when their pushes are tried for the first time.
pub(crate) const YOUNG: Duration = Duration::from_secs(30);

/// Whether a push has to be looked up that is tried for the `attempt`th time.
pub(crate) fn may_be_deleted(made_at: Timestamp, attempt: u32, now: Timestamp) -> bool {
    attempt > 1 || now.since(made_at) > YOUNG
}

/// The deleted ones of these messages. One look-up, and none for no message.
pub(crate) async fn deleted(store: &Store, asked: HashSet<MessageId>) -> EngineResult<HashSet<MessageId>> {
    if asked.is_empty() {
        return Ok(HashSet::new());
    }
    let found = store.messages.find(&Vec::from_iter(asked)).await?;
    Ok(found
        .into_iter()
        .flatten()
        .filter(|message| message.deleted_at.is_some())
        .map(|message| message.id)
        .collect())
}
