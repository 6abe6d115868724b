//! A cache of the rooms that were read lately, in their current state. It answers the look-ups for each message; a miss is
//! read by a reader thread, which fills the cache.
//!
//! Only this process changes rooms, on the writer's thread, and each change is in the cache before its caller is answered
//! (another program may add direct rooms; an absent room is not cached). A read that began before a change and ends after it
//! must not restore the older room: a fill counts only when nothing was changed since the look-up that missed.

use std::sync::{Arc, Mutex};

use naru_model::{Room, RoomId};
use quick_cache::unsync::Cache;

use crate::lock::lock;

/// How many rooms are cached at most: about 300 bytes each for direct rooms.
const CACHE_CAPACITY: usize = 65_536;

pub(crate) struct RoomCache(Mutex<Known>);

struct Known {
    rooms: Cache<RoomId, Arc<Room>>,
    changes: u64,
}

/// The time of a look-up: how many changes came before it.
#[derive(Clone, Copy)]
pub(crate) struct Look(u64);

impl Default for RoomCache {
    fn default() -> Self {
        Self(Mutex::new(Known { rooms: Cache::new(CACHE_CAPACITY), changes: 0 }))
    }
}

impl RoomCache {
    /// The cached ones of these rooms, in their order.
    pub(crate) fn look(&self, ids: &[RoomId]) -> (Vec<Option<Arc<Room>>>, Look) {
        let known = lock(&self.0);
        (ids.iter().map(|id| known.rooms.get(id).cloned()).collect(), Look(known.changes))
    }

    /// Caches what a read found after a look-up.
    pub(crate) fn fill<'a>(&self, look: Look, rooms: impl Iterator<Item = &'a Arc<Room>>) {
        let mut known = lock(&self.0);
        if known.changes == look.0 {
            rooms.for_each(|room| known.rooms.insert(room.id.clone(), room.clone()));
        }
    }

    /// Caches a room as a change left it; none where that is not known.
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
