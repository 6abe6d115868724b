//! The interface of push providers.
//!
//! A new one has a lane of its own: a hop, an entry of `Lane` (`shared/model/src/hops.rs`), a queue of `Bus` in both engines, and,
//! where devices register for it, an entry of `Platform` (`shared/engines/src/store.rs`). The compiler leads through these. It does
//! not ask for:
//!
//! - the hop's entry in `hops::ALL`, which only tests read, and in the conformance suite's lists of hops;
//! - the keys: `Config` and `configured` in this crate's `lib.rs`, and `defaults.toml`. For OAuth2, `ServiceAccount` in `google.rs`
//!   is the pattern: one token for all calls, renewed before it expires, by one call however many wait for it;
//! - the table of verdicts with its page and answers (`verdict/`, `tests/answers`), and the emulator (`shared/testkit/phones`);
//! - `docs/PROTOCOL.md`, `docs/OPERATING.md`, `compose/docker-compose.yml` and `compose/k8s/notifier.yaml`.

use async_trait::async_trait;
use naru_model::Event;
use naru_model::hops::{Lane, PushJob};

use crate::verdict::Verdict;

/// One push provider.
///
/// - **V1 one call, one verdict** – `push` makes one attempt and returns how it ended. It does not retry a push that was
///   looked at: the lane does, and loses none in a crash.
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
    fn lane(&self) -> Lane;

    /// Whether the phone shows the number of unread messages, so that the lane has to count them.
    fn shows_badge(&self) -> bool {
        false
    }

    /// Sends one push: see V1 to V5.
    async fn push(&self, event: &Event<PushJob>) -> Verdict;
}
