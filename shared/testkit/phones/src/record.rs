//! The pushes that were taken, and the counters.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::watch;

use crate::provider::Provider;
use crate::push::{Draft, Push};

/// How many pushes are kept; the oldest are dropped first.
pub const MAX_KEPT: usize = 20_000;

/// The counts of one provider since the start. As JSON its names are in camelCase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Connections that completed the TLS handshake.
    pub connections: u64,
    /// Requests, of every kind.
    pub requests: u64,
    pub taken: u64,
    /// Requests that got an answer other than a success.
    pub refused: u64,
    /// Access tokens issued. Always 0 at APNs.
    pub oauth_tokens_issued: u64,
    /// Distinct provider tokens with a good signature (APNs), or distinct assertions with one (FCM).
    pub jwts_seen: u64,
    /// Pushes that were [`Push::repeated`].
    pub repeated: u64,
    /// The largest number of requests that were under way at once on one connection.
    pub max_streams_at_once: u64,
}

/// All pushes that were taken, in order, and the counters.
#[derive(Default)]
pub(crate) struct Record {
    inner: Mutex<Inner>,
    /// The number of the newest push.
    newest: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    fcm: Counts,
    apns: Counts,
    jwts: HashSet<String>,
    kept: VecDeque<Kept>,
    /// Those of the kept pushes.
    identities: HashSet<String>,
}

struct Kept {
    push: Arc<Push>,
    /// None as well if an earlier push has it: it is forgotten with the first.
    identity: Option<String>,
}

impl Record {
    pub(crate) fn counts(&self, provider: Provider) -> Counts {
        *self.lock().counts(provider)
    }

    pub(crate) fn count(&self, provider: Provider, change: impl FnOnce(&mut Counts)) {
        change(self.lock().counts(provider));
    }

    /// Counts a JWT with a good signature, once.
    pub(crate) fn count_jwt(&self, provider: Provider, token: &str) {
        let mut inner = self.lock();
        if inner.jwts.insert(token.to_owned()) {
            inner.counts(provider).jwts_seen += 1;
        }
    }

    pub(crate) fn take(&self, mut draft: Draft) {
        let mut inner = self.lock();
        let (provider, number) = (draft.provider, self.newest() + 1);
        let identity = draft.identity.take();
        let is_new = identity.as_ref().is_none_or(|identity| inner.identities.insert(identity.clone()));
        if inner.kept.len() == MAX_KEPT
            && let Some(Kept { identity: Some(identity), .. }) = inner.kept.pop_front()
        {
            inner.identities.remove(&identity);
        }
        let push = Arc::new(draft.into_push(number, !is_new));
        inner.kept.push_back(Kept { push, identity: identity.filter(|_| is_new) });
        inner.counts(provider).taken += 1;
        inner.counts(provider).repeated += u64::from(!is_new);
        // Still under the lock, so that numbers come in order.
        self.newest.send_replace(number);
    }

    /// The kept pushes with a number above this one, oldest first.
    pub(crate) fn after(&self, number: u64) -> Vec<Arc<Push>> {
        let inner = self.lock();
        let first = inner.kept.partition_point(|kept| kept.push.number <= number);
        inner.kept.range(first..).map(|kept| kept.push.clone()).collect()
    }

    /// The number of the newest push.
    pub(crate) fn newest(&self) -> u64 {
        *self.newest.borrow()
    }

    /// Waits for the push of this number.
    pub(crate) async fn wait_for(&self, number: u64) {
        let mut newest = self.newest.subscribe();
        let _the_sender_lives = newest.wait_for(|newest| *newest >= number).await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    const fn counts(&mut self, provider: Provider) -> &mut Counts {
        match provider {
            Provider::Fcm => &mut self.fcm,
            Provider::Apns => &mut self.apns,
        }
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
        let record = Record::default();
        record.take(draft(Some("a")));
        for _ in 0..MAX_KEPT {
            record.take(draft(None));
        }
        let kept = record.after(0);
        assert_eq!((kept.len(), kept[0].number), (MAX_KEPT, 2));
        let all = u64::try_from(MAX_KEPT).unwrap() + 1;
        assert_eq!((record.newest(), record.counts(Provider::Apns).taken), (all, all));
        assert_eq!(record.counts(Provider::Fcm), Counts::default());
        assert!(record.lock().identities.is_empty());
    }

    #[test]
    fn the_same_identity_is_a_repetition() {
        let record = Record::default();
        for identity in [Some("a"), Some("b"), Some("a"), None, None] {
            record.take(draft(identity));
        }
        let repeated: Vec<bool> = record.after(0).iter().map(|push| push.repeated).collect();
        assert_eq!(repeated, [false, false, true, false, false]);
        assert_eq!(record.counts(Provider::Apns).repeated, 1);
    }
}
