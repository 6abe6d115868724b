//! Presence. A session counts by its gateway's lease, so nothing is written for a user who stays connected.
//!
//! | key | value | expires |
//! |---|---|---|
//! | `naru:gateway:<id>` | `renewed`, `until` (milliseconds since 1970, by Redis's clock), `renewals`, `lapsed`, `resigned` | 30 days after the last renewal |
//! | `naru:presence:<user>` | the last-seen time, and for each session a line with its id, its gateway and its device | `last_seen_keep` after the last session ended; while there are sessions, a year after the last one was attached or ended |
//!
//! A user's record is a string, so that one `MGET` reads those of a whole batch: 256 take 30 µs of the server's time, where
//! as many `HGETALL` took 110 µs and a script that did them 330 µs (Redis 7.0). Line feeds and tabs separate its parts: ids
//! hold no control characters. (`MGET` answers a key of another type as missing; only Naru writes these keys.)
//!
//! **No promise depends on Redis's clock.** It is the computer's, and may be set forward or back; the expiry of keys goes by it
//! as well, so that a key with a time to live would be no better than `until`. A process that looks at a lease now and then
//! judges by its own monotonic clock whether the lease runs ([`Sighting`]); only where that does not tell, after a start
//! or a pause without messages, it goes by Redis's. And a look-up that finds a lease lapsed notes so in it (`lapsed`) before
//! it answers: the next renewal tells the gateway that its sessions were not found.
//!
//! So a record whose gateway died, and that no one looks up again, ends too. A session that is connected for a year without another one
//! is found to be missing then, and attached again, within a minute.
//!
//! A lapsed lease is not removed: it holds its sessions' last-seen time, and they count again when it is renewed, since
//! the process may only have been suspended. The look-up that finds sessions of a gateway that was silent for a day
//! removes them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::try_join;
use naru_engines::live::{Presence, PresenceEntry, Renewal, Seen};
use naru_engines::{EngineError, EngineResult};
use naru_model::{GatewayId, SessionId, Timestamp, UserId};

use crate::error::ENGINE;
use crate::keys::{Keys, Lua, Request, millis};
use crate::names::{gateway_key, user_key};
use crate::sighting::{LookUp, Sighting};

static RENEW: Lua = Lua::new(include_str!("scripts/renew.lua"));
static RESIGN: Lua = Lua::new(include_str!("scripts/resign.lua"));
static LEASES: Lua = Lua::new(include_str!("scripts/leases.lua"));
static MARK_LAPSED: Lua = Lua::new(include_str!("scripts/mark_lapsed.lua"));
static ATTACH: Lua = Lua::new(include_str!("scripts/attach.lua"));
static FORGET: Lua = Lua::new(include_str!("scripts/forget.lua"));
static REMOVE_SESSIONS: Lua = Lua::new(include_str!("scripts/remove_sessions.lua"));

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the time of a gateway's last renewal is kept.
const RENEWAL_KEPT: Duration = Duration::from_secs(30 * DAY.as_secs());
/// How long the record of a user with sessions is kept, from the last change of them.
const SESSIONS_KEPT: Duration = Duration::from_secs(365 * DAY.as_secs());
/// Sessions of a gateway that was silent for this long are removed.
const REMOVED_AFTER: Duration = DAY;
/// How many sessions still to be detached are kept: all of a big gateway's. Any further ones count until it ends.
const MAX_PENDING: usize = 100_000;

pub(crate) struct RedisPresence {
    keys: Arc<Keys>,
    /// How long the last-seen time of a user without a session is kept. After that, the user counts as never seen.
    seen_kept: Duration,
    /// Sessions whose `detach` may have failed. Their gateway runs, so they would count if it were not repeated.
    pending: Mutex<HashSet<PresenceEntry>>,
    /// Gateways whose leases are read together with users' records, all that were found there and may renew again, and what
    /// was seen of their leases.
    known: Mutex<HashMap<GatewayId, Option<Sighting>>>,
    /// How often this process's gateways have renewed their leases, as far as renewals were answered. When Redis has counted
    /// otherwise, it has lost some, or the lease, or the answer to a renewal was lost, which may have said `Lapsed`.
    renewals: Mutex<HashMap<GatewayId, u64>>,
}

