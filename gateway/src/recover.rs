//! After an interruption, all sessions are attached to presence again, and clients that may have missed a message are asked
//! to `SYNC`. Interrupted was the live layer, or the gateway's [lease](crate::lease) on presence had lapsed.
//!
//! The rooms that moved are found by their heads: the heads of every room [known](crate::room_heads) here are read in
//! groups, and compared with how far all its members here have certainly been sent its messages. A session's rooms are known
//! from its `SYNC`; a session that has not sent one yet, or whose rooms were forgotten since, is asked to `SYNC` all its
//! rooms. **Not found like this**: a room that began, or that a user joined, after that
//! user's `SYNC`, and of which no message has come here yet. Its first messages are not proven to be delivered, so they
//! become pushes; where no proof is asked for (`delivery_grace` is 0) every client is asked to `SYNC` after every
//! interruption.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use naru_engines::EngineResult;
use naru_engines::store::Store;
use naru_model::frame::ServerFrame;
use naru_model::{RoomId, Seq, UserId};
use naru_runtime::backoff::Backoff;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::presence::Presence;
use crate::proof::Proofs;
use crate::refusal::to_text;
use crate::registry::SessionRegistry;
use crate::room_heads::{Epoch, RoomHeads};
use crate::session_state::Session;
use crate::telemetry::Telemetry;

/// Clients are asked to `SYNC` after this even if presence does not take all their sessions, and again when it has.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// How many sessions are attached at a time.
const ATTACH_AT_ONCE: usize = 64;
/// The backoff before failed attachments are tried again: from the first value, doubling up to the second.
const ATTACH_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A session that was attached late is asked to `SYNC` within this.
const MAX_LATE_SYNC_DELAY: Duration = Duration::from_millis(500);
/// How many rooms one look-up of heads holds.
const LOOK_UP: usize = 1_000;
/// Clients are asked to `SYNC` at moments spread over at least this …
const SPREAD: Duration = Duration::from_secs(2);
/// … and over so long that no more than this many send it in a second.
const SYNCS_PER_SECOND: usize = 2_000;

/// Asks clients that may have missed messages to `SYNC`.
pub(crate) struct Recover<'a> {
    pub(crate) presence: &'a Presence,
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

/// Attaches sessions again, some at a time; returns the result for each.
pub(crate) async fn attach(sessions: &[Arc<Session>], presence: &Presence) -> Vec<EngineResult<()>> {
    let mut attached = Vec::with_capacity(sessions.len());
    for some in sessions.chunks(ATTACH_AT_ONCE) {
        attached.extend(join_all(some.iter().map(|session| presence.attach_again(session))).await);
    }
    attached
}

/// Attaches all sessions again: presence may have lost them.
async fn attach_all(sessions: &SessionRegistry, presence: &Presence) {
    let mut backoff = Backoff::new(ATTACH_RETRY.0, ATTACH_RETRY.1);
    let mut left = sessions.all();
    while !left.is_empty() {
        let attached = attach(&left, presence).await;
        let failed =
            left.iter().zip(attached).filter_map(|(session, attached)| Some((session, attached.err()?)));
        let (again, errors): (Vec<_>, Vec<_>) =
            failed.map(|(session, error)| (session.clone(), error)).unzip();
        let Some(error) = errors.first() else { return };
        tracing::warn!(%error, sessions = again.len(), "presence was not told of sessions");
        let again = again
            .into_iter()
            .zip(errors)
            .filter(|(session, error)| error.is_transient() && !session.is_closing());
        left = again.map(|(session, _)| session).collect();
        tokio::time::sleep(backoff.next_delay()).await;
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
                Ok(()) => return ask_to_sync(session, None, MAX_LATE_SYNC_DELAY, telemetry),
                Err(error) => tracing::debug!(%error, "presence still does not know of a connection"),
            }
        }
    };
    tokio::select! {
        () = attaching => {}
        _ = session.closed() => {}
    }
}

/// The span over which the requests for so many `SYNC`s are spread.
pub(crate) fn sync_spread(count: usize) -> Duration {
    Duration::from_millis((count * 1_000 / SYNCS_PER_SECOND) as u64).max(SPREAD)
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
    /// Attaches all sessions again after every interruption, then asks clients to `SYNC`. A message of which look-ups do not
    /// find a session before it is attached is in the store when the heads are read.
    pub(crate) async fn run(self, mut interruptions: watch::Receiver<u64>) {
        while interruptions.changed().await.is_ok() {
            let mut backoff = Backoff::new(ATTACH_RETRY.0, ATTACH_RETRY.1);
            // Without a lease no entry counts.
            while let Err(error) = self.presence.renew_lease(self.room_heads).await {
                tracing::warn!(%error, "presence is not back yet");
                tokio::time::sleep(backoff.next_delay()).await;
            }
            let until = self.room_heads.interruptions();
            let mut attaching = pin!(attach_all(self.sessions, self.presence));
            if timeout(ASK_WITHIN, &mut attaching).await.is_err() {
                self.ask().await;
                attaching.await;
            }
            self.ask().await;
            self.room_heads.recovered_from(until);
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
            "live delivery was interrupted; asking clients to SYNC"
        );
        let spread = sync_spread(concerned.len());
        for (session, rooms) in concerned {
            ask_to_sync(session, rooms, spread, self.telemetry);
        }
        for (room, head) in moved.into_iter().flat_map(|moved| moved.heads) {
            self.room_heads.asked_to_sync(&room, head);
        }
    }

    async fn moved_rooms(&self) -> EngineResult<MovedRooms> {
        let (seen, epoch) = self.room_heads.all();
        let (mut moved, mut rooms_of) = (Vec::new(), HashMap::<UserId, Vec<RoomId>>::new());
        for some in seen.chunks(LOOK_UP) {
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
