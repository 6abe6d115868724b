//! Live messages that came before an earlier one of their room. They wait a moment for it; then it is fetched.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use naru_model::live::LiveEvent;
use naru_model::{RoomId, Seq};

/// How many events are held back at most, in all rooms.
const MAX_HELD: usize = 4096;

/// A message that came early; none where no recipient has a session here, and only its place counts.
pub(crate) type Early = Option<Arc<LiveEvent>>;

/// One gap, apart from every other gap of its room.
pub(crate) type GapId = u64;

/// The result of holding back an event that came early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldBack {
    /// It is the first behind this gap: the caller waits for the missing messages.
    Opened(GapId),
    /// Other events of its room wait already.
    Joined,
    /// Too many events are held back: it was not taken.
    Full,
}

#[derive(Default)]
pub(crate) struct Gaps {
    open: HashMap<RoomId, Gap>,
    held: usize,
    opened: GapId,
}

struct Gap {
    id: GapId,
    held: BTreeMap<Seq, Early>,
}

impl Gaps {
    /// Holds back an event that skips another.
    pub(crate) fn hold(&mut self, room: &RoomId, seq: Seq, event: Early) -> HeldBack {
        if self.held >= MAX_HELD {
            return HeldBack::Full;
        }
        let mut answer = HeldBack::Joined;
        let gap = self.open.entry(room.clone()).or_insert_with(|| {
            self.opened += 1;
            answer = HeldBack::Opened(self.opened);
            Gap { id: self.opened, held: BTreeMap::new() }
        });
        if gap.held.insert(seq, event).is_none() {
            self.held += 1;
        }
        answer
    }

    /// Whether events are held back in a room.
    pub(crate) fn is_in(&self, room: &RoomId) -> bool {
        self.open.contains_key(room)
    }

    /// Releases the events that follow `last`, the place up to which the room was received, in order. A gap without events
    /// left behind it is closed.
    pub(crate) fn release(&mut self, room: &RoomId, mut last: Seq) -> Vec<(Seq, Early)> {
        let Some(gap) = self.open.get_mut(room) else { return Vec::new() };
        let mut released = Vec::new();
        while let Some(first) = gap.held.first_entry()
            && *first.key() <= last.next()
        {
            last = last.max(*first.key());
            released.push(first.remove_entry());
        }
        self.held -= released.len();
        if gap.held.is_empty() {
            self.open.remove(room);
        }
        released
    }

    /// The place of the last event behind this gap; none when it was closed.
    pub(crate) fn last_held(&self, room: &RoomId, id: GapId) -> Option<Seq> {
        let gap = self.open.get(room).filter(|gap| gap.id == id)?;
        gap.held.keys().next_back().copied()
    }

    /// Closes the open gap of a room, if any; returns the events that were held back, in order.
    pub(crate) fn close(&mut self, room: &RoomId) -> BTreeMap<Seq, Early> {
        let held = self.open.remove(room).map(|gap| gap.held).unwrap_or_default();
        self.held -= held.len();
        held
    }
}

#[cfg(test)]
mod tests {
    use naru_model::UserId;
    use naru_model::live::News;

    use super::*;

    fn event() -> Early {
        let user_id = UserId::new("ada").unwrap();
        let news = News::Typing { chat_room_id: room(), user_id };
        Some(Arc::new(LiveEvent { recipients: Arc::new([]), origin: None, news }))
    }

    fn room() -> RoomId {
        RoomId::new("r").unwrap()
    }

    #[test]
    fn what_was_held_back_follows_what_was_missing_in_order() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.hold(&room(), Seq(4), event()), HeldBack::Opened(1));
        assert_eq!(gaps.hold(&room(), Seq(3), event()), HeldBack::Joined);
        assert_eq!(gaps.hold(&room(), Seq(6), event()), HeldBack::Joined);
        assert!(gaps.release(&room(), Seq(1)).is_empty(), "2 is still missing");
        assert_eq!(gaps.release(&room(), Seq(2)).len(), 2);
        assert_eq!(gaps.last_held(&room(), 1), Some(Seq(6)), "5 is missing now");
        assert_eq!(gaps.release(&room(), Seq(5)).len(), 1);
        assert!(!gaps.is_in(&room()));
        assert_eq!(gaps.held, 0);
    }

    #[test]
    fn a_gap_is_not_taken_for_a_later_one_of_its_room() {
        let mut gaps = Gaps::default();
        gaps.hold(&room(), Seq(3), event());
        gaps.release(&room(), Seq(2));
        assert_eq!(gaps.hold(&room(), Seq(9), event()), HeldBack::Opened(2));
        assert_eq!((gaps.last_held(&room(), 1), gaps.last_held(&room(), 2)), (None, Some(Seq(9))));
        assert_eq!(gaps.close(&room()).len(), 1);
        assert_eq!((gaps.last_held(&room(), 2), gaps.held), (None, 0));
    }

    #[test]
    fn what_is_held_back_is_bounded() {
        let mut gaps = Gaps::default();
        for seq in (2..).take(MAX_HELD) {
            assert_ne!(gaps.hold(&room(), Seq(seq), event()), HeldBack::Full);
        }
        assert_eq!(gaps.hold(&room(), Seq(1), event()), HeldBack::Full);
        assert_eq!(gaps.close(&room()).len(), MAX_HELD);
        assert_eq!(gaps.hold(&room(), Seq(3), event()), HeldBack::Opened(2));
    }
}