/// One user's stored record.
#[derive(Default)]
struct Stored {
    seen: Option<Timestamp>,
    sessions: Vec<(SessionId, GatewayId)>,
}

/// A gateway's lease as it was read.
#[derive(Clone, Copy)]
struct Lease {
    runs: bool,
    renewed: Option<Timestamp>,
    /// When it was read.
    now: Timestamp,
    /// None: the lease is not there.
    sighting: Option<Sighting>,
}

/// What `leases.lua` answers of one lease.
type LeaseAnswer = (bool, Option<i64>, i64, Option<u64>, u64, bool);

impl Stored {
    fn read(record: &str) -> Option<Self> {
        let mut lines = record.split('\n');
        let seen = Timestamp::from_millis(lines.next()?.parse().ok()?);
        let sessions = lines.map(|line| {
            let (session, rest) = line.split_once('\t')?;
            let (gateway, _device) = rest.split_once('\t')?;
            Some((SessionId::new(session).ok()?, GatewayId::new(gateway).ok()?))
        });
        Some(Self { seen: Some(seen), sessions: sessions.collect::<Option<_>>()? })
    }
}

impl Lease {
    /// Whether a session that was attached no later than `seen` will not count again. A missing lease may not have been
    /// renewed yet: after Redis has lost everything, sessions are attached again before leases are renewed.
    fn is_abandoned(&self, seen: Option<Timestamp>) -> bool {
        let last = self.renewed.or(seen);
        !self.runs && last.is_some_and(|last| self.now.since(last) > REMOVED_AFTER)
    }
}

impl RedisPresence {
    pub(crate) fn new(keys: Arc<Keys>, seen_kept: Duration) -> Self {
        Self {
            keys,
            seen_kept,
            pending: Mutex::default(),
            known: Mutex::default(),
            renewals: Mutex::default(),
        }
    }

    /// These users' records, in their order, and the leases of all gateways in them. One round trip, however many users,
    /// and a second when one of these gateways is not in `known`.
    async fn look_up(&self, users: &[UserId]) -> EngineResult<(Vec<Stored>, HashMap<GatewayId, Lease>)> {
        let known: Vec<GatewayId> = locked(&self.known).keys().cloned().collect();
        let (stored, mut leases) = try_join(self.records(users), self.leases(&known)).await?;
        let gateways = stored.iter().flat_map(|stored| &stored.sessions).map(|(_, gateway)| gateway);
        let unknown: HashSet<&GatewayId> =
            gateways.filter(|gateway| !leases.contains_key(*gateway)).collect();
        let unknown: Vec<GatewayId> = unknown.into_iter().cloned().collect();
        if !unknown.is_empty() {
            leases.extend(self.leases(&unknown).await?);
        }
        let may_come_back = |lease: &Lease| lease.renewed.is_some() && !lease.is_abandoned(None);
        *locked(&self.known) = leases
            .iter()
            .filter(|(_, lease)| may_come_back(lease))
            .map(|(gateway, lease)| (gateway.clone(), lease.sighting))
            .collect();
        self.remove_abandoned(users, &stored, &leases).await;
        Ok((stored, leases))
    }

    async fn records(&self, users: &[UserId]) -> EngineResult<Vec<Stored>> {
        let keys: Vec<String> = users.iter().map(user_key).collect();
        let requests = keys.chunks(self.keys.per_command()).map(|keys| Request::command("MGET", keys));
        let records: Vec<Vec<Option<String>>> = self.keys.all(requests.collect()).await?;
        let stored = records.iter().flatten().zip(keys).map(|(record, key)| match record {
            Some(record) => Stored::read(record).ok_or_else(|| unreadable(&key)),
            None => Ok(Stored::default()),
        });
        stored.collect()
    }

