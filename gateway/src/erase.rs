//! Erases the personal data of users, whom the app's backend names (`DELETE /api/users/{id}`).
//!
//! The request is durable first ([`Users::begin_erasure`](naru_engines::store::Users)), and is found by every gateway: at once by
//! the one that took it, at its start and once a minute by each other one. What follows is a pass over all that the store has of
//! the user, in pages. Each step is harmless when it is repeated, so a process may die at any line, and two gateways may do the
//! same work. A message becomes a tombstone before its intake entry loses the content: an entry that still has it is work to do.
//!
//! Passes are repeated until one finds nothing left, no entry of the user open, and began when no session and no token of before
//! could be in use any more: a gateway that missed the signal knows of their end within a minute (`users`). So what was accepted
//! while a pass ran, and saved after it, does not survive.

use std::collections::HashMap;
use std::time::Duration;

use naru_engines::EngineResult;
use naru_engines::retention::pause_after;
use naru_engines::store::{Changed, Erasure, IntakeRecord, MemberChange, ParkedCursor};
use naru_model::message::Outcome;
use naru_model::{HolderId, MessageId, RoomId, RoomKind, Timestamp, UserId};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::gateway::Gateway;

/// How often erasures that other gateways began are looked for: one that died has left them.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// How soon a pass that took something away is repeated. One that only waits is repeated less and less often.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How soon a look that failed is repeated.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// One gateway works; where the lease can't be asked for, every one does.
const LEASE: (&str, Duration) = ("erase", Duration::from_secs(10));
/// A minute until every gateway knows that sessions and tokens have ended, and what an append and a call to a push provider may take.
const DELAY: Duration = Duration::from_secs(75);
/// How many erasures, rooms, messages or pushes are read at once.
const PAGE: usize = 100;

/// See [`DELAY`]; another one in tests.
pub(crate) const fn delay() -> Duration {
    DELAY
}

/// Wakes the task when this gateway has taken a request.
pub(crate) struct Eraser {
    holder: HolderId,
    woken: Notify,
}

/// An erasure under way, as this process knows it.
struct UnderWay {
    round: u64,
    /// When it was certain that the sessions and tokens of before had ended in the store.
    ended_at: Instant,
    /// When the next pass is due, and how long after one that only waits.
    due: Instant,
    wait: Duration,
}

/// What a pass has left to do.
#[derive(Default)]
struct Pass {
    /// How much it found, and took away.
    found: usize,
    /// How much it has to wait for: open entries, a session in presence.
    waits_for: usize,
}

impl Eraser {
    pub(crate) fn new() -> Self {
        Self { holder: HolderId::generate(), woken: Notify::new() }
    }

    /// Takes a request. What if the process dies after the first write? Each gateway does the rest.
    ///
    /// # Errors
    /// When the store or the live layer does not answer: the caller repeats it, and what was begun goes on.
    pub(crate) async fn begin(&self, gateway: &Gateway, user: &UserId) -> EngineResult<()> {
        let requested_at = Timestamp::now();
        gateway.engines.store.users.begin_erasure(user, requested_at).await?;
        self.woken.notify_one();
        end_sessions(gateway, user, requested_at).await?;
        Ok(())
    }

    /// Works until the gateway has drained.
    pub(crate) async fn run(&self, gateway: &Gateway) {
        let mut under_way = HashMap::new();
        loop {
            let wait = match self.work(gateway, &mut under_way).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::warn!(%error, "erasures go on later");
                    RETRY_AFTER
                }
            };
            // Woken or not, all are looked at.
            let _is_over = timeout(wait, self.woken.notified()).await;
        }
    }

    /// Looks at every erasure once; returns when to look again.
    async fn work(&self, gateway: &Gateway, known: &mut HashMap<UserId, UnderWay>) -> EngineResult<Duration> {
        let erasures = all(gateway).await?;
        known.retain(|user, known| {
            erasures.iter().any(|(other, erasure)| other == user && erasure.round == known.round)
        });
        for (user, erasure) in &erasures {
            if !known.contains_key(user) {
                end_sessions(gateway, user, erasure.requested_at).await?;
                let now = Instant::now();
                let under_way = UnderWay { round: erasure.round, ended_at: now, due: now, wait: AGAIN_AFTER };
                known.insert(user.clone(), under_way);
            }
        }
        let mut wait = LOOK_INTERVAL;
        for (user, erasure) in &erasures {
            let Some(under_way) = known.get_mut(user) else { continue };
            let left = under_way.due.saturating_duration_since(Instant::now());
            if left > Duration::ZERO {
                wait = wait.min(left);
                continue;
            }
            if let Ok(false) = gateway.engines.leases.hold(LEASE.0, self.holder.as_str(), LEASE.1).await {
                return Ok(LEASE.1);
            }
            let remaining = gateway.config.erase_delay.saturating_sub(under_way.ended_at.elapsed());
            // One that fails holds up no other one.
            let next = attempt(gateway, user, erasure, remaining, &mut under_way.wait).await;
            let next = next.unwrap_or_else(|error| {
                tracing::warn!(%user, %error, "a user's erasure goes on later");
                Some(longer(&mut under_way.wait))
            });
            if let Some(next) = next {
                under_way.due = Instant::now() + next;
                wait = wait.min(next);
            }
        }
        Ok(wait)
    }
}

