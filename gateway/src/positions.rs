//! RECEIVED and READ: positions, stored in batches, then published to the room. Positions only go forward, so
//! the next one also covers one that could not be stored.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use naru_engines::Engines;
use naru_engines::live::Live;
use naru_engines::store::{self, Advance, Moved};
use naru_model::frame::RoomPosition;
use naru_model::live::{LiveEvent, News, Position};
use naru_model::{Room, RoomId, Seq, SessionId, Timestamp};
use tokio::sync::mpsc;

use crate::batches::{Batches, Limits, Linger};
use crate::drain::Drain;
use crate::refusal::Refusal;
use crate::rooms::{FRESH, RoomCache};
use crate::session_state::Session;

/// How many steps are taken at a time.
const BATCH: usize = 1024;
/// So many of them of one session in one room are stored and told one by one; those after them as one with the last: a client that
/// reports each message in a burst is told of by few.
const ONE_BY_ONE: usize = 3;
/// How many are stored in one write: few enough that it holds up no message.
const PART: usize = 256;
/// How long a batch that follows closely on another waits for more steps.
const LINGER: Linger = Linger { span: Duration::from_millis(20), enough: BATCH, busy_from: 0 };
/// How many steps may wait; beyond that, a session that takes steps waits too.
const QUEUE: usize = 4096;
/// A user who takes a step was a member this long ago at most. The store moves only present members.
const MAX_MEMBERSHIP_AGE: Duration = Duration::from_secs(30);
/// Positions are published in rooms of up to this many members, and stored in all.
const TOLD_UP_TO: usize = 32;

/// The frame that a client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PositionKind {
    Received,
    Read,
}

/// A step on its way to the store.
pub(crate) struct PendingAdvance {
    advance: Advance,
    session: SessionId,
}

/// Takes the steps of clients.
pub(crate) struct Positions {
    queue: mpsc::Sender<PendingAdvance>,
    rooms: Arc<RoomCache>,
}

/// Stores the steps that were taken, and publishes them.
pub(crate) struct PositionWriter {
    steps: Batches<PendingAdvance>,
    rooms: Arc<RoomCache>,
    positions: Arc<dyn store::Positions>,
    live: Arc<dyn Live>,
}

impl Positions {
    pub(crate) fn new(engines: &Engines, rooms: &Arc<RoomCache>) -> (Self, PositionWriter) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let (positions, live) = (engines.store.positions.clone(), engines.live.clone());
        let size = |_: &PendingAdvance| 1;
        let steps = Batches::new(queue, Limits { max: BATCH, max_size: BATCH, size, linger: LINGER });
        let writer = PositionWriter { steps, rooms: rooms.clone(), positions, live };
        (Self { queue: sender, rooms: rooms.clone() }, writer)
    }

    /// Takes a step of a session's user in a room.
    pub(crate) async fn advance(
        &self,
        session: &Session,
        position: RoomPosition,
        kind: PositionKind,
    ) -> Result<(), Refusal> {
        let user = &session.identity.user;
        if self.rooms.of_member_within(MAX_MEMBERSHIP_AGE, &position.chat_room_id, user).await?.is_none() {
            return Err(Refusal::RoomNotFound);
        }
        let advance = Advance {
            room: position.chat_room_id,
            user: user.clone(),
            device: session.identity.device.clone(),
            received: position.seq,
            read: if kind == PositionKind::Read { position.seq } else { Seq::ZERO },
        };
        let taken = PendingAdvance { advance, session: session.id.clone() };
        self.queue.send(taken).await.map_err(|_| Refusal::Overloaded)
    }
}

/// The steps, few of one session in one room: positions are merged by maximum (P1).
fn merged(steps: impl Iterator<Item = PendingAdvance>) -> Vec<(Advance, SessionId)> {
    let mut merged: Vec<(Advance, SessionId)> = Vec::new();
    // How many there are, and the place of the last one.
    let mut known: HashMap<(SessionId, RoomId), (usize, usize)> = HashMap::new();
    for PendingAdvance { advance, session } in steps {
        let (count, last) = known.entry((session.clone(), advance.room.clone())).or_default();
        if *count == ONE_BY_ONE {
            let (last, _) = &mut merged[*last];
            last.received = last.received.max(advance.received);
            last.read = last.read.max(advance.read);
        } else {
            (*count, *last) = (*count + 1, merged.len());
            merged.push((advance, session));
        }
    }
    merged
}

