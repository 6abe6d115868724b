//! The registry of sessions: which ones this gateway has, by user. Each one's state is in `session_state`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use naru_model::UserId;
use tokio::sync::Notify;

use crate::session_state::Session;

/// The registry has this many locks, so that connecting clients and deliveries seldom contend for one.
pub(crate) const SHARDS: usize = 16;

/// The sessions of some users.
type Shard = HashMap<UserId, Vec<Arc<Session>>>;

/// All sessions of this gateway, by user.
pub(crate) struct SessionRegistry {
    shards: [Mutex<Shard>; SHARDS],
    count: AtomicUsize,
    emptied: Notify,
}

impl SessionRegistry {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            count: AtomicUsize::new(0),
            emptied: Notify::new(),
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, session: &Arc<Session>) {
        let user = &session.identity.user;
        self.shard(user.as_str()).entry(user.clone()).or_default().push(session.clone());
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, session: &Session) {
        let user = &session.identity.user;
        let mut shard = self.shard(user.as_str());
        let Some(of_user) = shard.get_mut(user) else {
            return;
        };
        of_user.retain(|other| other.id != session.id);
        if of_user.is_empty() {
            shard.remove(user);
        }
        if self.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.emptied.notify_waiters();
        }
    }

    /// Calls `visit` with each session of a user.
    pub(crate) fn each_of(&self, user: &UserId, visit: impl FnMut(&Arc<Session>)) {
        self.shard(user.as_str()).get(user).into_iter().flatten().for_each(visit);
    }

    /// How many sessions a user has here.
    pub(crate) fn count_of(&self, user: &UserId) -> usize {
        self.shard(user.as_str()).get(user).map_or(0, Vec::len)
    }

    /// Whether a user has a session here.
    pub(crate) fn has(&self, user: &str) -> bool {
        self.shard(user).contains_key(user)
    }

    /// All sessions, as they are now.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        (0..SHARDS).flat_map(|shard| self.of_shard(shard)).collect()
    }

    /// All sessions of one of the [`SHARDS`].
    pub(crate) fn of_shard(&self, shard: usize) -> Vec<Arc<Session>> {
        let shard = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        shard.values().flatten().cloned().collect()
    }

    /// Waits until there are no sessions.
    pub(crate) async fn emptied(&self) {
        loop {
            let notified = self.emptied.notified();
            if self.count() == 0 {
                return;
            }
            notified.await;
        }
    }

    /// The map itself hashes with a secret; the hash that selects a user's shard need not be secret.
    fn shard(&self, user: &str) -> MutexGuard<'_, Shard> {
        let hash = user.bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31) ^ usize::from(byte));
        self.shards[hash % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