/// A wait twice as long as the one before, up to that between two looks.
fn longer(wait: &mut Duration) -> Duration {
    *wait = (*wait * 2).min(LOOK_INTERVAL);
    *wait
}

/// Makes a pass, and completes the erasure if nothing is left and the delay is over. Returns when to make the next one; none when it is
/// complete.
async fn attempt(
    gateway: &Gateway,
    user: &UserId,
    erasure: &Erasure,
    remaining: Duration,
    wait: &mut Duration,
) -> EngineResult<Option<Duration>> {
    let Pass { found, waits_for } = pass(gateway, user, erasure).await?;
    tracing::info!(%user, found, waits_for, "a pass of a user's erasure");
    if found > 0 {
        *wait = AGAIN_AFTER;
        return Ok(Some(AGAIN_AFTER));
    }
    if waits_for > 0 {
        return Ok(Some(longer(wait)));
    }
    if remaining > Duration::ZERO {
        return Ok(Some(remaining));
    }
    let is_complete =
        gateway.engines.store.users.complete_erasure(user, erasure.round, Timestamp::now()).await?;
    if is_complete {
        tracing::info!(%user, "a user's erasure is complete");
        return Ok(None);
    }
    // It was asked for again, or another gateway has completed it.
    Ok(Some(AGAIN_AFTER))
}

