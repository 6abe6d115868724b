//! What the store keeps of users and a gateway must heed: whose sessions and tokens have ended, and whom they block.
//!
//! A user's record is read when a token of theirs is checked, and remembered for a minute. When the live layer says that it has
//! changed, it is read again for their sessions; and so is, every minute, that of each user with a session here. So a change
//! takes effect at once, and within a minute where the live layer lost it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use naru_engines::live::Live;
use naru_engines::store::{self, UserRecord};
use naru_engines::{EngineResult, Engines};
use naru_model::UserId;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};

use crate::refusal::Refusal;
use crate::registry::SessionRegistry;
use crate::session_state::Session;
use crate::token::Identity;

/// A record is at most this old.
const MAX_AGE: Duration = Duration::from_secs(60);
/// How long to wait after the store did not answer.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How many users are read at once.
const MAX_READ: usize = 1_000;
/// How many bytes the remembered records take, and how many of them are expected.
const REMEMBERED: (u64, usize) = (32 << 20, 100_000);

pub(crate) struct Users {
    store: Arc<dyn store::Users>,
    live: Arc<dyn Live>,
    sessions: Arc<SessionRegistry>,
    remembered: Cache<UserId, Remembered, ByBytes>,
    /// Counts the changes: what was read before one is not remembered after it.
    changes: AtomicU64,
    /// The users whose sessions are still to be told.
    untold: Mutex<HashSet<UserId>>,
    woken: Notify,
}

#[derive(Clone)]
struct Remembered {
    record: Arc<UserRecord>,
    read_at: Instant,
    /// How many changes were noted when it was read.
    as_of: u64,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<UserId, Remembered> for ByBytes {
    /// About what the allocations take.
    fn weight(&self, user: &UserId, remembered: &Remembered) -> u64 {
        let blocked = remembered.record.blocked.iter().map(|id| 32 + id.as_str().len());
        (256 + user.as_str().len() + blocked.sum::<usize>()) as u64
    }
}

impl Users {
    pub(crate) fn new(engines: &Engines, sessions: &Arc<SessionRegistry>) -> Self {
        Self {
            store: engines.store.users.clone(),
            live: engines.live.clone(),
            sessions: sessions.clone(),
            remembered: Cache::with_weighter(REMEMBERED.1, REMEMBERED.0, ByBytes),
            changes: AtomicU64::new(0),
            untold: Mutex::default(),
            woken: Notify::new(),
        }
    }

    /// Checks that a token was not ended; returns the record of its user.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` when it was, `UNAVAILABLE` when the store does not answer.
    pub(crate) async fn admit(&self, identity: &Identity) -> Result<Arc<UserRecord>, Refusal> {
        let Remembered { record, .. } = self.record(&identity.user).await?;
        if !identity.counts_by(&record) {
            return Err(Refusal::Unauthenticated("the user's tokens of that time were revoked"));
        }
        Ok(record)
    }

    /// Tells a session that was just added what has changed since it was admitted: from then on it is told by [`Users::run`].
    pub(crate) async fn tell_new(&self, session: &Session) {
        match self.record(&session.identity.user).await {
            Ok(known) => session.take_record(known.record, known.as_of),
            Err(_) => self.look_again([session.identity.user.clone()]),
        }
    }

    /// Tells every gateway of a change; this one's sessions know it when this returns.
    ///
    /// # Errors
    /// When the store or the live layer does not answer: what was not told is told within a minute.
    pub(crate) async fn publish(&self, user: &UserId) -> EngineResult<()> {
        self.changed(user);
        let told = self.tell(std::slice::from_ref(user)).await;
        self.live.user_changed(user).await.and(told)
    }

    /// Notes that a user's record has changed.
    pub(crate) fn changed(&self, user: &UserId) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.remembered.remove(user);
        if self.sessions.has(user.as_str()) {
            self.look_again([user.clone()]);
        }
    }