    async fn leases(&self, gateways: &[GatewayId]) -> EngineResult<HashMap<GatewayId, Lease>> {
        let keys: Vec<String> = gateways.iter().map(gateway_key).collect();
        let requests = keys.chunks(self.keys.per_command()).map(|keys| Request::script_on_all(&LEASES, keys));
        let began = Instant::now();
        let answers: Vec<Vec<LeaseAnswer>> = self.keys.all(requests.collect()).await?;
        let at = LookUp { began, ended: Instant::now() };
        let (mut leases, mut lapsed) = (HashMap::new(), Vec::new());
        let known = locked(&self.known).clone();
        for (gateway, answer) in gateways.iter().zip(answers.into_iter().flatten()) {
            let (runs, renewed, now, renewals, ttl, is_told) = answer;
            let previous = known.get(gateway).copied().flatten();
            let sighting = renewals.map(|renewals| Sighting::next(previous, renewals, at));
            let lease = Lease {
                runs: sighting.and_then(|seen| seen.runs(Duration::from_millis(ttl), at)).unwrap_or(runs),
                renewed: renewed.map(Timestamp::from_millis),
                now: Timestamp::from_millis(now),
                sighting,
            };
            if !(lease.runs || is_told) {
                lapsed.push(Request::script(&MARK_LAPSED, gateway_key(gateway)));
            }
            leases.insert(gateway.clone(), lease);
        }
        self.keys.all::<()>(lapsed).await?;
        Ok(leases)
    }

    /// Removes the sessions of dead gateways. A round trip only when there are any.
    async fn remove_abandoned(
        &self,
        users: &[UserId],
        stored: &[Stored],
        leases: &HashMap<GatewayId, Lease>,
    ) {
        let mut requests = Vec::new();
        for (user, stored) in users.iter().zip(stored) {
            let abandoned: Vec<(&SessionId, &Lease)> = stored
                .sessions
                .iter()
                .filter_map(|(session, gateway)| Some((session, leases.get(gateway)?)))
                .filter(|(_, lease)| lease.is_abandoned(stored.seen))
                .collect();
            if !abandoned.is_empty() {
                let renewed = abandoned.iter().filter_map(|(_, lease)| lease.renewed).max().or(stored.seen);
                requests.push(self.remove(user, renewed, abandoned.iter().map(|(session, _)| *session)));
            }
        }
        if let Err(error) = self.keys.all::<()>(requests).await {
            tracing::debug!(%error, "abandoned sessions are not removed; the next look-up tries again");
        }
    }

    /// Removes sessions of a user, last seen on them at `seen`; none: now.
    fn remove<'a>(
        &self,
        user: &UserId,
        seen: Option<Timestamp>,
        sessions: impl IntoIterator<Item = &'a SessionId>,
    ) -> Request {
        let seen = seen.map_or(String::new(), |seen| seen.as_millis().to_string());
        let sessions: Vec<&str> = sessions.into_iter().map(SessionId::as_str).collect();
        let request = Request::script(&REMOVE_SESSIONS, user_key(user)).arg(millis(self.seen_kept));
        request.arg(millis(SESSIONS_KEPT.max(self.seen_kept))).arg(seen).arg(sessions)
    }

    async fn detach_pending(&self) {
        let pending = locked(&self.pending).clone();
        let requests =
            pending.iter().map(|session| self.remove(&session.user, None, [&session.session])).collect();
        match self.keys.all::<()>(requests).await {
            Ok(_) => locked(&self.pending).retain(|session| !pending.contains(session)),
            Err(error) => tracing::debug!(%error, "sessions are still not detached"),
        }
    }
}

#[async_trait]
impl Presence for RedisPresence {
    async fn renew(&self, gateway: &GatewayId, ttl: Duration) -> EngineResult<Renewal> {
        let kept = millis(RENEWAL_KEPT.max(ttl));
        let request = Request::script(&RENEW, gateway_key(gateway)).arg(millis(ttl)).arg(kept);
        let (renewals, has_lapsed): (u64, bool) = self.keys.one(request).await?;
        let before = locked(&self.renewals).insert(gateway.clone(), renewals);
        self.detach_pending().await;
        let is_unbroken = before.is_some_and(|before| renewals == before + 1) && !has_lapsed;
        Ok(if is_unbroken { Renewal::Unbroken } else { Renewal::Lapsed })
    }

