//! Whoever can make a phone buzz.

use async_trait::async_trait;
use naru_model::Event;
use naru_model::hops::{Lane, PushJob};

use crate::verdict::Verdict;

/// One push provider.
///
/// - **V1 one call, one verdict** – `push` makes one attempt and says how it ended. It does not retry, wait or sleep:
///   the lane does, where a crash forgets nothing.
/// - **V2 bounded** – it answers within a timeout of its own; no answer is [`Verdict::TryLater`].
/// - **V3 same name** – it passes the event's id on, so that a push sent twice (a crash between the call and its record)
///   is one on the phone.
/// - **V4 our fault is not the token's** – only an answer that is about this token is [`Verdict::TokenDead`].
/// - **V5 silent** – neither its logs nor its reasons hold a title, a body, a token or a key.
///
/// What FCM and APNs will need is in the event: the job's `target` (token, environment; always there on their lanes),
/// `expires_at` for their own time to live, and the event id as `apns-id` or FCM's tag. They keep their
/// access tokens to themselves and renew them inside `push`. APNs' `badge` is not in the job yet.
#[async_trait]
pub trait Provider: Send + Sync {
    /// The lane it serves.
    fn lane(&self) -> Lane;

    /// Sends one push: see V1 to V5.
    async fn push(&self, event: &Event<PushJob>) -> Verdict;
}