async fn all(gateway: &Gateway) -> EngineResult<Vec<(UserId, Erasure)>> {
    let mut all = Vec::new();
    loop {
        let after = all.last().map(|(user, _): &(UserId, Erasure)| user);
        let page = gateway.engines.store.users.erasures(after, PAGE).await?;
        let is_last = page.len() < PAGE;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

/// Ends the sessions and tokens of before the request, unless that is done.
async fn end_sessions(gateway: &Gateway, user: &UserId, requested_at: Timestamp) -> EngineResult<()> {
    let users = &gateway.engines.store.users;
    let record = users.get(std::slice::from_ref(user)).await?.pop().unwrap_or_default();
    if record.tokens_not_before < Some(requested_at) {
        users.end_sessions(user, Some(requested_at)).await?;
        gateway.users.publish(user).await?;
    }
    Ok(())
}

/// Takes away all that is found of a user.
async fn pass(gateway: &Gateway, user: &UserId, erasure: &Erasure) -> EngineResult<Pass> {
    let store = &gateway.engines.store;
    let mut pass = Pass::default();
    for device in store.devices.of_users(std::slice::from_ref(user)).await? {
        store.devices.remove(user, &device.id).await?;
        pass.found += 1;
    }
    store.users.unblock_all(user).await?;
    let mut after = None;
    loop {
        let rooms = store.rooms.ever_of(user, after.as_ref(), PAGE).await?;
        leave(gateway, user, &rooms, &mut pass).await?;
        store.positions.forget(user, &rooms).await?;
        for room in &rooms {
            erase_messages(gateway, user, room, erasure.requested_at, &mut pass).await?;
        }
        if rooms.len() < PAGE {
            break;
        }
        after = rooms.into_iter().next_back();
    }
    drop_parked(gateway, user, &mut pass).await?;
    let presence = &gateway.engines.presence;
    if !presence.forget(user).await? {
        // One who is connected has a token of after the request.
        let is_online = presence.online(std::slice::from_ref(user)).await?.contains(&true);
        pass.waits_for += usize::from(!is_online);
    }
    Ok(pass)
}

/// Leaves the groups among these rooms, first: what the user sends to them after that is not saved. The other member of a direct
/// room keeps it.
async fn leave(gateway: &Gateway, user: &UserId, rooms: &[RoomId], pass: &mut Pass) -> EngineResult<()> {
    let store = &gateway.engines.store;
    let now = store.rooms.current(rooms).await?;
    for room in now.into_iter().flatten().filter(|room| room.kind == RoomKind::Group && room.has(user)) {
        let changed = store.rooms.change(&room.id, MemberChange::Remove(user.clone()), usize::MAX).await?;
        if let Changed::Now(room) = changed {
            gateway.rooms.changed(&room);
        }
        pass.found += 1;
    }
    Ok(())
}

async fn erase_messages(
    gateway: &Gateway,
    user: &UserId,
    room: &RoomId,
    at: Timestamp,
    pass: &mut Pass,
) -> EngineResult<()> {
    let store = &gateway.engines.store;
    let mut after = None;
    loop {
        let began = Instant::now();
        let records = store.intake.of_sender(room, user, after.as_ref(), PAGE).await?;
        // One that is open may be saved; one whose content is gone may be of a message that has it still (`intake_keep`).
        let may_be_saved = |record: &&IntakeRecord| !matches!(record.outcome, Some(Outcome::Rejected { .. }));
        let id = |record: &IntakeRecord| record.accepted.id;
        let messages: Vec<MessageId> = records.iter().filter(may_be_saved).map(id).collect();
        let messages = store.messages.find(&messages).await?.into_iter().flatten();
        let messages = messages.filter(|message| message.deleted_at.is_none());
        let messages: Vec<MessageId> = messages.map(|message| message.id).collect();
        let closed = records.iter().filter(|record| record.outcome.is_some());
        let closed = closed.filter(|record| !record.accepted.content.is_empty());
        let closed: Vec<MessageId> = closed.map(id).collect();
        store.messages.delete(&messages, at).await?;
        store.intake.drop_contents(&closed).await?;
        pass.found += messages.len() + closed.len();
        pass.waits_for += records.iter().filter(|record| record.outcome.is_none()).count();
        if records.len() < PAGE {
            return Ok(());
        }
        after = records.into_iter().next_back().map(|record| record.accepted.client_message_id);
        pause_after(began).await;
    }
}

/// Drops the parked pushes to the user, and those of the user's messages to others.
async fn drop_parked(gateway: &Gateway, user: &UserId, pass: &mut Pass) -> EngineResult<()> {
    let store = &gateway.engines.store;
    let mut after = None;
    loop {
        let began = Instant::now();
        let parked = store.pushes.parked(after.as_ref(), PAGE).await?;
        let ids: Vec<MessageId> = parked.iter().map(|push| push.job.message_id).collect();
        // The intake knows the sender also where the message was removed (`message_ttl`).
        let records = store.intake.get(&ids).await?;
        for (push, record) in parked.iter().zip(records) {
            let is_by_user = record.is_some_and(|record| record.accepted.sender_id == *user);
            if push.job.recipient_id == *user || is_by_user {
                store.pushes.drop_parked_at(&ParkedCursor::at(push)).await?;
                pass.found += 1;
            }
        }
        if parked.len() < PAGE {
            return Ok(());
        }
        after = parked.last().map(ParkedCursor::at);
        pause_after(began).await;
    }
}

#[cfg(test)]
mod tests {
    use naru_embedded::{Embedded, Options};
    use naru_engines::store::{Closing, NewRoom, ParkedPush};
    use naru_model::hops::{Accepted, Lane, Payload, PushJob};
    use naru_model::room::sorted_members;
    use naru_model::{ClientMessageId, Seq, Trace};
    use naru_runtime::{Health, Metrics, Program, Settings};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::Bound;

    /// A gateway on an engine of its own, and a direct room of the user to be erased.
    struct Fixture {
        gateway: Bound,
        erasure: Erasure,
        ada: UserId,
        room: RoomId,
        _directory: tempfile::TempDir,
    }

    impl Fixture {
        async fn new() -> Self {
            const PROGRAM: Program = Program { name: "gateway", about: "", overrides: &[] };
            let directory = tempfile::tempdir().unwrap();
            let engines = Embedded::open(directory.path(), Options::default()).unwrap().engines();
            let [ada, ben] = ["ada", "ben"].map(|name| UserId::new(name).unwrap());
            let room = RoomId::direct(&ada, &ben);
            let new = NewRoom {
                id: room.clone(),
                kind: RoomKind::Direct,
                name: None,
                member_ids: sorted_members([ada.clone(), ben]),
                maker_id: None,
            };
            engines.store.rooms.create(new).await.unwrap();
            engines.store.users.begin_erasure(&ada, Timestamp::now()).await.unwrap();
            let [(_, erasure)] =
                <[_; 1]>::try_from(engines.store.users.erasures(None, 9).await.unwrap()).unwrap();
            let matches =
                Settings::command(&PROGRAM).get_matches_from(["gateway", "--listen", "127.0.0.1:0"]);
            let environment = [("NARU_JWT_SECRET".to_owned(), "0123456789".repeat(4))];
            let settings = Settings::load(&PROGRAM, &matches, environment).unwrap();
            let (config, tokens) = (settings.pick().unwrap(), settings.pick().unwrap());
            let health = Health::new(CancellationToken::new());
            let gateway = Bound::new(config, &tokens, engines, Metrics::new(), health).await.unwrap();
            Self { gateway, erasure, ada, room, _directory: directory }
        }

        fn accepted(&self, number: u64) -> Accepted {
            Accepted {
                id: MessageId::generate(),
                chat_room_id: self.room.clone(),
                sender_id: self.ada.clone(),
                sender_name: "Ada".into(),
                content: "hello".into(),
                timestamp: Timestamp::now(),
                client_message_id: ClientMessageId::new(format!("c-{number:09}")).unwrap(),
                after: None,
                origin: None,
                trace: Trace::start(),
            }
        }

        /// Accepts so many messages, from this place on; saves them and closes their entries if so asked.
        async fn write(&self, from: u64, count: u64, is_saved: bool) {
            let store = &self.gateway.gateway.engines.store;
            let entries: Vec<Accepted> = (from..from + count).map(|number| self.accepted(number)).collect();
            store.intake.append(&entries).await.unwrap();
            if is_saved {
                let run: Vec<_> =
                    entries.into_iter().zip(from..).map(|(entry, seq)| entry.at(Seq(seq))).collect();
                assert_eq!(store.messages.append_run(&run).await.unwrap().stored, run.len());
                let closed = run
                    .iter()
                    .map(|saved| Closing { id: saved.id, outcome: Outcome::Saved { seq: saved.seq } });
                store.intake.close(&closed.collect::<Vec<_>>()).await.unwrap();
            }
        }

        async fn attempt(&self, remaining: Duration, wait: &mut Duration) -> Option<Duration> {
            attempt(&self.gateway.gateway, &self.ada, &self.erasure, remaining, wait).await.unwrap()
        }
    }

    /// A pass reads all that there is of a user: one that has nothing to do but to wait is not made every second.
    #[tokio::test(start_paused = true)]
    async fn a_pass_that_only_waits_is_repeated_less_and_less_often() {
        let fixture = Fixture::new().await;
        fixture.write(9, 1, false).await;
        let mut wait = AGAIN_AFTER;
        let mut waits = Vec::new();
        for _ in 0..8 {
            waits.push(fixture.attempt(Duration::ZERO, &mut wait).await.unwrap().as_secs());
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60]);
        // There is something to do again.
        fixture.write(1, 1, true).await;
        let mut next =
            async |remaining| fixture.attempt(remaining, &mut wait).await.map(|next| next.as_secs());
        assert_eq!([next(DELAY).await, next(DELAY).await], [Some(1), Some(2)]);
    }

    /// The embedded engine has one writer: an erasure leaves it to others in between.
    #[tokio::test(start_paused = true)]
    async fn a_pass_pauses_after_each_page() {
        let fixture = Fixture::new().await;
        let mut wait = AGAIN_AFTER;
        // Three pages of messages, and three of parked pushes.
        fixture.write(1, 2 * PAGE as u64 + 1, true).await;
        let parked = |number: u64| {
            let job = PushJob {
                lane: Lane::Webhook,
                message_id: MessageId::generate(),
                chat_room_id: fixture.room.clone(),
                seq: Seq(number),
                recipient_id: UserId::new("ben").unwrap(),
                title: "Ada".into(),
                body: "hello".into(),
                hides_content: false,
                badge: None,
                room_name: None,
                target: None,
                expires_at: Timestamp::now(),
            };
            let (reason, parked_at) = ("expired".to_owned(), Timestamp::now());
            ParkedPush { event_id: job.event_id(), job, reason, attempts: 1, parked_at }
        };
        let parked: Vec<_> = (0..2 * PAGE as u64 + 1).map(parked).collect();
        fixture.gateway.gateway.engines.store.pushes.park(&parked).await.unwrap();
        let begun = Instant::now();
        assert_eq!(fixture.attempt(Duration::ZERO, &mut wait).await, Some(AGAIN_AFTER));
        assert!(begun.elapsed() >= 4 * Duration::from_millis(20), "{:?}", begun.elapsed());
    }
}
