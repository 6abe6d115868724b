//! RECEIVED and READ: stored in groups, then told to the room. They only go forward, so one that is lost is made up for
//! by the next.

use std::sync::Arc;

use naru_engines::store::{Advance, Moved};
use naru_model::frame::Upto;
use naru_model::live::{LiveEvent, News, Position};
use naru_model::{Seq, SessionId, Timestamp};
use tokio::sync::mpsc;

use crate::Gateway;
use crate::refusal::Refusal;
use crate::sessions::Session;

/// How many steps are stored in one write.
const BATCH: usize = 256;
/// How many may wait; beyond, a session that takes steps waits too.
const QUEUE: usize = 4096;
/// Positions are told in rooms of up to this many members, and stored in all.
const TOLD_UP_TO: usize = 32;

/// What a client said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Received,
    Read,
}

/// A step on its way to the store.
pub(crate) struct Taken {
    advance: Advance,
    session: SessionId,
}

pub(crate) fn channel() -> (mpsc::Sender<Taken>, mpsc::Receiver<Taken>) {
    mpsc::channel(QUEUE)
}

impl Gateway {
    /// Takes a step of a session's user in a room.
    pub(crate) async fn step(&self, session: &Session, upto: Upto, step: Step) -> Result<(), Refusal> {
        let user = &session.identity.user;
        if self.rooms.of_member_now(&upto.chat_room_id, user).await?.is_none() {
            return Err(Refusal::RoomNotFound);
        }
        let advance = Advance {
            room: upto.chat_room_id,
            user: user.clone(),
            device: session.identity.device.clone(),
            received: upto.seq,
            read: if step == Step::Read { upto.seq } else { Seq::ZERO },
        };
        let taken = Taken { advance, session: session.id.clone() };
        self.steps.send(taken).await.map_err(|_| Refusal::Overloaded)
    }
}

/// Stores steps in groups and tells of those that moved something.
pub(crate) async fn run(gateway: &Arc<Gateway>, steps: &mut mpsc::Receiver<Taken>) {
    let mut batch = Vec::with_capacity(BATCH);
    while steps.recv_many(&mut batch, BATCH).await > 0 {
        let (advances, sessions): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|taken| (taken.advance, taken.session)).unzip();
        match gateway.engines.store.positions.advance(&advances).await {
            Ok(moved) => tell(gateway, advances.into_iter().zip(sessions).zip(moved)).await,
            Err(error) => {
                tracing::warn!(%error, steps = advances.len(), "positions were not stored; later ones will be");
            }
        }
    }
}

async fn tell(gateway: &Gateway, steps: impl Iterator<Item = ((Advance, SessionId), Moved)>) {
    let mut events = Vec::new();
    for ((advance, session), moved) in steps {
        if moved == Moved::default() {
            continue;
        }
        let room = gateway.rooms.of_member_now(&advance.room, &advance.user).await;
        let Ok(Some(room)) = room else { continue };
        if room.member_ids.len() > TOLD_UP_TO {
            continue;
        }
        let position = |seq| Position {
            chat_room_id: advance.room.clone(),
            user_id: advance.user.clone(),
            seq,
            timestamp: Timestamp::now(),
        };
        // READ says all that RECEIVED says.
        let news = match (moved.read, moved.received) {
            (Some(seq), _) => News::Read(position(seq)),
            (None, Some(seq)) => News::Received(position(seq)),
            (None, None) => continue,
        };
        events.push(LiveEvent { recipients: room.member_ids.clone(), origin: Some(session), news });
    }
    if events.is_empty() {
        return;
    }
    if let Err(error) = gateway.engines.live.publish(events).await {
        tracing::debug!(%error, "positions were not told; they are stored");
    }
}
