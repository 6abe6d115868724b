//! The rooms that were looked at lately, as they are now. What is asked for each message is answered from here; a miss
//! goes to a reader and fills it.
//!
//! Only this process changes rooms, on the writer's thread, and each change is here before its caller is answered
//! (another program may add direct rooms, and what is not there is not remembered). A read that began before a change
//! and ends after it must not put the older room back: a fill counts only when nothing was changed since the look that
//! missed.

use std::sync::{Arc, Mutex};

use naru_model::{Room, RoomId};
use quick_cache::unsync::Cache;

use crate::database::lock;

/// How many rooms are held at most: about 300 bytes each for direct rooms.
const REMEMBERED: usize = 65_536;

pub(crate) struct RoomCache(Mutex<Known>);

struct Known {
    rooms: Cache<RoomId, Arc<Room>>,
    changes: u64,
}

/// When a look was: how many changes there had been.
#[derive(Clone, Copy)]
pub(crate) struct Look(u64);

impl Default for RoomCache {
    fn default() -> Self {
        Self(Mutex::new(Known { rooms: Cache::new(REMEMBERED), changes: 0 }))
    }
}

impl RoomCache {
    /// Of these rooms those that are known, in their order.
    pub(crate) fn look(&self, ids: &[RoomId]) -> (Vec<Option<Arc<Room>>>, Look) {
        let known = lock(&self.0);
        (ids.iter().map(|id| known.rooms.get(id).cloned()).collect(), Look(known.changes))
    }

    /// What a read after a look has found.
    pub(crate) fn fill<'a>(&self, look: Look, rooms: impl Iterator<Item = &'a Arc<Room>>) {
        let mut known = lock(&self.0);
        if known.changes == look.0 {
            rooms.for_each(|room| known.rooms.insert(room.id.clone(), room.clone()));
        }
    }

    /// What a change has made of a room; none where that is not known.
    pub(crate) fn changed(&self, id: &RoomId, room: Option<&Arc<Room>>) {
        let mut known = lock(&self.0);
        known.changes += 1;
        match room {
            Some(room) => known.rooms.insert(id.clone(), room.clone()),
            None => drop(known.rooms.remove(id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use naru_model::{MemberVersion, RoomKind, Timestamp};

    use super::*;

    fn room(version: u32) -> Arc<Room> {
        Arc::new(Room {
            id: RoomId::new("room").unwrap(),
            kind: RoomKind::Group,
            name: None,
            member_ids: [].into(),
            member_version: MemberVersion(version),
            maker_id: None,
            created_at: Timestamp::from_millis(0),
        })
    }

    #[test]
    fn a_read_that_a_change_has_overtaken_puts_nothing_back() {
        let (cache, id) = (RoomCache::default(), [room(1).id.clone()]);
        let (known, look) = cache.look(&id);
        assert_eq!(known, [None]);
        cache.changed(&id[0], Some(&room(2)));
        cache.fill(look, [&room(1)].into_iter());
        assert_eq!(cache.look(&id).0, [Some(room(2))]);

        let (_, look) = cache.look(&id);
        cache.changed(&id[0], None);
        cache.fill(look, [&room(2)].into_iter());
        assert_eq!(cache.look(&id).0, [None], "its outcome is not known: the store is asked");

        let (_, look) = cache.look(&id);
        cache.fill(look, [&room(3)].into_iter());
        assert_eq!(cache.look(&id).0, [Some(room(3))]);
    }
}
