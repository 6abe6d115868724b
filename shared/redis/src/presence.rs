//! Who is connected. A session counts by its gateway's lease, so nothing is written for a user who just stays.
//!
//! | key | holds | goes |
//! |---|---|---|
//! | `naru:gateway:<id>` | `renewed`, `until` (milliseconds since 1970, by Redis's clock), `resigned` | 30 days after the last renewal |
//! | `naru:user:<id>` | `seen`, and for each session `session:<id>` with its gateway and device | a year after the last session |
//!
//! A lease that has lapsed is not removed: it tells when its sessions were last seen, and they count again when it is
//! renewed, since the process may only have been suspended. The sessions of a gateway that was silent for a day are
//! removed by whoever finds them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::live::{Attachment, Location, Presence, Seen};
use naru_engines::{EngineError, EngineResult};
use naru_model::{DeviceId, GatewayId, SessionId, Timestamp, UserId};

use crate::error::ENGINE;
use crate::keys::{Keys, Lua, Request, millis};
use crate::names::{GATEWAY_KEY, gateway_key, user_key};

static RENEW: Lua = Lua::new(include_str!("scripts/renew.lua"));
static RESIGN: Lua = Lua::new(include_str!("scripts/resign.lua"));
static LOCATE: Lua = Lua::new(include_str!("scripts/locate.lua"));
static LEASE: Lua = Lua::new(include_str!("scripts/lease.lua"));
static ATTACH: Lua = Lua::new(include_str!("scripts/attach.lua"));
static REMOVE_SESSIONS: Lua = Lua::new(include_str!("scripts/remove_sessions.lua"));

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long it is remembered when a gateway last renewed its lease.
const RENEWAL_KEPT: Duration = Duration::from_secs(30 * DAY.as_secs());
/// How long it is remembered when a user without a session was last seen. After that they were never seen.
const SEEN_KEPT: Duration = Duration::from_secs(365 * DAY.as_secs());
/// Sessions of a gateway that was silent for this long are removed.
const REMOVED_AFTER: Duration = DAY;
/// How many users one script looks up: it keeps the server busy for a millisecond or two.
const USERS_EACH: usize = 1_000;
/// How many fields one command removes: a script can't take more than some thousand arguments.
const FIELDS_EACH: usize = 1_000;
/// How many sessions still to be detached are remembered: all of a big gateway's. Beyond, they count until it ends.
const MAX_PENDING: usize = 100_000;

/// The field of a user's hash that says when they were last seen.
const SEEN: &str = "seen";
/// What the fields of sessions begin with.
const SESSION: &str = "session:";

pub(crate) struct RedisPresence {
    keys: Arc<Keys>,
    /// Sessions whose `detach` may have failed. Their gateway lives, so they would count if it were not repeated.
    pending: Mutex<HashSet<Attachment>>,
}

/// What is stored of one user.
#[derive(Default)]
struct Stored {
    seen: Option<Timestamp>,
    sessions: Vec<(SessionId, GatewayId)>,
}

/// What is known of a gateway's lease.
#[derive(Clone, Copy)]
struct Lease {
    runs: bool,
    renewed: Option<Timestamp>,
    /// When it was asked.
    now: Timestamp,
}

impl Stored {
    fn read(user: &UserId, fields: Vec<(String, String)>) -> EngineResult<Self> {
        let mut stored = Self::default();
        for (field, value) in fields {
            if field == SEEN {
                let seen = value.parse().map_err(|_| unreadable(user, &field))?;
                stored.seen = Some(Timestamp::from_millis(seen));
            } else {
                let session = read_session(&field).ok_or_else(|| unreadable(user, &field))?;
                let (gateway, _) = read_entry(&value).ok_or_else(|| unreadable(user, &field))?;
                stored.sessions.push((session, gateway));
            }
        }
        Ok(stored)
    }
}

impl Lease {
    /// Whether a session that was attached no later than `seen` will not count again. A lease that nobody remembers may be
    /// one that was never there yet: after Redis has lost everything, sessions come back before renewals.
    fn is_abandoned(&self, seen: Option<Timestamp>) -> bool {
        let last = self.renewed.or(seen);
        !self.runs && last.is_some_and(|last| self.now.since(last) > REMOVED_AFTER)
    }
}

