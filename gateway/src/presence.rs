//! Presence of this gateway's sessions: the lease, how a session is attached and evicted, and how the gateway leaves.

use std::sync::Arc;
use std::time::Duration;

use naru_engines::EngineError;
use naru_engines::live::PresenceEntry;
use naru_model::SessionId;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::Gateway;
use crate::refusal::Close;
use crate::sessions::Session;

/// A gateway's lease on the presence of its sessions is renewed this often …
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// … and lapses after this: three renewals.
pub(crate) const LEASE: Duration = Duration::from_secs(6);

/// How a gateway leaves so that no event is published to sessions that are about to close: it leaves presence, then waits
/// until all events published before that are forwarded. Events published later do not find its sessions.
pub(crate) struct DrainBarrier {
    /// Cancelled when the gateway is to leave presence.
    leaving: CancellationToken,
    /// Cancelled when it has left.
    left: CancellationToken,
    /// Not the id of a session: an eviction of it, sent to itself, comes after all events that were published before.
    marker: SessionId,
    /// Cancelled when that eviction has come.
    passed: CancellationToken,
}

impl DrainBarrier {
    pub(crate) fn new() -> Self {
        let [leaving, left, passed] = std::array::from_fn(|_| CancellationToken::new());
        Self { leaving, left, marker: SessionId::generate(), passed }
    }
}

impl Gateway {
    /// Leaves presence, and waits until all events published before are forwarded: see [`DrainBarrier`].
    pub(crate) async fn pass_drain_barrier(&self) -> Result<(), EngineError> {
        self.drain_barrier.leaving.cancel();
        self.drain_barrier.left.cancelled().await;
        let mut restored = self.restored.subscribe();
        self.engines.live.evict(&self.id, &self.drain_barrier.marker).await?;
        // The marker may be lost in an interruption, and without sessions no event is forwarded any more.
        tokio::select! {
            () = self.drain_barrier.passed.cancelled() => {}
            () = self.sessions.emptied() => {}
            _ = restored.changed() => {}
        }
        Ok(())
    }

    /// Takes an eviction.
    pub(crate) fn evicted(&self, session: &SessionId) {
        if *session == self.drain_barrier.marker {
            self.drain_barrier.passed.cancel();
        }
        for known in self.sessions.all().iter().filter(|known| known.id == *session) {
            known.close(Close::Replaced);
        }
    }

    /// The entry of a session in presence.
    pub(crate) fn presence_entry(&self, session: &Session) -> PresenceEntry {
        PresenceEntry {
            user: session.identity.user.clone(),
            device: session.identity.device.clone(),
            session: session.id.clone(),
            gateway: self.id.clone(),
        }
    }

    /// Ends a session whose device has connected here, on whichever gateway it is.
    pub(crate) async fn evict(&self, replaced: &PresenceEntry) {
        if replaced.gateway != self.id {
            if let Err(error) = self.engines.live.evict(&replaced.gateway, &replaced.session).await {
                tracing::warn!(%error, "a replaced session was not told");
            }
            return;
        }
        self.sessions.each_of(&replaced.user, |session| {
            if session.id == replaced.session {
                session.close(Close::Replaced);
            }
        });
    }
}

/// Keeps the gateway's lease until it leaves presence.
pub(crate) async fn renew(gateway: Arc<Gateway>) -> Result<(), EngineError> {
    let DrainBarrier { leaving, left, .. } = &gateway.drain_barrier;
    let mut ticks = tokio::time::interval(RENEW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A renewal under way is finished first: it might take effect after the resignation.
    while leaving.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Err(error) = gateway.engines.presence.renew(&gateway.id, LEASE).await {
            tracing::warn!(%error, "the lease on presence was not renewed");
        }
    }
    let resigned = gateway.engines.presence.resign(&gateway.id).await;
    left.cancel();
    resigned
}