    /// Tells sessions of changes, until the gateway has drained.
    pub(crate) async fn run(&self) {
        let mut ticks = tokio::time::interval_at(Instant::now() + MAX_AGE, MAX_AGE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.woken.notified() => {}
                _ = ticks.tick() => {
                    let all = self.sessions.all();
                    self.look_again(all.iter().map(|session| session.identity.user.clone()));
                }
            }
            while let Err(error) = self.tell_all().await {
                tracing::warn!(%error, "ended sessions and block lists were not read; trying again");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }

    async fn tell_all(&self) -> EngineResult<()> {
        loop {
            // A change from here on is noted anew.
            let users: Vec<UserId> = {
                let mut untold = self.untold();
                let next: Vec<_> = untold.iter().take(MAX_READ).cloned().collect();
                for user in &next {
                    untold.remove(user);
                }
                next
            };
            if users.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.tell(&users).await {
                self.untold().extend(users);
                return Err(error);
            }
        }
    }

    async fn tell(&self, users: &[UserId]) -> EngineResult<()> {
        for (user, Remembered { record, as_of, .. }) in users.iter().zip(self.read(users).await?) {
            self.sessions.each_of(user, |session| session.take_record(record.clone(), as_of));
        }
        Ok(())
    }

    async fn record(&self, user: &UserId) -> EngineResult<Remembered> {
        match self.remembered.get(user).filter(|known| known.read_at.elapsed() < MAX_AGE) {
            Some(known) => Ok(known),
            None => self.read(std::slice::from_ref(user)).await.map(|mut read| read.remove(0)),
        }
    }

    /// Reads and remembers these users' records.
    async fn read(&self, users: &[UserId]) -> EngineResult<Vec<Remembered>> {
        let (read_at, as_of) = (Instant::now(), self.changes.load(Ordering::SeqCst));
        let records = self.store.get(users).await?;
        let read = records.into_iter().map(|record| Remembered { record: record.into(), read_at, as_of });
        let read: Vec<_> = read.collect();
        for (user, read) in users.iter().zip(&read) {
            self.remembered.insert(user.clone(), read.clone());
            // A change that is noted after this look removes the record itself.
            if self.changes.load(Ordering::SeqCst) != as_of {
                self.remembered.remove(user);
            }
        }
        Ok(read)
    }

    fn look_again(&self, users: impl IntoIterator<Item = UserId>) {
        self.untold().extend(users);
        self.woken.notify_one();
    }

    fn untold(&self) -> MutexGuard<'_, HashSet<UserId>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use async_trait::async_trait;
    use naru_embedded::{Embedded, Options};
    use naru_engines::store::{Erasure, Users as _};
    use naru_engines::{Applied, EngineError};
    use naru_model::Timestamp;

    use super::*;
    use crate::proof_requests::ProofRequests;
    use crate::refusal::Close;
    use crate::session_state::QueueLimits;

    /// The embedded store, of which one answer can be held back, or all reads fail.
    struct Store {
        inner: Arc<dyn store::Users>,
        holds_next: AtomicBool,
        held: Notify,
        released: Notify,
        fails: AtomicBool,
    }

    #[async_trait]
    impl store::Users for Store {
        async fn get(&self, users: &[UserId]) -> EngineResult<Vec<UserRecord>> {
            let records = self.inner.get(users).await?;
            if self.holds_next.swap(false, Ordering::SeqCst) {
                self.held.notify_one();
                self.released.notified().await;
            }
            if self.fails.load(Ordering::SeqCst) {
                return Err(EngineError::unavailable("test", Applied::No, "cut off"));
            }
            Ok(records)
        }

        async fn blocked_by(&self, user: &UserId, others: &[UserId]) -> EngineResult<Vec<bool>> {
            self.inner.blocked_by(user, others).await
        }

        async fn end_sessions(&self, user: &UserId, not_before: Option<Timestamp>) -> EngineResult<()> {
            self.inner.end_sessions(user, not_before).await
        }

        async fn block(&self, user: &UserId, other: &UserId, max: usize) -> EngineResult<bool> {
            self.inner.block(user, other, max).await
        }

        async fn unblock(&self, user: &UserId, other: &UserId) -> EngineResult<()> {
            self.inner.unblock(user, other).await
        }

        async fn unblock_all(&self, user: &UserId) -> EngineResult<()> {
            self.inner.unblock_all(user).await
        }

        async fn begin_erasure(&self, user: &UserId, at: Timestamp) -> EngineResult<()> {
            self.inner.begin_erasure(user, at).await
        }

        async fn erasure(&self, user: &UserId) -> EngineResult<Option<Erasure>> {
            self.inner.erasure(user).await
        }

        async fn erasures(
            &self,
            after: Option<&UserId>,
            limit: usize,
        ) -> EngineResult<Vec<(UserId, Erasure)>> {
            self.inner.erasures(after, limit).await
        }

        async fn complete_erasure(&self, user: &UserId, round: u64, at: Timestamp) -> EngineResult<bool> {
            self.inner.complete_erasure(user, round, at).await
        }
    }

    struct World {
        store: Arc<Store>,
        sessions: Arc<SessionRegistry>,
        users: Arc<Users>,
        _directory: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let mut engines = Embedded::open(directory.path(), Options::default()).unwrap().engines();
            let store = Arc::new(Store {
                inner: engines.store.users.clone(),
                holds_next: AtomicBool::new(false),
                held: Notify::new(),
                released: Notify::new(),
                fails: AtomicBool::new(false),
            });
            engines.store.users = store.clone();
            let sessions = SessionRegistry::new();
            let users = Arc::new(Users::new(&engines, &sessions));
            Self { store, sessions, users, _directory: directory }
        }

        fn run(&self) {
            let users = self.users.clone();
            tokio::spawn(async move { users.run().await });
        }

        /// A session that was admitted.
        async fn session(&self) -> Arc<Session> {
            let record = self.users.admit(&ada()).await.unwrap();
            let session = Session::new(ada(), record, QueueLimits::of_frames(8), ProofRequests::by_ping());
            self.sessions.add(&session);
            session
        }
    }

