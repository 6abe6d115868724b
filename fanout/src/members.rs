//! Who a message goes to: the members of its room at the version it was saved under. A version never changes, so what
//! is remembered of one needs no invalidation.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::try_join_all;
use naru_engines::EngineResult;
use naru_engines::store::Rooms;
use naru_model::{MemberVersion, RoomId, UserId};
use quick_cache::sync::Cache;

/// How many versions are remembered: about 200 bytes each for direct rooms.
const REMEMBERED: usize = 100_000;

/// A room at one version of its members.
pub(crate) type Version = (RoomId, MemberVersion);

/// The members of each version of a batch.
pub(crate) type Members = HashMap<Version, Arc<[UserId]>>;

#[derive(Clone)]
pub(crate) struct MemberCache {
    rooms: Arc<dyn Rooms>,
    remembered: Arc<Cache<Version, Arc<[UserId]>>>,
}

impl MemberCache {
    pub(crate) fn new(rooms: Arc<dyn Rooms>) -> Self {
        Self { rooms, remembered: Arc::new(Cache::new(REMEMBERED)) }
    }

    /// The members of these versions; nothing for a version that the store does not know, or not yet: a primary that
    /// lags may know it later.
    pub(crate) async fn of(&self, versions: HashSet<Version>) -> EngineResult<Members> {
        let (mut members, mut unknown) = (Members::new(), Vec::new());
        for version in versions {
            match self.remembered.get(&version) {
                Some(known) => drop(members.insert(version, known)),
                None => unknown.push(version),
            }
        }
        let read = unknown.into_iter().map(|version| async move {
            let members = self.rooms.members_at(&version.0, version.1).await?;
            Ok(members.map(|members| (version, members)))
        });
        for (version, read) in try_join_all(read).await?.into_iter().flatten() {
            self.remembered.insert(version.clone(), read.clone());
            members.insert(version, read);
        }
        Ok(members)
    }
}
