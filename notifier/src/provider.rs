//! What can make a phone buzz.

use async_trait::async_trait;
use naru_model::Event;
use naru_model::hops::{Lane, PushJob};

use crate::verdict::Verdict;

/// One push provider.
///
/// - **V1 one call, one verdict** – `push` makes one attempt and says how it ended. It does not retry what was looked at:
///   the lane does, where a crash forgets nothing.
/// - **V2 bounded** – it answers within a timeout of its own; no answer is [`Verdict::TryLater`].
/// - **V3 same name** – it passes the event's id on, so that a push sent twice (a crash between the call and its record)
///   is one on the phone.
/// - **V4 our fault is not the token's** – only an answer that is about this token is [`Verdict::TokenDead`].
/// - **V5 silent** – neither its logs nor its reasons hold a title, a body, a token or a key.
///
/// The job's `target` is always there on the lanes of devices. A provider keeps its access tokens to itself and renews them
/// inside `push`.
#[async_trait]
pub trait Provider: Send + Sync {
    /// The lane it serves.
    fn lane(&self) -> Lane;

    /// Whether the phone shows how many messages its owner has not read, so that the lane has to count them.
    fn shows_badge(&self) -> bool {
        false
    }

    /// Sends one push: see V1 to V5.
    async fn push(&self, event: &Event<PushJob>) -> Verdict;
}