impl RedisPresence {
    pub(crate) fn new(keys: Arc<Keys>) -> Self {
        Self { keys, pending: Mutex::default() }
    }

    /// What is stored of these users, in their order, and the leases of all gateways in it. Two round trips, however
    /// many users.
    async fn look_up(&self, users: &[UserId]) -> EngineResult<(Vec<Stored>, HashMap<GatewayId, Lease>)> {
        let requests = users.iter().map(|user| Request::command("HGETALL", user_key(user))).collect();
        let fields: Vec<Vec<(String, String)>> = self.keys.all(requests).await?;
        let stored = users.iter().zip(fields).map(|(user, fields)| Stored::read(user, fields));
        let stored: Vec<Stored> = stored.collect::<EngineResult<_>>()?;

        let gateways: HashSet<&GatewayId> =
            stored.iter().flat_map(|stored| &stored.sessions).map(|(_, gateway)| gateway).collect();
        let gateways: Vec<GatewayId> = gateways.into_iter().cloned().collect();
        let requests = gateways.iter().map(|gateway| Request::script(&LEASE, gateway_key(gateway))).collect();
        let leases: Vec<(bool, Option<i64>, i64)> = self.keys.all(requests).await?;
        let leases = leases.into_iter().map(|(runs, renewed, now)| Lease {
            runs,
            renewed: renewed.map(Timestamp::from_millis),
            now: Timestamp::from_millis(now),
        });
        let leases = gateways.into_iter().zip(leases).collect();
        self.remove_abandoned(users, &stored, &leases).await;
        Ok((stored, leases))
    }

    /// Removes the sessions of dead gateways. A round trip only when there are some.
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
            for abandoned in abandoned.chunks(FIELDS_EACH) {
                let renewed = abandoned.iter().filter_map(|(_, lease)| lease.renewed).max().or(stored.seen);
                requests.push(remove(user, renewed, abandoned.iter().map(|(session, _)| *session)));
            }
        }
        if let Err(error) = self.keys.all::<()>(requests).await {
            tracing::debug!(%error, "abandoned sessions are not removed; the next look-up tries again");
        }
    }

    /// Where users are, on one server: in one round trip, by one command for each thousand of them.
    async fn locate_at_once(&self, users: &[UserId]) -> EngineResult<Vec<Location>> {
        let requests = users.chunks(USERS_EACH).map(|users| {
            let keys: Vec<String> = users.iter().map(user_key).collect();
            Request::script_on_all(&LOCATE, &keys).arg(GATEWAY_KEY).arg(millis(REMOVED_AFTER))
        });
        let answers: Vec<(Vec<String>, Vec<usize>, Vec<usize>)> = self.keys.all(requests.collect()).await?;
        let mut locations = Vec::with_capacity(users.len());
        let mut with_abandoned = Vec::new();
        for (users, (gateways, places, abandoned)) in users.chunks(USERS_EACH).zip(answers) {
            let gateways = gateways.into_iter().map(GatewayId::new).collect::<Result<Vec<_>, _>>();
            let gateways = gateways.map_err(|error| EngineError::poison(ENGINE, error))?;
            locations.extend(places.split(|place| *place == 0).take(users.len()).map(|places| Location {
                gateways: places.iter().filter_map(|place| gateways.get(place - 1)).cloned().collect(),
            }));
            with_abandoned.extend(abandoned.into_iter().filter_map(|place| users.get(place - 1)).cloned());
        }
        if !with_abandoned.is_empty() {
            // Once for each user of a gateway that died: it removes the sessions. If it fails, the next call does it.
            let _failed = self.look_up(&with_abandoned).await;
        }
        Ok(locations)
    }

    /// Where users are, on a cluster, where a script can't read gateways' keys beside users': in two round trips.
    async fn locate_by_node(&self, users: &[UserId]) -> EngineResult<Vec<Location>> {
        let (stored, leases) = self.look_up(users).await?;
        let locations = stored.into_iter().map(|stored| {
            let mut location = Location::default();
            for (_, gateway) in stored.sessions {
                let runs = leases.get(&gateway).is_some_and(|lease| lease.runs);
                if runs && !location.gateways.contains(&gateway) {
                    location.gateways.push(gateway);
                }
            }
            location
        });
        Ok(locations.collect())
    }

    fn pending(&self) -> MutexGuard<'_, HashSet<Attachment>> {
        // Nothing that holds it can panic half-way through a change.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn detach_pending(&self) {
        let pending = self.pending().clone();
        let requests =
            pending.iter().map(|session| remove(&session.user, None, [&session.session])).collect();
        match self.keys.all::<()>(requests).await {
            Ok(_) => self.pending().retain(|session| !pending.contains(session)),
            Err(error) => tracing::debug!(%error, "sessions are still not detached"),
        }
    }
}