    fn ada() -> Identity {
        let (user, now) = (UserId::new("ada").unwrap(), Timestamp::now());
        Identity {
            name: "Ada".into(),
            user,
            device: None,
            is_service: false,
            issued_at: Some(now),
            expires_at: now.after(MAX_AGE),
        }
    }

    #[tokio::test]
    async fn a_change_that_the_live_layer_lost_is_found_within_a_minute() {
        let world = World::new();
        world.run();
        let session = world.session().await;
        world.store.end_sessions(&ada().user, None).await.unwrap();
        assert!(!session.is_closing());
        // Time stands still only for this: it would run ahead of the store's threads.
        tokio::time::pause();
        tokio::time::advance(MAX_AGE).await;
        tokio::time::resume();
        assert_eq!(session.closed().await, Close::Revoked);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_was_ended_is_refused_within_a_minute() {
        let world = World::new();
        let identity = ada();
        world.users.admit(&identity).await.unwrap();
        let later = identity.issued_at.map(|at| at.after(Duration::from_millis(1)));
        world.store.end_sessions(&identity.user, later).await.unwrap();
        world.users.admit(&identity).await.unwrap();
        tokio::time::advance(MAX_AGE).await;
        let refused = world.users.admit(&identity).await;
        assert!(matches!(refused, Err(Refusal::Unauthenticated(_))), "{refused:?}");
        let silent = Identity { issued_at: None, ..identity.clone() };
        assert!(world.users.admit(&silent).await.is_err(), "it may be as old as any");
        world.users.admit(&Identity { issued_at: later, ..identity }).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_read_before_a_change_is_neither_remembered_nor_taken() {
        let world = World::new();
        let session = world.session().await;
        world.users.changed(&ada().user);
        world.store.holds_next.store(true, Ordering::SeqCst);
        let (users, early) = (world.users.clone(), session.clone());
        let reading = tokio::spawn(async move { users.tell_new(&early).await });
        world.store.held.notified().await;
        let ben = UserId::new("ben").unwrap();
        world.store.block(&ada().user, &ben, 9).await.unwrap();
        world.users.publish(&ada().user).await.unwrap();
        world.store.released.notify_one();
        reading.await.unwrap();
        assert!(session.blocks(&ben));
        assert_eq!(world.users.admit(&ada()).await.unwrap().blocked, [ben]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_told_when_the_store_answers_again() {
        let world = World::new();
        world.run();
        let session = world.session().await;
        world.store.fails.store(true, Ordering::SeqCst);
        world.store.end_sessions(&ada().user, None).await.unwrap();
        world.users.publish(&ada().user).await.unwrap_err();
        assert_eq!(world.users.admit(&ada()).await, Err(Refusal::Unavailable));
        assert!(!session.is_closing());
        world.store.fails.store(false, Ordering::SeqCst);
        assert_eq!(session.closed().await, Close::Revoked);
    }
}
