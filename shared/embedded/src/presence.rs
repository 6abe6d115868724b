//! Which users are connected. Sessions are in memory, since they end with the process; the time at which a user was last seen
//! is on disk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::live::{Presence, PresenceEntry, Renewal, Seen};
use naru_model::{GatewayId, Timestamp, UserId};
use rusqlite::{OptionalExtension, Result, Transaction, params};
use tokio::time::Instant;

use crate::column::{self, Columns};
use crate::database::{Database, Sync};
use crate::lock::lock;

pub(crate) struct MemoryPresence {
    database: Arc<Database>,
    /// How long it is kept when a user was last seen.
    keep: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    leases: HashMap<GatewayId, Lease>,
    /// Sessions stay when their gateway's lease lapses, and count again when it is renewed: the process may only
    /// have been suspended.
    sessions: HashMap<UserId, Vec<PresenceEntry>>,
}

#[derive(Clone, Copy)]
struct Lease {
    until: Instant,
    renewed_at: Timestamp,
}

impl Lease {
    fn runs(&self) -> bool {
        Instant::now() < self.until
    }
}

impl State {
    fn is_live(&self, session: &PresenceEntry) -> bool {
        self.leases.get(&session.gateway).is_some_and(Lease::runs)
    }

    fn of(&self, user: &UserId) -> &[PresenceEntry] {
        self.sessions.get(user).map_or(&[], Vec::as_slice)
    }

    fn is_online(&self, user: &UserId) -> bool {
        self.of(user).iter().any(|session| self.is_live(session))
    }

    /// From memory alone: whether the user is online, and when a lapsed lease of theirs was last renewed.
    fn seen(&self, user: &UserId) -> Seen {
        let sessions = self.of(user);
        let online = self.is_online(user);
        let renewed = sessions.iter().filter_map(|session| self.leases.get(&session.gateway));
        let lapsed = renewed.map(|lease| lease.renewed_at).max();
        Seen { online, last_seen_at: if online { Some(Timestamp::now()) } else { lapsed } }
    }

    /// Removes the sessions for which `leaves` holds; returns the users that had one.
    fn retain(&mut self, leaves: impl Fn(&PresenceEntry) -> bool) -> Vec<UserId> {
        let mut left = Vec::new();
        self.sessions.retain(|user, sessions| {
            let before = sessions.len();
            sessions.retain(|session| !leaves(session));
            if sessions.len() < before {
                left.push(user.clone());
            }
            !sessions.is_empty()
        });
        left
    }
}

impl MemoryPresence {
    pub(crate) fn new(database: Arc<Database>, keep: Duration) -> Self {
        Self { database, keep, state: Mutex::default() }
    }

    /// A power cut may undo the last of these writes: the user's earlier time then counts.
    async fn keep_seen(&self, users: Vec<UserId>) -> EngineResult<()> {
        self.database.write_then(Sync::Never, keep_seen(users, self.keep), |_| {}).await
    }
}

#[async_trait]
impl Presence for MemoryPresence {
    async fn renew(&self, gateway: &GatewayId, ttl: Duration) -> EngineResult<Renewal> {
        let mut state = lock(&self.state);
        let lease = Lease { until: Instant::now() + ttl, renewed_at: Timestamp::now() };
        // Look-ups go by the same clock, which never goes back: what runs now ran at all of them.
        let is_unbroken = state.leases.insert(gateway.clone(), lease).is_some_and(|before| before.runs());
        Ok(if is_unbroken { Renewal::Unbroken } else { Renewal::Lapsed })
    }

    async fn resign(&self, gateway: &GatewayId) -> EngineResult<()> {
        let users = {
            let mut state = lock(&self.state);
            state.leases.remove(gateway);
            state.retain(|session| session.gateway == *gateway)
        };
        self.keep_seen(users).await
    }

    async fn attach(&self, session: &PresenceEntry) -> EngineResult<Option<PresenceEntry>> {
        let replaced = {
            let mut state = lock(&self.state);
            let sessions = state.sessions.entry(session.user.clone()).or_default();
            let same = |other: &PresenceEntry| {
                other.session == session.session || (other.device.is_some() && other.device == session.device)
            };
            let replaced = sessions.iter().position(same).map(|index| sessions.swap_remove(index));
            sessions.push(session.clone());
            replaced.filter(|replaced| replaced.session != session.session)
        };
        // For the case that the process dies; until then memory answers.
        self.database.submit(Sync::Never, keep_seen(vec![session.user.clone()], self.keep), drop).await;
        Ok(replaced)
    }

