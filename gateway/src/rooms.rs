//! This gateway's cache of rooms. It is advisory: the persister decides whether a message is saved, by the store's state
//! at that time.

use std::sync::Arc;
use std::time::Duration;

use naru_engines::EngineResult;
use naru_engines::store::Rooms;
use naru_model::{Room, RoomId, UserId};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::time::Instant;

/// How many bytes of rooms are cached: about 100,000 direct ones, or 780 with a thousand members.
const CACHE_BYTES: u64 = 48 << 20;
/// What an entry, and each of its members, takes about.
const ENTRY_BYTES: (usize, usize) = (300, 64);
/// TYPING and positions go to a list of members that is at most this old: no later step checks it.
pub(crate) const FRESH: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct CachedRoom {
    room: Arc<Room>,
    read_at: Instant,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<RoomId, CachedRoom> for ByBytes {
    fn weight(&self, _: &RoomId, cached: &CachedRoom) -> u64 {
        let (entry, member) = ENTRY_BYTES;
        (entry + member * cached.room.member_ids.len()) as u64
    }
}

pub(crate) struct RoomCache {
    rooms: Arc<dyn Rooms>,
    cache: Cache<RoomId, CachedRoom, ByBytes>,
}

impl RoomCache {
    pub(crate) fn new(rooms: Arc<dyn Rooms>) -> Self {
        let direct = CACHE_BYTES / (ENTRY_BYTES.0 + 2 * ENTRY_BYTES.1) as u64;
        Self { rooms, cache: Cache::with_weighter(direct as usize, CACHE_BYTES, ByBytes) }
    }

    /// The room, if `user` is a member. A cached membership is taken as valid; a user without one is looked up.
    pub(crate) async fn of_member(&self, id: &RoomId, user: &UserId) -> EngineResult<Option<Arc<Room>>> {
        if let Some(known) = self.cache.get(id).filter(|known| known.room.has(user)) {
            return Ok(Some(known.room));
        }
        let room = self.read(std::slice::from_ref(id)).await?.pop().flatten();
        Ok(room.filter(|room| room.has(user)))
    }

    /// These rooms, in their order, from entries that are at most this old. One look-up for all.
    pub(crate) async fn within(&self, age: Duration, ids: &[RoomId]) -> EngineResult<Vec<Option<Arc<Room>>>> {
        let fresh = |id| self.cache.get(id).filter(|known| known.read_at.elapsed() < age);
        let mut rooms: Vec<_> = ids.iter().map(|id| fresh(id).map(|known| known.room)).collect();
        let missing = ids.iter().zip(&rooms).filter(|(_, room)| room.is_none());
        let missing: Vec<RoomId> = missing.map(|(id, _)| id.clone()).collect();
        if !missing.is_empty() {
            let mut read = self.read(&missing).await?.into_iter();
            for room in rooms.iter_mut().filter(|room| room.is_none()) {
                *room = read.next().flatten();
            }
        }
        Ok(rooms)
    }

    /// The room, if `user` is a member by an entry at most this old. A user who was not is looked up: another gateway may
    /// have added them.
    pub(crate) async fn of_member_within(
        &self,
        age: Duration,
        id: &RoomId,
        user: &UserId,
    ) -> EngineResult<Option<Arc<Room>>> {
        let room = self.within(age, std::slice::from_ref(id)).await?.pop().flatten();
        match room.filter(|room| room.has(user)) {
            Some(room) => Ok(Some(room)),
            None => self.of_member(id, user).await,
        }
    }

    /// Remembers a room as a change of members through this gateway left it.
    pub(crate) fn changed(&self, room: &Arc<Room>) {
        self.remember(room.clone());
    }

    async fn read(&self, ids: &[RoomId]) -> EngineResult<Vec<Option<Arc<Room>>>> {
        let rooms = self.rooms.current(ids).await?;
        for (id, room) in ids.iter().zip(&rooms) {
            match room {
                Some(room) => self.remember(room.clone()),
                None => drop(self.cache.remove(id)),
            }
        }
        Ok(rooms)
    }

    fn remember(&self, room: Arc<Room>) {
        self.cache.insert(room.id.clone(), CachedRoom { room, read_at: Instant::now() });
    }
}

#[cfg(test)]
mod tests {
    use naru_embedded::{Embedded, Options};
    use naru_engines::store::{MemberChange, NewRoom};
    use naru_model::RoomKind;
    use naru_model::room::sorted_members;

    use super::*;

    #[tokio::test]
    async fn large_rooms_take_more_of_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let rooms = Embedded::open(directory.path(), Options::default()).unwrap().engines().store.rooms;
        let cache = RoomCache::new(rooms);
        let members = sorted_members((0..1_000).map(|number| UserId::new(format!("u{number}")).unwrap()));
        for number in 0..2_000 {
            let room = Room {
                id: RoomId::new(format!("group{number}")).unwrap(),
                kind: RoomKind::Group,
                name: None,
                member_ids: members.clone(),
                maker_id: None,
                member_version: naru_model::MemberVersion(1),
                created_at: naru_model::Timestamp::now(),
            };
            cache.changed(&Arc::new(room));
        }
        let max = usize::try_from(CACHE_BYTES).unwrap() / (ENTRY_BYTES.0 + 1_000 * ENTRY_BYTES.1);
        assert!((max / 2..=max).contains(&cache.cache.len()), "{} of {max}", cache.cache.len());
    }

    #[tokio::test]
    async fn a_member_added_through_another_gateway_is_known_at_once() {
        const LONG: Duration = Duration::from_secs(3600);
        let directory = tempfile::tempdir().unwrap();
        let rooms = Embedded::open(directory.path(), Options::default()).unwrap().engines().store.rooms;
        let (id, [ada, ben, cleo]) =
            (RoomId::new("group").unwrap(), ["ada", "ben", "cleo"].map(|name| UserId::new(name).unwrap()));
        let new = NewRoom {
            id: id.clone(),
            kind: RoomKind::Group,
            name: None,
            member_ids: sorted_members([ada.clone(), ben]),
            maker_id: None,
        };
        rooms.create(new).await.unwrap();
        let cache = RoomCache::new(rooms.clone());
        assert!(cache.of_member_within(LONG, &id, &ada).await.unwrap().is_some());
        assert!(cache.of_member_within(LONG, &id, &cleo).await.unwrap().is_none());
        rooms.change(&id, MemberChange::Add(cleo.clone()), 9).await.unwrap();
        assert!(cache.of_member_within(LONG, &id, &cleo).await.unwrap().is_some());
    }
}
