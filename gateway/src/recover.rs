//! After an interruption of the live layer, all sessions are attached to presence again, and clients that may have missed
//! a message are asked to `SYNC`.
//!
//! The rooms that moved are found by their heads: the heads of every room [known](crate::room_heads) here are read in
//! groups. A session's rooms are known from its `SYNC`; a session that has not sent one yet, or whose rooms were forgotten
//! since, is asked to `SYNC` all its rooms. **Not found like this**: a room that began, or that a user joined, after that
//! user's `SYNC`, and of which no message has come here yet. Its first messages are not proven to be delivered, so they
//! become pushes; where no proof is asked for (`delivery_grace` is 0) every client is asked to `SYNC` after every
//! interruption.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use naru_engines::EngineResult;
use naru_engines::store::Store;
use naru_model::frame::ServerFrame;
use naru_model::{RoomId, Seq, UserId};
use naru_runtime::backoff::Backoff;
use tokio::sync::watch;

use crate::presence::Presence;
use crate::proof::Proofs;
use crate::refusal::to_text;
use crate::registry::SessionRegistry;
use crate::room_heads::{Epoch, RoomHeads};
use crate::session_state::Session;
use crate::telemetry::Telemetry;

/// How many sessions are attached at a time.
const ATTACH_AT_ONCE: usize = 64;
/// The backoff before failed attachments are tried again: from the first value, doubling up to the second.
const ATTACH_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A session that was attached late is asked to `SYNC` within this.
const LATE_SYNC_WITHIN: Duration = Duration::from_millis(500);
/// How many rooms one look-up of heads holds.
const LOOK_UP: usize = 1_000;
/// Clients are asked to `SYNC` at moments spread over at least this …
const SPREAD: Duration = Duration::from_secs(2);
/// … and over so long that no more than this many send it in a second.
const SYNCS_PER_SECOND: usize = 2_000;

/// Asks clients that may have missed messages to `SYNC`.
pub(crate) struct Recover<'a> {
    pub(crate) sessions: &'a SessionRegistry,
    pub(crate) room_heads: &'a RoomHeads,
    pub(crate) store: &'a Store,
    pub(crate) proofs: &'a Proofs,
    pub(crate) telemetry: &'a Telemetry,
}

/// The rooms that moved during the interruption.
struct MovedRooms {
    /// The moved rooms and their heads.
    heads: Vec<(RoomId, Seq)>,
    /// The moved rooms by the members that have a session here.
    rooms_of: HashMap<UserId, Vec<RoomId>>,
    /// The sessions known in this epoch have all their rooms among those that were looked up.
    epoch: Epoch,
}

/// Attaches all sessions again after every interruption: a live layer that was restarted has lost presence.
pub(crate) async fn attach_again(
    mut restored: watch::Receiver<u64>,
    sessions: &SessionRegistry,
    presence: &Presence,
) {
    while restored.changed().await.is_ok() {
        attach_all(&sessions.all(), presence).await;
    }
}

async fn attach_all(sessions: &[Arc<Session>], presence: &Presence) {
    let mut backoff = Backoff::new(ATTACH_RETRY.0, ATTACH_RETRY.1);
    // Without a lease no entry counts.
    while let Err(error) = presence.renew_lease().await {
        tracing::warn!(%error, "presence is not back yet");
        tokio::time::sleep(backoff.next_delay()).await;
    }
    for some in sessions.chunks(ATTACH_AT_ONCE) {
        let mut left: Vec<&Arc<Session>> = some.iter().collect();
        loop {
            let told = join_all(left.iter().map(|session| presence.attach_again(session))).await;
            let failed =
                left.into_iter().zip(told).filter_map(|(session, told)| Some((session, told.err()?)));
            let (unheard, errors): (Vec<_>, Vec<_>) = failed.unzip();
            let Some(error) = errors.first() else { break };
            tracing::warn!(%error, sessions = unheard.len(), "presence did not hear of sessions; telling it again");
            left = unheard;
            tokio::time::sleep(backoff.next_delay()).await;
        }
        backoff.reset();
    }
}