    async fn resign(&self, gateway: &GatewayId) -> EngineResult<()> {
        locked(&self.renewals).remove(gateway);
        self.keys.one(Request::script(&RESIGN, gateway_key(gateway)).arg(millis(RENEWAL_KEPT))).await
    }

    async fn attach(&self, session: &PresenceEntry) -> EngineResult<Option<PresenceEntry>> {
        locked(&self.pending).remove(session);
        let device = session.device.as_ref().map_or("", |device| device.as_str());
        let request = Request::script(&ATTACH, user_key(&session.user));
        let request = request.arg(session.session.as_str()).arg(session.gateway.as_str()).arg(device);
        let request = request.arg(millis(SESSIONS_KEPT.max(self.seen_kept)));
        let replaced: Vec<String> = self.keys.one(request).await?;
        let [old, gateway] = &replaced[..] else { return Ok(None) };
        let replaced = SessionId::new(&**old).ok().zip(GatewayId::new(&**gateway).ok());
        let (old, gateway) = replaced.ok_or_else(|| unreadable(&user_key(&session.user)))?;
        Ok(Some(PresenceEntry { session: old, gateway, ..session.clone() }))
    }

    async fn detach(&self, session: &PresenceEntry) -> EngineResult<()> {
        let detached = self.keys.one(self.remove(&session.user, None, [&session.session])).await;
        if detached.is_err() {
            // The next renewal repeats it.
            let mut pending = locked(&self.pending);
            if pending.len() < MAX_PENDING {
                pending.insert(session.clone());
            }
        }
        detached
    }

    async fn attached(&self, sessions: &[PresenceEntry]) -> EngineResult<Vec<bool>> {
        let keys = sessions.iter().map(|session| user_key(&session.user));
        let requests = keys.map(|key| Request::command("GET", &[key]));
        let records: Vec<Option<String>> = self.keys.all(requests.collect()).await?;
        let has = |(record, asked): (Option<String>, &PresenceEntry)| {
            // What can't be read is lost: attaching the session writes it again.
            let stored = record.and_then(|record| Stored::read(&record)).unwrap_or_default();
            stored.sessions.iter().any(|(session, _)| *session == asked.session)
        };
        Ok(records.into_iter().zip(sessions).map(has).collect())
    }

    async fn online(&self, users: &[UserId]) -> EngineResult<Vec<bool>> {
        let (stored, leases) = self.look_up(users).await?;
        let runs = |gateway: &GatewayId| leases.get(gateway).is_some_and(|lease| lease.runs);
        Ok(stored.iter().map(|stored| stored.sessions.iter().any(|(_, gateway)| runs(gateway))).collect())
    }

    async fn seen(&self, users: &[UserId]) -> EngineResult<Vec<Seen>> {
        let (stored, leases) = self.look_up(users).await?;
        let seen = stored.into_iter().map(|stored| {
            let leases: Vec<&Lease> =
                stored.sessions.iter().filter_map(|(_, gateway)| leases.get(gateway)).collect();
            match leases.iter().find(|lease| lease.runs) {
                Some(lease) => Seen { online: true, last_seen_at: Some(lease.now) },
                None => {
                    let renewed = leases.iter().filter_map(|lease| lease.renewed).max();
                    Seen { online: false, last_seen_at: renewed.max(stored.seen) }
                }
            }
        });
        Ok(seen.collect())
    }

    /// Two round trips. The look-up removes sessions of gateways that are dead for long.
    async fn forget(&self, user: &UserId) -> EngineResult<bool> {
        self.look_up(std::slice::from_ref(user)).await?;
        self.keys.one(Request::script(&FORGET, user_key(user))).await
    }
}

fn unreadable(key: &str) -> EngineError {
    EngineError::poison(ENGINE, format!("{key} can't be read"))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No holder can panic half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