#[async_trait]
impl Presence for RedisPresence {
    async fn renew(&self, gateway: &GatewayId, ttl: Duration) -> EngineResult<()> {
        let kept = millis(RENEWAL_KEPT.max(ttl));
        let request = Request::script(&RENEW, gateway_key(gateway)).arg(millis(ttl)).arg(kept);
        self.keys.one::<()>(request).await?;
        self.detach_pending().await;
        Ok(())
    }

    async fn resign(&self, gateway: &GatewayId) -> EngineResult<()> {
        self.keys.one(Request::script(&RESIGN, gateway_key(gateway)).arg(millis(RENEWAL_KEPT))).await
    }

    async fn attach(&self, session: &Attachment) -> EngineResult<Option<Attachment>> {
        self.pending().remove(session);
        let entry = match &session.device {
            Some(device) => format!("{}\n{device}", session.gateway),
            None => session.gateway.to_string(),
        };
        let mut request =
            Request::script(&ATTACH, user_key(&session.user)).arg(field(&session.session)).arg(entry);
        if let Some(device) = &session.device {
            request = request.arg(device.as_str());
        }
        let replaced: Vec<String> = self.keys.one(request).await?;
        let [field, entry] = &replaced[..] else { return Ok(None) };
        let replaced = read_session(field).zip(read_entry(entry));
        let (session_id, (gateway, device)) = replaced.ok_or_else(|| unreadable(&session.user, field))?;
        Ok(Some(Attachment { user: session.user.clone(), device, session: session_id, gateway }))
    }

    async fn detach(&self, session: &Attachment) -> EngineResult<()> {
        let detached = self.keys.one(remove(&session.user, None, [&session.session])).await;
        if detached.is_err() {
            // The next renewal repeats it.
            let mut pending = self.pending();
            if pending.len() < MAX_PENDING {
                pending.insert(session.clone());
            }
        }
        detached
    }

    async fn locate(&self, users: &[UserId]) -> EngineResult<Vec<Location>> {
        if self.keys.is_cluster() {
            self.locate_by_node(users).await
        } else {
            self.locate_at_once(users).await
        }
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
}

/// Removes sessions of a user, who was last seen on them then; none: now.
fn remove<'a>(
    user: &UserId,
    seen: Option<Timestamp>,
    sessions: impl IntoIterator<Item = &'a SessionId>,
) -> Request {
    let seen = seen.map_or(String::new(), |seen| seen.as_millis().to_string());
    let fields: Vec<String> = sessions.into_iter().map(field).collect();
    Request::script(&REMOVE_SESSIONS, user_key(user)).arg(millis(SEEN_KEPT)).arg(seen).arg(fields)
}

fn field(session: &SessionId) -> String {
    format!("{SESSION}{session}")
}

fn read_session(field: &str) -> Option<SessionId> {
    SessionId::new(field.strip_prefix(SESSION)?).ok()
}

/// The gateway and, after a line feed, the device: `attach.lua` reads it, too.
fn read_entry(entry: &str) -> Option<(GatewayId, Option<DeviceId>)> {
    let (gateway, device) = match entry.split_once('\n') {
        Some((gateway, device)) => (gateway, Some(DeviceId::new(device).ok()?)),
        None => (entry, None),
    };
    Some((GatewayId::new(gateway).ok()?, device))
}

fn unreadable(user: &UserId, field: &str) -> EngineError {
    EngineError::poison(ENGINE, format!("{}: {field:?} can't be read", user_key(user)))
}
