//! Keeps the gateway's lease on presence, and watches that presence has what it was told.
//!
//! | lost | noticed by | then |
//! |---|---|---|
//! | the lease: it lapsed while the process was suspended, or presence lost its data | its next renewal | an [interruption](crate::interruptions) |
//! | the entries of single users | a look-up of all users here, a few with each renewal, all within a minute | these users' sessions are attached again, and asked to `SYNC` |

use std::sync::Arc;
use std::time::Duration;

use naru_engines::EngineResult;
use naru_engines::live::Renewal;
use naru_model::UserId;
use tokio::time::MissedTickBehavior;

use crate::interruptions::Interruptions;
use crate::presence::Presence;
use crate::recover::{ask_to_sync, attach, sync_spread};
use crate::registry::SessionRegistry;
use crate::room_heads::RoomHeads;
use crate::session_state::Session;
use crate::telemetry::Telemetry;

/// The lease is renewed this often, three times while it lasts.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// All users are looked up once in this many renewals, which is half a minute: a user's turn may come early in one pass
/// and late in the next.
const PASS: usize = 15;

/// See the module.
pub(crate) struct LeaseKeeper<'a> {
    pub(crate) presence: &'a Presence,
    pub(crate) sessions: &'a SessionRegistry,
    pub(crate) room_heads: &'a RoomHeads,
    pub(crate) interruptions: &'a Interruptions,
    pub(crate) telemetry: &'a Telemetry,
}

/// The users that are still to be looked up in this pass, and how many at a time.
#[derive(Default)]
struct Pass {
    users: Vec<UserId>,
    at_once: usize,
}

impl LeaseKeeper<'_> {
    /// Keeps the lease until the gateway leaves presence.
    pub(crate) async fn run(self) -> EngineResult<()> {
        let mut ticks = tokio::time::interval(RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pass = Pass::default();
        // A renewal under way is finished first: it might take effect after the resignation.
        while self.presence.until_leaving(ticks.tick()).await.is_some() {
            self.renew(&mut pass).await;
        }
        self.presence.resign().await
    }

    async fn renew(&self, pass: &mut Pass) {
        let period = self.room_heads.begin_period();
        match self.presence.renew_lease().await {
            Ok(Renewal::Lapsed) => {
                tracing::warn!("the lease on presence had lapsed, or was lost");
                self.interruptions.report();
            }
            Ok(Renewal::Unbroken) if self.interruptions.are_recovered() => {
                self.room_heads.confirm_before(period);
                self.look_up_some(pass).await;
            }
            Ok(Renewal::Unbroken) => {}
            Err(error) => tracing::warn!(%error, "the lease on presence was not renewed"),
        }
    }

    /// Looks up the next users of the pass, and repairs the entries of those that presence has lost.
    async fn look_up_some(&self, pass: &mut Pass) {
        if pass.users.is_empty() {
            pass.users = self.sessions.all().iter().map(|session| session.identity.user.clone()).collect();
            pass.at_once = pass.users.len().div_ceil(PASS);
        }
        let users = pass.users.split_off(pass.users.len().saturating_sub(pass.at_once));
        if users.is_empty() {
            return;
        }
        let mut attached: Vec<Vec<Arc<Session>>> = vec![Vec::new(); users.len()];
        for (user, attached) in users.iter().zip(&mut attached) {
            self.sessions.each_of(user, |session| {
                attached.extend(session.is_attached().then(|| session.clone()));
            });
        }
        let online = match self.presence.online(&users).await {
            Ok(online) => online,
            Err(error) => return tracing::debug!(%error, "presence was not checked; the next pass does it"),
        };
        let lost = attached.into_iter().zip(online).filter(|(_, online)| !online);
        let lost = lost.flat_map(|(sessions, _)| sessions).filter(|session| !session.is_closing());
        let lost: Vec<Arc<Session>> = lost.collect();
        if lost.is_empty() {
            return;
        }
        tracing::warn!(sessions = lost.len(), "presence has lost sessions; telling it again");
        let spread = sync_spread(lost.len());
        for (session, attached) in lost.iter().zip(attach(&lost, self.presence).await) {
            match attached {
                Ok(()) => ask_to_sync(session, None, spread, self.telemetry),
                Err(error) => tracing::warn!(%error, "presence did not hear of a session; the next pass tells it"),
            }
        }
    }
}