/// Attaches a session whose first attach failed. Messages published meanwhile did not find it, so it is asked to
/// `SYNC`.
pub(crate) async fn attach_late(session: &Session, presence: &Presence, telemetry: &Telemetry) {
    let attaching = async {
        let mut backoff = Backoff::new(ATTACH_RETRY.0, ATTACH_RETRY.1);
        loop {
            tokio::time::sleep(backoff.next_delay()).await;
            match presence.attach_again(session).await {
                Ok(()) => return ask_to_sync(session, None, LATE_SYNC_WITHIN, telemetry),
                Err(error) => tracing::debug!(%error, "presence still does not hear of a connection"),
            }
        }
    };
    tokio::select! {
        () = attaching => {}
        _ = session.closed() => {}
    }
}

/// Asks one client to `SYNC` these rooms (none: all it has) at a moment within `spread`.
pub(crate) fn ask_to_sync(
    session: &Session,
    rooms: Option<&[RoomId]>,
    spread: Duration,
    telemetry: &Telemetry,
) {
    let spread = u64::try_from(spread.as_millis()).unwrap_or(u64::MAX).max(1);
    session.send(to_text(&ServerFrame::Resync {
        reason: "live delivery was interrupted",
        rooms,
        retry_after_ms: Some(rand::random_range(0..spread)),
    }));
    telemetry.asked_to_sync.inc();
}

impl Recover<'_> {
    /// Asks clients to `SYNC` after every interruption.
    pub(crate) async fn run(self, mut restored: watch::Receiver<u64>) {
        while restored.changed().await.is_ok() {
            self.ask().await;
        }
    }

    /// Asks sessions whose rooms moved, and sessions whose rooms are not known, to `SYNC`.
    async fn ask(&self) {
        let sessions = self.sessions.all();
        let moved = match self.proofs.are_asked_for {
            false => None,
            true => match self.moved_rooms().await {
                Ok(moved) => Some(moved),
                Err(error) => {
                    tracing::warn!(%error, "which rooms moved can't be told: every client is asked to SYNC");
                    None
                }
            },
        };
        let concerned = sessions.iter().filter_map(|session| match &moved {
            Some(moved) if session.known_in() == Some(moved.epoch) => {
                let rooms = moved.rooms_of.get(&session.identity.user)?;
                Some((session, Some(rooms.as_slice())))
            }
            _ => Some((session, None)),
        });
        let concerned: Vec<_> = concerned.collect();
        tracing::info!(
            sessions = sessions.len(),
            asked = concerned.len(),
            "the live layer is back; asking clients to SYNC"
        );
        let spread = Duration::from_millis((concerned.len() * 1_000 / SYNCS_PER_SECOND) as u64).max(SPREAD);
        for (session, rooms) in concerned {
            ask_to_sync(session, rooms, spread, self.telemetry);
        }
        for (room, head) in moved.into_iter().flat_map(|moved| moved.heads) {
            self.room_heads.reached(&room, head);
        }
    }

    async fn moved_rooms(&self) -> EngineResult<MovedRooms> {
        let (heard, epoch) = self.room_heads.all();
        let (mut moved, mut rooms_of) = (Vec::new(), HashMap::<UserId, Vec<RoomId>>::new());
        for some in heard.chunks(LOOK_UP) {
            let rooms: Vec<RoomId> = some.iter().map(|(room, _)| room.clone()).collect();
            let heads = self.store.messages.heads(&rooms).await?;
            let ahead = some.iter().zip(heads).filter(|((_, last), head)| head > last);
            let ahead: Vec<(RoomId, Seq)> = ahead.map(|((room, _), head)| (room.clone(), head)).collect();
            let rooms: Vec<RoomId> = ahead.iter().map(|(room, _)| room.clone()).collect();
            if rooms.is_empty() {
                continue;
            }
            for room in self.store.rooms.current(&rooms).await?.into_iter().flatten() {
                for member in room.member_ids.iter().filter(|member| self.sessions.has(member.as_str())) {
                    rooms_of.entry(member.clone()).or_default().push(room.id.clone());
                }
            }
            moved.extend(ahead);
        }
        Ok(MovedRooms { heads: moved, rooms_of, epoch })
    }
}
