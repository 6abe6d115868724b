//! Keeps the gateway's lease on presence, and checks that presence still has the gateway's sessions.
//!
//! | lost | noticed by | then |
//! |---|---|---|
//! | the lease: it lapsed while the process was suspended, or presence lost its data | its next renewal | an interruption, as when the live layer was interrupted: [`recover`](crate::recover) |
//! | single sessions | a look-up of all sessions, some with each renewal, all within 40 seconds | these are attached again, and asked to `SYNC` |

use std::sync::Arc;
use std::time::Duration;

use naru_engines::EngineResult;
use naru_engines::live::Renewal;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::presence::Presence;
use crate::recover::{ask_to_sync, attach, sync_spread};
use crate::registry::{SHARDS, SessionRegistry};
use crate::room_heads::RoomHeads;
use crate::session_state::Session;
use crate::telemetry::Telemetry;

/// The lease is renewed this often, three times while it lasts. With each renewal the sessions of one shard are checked.
const RENEW_EVERY: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct LeaseKeeper<'a> {
    pub(crate) presence: &'a Presence,
    pub(crate) sessions: &'a SessionRegistry,
    pub(crate) room_heads: &'a RoomHeads,
    pub(crate) interruptions: &'a watch::Sender<u64>,
    pub(crate) telemetry: &'a Telemetry,
}

impl LeaseKeeper<'_> {
    /// Keeps the lease until the gateway leaves presence.
    pub(crate) async fn run(self) -> EngineResult<()> {
        let mut ticks = tokio::time::interval(RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut shards = (0..SHARDS).cycle();
        // A renewal under way is finished first: it might take effect after the resignation.
        while self.presence.until_leaving(ticks.tick()).await.is_some() {
            match self.presence.renew_lease(self.room_heads).await {
                Ok(Renewal::Lapsed) => {
                    tracing::warn!("the lease on presence had lapsed, or was lost");
                    self.interruptions.send_modify(|count| *count += 1);
                }
                // After an interruption all sessions are attached again.
                Ok(Renewal::Unbroken) if self.room_heads.is_interrupted() => {}
                Ok(Renewal::Unbroken) => {
                    let shard = shards.next().unwrap_or_default();
                    self.check(self.sessions.of_shard(shard)).await;
                }
                Err(error) => tracing::warn!(%error, "the lease on presence was not renewed"),
            }
        }
        self.presence.resign().await
    }

    /// Attaches those of these sessions again that presence has lost.
    async fn check(&self, mut sessions: Vec<Arc<Session>>) {
        sessions.retain(|session| session.is_attached());
        if sessions.is_empty() {
            return;
        }
        let attached = match self.presence.attached(&sessions).await {
            Ok(attached) => attached,
            Err(error) => return tracing::debug!(%error, "sessions were not checked; the next time they are"),
        };
        let lost = sessions.into_iter().zip(attached).filter(|(_, attached)| !attached);
        let lost: Vec<Arc<Session>> =
            lost.map(|(session, _)| session).filter(|session| !session.is_closing()).collect();
        if lost.is_empty() {
            return;
        }
        tracing::warn!(sessions = lost.len(), "presence has lost sessions: they are attached again");
        let spread = sync_spread(lost.len());
        for (session, attached) in lost.iter().zip(attach(&lost, self.presence).await) {
            match attached {
                Ok(()) => ask_to_sync(session, None, spread, self.telemetry),
                Err(error) => tracing::warn!(%error, "a session was not attached again; the next time it is"),
            }
        }
    }
}
