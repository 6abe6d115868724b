//! The pushes that were taken, and the counters.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::{broadcast, watch};

use crate::provider::Provider;
use crate::push::{Draft, Push};

/// How many pushes are kept; the oldest are dropped first.
pub const KEPT: usize = 20_000;
/// How many pushes a subscriber may be behind.
const BEHIND: usize = 4_096;
/// How many identities are kept to recognise a repetition.
const IDENTITIES: usize = 1_000_000;

/// The counts of one provider since the start. As JSON its names are in camelCase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Connections that completed the TLS handshake.
    pub connections: u64,
    /// Those of them that are open.
    pub open_connections: u64,
    /// Requests, of every kind.
    pub requests: u64,
    pub taken: u64,
    /// Requests that got an answer other than a success.
    pub refused: u64,
    /// Access tokens issued. Always 0 at APNs.
    pub oauth_tokens_issued: u64,
    /// Distinct provider tokens with a good signature (APNs), or distinct assertions with one (FCM).
    pub jwts_seen: u64,
    /// Pushes taken with an `apns-id` that was taken before, or with the FCM token and tag of one before.
    pub repeated: u64,
    /// The most requests that were under way at once on one connection.
    pub most_streams_at_once: u64,
}

/// The counters behind [`Counts`].
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) connections: AtomicU64,
    pub(crate) open_connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    taken: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) oauth_tokens_issued: AtomicU64,
    pub(crate) jwts_seen: AtomicU64,
    repeated: AtomicU64,
    pub(crate) most_streams_at_once: AtomicU64,
}

impl Counters {
    fn read(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Counts {
            connections: read(&self.connections),
            open_connections: read(&self.open_connections),
            requests: read(&self.requests),
            taken: read(&self.taken),
            refused: read(&self.refused),
            oauth_tokens_issued: read(&self.oauth_tokens_issued),
            jwts_seen: read(&self.jwts_seen),
            repeated: read(&self.repeated),
            most_streams_at_once: read(&self.most_streams_at_once),
        }
    }
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::SeqCst);
}

/// Adds one until it is dropped.
pub(crate) struct Gauge<'a>(&'a AtomicU64);

impl<'a> Gauge<'a> {
    /// The gauge, and the counter's new value.
    pub(crate) fn enter(counter: &'a AtomicU64) -> (Self, u64) {
        let now = counter.fetch_add(1, Ordering::SeqCst) + 1;
        (Self(counter), now)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// All pushes that were taken, in order, and the counters.
pub(crate) struct Record {
    fcm: Counters,
    apns: Counters,
    taken: Mutex<Taken>,
    arrivals: broadcast::Sender<Arc<Push>>,
    /// The number of the newest push.
    newest: watch::Sender<u64>,
}

#[derive(Default)]
struct Taken {
    pushes: VecDeque<Arc<Push>>,
    identities: Identities,
}

impl Record {
    pub(crate) fn new() -> Self {
        Self {
            fcm: Counters::default(),
            apns: Counters::default(),
            taken: Mutex::default(),
            arrivals: broadcast::Sender::new(BEHIND),
            newest: watch::Sender::new(0),
        }
    }

    pub(crate) fn counters(&self, provider: Provider) -> &Counters {
        match provider {
            Provider::Fcm => &self.fcm,
            Provider::Apns => &self.apns,
        }
    }

    pub(crate) fn counts(&self, provider: Provider) -> Counts {
        self.counters(provider).read()
    }

    pub(crate) fn take(&self, draft: Draft) {
        let counters = self.counters(draft.provider);
        let mut taken = self.lock();
        let repeated = draft.identity.as_ref().is_some_and(|identity| !taken.identities.is_new(identity));
        let number = *self.newest.borrow() + 1;
        let push = Arc::new(draft.into_push(number, repeated));
        if taken.pushes.len() == KEPT {
            taken.pushes.pop_front();
        }
        taken.pushes.push_back(push.clone());
        count(&counters.taken);
        if repeated {
            count(&counters.repeated);
        }
        let _nobody_listens = self.arrivals.send(push);
        // Still under the lock, so that numbers come in order.
        self.newest.send_replace(number);
    }

    /// The kept pushes with a number above this one, oldest first.
    pub(crate) fn after(&self, number: u64) -> Vec<Arc<Push>> {
        self.lock().pushes.iter().filter(|push| push.number > number).cloned().collect()
    }

    pub(crate) fn newest(&self) -> u64 {
        *self.newest.borrow()
    }

    pub(crate) fn watch_newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Push>> {
        self.arrivals.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The newest identities, by their hashes.
#[derive(Default)]
struct Identities {
    known: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Identities {
    fn is_new(&mut self, identity: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        identity.hash(&mut hasher);
        let hash = hasher.finish();
        if !self.known.insert(hash) {
            return false;
        }
        self.order.push_back(hash);
        if self.order.len() > IDENTITIES
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(identity: Option<&str>) -> Draft {
        Draft {
            provider: Provider::Apns,
            token: "00".to_owned(),
            id: String::new(),
            identity: identity.map(str::to_owned),
            headers: Default::default(),
            json: serde_json::Value::Null,
        }
    }

    #[test]
    fn the_newest_are_kept_and_all_are_counted() {
        let record = Record::new();
        for _ in 0..=KEPT {
            record.take(draft(None));
        }
        let kept = record.after(0);
        assert_eq!((kept.len(), kept[0].number), (KEPT, 2));
        let all = u64::try_from(KEPT).unwrap() + 1;
        assert_eq!((record.newest(), record.counts(Provider::Apns).taken), (all, all));
        assert_eq!(record.counts(Provider::Fcm), Counts::default());
    }

    #[tokio::test]
    async fn a_subscriber_that_is_too_far_behind_is_told() {
        let record = Record::new();
        let mut pushes = record.subscribe();
        for _ in 0..BEHIND {
            record.take(draft(None));
        }
        assert_eq!(pushes.recv().await.unwrap().number, 1);
        record.take(draft(None));
        record.take(draft(None));
        assert!(pushes.recv().await.is_err());
    }

    #[test]
    fn the_same_identity_is_a_repetition() {
        let record = Record::new();
        for identity in [Some("a"), Some("b"), Some("a"), None, None] {
            record.take(draft(identity));
        }
        let repeated: Vec<bool> = record.after(0).iter().map(|push| push.repeated).collect();
        assert_eq!(repeated, [false, false, true, false, false]);
    }
}
