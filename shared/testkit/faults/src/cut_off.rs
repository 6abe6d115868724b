//! A store one of whose servers was cut off from the others, and still answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use naru_engines::store::{
    Changed, Created, MemberChange, MemberSettings, NewRoom, RoomCursor, RoomSummary, Rooms,
};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::{MemberVersion, Room, RoomId, StoreTime, Timestamp, UserId};

use super::locked;

/// Rooms that are read from a server that was cut off at a time: `current` answers them as they were first read, and
/// `current_since` a later time fails (R7). Everything else goes to the others.
pub struct CutOff {
    inner: Arc<dyn Rooms>,
    at: AtomicU64,
    first_read: Mutex<HashMap<RoomId, Option<Arc<Room>>>>,
}

impl CutOff {
    /// Cut off at this time.
    pub fn at(time: StoreTime, inner: Arc<dyn Rooms>) -> Arc<Self> {
        Arc::new(Self { inner, at: AtomicU64::new(time.0), first_read: Mutex::default() })
    }

    /// It is reachable again: it is behind no longer.
    pub fn heal(&self) {
        self.at.store(u64::MAX, Ordering::SeqCst);
        locked(&self.first_read).clear();
    }
}

#[async_trait]
impl Rooms for CutOff {
    async fn create(&self, room: NewRoom) -> EngineResult<Created> {
        self.inner.create(room).await
    }

    async fn current(&self, ids: &[RoomId]) -> EngineResult<Vec<Option<Arc<Room>>>> {
        let now = self.inner.current(ids).await?;
        if self.at.load(Ordering::SeqCst) == u64::MAX {
            return Ok(now);
        }
        let mut first_read = locked(&self.first_read);
        let first = |(id, room): (&RoomId, _)| first_read.entry(id.clone()).or_insert(room).clone();
        Ok(ids.iter().zip(now).map(first).collect())
    }

    async fn current_since(
        &self,
        ids: &[RoomId],
        not_before: Option<StoreTime>,
    ) -> EngineResult<Vec<Option<Arc<Room>>>> {
        if not_before.is_some_and(|time| time.0 > self.at.load(Ordering::SeqCst)) {
            return Err(EngineError::unavailable("faults", Applied::No, "the server is behind"));
        }
        self.current(ids).await
    }

    async fn members_at(&self, room: &RoomId, version: MemberVersion) -> EngineResult<Option<Arc<[UserId]>>> {
        self.inner.members_at(room, version).await
    }

    async fn change(&self, room: &RoomId, change: MemberChange, max: usize) -> EngineResult<Changed> {
        self.inner.change(room, change, max).await
    }

    async fn of_user(
        &self,
        user: &UserId,
        cursor: Option<&RoomCursor>,
        limit: usize,
    ) -> EngineResult<(Vec<RoomSummary>, Option<RoomCursor>)> {
        self.inner.of_user(user, cursor, limit).await
    }

    async fn summary(&self, room: &RoomId, user: &UserId) -> EngineResult<Option<RoomSummary>> {
        self.inner.summary(room, user).await
    }

    async fn configure(&self, room: &RoomId, user: &UserId, settings: MemberSettings) -> EngineResult<bool> {
        self.inner.configure(room, user, settings).await
    }

    async fn ever_of(
        &self,
        user: &UserId,
        after: Option<&RoomId>,
        limit: usize,
    ) -> EngineResult<Vec<RoomId>> {
        self.inner.ever_of(user, after, limit).await
    }

    async fn share_a_room(&self, user: &UserId, others: &[UserId]) -> EngineResult<Vec<bool>> {
        self.inner.share_a_room(user, others).await
    }

    async fn forget_versions(&self, left_before: Timestamp, limit: usize) -> EngineResult<u64> {
        self.inner.forget_versions(left_before, limit).await
    }

    async fn have_rooms(&self, users: &[UserId], at_least: usize) -> EngineResult<Vec<bool>> {
        self.inner.have_rooms(users, at_least).await
    }
}