impl PositionWriter {
    /// Stores steps in batches and publishes those that moved a position. Steps taken before the gateway has drained are
    /// stored, since no client sends its last READ again.
    pub(crate) async fn run(mut self, drain: &Drain) {
        let mut batch = Vec::new();
        loop {
            let is_over = tokio::select! {
                more = self.steps.next(&mut batch) => !more,
                () = drain.done() => true,
            };
            if is_over {
                self.steps.fill(&mut batch);
            }
            if batch.is_empty() {
                return;
            }
            let steps = merged(batch.drain(..));
            for part in steps.chunks(PART) {
                self.store(part.iter().cloned().unzip()).await;
            }
        }
    }

    /// Stores a batch. A failure that is not transient is caused by one room: the batch is halved until that room is alone.
    async fn store(&self, batch: (Vec<Advance>, Vec<SessionId>)) {
        let mut batches = vec![batch];
        while let Some((mut advances, mut sessions)) = batches.pop() {
            match self.positions.advance(&advances).await {
                Ok(moved) => self.tell(advances.into_iter().zip(sessions).zip(moved)).await,
                Err(error) if advances.len() > 1 && !error.is_transient() => {
                    let half = advances.len() / 2;
                    let second = (advances.split_off(half), sessions.split_off(half));
                    batches.extend([second, (advances, sessions)]);
                }
                Err(error) => {
                    tracing::warn!(%error, steps = advances.len(), "positions were not stored; later ones will be");
                }
            }
        }
    }

    /// Publishes the positions that moved.
    async fn tell(&self, steps: impl Iterator<Item = ((Advance, SessionId), Moved)>) {
        let steps: Vec<_> = steps.filter(|(_, moved)| *moved != Moved::default()).collect();
        let rooms: Vec<RoomId> = steps.iter().map(|((advance, _), _)| advance.room.clone()).collect();
        let rooms = match self.rooms.within(FRESH, &rooms).await {
            Ok(rooms) => rooms,
            Err(error) => return tracing::debug!(%error, "positions were not told; they are stored"),
        };
        let mut events = Vec::new();
        for (((advance, session), moved), room) in steps.into_iter().zip(rooms) {
            let is_told_in =
                |room: &Arc<Room>| room.has(&advance.user) && room.member_ids.len() <= TOLD_UP_TO;
            let Some(room) = room.filter(is_told_in) else { continue };
            let mut event = |news| {
                let origin = Some(session.clone());
                events.push(LiveEvent { recipients: room.member_ids.clone(), origin, news });
            };
            let position = |seq| Position {
                chat_room_id: advance.room.clone(),
                user_id: advance.user.clone(),
                seq,
                timestamp: Timestamp::now(),
            };
            if let Some(seq) = moved.read {
                event(News::Read(position(seq)));
            }
            // READ implies RECEIVED.
            if let Some(seq) = moved.received.filter(|received| Some(*received) > moved.read) {
                event(News::Received(position(seq)));
            }
        }
        if events.is_empty() {
            return;
        }
        if let Err(error) = self.live.publish(events).await {
            tracing::debug!(%error, "positions were not told; they are stored");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_steps_of_a_session_in_a_room_are_few() {
        let step = |session: &str, room: &str, received, read| PendingAdvance {
            advance: Advance {
                room: RoomId::new(room).unwrap(),
                user: "ada".parse().unwrap(),
                device: None,
                received: Seq(received),
                read: Seq(read),
            },
            session: session.parse().unwrap(),
        };
        let [phone, tablet] = ["phone", "tablet"];
        let burst = (1..=100).map(|seq| step(phone, "a", seq, seq / 2));
        let steps = [step(tablet, "a", 2, 0)].into_iter().chain(burst).chain([step(phone, "b", 1, 1)]);
        let merged = merged(steps.chain([step(phone, "a", 3, 0)]));
        let places = merged.iter().map(|(advance, session)| {
            (session.as_str(), advance.room.as_str(), advance.received.0, advance.read.0)
        });
        let wanted = [
            (tablet, "a", 2, 0),
            (phone, "a", 1, 0),
            (phone, "a", 2, 1),
            (phone, "a", 100, 50),
            (phone, "b", 1, 1),
        ];
        assert_eq!(places.collect::<Vec<_>>(), wanted);
    }
}
