//! What this gateway remembers of rooms. Advisory: whether a message is saved is the persister's decision, on what the
//! store says then.

use std::sync::Arc;
use std::time::Duration;

use naru_engines::EngineResult;
use naru_engines::store::Rooms;
use naru_model::{Room, RoomId, UserId};
use quick_cache::sync::Cache;
use tokio::time::Instant;

/// How many rooms are remembered: about 300 bytes each for direct rooms.
const REMEMBERED: usize = 100_000;
/// For signals that nothing checks later (TYPING, READ), members are at most this old.
const FRESH: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Remembered {
    room: Arc<Room>,
    read_at: Instant,
}

pub(crate) struct RoomCache {
    rooms: Arc<dyn Rooms>,
    remembered: Cache<RoomId, Remembered>,
}

impl RoomCache {
    pub(crate) fn new(rooms: Arc<dyn Rooms>) -> Self {
        Self { rooms, remembered: Cache::new(REMEMBERED) }
    }

    /// The room, if `user` is a member as far as is known. Who was a member is believed; who was not is looked up.
    pub(crate) async fn of_member(&self, id: &RoomId, user: &UserId) -> EngineResult<Option<Arc<Room>>> {
        if let Some(known) = self.remembered.get(id).filter(|known| known.room.has(user)) {
            return Ok(Some(known.room));
        }
        Ok(self.read(id).await?.filter(|room| room.has(user)))
    }

    /// The same, from what is at most two seconds old.
    pub(crate) async fn of_member_now(&self, id: &RoomId, user: &UserId) -> EngineResult<Option<Arc<Room>>> {
        let fresh = self.remembered.get(id).filter(|known| known.read_at.elapsed() < FRESH);
        let room = match fresh {
            Some(known) => Some(known.room),
            None => self.read(id).await?,
        };
        Ok(room.filter(|room| room.has(user)))
    }

    /// What a change of members through this gateway has made of a room.
    pub(crate) fn changed(&self, room: &Arc<Room>) {
        self.remember(room.clone());
    }

    async fn read(&self, id: &RoomId) -> EngineResult<Option<Arc<Room>>> {
        let room = self.rooms.current(std::slice::from_ref(id)).await?.pop().flatten();
        match &room {
            Some(room) => self.remember(room.clone()),
            None => drop(self.remembered.remove(id)),
        }
        Ok(room)
    }

    fn remember(&self, room: Arc<Room>) {
        self.remembered.insert(room.id.clone(), Remembered { room, read_at: Instant::now() });
    }
}
