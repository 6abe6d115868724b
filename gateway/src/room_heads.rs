//! How far each room's messages were received here without a gap. By this the gateway detects a live message that skips
//! another and, after an interruption, the rooms that moved meanwhile.
//!
//! A received message may lack a recipient who has a session here: while the gateway's lease has lapsed, look-ups don't find
//! its sessions. So messages are received in *periods*. One begins with each renewal of the lease, and when that tells that
//! the lease was unbroken, the periods before it are *confirmed*: all their messages name all their recipients here. What
//! is received from an interruption on is not confirmed until all sessions were attached again: a room that has moved
//! since counts as moved, although its messages were received.
//!
//! A room is known from the first message that concerned a session here, or from the first `SYNC` that named it, and is
//! followed from then on. Bounded: when there are too many, all are forgotten and a new *epoch* begins. A session's rooms
//! are known as long as the epoch of its first `SYNC` lasts.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use naru_model::{RoomId, Seq};

/// How many rooms are known at most: about 120 bytes each.
const MAX_ROOMS: usize = 200_000;

/// A period in which a gateway has forgotten no room. Never 0.
pub(crate) type Epoch = u32;

/// A period between two renewals of the gateway's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Period(u64);

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
    heads: HashMap<RoomId, Head>,
    epoch: Epoch,
    period: Period,
    /// The periods before this one are confirmed.
    unconfirmed: Period,
    /// How many interruptions there were.
    interruptions: u64,
    /// This period and those after it are not confirmed: since then there were interruptions without a recovery.
    interrupted: Option<Period>,
}

/// How far a room was received.
#[derive(Clone, Copy)]
struct Head {
    last: Seq,
    /// The last period in which it moved, and how far it had been received before that.
    moved_in: Period,
    before: Seq,
    /// How much of `before` was confirmed when that period began.
    confirmed: Seq,
}

impl Head {
    /// How far a room was received of which no more is known than that.
    fn at(last: Seq, moved_in: Period) -> Self {
        Self { last, moved_in, before: last, confirmed: last }
    }

    /// How far all the members here have certainly been sent the room's messages.
    fn confirmed(&self, unconfirmed: Period) -> Seq {
        match self.moved_in.cmp(&unconfirmed) {
            Ordering::Less => self.last,
            Ordering::Equal => self.before,
            Ordering::Greater => self.confirmed,
        }
    }
}

impl Rooms {
    fn insert(&mut self, room: &RoomId, head: Head, max: usize) {
        if self.heads.len() >= max {
            self.heads.clear();
            self.epoch = self.epoch.wrapping_add(1).max(1);
        }
        self.heads.insert(room.clone(), head);
    }

    fn interrupted_from(&mut self, period: Period) {
        self.interruptions += 1;
        self.interrupted = Some(self.interrupted.map_or(period, |earlier| earlier.min(period)));
    }

    fn advance(&mut self, room: &RoomId, seq: Seq) {
        if let Some(head) = self.heads.get_mut(room)
            && seq > head.last
        {
            if head.moved_in < self.period {
                head.confirmed = head.confirmed(self.unconfirmed);
                (head.moved_in, head.before) = (self.period, head.last);
            }
            head.last = seq;
        }
    }
}

impl RoomHeads {
    pub(crate) fn new() -> Self {
        Self::with_max(MAX_ROOMS)
    }

    fn with_max(max: usize) -> Self {
        let (period, unconfirmed) = (Period(1), Period(1));
        let (interruptions, interrupted) = (0, None);
        let rooms =
            Rooms { heads: HashMap::new(), epoch: 1, period, unconfirmed, interruptions, interrupted };
        Self { rooms: Mutex::new(rooms), max }
    }

    /// Begins a period. Called before the lease is renewed.
    pub(crate) fn begin_period(&self) -> Period {
        let mut rooms = self.rooms();
        rooms.period.0 += 1;
        rooms.period
    }

    /// Confirms the periods before this one, as far as there was no interruption.
    pub(crate) fn confirm_before(&self, period: Period) {
        let mut rooms = self.rooms();
        rooms.unconfirmed = rooms.interrupted.map_or(period, |interrupted| interrupted.min(period));
    }

    /// Notes that the live layer was interrupted: what was received before that may still be confirmed.
    pub(crate) fn interrupted(&self) {
        let period = self.begin_period();
        self.rooms().interrupted_from(period);
    }

    /// Notes that the lease had lapsed: what was received since it was last found unbroken is not confirmed.
    pub(crate) fn lapsed(&self) {
        let mut rooms = self.rooms();
        let unconfirmed = rooms.unconfirmed;
        rooms.interrupted_from(unconfirmed);
    }

    /// How many interruptions there were.
    pub(crate) fn interruptions(&self) -> u64 {
        self.rooms().interruptions
    }

