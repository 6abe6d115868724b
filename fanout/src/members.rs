//! A message goes to the members of its room at the version it was saved under. A version never changes, so the cache needs
//! no invalidation.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::try_join_all;
use naru_engines::EngineResult;
use naru_engines::store::Rooms;
use naru_model::{MemberVersion, RoomId, UserId};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

/// How many bytes of versions are cached: about 100,000 of direct rooms, or 500 with a thousand members.
const CACHE_BYTES: u64 = 32 << 20;
/// What an entry, and each of its members, takes about.
const ENTRY_BYTES: (usize, usize) = (200, 64);

/// A room at one version of its members.
pub(crate) type Version = (RoomId, MemberVersion);

/// The members of each version of a batch.
pub(crate) type Members = HashMap<Version, Arc<[UserId]>>;

#[derive(Clone)]
struct ByBytes;

impl Weighter<Version, Arc<[UserId]>> for ByBytes {
    fn weight(&self, _: &Version, members: &Arc<[UserId]>) -> u64 {
        (ENTRY_BYTES.0 + ENTRY_BYTES.1 * members.len()) as u64
    }
}

#[derive(Clone)]
pub(crate) struct MemberCache {
    rooms: Arc<dyn Rooms>,
    cache: Arc<Cache<Version, Arc<[UserId]>, ByBytes>>,
}

impl MemberCache {
    pub(crate) fn new(rooms: Arc<dyn Rooms>) -> Self {
        let direct = CACHE_BYTES / (ENTRY_BYTES.0 + 2 * ENTRY_BYTES.1) as u64;
        Self { rooms, cache: Arc::new(Cache::with_weighter(direct as usize, CACHE_BYTES, ByBytes)) }
    }

    /// The members of these versions; nothing for a version that the store does not have, or not yet: a lagging primary may
    /// have it later.
    pub(crate) async fn of(&self, versions: HashSet<Version>) -> EngineResult<Members> {
        let (mut members, mut unknown) = (Members::new(), Vec::new());
        for version in versions {
            match self.cache.get(&version) {
                Some(known) => drop(members.insert(version, known)),
                None => unknown.push(version),
            }
        }
        let read = unknown.into_iter().map(|version| async move {
            let members = self.rooms.members_at(&version.0, version.1).await?;
            Ok(members.map(|members| (version, members)))
        });
        for (version, read) in try_join_all(read).await?.into_iter().flatten() {
            self.cache.insert(version.clone(), read.clone());
            members.insert(version, read);
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use naru_embedded::{Embedded, Options};
    use naru_engines::store::{MemberChange, NewRoom};
    use naru_model::RoomKind;
    use naru_model::room::sorted_members;

    use super::*;

    /// Cached as a version without members, it would stay one for ever.
    #[tokio::test]
    async fn a_version_that_is_not_known_yet_is_not_one_without_members() {
        let directory = tempfile::tempdir().unwrap();
        let rooms = Embedded::open(directory.path(), Options::default()).unwrap().engines().store.rooms;
        let (id, [ada, ben, cleo]) =
            (RoomId::new("group").unwrap(), ["ada", "ben", "cleo"].map(|name| UserId::new(name).unwrap()));
        let new = NewRoom {
            id: id.clone(),
            kind: RoomKind::Group,
            name: None,
            member_ids: sorted_members([ada, ben]),
            maker_id: None,
        };
        rooms.create(new).await.unwrap();
        let (cache, second) = (MemberCache::new(rooms.clone()), (id.clone(), MemberVersion(2)));
        assert_eq!(cache.of(HashSet::from([second.clone()])).await.unwrap(), Members::new());
        rooms.change(&id, MemberChange::Add(cleo), 9).await.unwrap();
        assert_eq!(cache.of(HashSet::from([second.clone()])).await.unwrap()[&second].len(), 3);
    }
}