    async fn detach(&self, session: &PresenceEntry) -> EngineResult<()> {
        let was_there = {
            let mut state = lock(&self.state);
            let Some(sessions) = state.sessions.get_mut(&session.user) else { return Ok(()) };
            let before = sessions.len();
            sessions.retain(|other| other.session != session.session);
            let was_there = sessions.len() < before;
            if sessions.is_empty() {
                state.sessions.remove(&session.user);
            }
            was_there
        };
        if was_there { self.keep_seen(vec![session.user.clone()]).await } else { Ok(()) }
    }

    async fn attached(&self, sessions: &[PresenceEntry]) -> EngineResult<Vec<bool>> {
        let state = lock(&self.state);
        Ok(sessions.iter().map(|session| state.of(&session.user).contains(session)).collect())
    }

    async fn online(&self, users: &[UserId]) -> EngineResult<Vec<bool>> {
        let state = lock(&self.state);
        Ok(users.iter().map(|user| state.is_online(user)).collect())
    }

    async fn seen(&self, users: &[UserId]) -> EngineResult<Vec<Seen>> {
        let mut seen: Vec<_> = {
            let state = lock(&self.state);
            users.iter().map(|user| (user.clone(), state.seen(user))).collect()
        };
        if seen.iter().any(|(_, seen)| !seen.online) {
            let since = Timestamp::now().before(self.keep);
            seen = self.database.read(move |transaction| add_kept(transaction, seen, since)).await?;
        }
        Ok(seen.into_iter().map(|(_, seen)| seen).collect())
    }

    /// A session that is attached meanwhile is seen later than what is forgotten, or forgotten until it is detached.
    async fn forget(&self, user: &UserId) -> EngineResult<bool> {
        if !lock(&self.state).of(user).is_empty() {
            return Ok(false);
        }
        let user = user.clone();
        let forget = move |transaction: &Transaction<'_>| {
            let mut forget = transaction.prepare_cached("DELETE FROM last_seen WHERE userId = ?1")?;
            forget.execute([user.as_str()]).map(drop)
        };
        self.database.write(forget).await.map(|()| true)
    }
}

/// Records that these users were seen now. Each of them removes up to two who were last seen too long ago, so no big sweep is
/// ever needed.
fn keep_seen(users: Vec<UserId>, keep: Duration) -> impl Fn(&Transaction<'_>) -> Result<()> + Send + 'static {
    let (now, since) = (Timestamp::now().as_millis(), Timestamp::now().before(keep).as_millis());
    move |transaction| {
        let sql = "INSERT INTO last_seen (userId, seenAt) VALUES (?1, ?2)
            ON CONFLICT DO UPDATE SET seenAt = max(seenAt, excluded.seenAt)";
        let mut keep = transaction.prepare_cached(sql)?;
        users.iter().try_for_each(|user| keep.execute(params![user.as_str(), now]).map(drop))?;
        let sql = "DELETE FROM last_seen
            WHERE userId IN (SELECT userId FROM last_seen WHERE seenAt < ?1 ORDER BY seenAt LIMIT ?2)";
        let old = params![since, column::limit(2 * users.len())];
        transaction.prepare_cached(sql)?.execute(old).map(drop)
    }
}

/// Adds the recorded times of offline users, from this moment on.
fn add_kept(
    transaction: &Transaction<'_>,
    mut seen: Vec<(UserId, Seen)>,
    since: Timestamp,
) -> Result<Vec<(UserId, Seen)>> {
    let sql = "SELECT seenAt FROM last_seen WHERE userId = ?1 AND seenAt >= ?2";
    let mut kept = transaction.prepare_cached(sql)?;
    for (user, seen) in seen.iter_mut().filter(|(_, seen)| !seen.online) {
        let place = params![user.as_str(), since.as_millis()];
        let kept = kept.query_row(place, |row| row.time(0)).optional()?;
        seen.last_seen_at = seen.last_seen_at.max(kept);
    }
    Ok(seen)
}