    /// Whether there was an interruption without a recovery.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.rooms().interrupted.is_some()
    }

    /// Notes that so many interruptions are over: all sessions were attached again, and those were asked to `SYNC` that may
    /// have missed messages.
    pub(crate) fn recovered_from(&self, interruptions: u64) {
        let mut rooms = self.rooms();
        if rooms.interruptions == interruptions {
            rooms.interrupted = None;
        }
    }

    /// Where a live message stands in its room; the next one is noted.
    pub(crate) fn arrival(&self, room: &RoomId, seq: Seq) -> Arrival {
        let mut rooms = self.rooms();
        match rooms.heads.get(room).map(|head| head.last) {
            None => Arrival::Unknown,
            Some(last) if seq <= last => Arrival::Again,
            Some(last) if seq == last.next() => {
                rooms.advance(room, seq);
                Arrival::Next
            }
            Some(_) => Arrival::Skips,
        }
    }

    /// How far a room was received without a gap; none when it is not known.
    pub(crate) fn last(&self, room: &RoomId) -> Option<Seq> {
        self.rooms().heads.get(room).map(|head| head.last)
    }

    /// Notes that all messages of a room up to `up_to` were received, or that their recipients were asked to `SYNC`.
    pub(crate) fn reached(&self, room: &RoomId, up_to: Seq) {
        let mut rooms = self.rooms();
        if rooms.heads.contains_key(room) {
            rooms.advance(room, up_to);
        } else {
            let before = Head::at(Seq(up_to.0.saturating_sub(1)), rooms.period);
            rooms.insert(room, Head { last: up_to, ..before }, self.max);
        }
    }

    /// Notes that all members of a room with a session here were asked to `SYNC` what it had up to `up_to`.
    pub(crate) fn asked_to_sync(&self, room: &RoomId, up_to: Seq) {
        if let Some(head) = self.rooms().heads.get_mut(room) {
            for place in [&mut head.last, &mut head.before, &mut head.confirmed] {
                *place = up_to.max(*place);
            }
        }
    }

    /// Notes the heads of rooms that a session has asked for. The place of a known room stays: it is how far the other
    /// sessions got messages. Returns the epoch in which all of them are known.
    pub(crate) fn learn<'a>(&self, heads: impl Iterator<Item = (&'a RoomId, Seq)> + Clone) -> Epoch {
        let mut rooms = self.rooms();
        loop {
            let epoch = rooms.epoch;
            for (room, head) in heads.clone() {
                if !rooms.heads.contains_key(room) {
                    let head = Head::at(head, rooms.period);
                    rooms.insert(room, head, self.max);
                }
            }
            // A new epoch has forgotten the first of them. (No session asks for as many as `max`.)
            if rooms.epoch == epoch || heads.clone().count() >= self.max {
                return epoch;
            }
        }
    }

    /// All known rooms, each with how far all its members here have certainly been sent its messages, and the epoch.
    pub(crate) fn all(&self) -> (Vec<(RoomId, Seq)>, Epoch) {
        let rooms = self.rooms();
        let heads = rooms.heads.iter();
        let heads = heads.map(|(room, head)| (room.clone(), head.confirmed(rooms.unconfirmed)));
        (heads.collect(), rooms.epoch)
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

    /// Messages that were received while look-ups may not have found the sessions here are not known to have reached them.
    #[test]
    fn what_was_received_in_a_period_without_confirmation_is_not_certain() {
        let (heads, room) = (RoomHeads::new(), room("r"));
        let certain = || heads.all().0[0].1;
        heads.learn([(&room, Seq(3))].into_iter());
        assert_eq!(certain(), Seq(3));
        heads.arrival(&room, Seq(4));
        let second = heads.begin_period();
        heads.arrival(&room, Seq(5));
        assert_eq!((certain(), heads.last(&room)), (Seq(3), Some(Seq(5))));
        heads.confirm_before(second);
        assert_eq!(certain(), Seq(4), "what came since is not");
        for seq in 6..9 {
            heads.begin_period();
            heads.arrival(&room, Seq(seq));
        }
        assert_eq!(certain(), Seq(4), "no renewal has confirmed these");
        heads.asked_to_sync(&room, Seq(7));
        assert_eq!((certain(), heads.last(&room)), (Seq(7), Some(Seq(8))), "its members were asked to SYNC");
        heads.confirm_before(heads.begin_period());
        assert_eq!(certain(), Seq(8));
    }

    #[test]
    fn nothing_is_certain_from_an_interruption_to_the_recovery() {
        let (heads, room) = (RoomHeads::new(), room("r"));
        let certain = || heads.all().0[0].1;
        let renewed = || heads.confirm_before(heads.begin_period());
        heads.learn([(&room, Seq(3))].into_iter());
        heads.arrival(&room, Seq(4));
        heads.interrupted();
        heads.arrival(&room, Seq(5));
        renewed();
        assert_eq!(certain(), Seq(4), "the lease was unbroken before the interruption");
        let first = heads.interruptions();
        heads.lapsed();
        heads.recovered_from(first);
        renewed();
        assert_eq!((certain(), heads.is_interrupted()), (Seq(4), true), "there was another one meanwhile");
        heads.recovered_from(heads.interruptions());
        assert!(!heads.is_interrupted());
        renewed();
        assert_eq!(certain(), Seq(5));

        heads.arrival(&room, Seq(6));
        heads.begin_period();
        heads.lapsed();
        renewed();
        assert_eq!(certain(), Seq(5), "received while the lease had lapsed");
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
