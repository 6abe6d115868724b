//! How much of clients' work is in the store at a time. A call over HTTP, but for one that sends a message, and each read of a
//! `SYNC` has a turn: of one user few at a time, and of all users few enough that messages do not wait for readers. So who asks for much waits for their own calls, users
//! come in turn, and a message's way through the store is not behind a crowd of readers.
//!
//! Handshakes have theirs, too: a crowd that reconnects comes in at a bounded rate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use naru_model::UserId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout};

use crate::refusal::Refusal;
use crate::token::Identity;

/// How many calls of one user are in the store at a time …
const OF_USER: usize = 2;
/// … of all apps' backends …
const OF_SERVICES: usize = 8;
/// … and of all callers. (Of the embedded engine's two readers each then has eight before it.)
const IN_ALL: usize = 16;
/// A call or a handshake whose turn does not come within this is refused as `OVERLOADED`.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// Entries of users without a call are dropped when this many are kept.
const PRUNE_AT: usize = 1_024;
/// The handshakes that are taken at once, in seconds of their rate.
const CONNECT_BURST: f64 = 0.1;

/// The turns of calls.
pub(crate) struct Turns {
    all: Semaphore,
    /// Those of them that apps' backends may take.
    of_services: Semaphore,
    of_users: OfUsers,
}

/// The turns of each user that has or waits for one.
struct OfUsers(Mutex<SemaphoresOf>);

struct SemaphoresOf {
    users: HashMap<UserId, Weak<Semaphore>>,
    prune_at: usize,
}

impl OfUsers {
    fn new() -> Self {
        Self(Mutex::new(SemaphoresOf { users: HashMap::new(), prune_at: PRUNE_AT }))
    }

    async fn next(&self, user: &UserId) -> Option<OwnedSemaphorePermit> {
        self.of(user).acquire_owned().await.ok()
    }

    fn of(&self, user: &UserId) -> Arc<Semaphore> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_user) = known.users.get(user).and_then(Weak::upgrade) {
            return of_user;
        }
        if known.users.len() >= known.prune_at {
            known.users.retain(|_, of_user| of_user.strong_count() > 0);
            known.prune_at = (known.users.len() * 2).max(PRUNE_AT);
        }
        let of_user = Arc::new(Semaphore::new(OF_USER));
        known.users.insert(user.clone(), Arc::downgrade(&of_user));
        of_user
    }
}

/// A call's turn; it ends when this is dropped.
pub(crate) struct Turn<'a> {
    _of_user: Option<OwnedSemaphorePermit>,
    _of_services: Option<SemaphorePermit<'a>>,
    _of_all: Option<SemaphorePermit<'a>>,
}

impl Turns {
    pub(crate) fn new() -> Self {
        let of_services = Semaphore::new(OF_SERVICES);
        Self { all: Semaphore::new(IN_ALL), of_services, of_users: OfUsers::new() }
    }

    /// Waits for the caller's turn. An app's backend calls for all its users, and may take more, and not all.
    ///
    /// # Errors
    /// `OVERLOADED` when it does not come in time.
    pub(crate) async fn next(&self, identity: &Identity) -> Result<Turn<'_>, Refusal> {
        let waiting = async {
            let (_of_services, _of_user) = match identity.is_service {
                true => (self.of_services.acquire().await.ok(), None),
                false => (None, self.of_users.next(&identity.user).await),
            };
            Turn { _of_user, _of_services, _of_all: self.all.acquire().await.ok() }
        };
        timeout(TURN_TIMEOUT, waiting).await.map_err(|_| Refusal::Overloaded)
    }
}

/// The turns of handshakes.
pub(crate) struct ConnectTurns {
    /// Between two; none: no limit.
    interval: Option<Duration>,
    /// When the next one is due, if handshakes came evenly.
    due: Mutex<Instant>,
    /// A user has few in the line, so that no crowd of one user's fills it.
    of_users: OfUsers,
}

impl ConnectTurns {
    pub(crate) fn new(per_second: u32) -> Self {
        let interval = (per_second > 0).then(|| Duration::from_secs(1) / per_second);
        Self { interval, due: Mutex::new(Instant::now()), of_users: OfUsers::new() }
    }

