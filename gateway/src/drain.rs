//! The orderly end of a gateway: it takes no new work, and ends its tasks when the unanswered messages are finished.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::pending::Pending;
use crate::registry::SessionRegistry;

pub(crate) struct Drain {
    /// Cancelled when the gateway takes no new work any more.
    pub(crate) begun: CancellationToken,
    sessions: Arc<SessionRegistry>,
    pending: Arc<Pending>,
}

impl Drain {
    pub(crate) fn new(sessions: &Arc<SessionRegistry>, pending: &Arc<Pending>) -> Self {
        Self { begun: CancellationToken::new(), sessions: sessions.clone(), pending: pending.clone() }
    }

    /// Whether the gateway takes no new work any more.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Waits until, after shutdown, every session has ended and every message was answered.
    pub(crate) async fn done(&self) {
        self.begun.cancelled().await;
        self.sessions.emptied().await;
        self.pending.emptied().await;
    }

    /// Runs `work` until the gateway has drained: messages unanswered at shutdown are finished first.
    pub(crate) async fn until_done(&self, work: impl Future<Output = ()>) {
        tokio::select! {
            () = work => {}
            () = self.done() => {}
        }
    }
}
