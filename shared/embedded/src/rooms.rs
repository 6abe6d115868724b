//! A cache of the rooms that were read lately, in their current state. It answers the look-ups for each message; a miss is
//! read by a reader thread, which fills the cache.
//!
//! Only this process changes rooms, on the writer's thread, and each change is in the cache before its caller is answered
//! (another program may add direct rooms; an absent room is not cached). A read that began before a change and ends after it
//! must not restore the older room: a fill counts only when nothing was changed since the look-up that missed.

use std::sync::{Arc, Mutex};

use naru_model::{Room, RoomId};
use quick_cache::Weighter;
use quick_cache::unsync::Cache;

use crate::lock::lock;

/// How many bytes of rooms are cached: about 78,000 direct ones, or 520 with a thousand members.
const CACHE_BYTES: u64 = 32 << 20;
/// What an entry, and each of its members, takes about.
const ENTRY_BYTES: (usize, usize) = (300, 64);

#[derive(Clone)]
struct ByBytes;

impl Weighter<RoomId, Arc<Room>> for ByBytes {
    fn weight(&self, _: &RoomId, room: &Arc<Room>) -> u64 {
        let (entry, member) = ENTRY_BYTES;
        (entry + member * room.member_ids.len()) as u64
    }
}

pub(crate) struct RoomCache(Mutex<Known>);

struct Known {
    rooms: Cache<RoomId, Arc<Room>, ByBytes>,
    changes: u64,
}

/// The time of a look-up: how many changes came before it.
#[derive(Clone, Copy)]
pub(crate) struct Look(u64);

impl Default for RoomCache {
    fn default() -> Self {
        let direct = CACHE_BYTES / (ENTRY_BYTES.0 + 2 * ENTRY_BYTES.1) as u64;
        let rooms = Cache::with_weighter(direct as usize, CACHE_BYTES, ByBytes);
        Self(Mutex::new(Known { rooms, changes: 0 }))
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
    use naru_model::{MemberVersion, RoomKind, Timestamp, UserId};

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
    fn large_rooms_take_more_of_the_cache_than_small_ones() {
        let cache = RoomCache::default();
        let member_ids: Arc<[UserId]> = vec![UserId::new("ada").unwrap(); 1_000].into();
        let ids: Vec<RoomId> =
            (0..2_000).map(|number| RoomId::new(format!("room-{number}")).unwrap()).collect();
        for id in &ids {
            let room = Room { id: id.clone(), member_ids: member_ids.clone(), ..Room::clone(&room(1)) };
            cache.changed(id, Some(&Arc::new(room)));
        }
        let cached = cache.look(&ids).0.into_iter().flatten().count();
        assert!((1..=CACHE_BYTES as usize / 64_000).contains(&cached), "{cached}");
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