    /// Waits for the turn of a user's handshake.
    ///
    /// # Errors
    /// `OVERLOADED` when it does not come in time; at once where the line is too long.
    pub(crate) async fn next(&self, user: &UserId) -> Result<(), Refusal> {
        let Some(interval) = self.interval else { return Ok(()) };
        let _of_user =
            timeout(TURN_TIMEOUT, self.of_users.next(user)).await.map_err(|_| Refusal::Overloaded)?;
        let turn = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let even = (*due).max(now);
            let wait = (even - now).saturating_sub(Duration::from_secs_f64(CONNECT_BURST));
            if wait > TURN_TIMEOUT {
                return Err(Refusal::Overloaded);
            }
            *due = even + interval;
            now + wait
        };
        sleep_until(turn).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use naru_model::Timestamp;

    use super::*;

    fn identity(user: &str, is_service: bool) -> Identity {
        let expires_at = Timestamp::from_millis(0);
        let user = UserId::new(user).unwrap();
        Identity { name: "".into(), user, device: None, is_service, issued_at: None, expires_at }
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_with_many_calls_waits_for_their_own_and_nobody_else_does() {
        let (turns, ada, ben) = (Turns::new(), identity("ada", false), identity("ben", false));
        let first = [turns.next(&ada).await.unwrap(), turns.next(&ada).await.unwrap()];
        let mut third = Box::pin(turns.next(&ada));
        assert!(third.as_mut().now_or_never().is_none());
        drop(turns.next(&ben).await.unwrap());
        let [one, other] = first;
        drop(one);
        let third = third.await.unwrap();
        assert_eq!(turns.next(&ada).await.err(), Some(Refusal::Overloaded), "in five seconds");
        drop((other, third));
        turns.next(&ada).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn all_users_together_have_so_many() {
        let (turns, backend) = (Turns::new(), identity("backend", true));
        let mut held = Vec::new();
        for number in 0..IN_ALL {
            let of_a_user = identity(&format!("u{number}"), false);
            held.push(turns.next(if number % 2 == 0 { &of_a_user } else { &backend }).await.unwrap());
        }
        assert!(turns.next(&backend).now_or_never().is_none());
        held.pop();
        turns.next(&backend).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_apps_backend_leaves_turns_to_users() {
        let (turns, ada, backend) = (Turns::new(), identity("ada", false), identity("backend", true));
        let crowd = futures_util::future::join_all((0..10 * IN_ALL).map(|_| turns.next(&backend)));
        let mut crowd = Box::pin(crowd);
        assert!(crowd.as_mut().now_or_never().is_none());
        assert!(turns.next(&ada).now_or_never().is_some());
        drop(crowd);
    }

    #[tokio::test(start_paused = true)]
    async fn users_without_a_call_are_forgotten() {
        let turns = Turns::new();
        for number in 0..3 * PRUNE_AT {
            drop(turns.next(&identity(&format!("u{number}"), false)).await.unwrap());
        }
        assert!(turns.of_users.0.lock().unwrap().users.len() <= PRUNE_AT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_of_handshakes_is_taken_at_the_rate_and_the_rest_is_refused_at_once() {
        let (turns, begun) = (ConnectTurns::new(100), Instant::now());
        let handshake = async |user: &str| {
            let taken = turns.next(&UserId::new(user).unwrap()).await;
            (taken, begun.elapsed())
        };
        let users: Vec<String> = (0..1_000).map(|number| format!("u{number}")).collect();
        let answers = futures_util::future::join_all(users.iter().map(|user| handshake(user))).await;
        let taken = answers.iter().filter(|(taken, _)| taken.is_ok());
        let (at_once, later): (Vec<_>, Vec<_>) = taken.partition(|(_, after)| after.is_zero());
        assert!((10..=11).contains(&at_once.len()) && (499..=501).contains(&later.len()));
        assert!(answers.iter().all(|(taken, after)| taken.is_ok() || after.is_zero()));
        // A moment later there are free turns again.
        tokio::time::advance(Duration::from_secs(1)).await;
        let ada = UserId::new("ada").unwrap();
        assert!(turns.next(&ada).now_or_never().is_some());
        assert!(ConnectTurns::new(0).next(&ada).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_one_users_handshakes_is_no_line_for_others() {
        let (turns, ada, ben) =
            (ConnectTurns::new(10), UserId::new("ada").unwrap(), UserId::new("ben").unwrap());
        let crowd = futures_util::future::join_all((0..1_000).map(|_| turns.next(&ada)));
        let (begun, mut crowd) = (Instant::now(), Box::pin(crowd));
        assert!(crowd.as_mut().now_or_never().is_none());
        tokio::select! {
            taken = turns.next(&ben) => taken.unwrap(),
            _ = &mut crowd => panic!("they take minutes"),
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        let refused = crowd.await.iter().filter(|taken| taken.is_err()).count();
        assert!((900..1_000).contains(&refused), "{refused}");
    }
}
