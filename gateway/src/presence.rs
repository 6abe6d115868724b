//! Presence of this gateway's sessions: the lease, how a session is attached and evicted, and how the gateway leaves.

use std::sync::Arc;
use std::time::Duration;

use naru_engines::live::{self, HasSession, Live, PresenceEntry, Renewal, Subscription};
use naru_engines::{EngineResult, Engines};
use naru_model::{GatewayId, SessionId};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::refusal::Close;
use crate::registry::SessionRegistry;
use crate::room_heads::RoomHeads;
use crate::session_state::Session;

/// A gateway's lease on the presence of its sessions lapses after this.
const LEASE: Duration = Duration::from_secs(6);

/// This gateway's sessions in presence, under one lease.
pub(crate) struct Presence {
    gateway: GatewayId,
    presence: Arc<dyn live::Presence>,
    live: Arc<dyn Live>,
    sessions: Arc<SessionRegistry>,
    /// Renewals take turns: what one says is noted before the next begins.
    renewing: Mutex<()>,
    drain_barrier: DrainBarrier,
}

/// How a gateway leaves so that no event is published to sessions that are about to close: it leaves presence, then waits
/// until all events published before that are forwarded. Events published later do not find its sessions.
struct DrainBarrier {
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
    fn new() -> Self {
        let [leaving, left, passed] = std::array::from_fn(|_| CancellationToken::new());
        Self { leaving, left, marker: SessionId::generate(), passed }
    }
}

impl Presence {
    pub(crate) fn new(gateway: GatewayId, engines: &Engines, sessions: &Arc<SessionRegistry>) -> Self {
        Self {
            gateway,
            presence: engines.presence.clone(),
            live: engines.live.clone(),
            sessions: sessions.clone(),
            renewing: Mutex::default(),
            drain_barrier: DrainBarrier::new(),
        }
    }

    /// Subscribes this gateway to the live layer.
    pub(crate) async fn subscribe(&self, has_session: HasSession) -> EngineResult<Box<dyn Subscription>> {
        self.live.subscribe(&self.gateway, has_session).await
    }

    /// Renews the lease, and notes whether the messages received until now name all their recipients here.
    pub(crate) async fn renew_lease(&self, room_heads: &RoomHeads) -> EngineResult<Renewal> {
        let _turn = self.renewing.lock().await;
        let period = room_heads.begin_period();
        let renewal = self.presence.renew(&self.gateway, LEASE).await?;
        match renewal {
            Renewal::Unbroken => room_heads.confirm_before(period),
            Renewal::Lapsed => room_heads.lapsed(),
        }
        Ok(renewal)
    }

    /// Waits for `work`, unless the gateway is to leave presence before.
    pub(crate) async fn until_leaving<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.drain_barrier.leaving.run_until_cancelled(work).await
    }

    /// Ends the lease: the gateway has left presence.
    pub(crate) async fn resign(&self) -> EngineResult<()> {
        let resigned = self.presence.resign(&self.gateway).await;
        self.drain_barrier.left.cancel();
        resigned
    }

    /// Which of these sessions presence has, in their order.
    pub(crate) async fn attached(&self, sessions: &[Arc<Session>]) -> EngineResult<Vec<bool>> {
        let entries: Vec<PresenceEntry> = sessions.iter().map(|session| self.entry(session)).collect();
        self.presence.attached(&entries).await
    }

    /// Attaches a session before its `WELCOME`: every message published after the `WELCOME` finds the session. Returns
    /// whether presence has it.
    pub(crate) async fn attach(&self, session: &Session) -> bool {
        match self.presence.attach(&self.entry(session)).await {
            Ok(None) => {}
            Ok(Some(replaced)) => self.evict(&replaced).await,
            // The client is served all the same; until its session is attached it gets pushes, then it is asked to SYNC.
            Err(error) => {
                tracing::warn!(%error, "presence was not told of a connection; telling it again");
                return false;
            }
        }
        session.attached();
        true
    }

    /// Attaches a session whose first attach failed or was lost.
    pub(crate) async fn attach_again(&self, session: &Session) -> EngineResult<()> {
        let entry = self.entry(session);
        if let Some(other) = self.presence.attach(&entry).await? {
            // Its device has connected to another gateway, and this one did not receive the eviction. Which of the two
            // came later is not known, so the other one keeps its place, and this one's client may connect again and
            // replace it.
            self.presence.attach(&other).await?;
            session.close(Close::GoingAway);
        }
        if session.is_closing() {
            // It may have been detached before it was attached again.
            self.presence.detach(&entry).await?;
        }
        session.attached();
        Ok(())
    }

    pub(crate) async fn detach(&self, session: &Session) -> EngineResult<()> {
        self.presence.detach(&self.entry(session)).await
    }

    fn entry(&self, session: &Session) -> PresenceEntry {
        PresenceEntry {
            user: session.identity.user.clone(),
            device: session.identity.device.clone(),
            session: session.id.clone(),
            gateway: self.gateway.clone(),
        }
    }

    /// Ends a session whose device has connected here, on whichever gateway it is.
    async fn evict(&self, replaced: &PresenceEntry) {
        if replaced.gateway != self.gateway {
            if let Err(error) = self.live.evict(&replaced.gateway, &replaced.session).await {
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

    /// Takes an eviction.
    pub(crate) fn evicted(&self, session: &SessionId) {
        if *session == self.drain_barrier.marker {
            self.drain_barrier.passed.cancel();
        }
        for known in self.sessions.all().iter().filter(|known| known.id == *session) {
            known.close(Close::Replaced);
        }
    }

    /// Leaves presence, and waits until all events published before are forwarded: see [`DrainBarrier`]. `interruptions`
    /// changes when one is over.
    pub(crate) async fn pass_drain_barrier(
        &self,
        mut interruptions: watch::Receiver<u64>,
    ) -> EngineResult<()> {
        self.drain_barrier.leaving.cancel();
        self.drain_barrier.left.cancelled().await;
        interruptions.mark_unchanged();
        self.live.evict(&self.gateway, &self.drain_barrier.marker).await?;
        // The marker may be lost in an interruption, and without sessions no event is forwarded any more.
        tokio::select! {
            () = self.drain_barrier.passed.cancelled() => {}
            () = self.sessions.emptied() => {}
            _ = interruptions.changed() => {}
        }
        Ok(())
    }
}
