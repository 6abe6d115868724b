//! How far each room's messages were received here without a gap. By this the gateway detects a live message that skips
//! another and, after an interruption, the rooms that moved meanwhile.
//!
//! A room is known from the first message that concerned a session here, or from the first `SYNC` that named it, and is
//! followed from then on. Bounded: when there are too many, all are forgotten and a new *epoch* begins. A session's rooms
//! are known as long as the epoch of its first `SYNC` lasts.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use naru_model::{RoomId, Seq};

/// How many rooms are known at most: about 100 bytes each.
const MAX_ROOMS: usize = 200_000;

/// A period in which a gateway has forgotten no room. Never 0.
pub(crate) type Epoch = u32;

/// Where a live message stands in its room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The room is not known.
    Unknown,
    /// Right after the last one received; it is noted.
    Next,
    /// It was received before, or is late: a client that has it drops it.
    Again,
    /// At least one before it was not received.
    Skips,
}

pub(crate) struct RoomHeads {
    rooms: Mutex<Rooms>,
    max: usize,
}

struct Rooms {
    last: HashMap<RoomId, Seq>,
    epoch: Epoch,
}

impl Rooms {
    fn insert(&mut self, room: &RoomId, seq: Seq, max: usize) {
        if self.last.len() >= max {
            self.last.clear();
            self.epoch = self.epoch.wrapping_add(1).max(1);
        }
        self.last.insert(room.clone(), seq);
    }
}

impl RoomHeads {
    pub(crate) fn new() -> Self {
        Self::with_max(MAX_ROOMS)
    }

    fn with_max(max: usize) -> Self {
        Self { rooms: Mutex::new(Rooms { last: HashMap::new(), epoch: 1 }), max }
    }

    /// Where a live message stands in its room; the next one is noted.
    pub(crate) fn arrival(&self, room: &RoomId, seq: Seq) -> Arrival {
        match self.rooms().last.get_mut(room) {
            None => Arrival::Unknown,
            Some(last) if seq <= *last => Arrival::Again,
            Some(last) if seq == last.next() => {
                *last = seq;
                Arrival::Next
            }
            Some(_) => Arrival::Skips,
        }
    }

    /// How far a room was received without a gap; none when it is not known.
    pub(crate) fn last(&self, room: &RoomId) -> Option<Seq> {
        self.rooms().last.get(room).copied()
    }

    /// Notes that all sessions of the room here got all messages up to `up_to`, or were asked to `SYNC`.
    pub(crate) fn reached(&self, room: &RoomId, up_to: Seq) {
        let mut rooms = self.rooms();
        match rooms.last.get_mut(room) {
            Some(last) => *last = up_to.max(*last),
            None => rooms.insert(room, up_to, self.max),
        }
    }

    /// Notes the heads of rooms that a session has asked for. The place of a known room stays: it is how far the other
    /// sessions got messages. Returns the epoch in which all of them are known.
    pub(crate) fn learn<'a>(&self, heads: impl Iterator<Item = (&'a RoomId, Seq)> + Clone) -> Epoch {
        let mut rooms = self.rooms();
        loop {
            let epoch = rooms.epoch;
            for (room, head) in heads.clone() {
                if !rooms.last.contains_key(room) {
                    rooms.insert(room, head, self.max);
                }
            }
            // A new epoch has forgotten the first of them. (No session asks for as many as `max`.)
            if rooms.epoch == epoch || heads.clone().count() >= self.max {
                return epoch;
            }
        }
    }

    /// All known rooms, and the epoch.
    pub(crate) fn all(&self) -> (Vec<(RoomId, Seq)>, Epoch) {
        let rooms = self.rooms();
        (rooms.last.iter().map(|(room, last)| (room.clone(), *last)).collect(), rooms.epoch)
    }

    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str) -> RoomId {
        RoomId::new(name).unwrap()
    }

    #[test]
    fn a_room_is_followed_from_the_first_message_that_concerns_a_session() {
        let (heads, room) = (RoomHeads::new(), room("r"));
        assert_eq!(heads.arrival(&room, Seq(7)), Arrival::Unknown);
        assert_eq!(heads.arrival(&room, Seq(7)), Arrival::Unknown, "asking is not hearing");
        heads.reached(&room, Seq(7));
        assert_eq!(heads.arrival(&room, Seq(7)), Arrival::Again);
        assert_eq!(heads.arrival(&room, Seq(8)), Arrival::Next);
        assert_eq!(heads.arrival(&room, Seq(10)), Arrival::Skips);
        assert_eq!(heads.arrival(&room, Seq(10)), Arrival::Skips, "until the gap was filled");
        heads.reached(&room, Seq(10));
        heads.reached(&room, Seq(9));
        assert_eq!(heads.last(&room), Some(Seq(10)));
    }

    /// One session's `SYNC` does not show which messages the others got.
    #[test]
    fn what_is_known_is_not_raised_by_a_sync() {
        let (heads, old, new) = (RoomHeads::new(), room("old"), room("new"));
        heads.reached(&old, Seq(3));
        heads.learn([(&old, Seq(5)), (&new, Seq(5))].into_iter());
        assert_eq!((heads.last(&old), heads.last(&new)), (Some(Seq(3)), Some(Seq(5))));
    }

    #[test]
    fn too_many_rooms_begin_a_new_epoch() {
        let heads = RoomHeads::with_max(3);
        let rooms: Vec<RoomId> = ["a", "b", "c", "d"].map(room).to_vec();
        let learn = |rooms: &[RoomId]| heads.learn(rooms.iter().map(|room| (room, Seq(1))));
        let first = learn(&rooms[..2]);
        assert_eq!(learn(&rooms[2..3]), first);
        let second = learn(&rooms[3..]);
        assert_ne!(second, first, "the first rooms were forgotten");
        assert_eq!(heads.all().1, second);
        assert_eq!(learn(&rooms[1..3]), second, "all of these are known in the epoch that is answered");
        assert!(rooms[1..].iter().all(|room| heads.last(room) == Some(Seq(1))));
    }
}
