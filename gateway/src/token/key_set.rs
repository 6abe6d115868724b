//! The key set at a URL: fetched at the start, in turns, and when a token is signed with a key that is not known.
//!
//! One task fetches; requests ask it to and wait. So at most one fetch is in flight, a client that goes away stops none, and
//! tokens that were made up cause at most one fetch in [`REFRESH_GAP`].
//!
//! A key that was removed from the set is refused after `jwt_jwks_refresh` and the time of one fetch. While the set can't be
//! fetched the last keys count, but for no longer than `jwt_jwks_max_age`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use jsonwebtoken::Algorithm;
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Certificate, Client, Url};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::key::{Key, Set};
use super::{TokenConfig, TokenConfigError, read};
use crate::refusal::Refusal;

/// A set that was fetched is fetched again, for a key that it does not hold, at most this often.
pub(super) const REFRESH_GAP: Duration = Duration::from_secs(10);
/// After a failure, the next fetch for a token's sake comes no earlier.
pub(super) const FAILURE_GAP: Duration = Duration::from_secs(1);
/// How long a fetch may take.
const FETCH_WITHIN: Duration = Duration::from_secs(5);
/// The longest set that is read. Those of large providers, with certificates, take some 20 KiB.
const MAX_BYTES: usize = 256 * 1024;
/// How many redirects are followed, within the host of the URL.
const MAX_REDIRECTS: usize = 3;

pub(super) struct KeySet {
    url: Url,
    client: Client,
    wanted: Option<Algorithm>,
    refresh: Duration,
    max_age: Duration,
    known: watch::Sender<Known>,
    asked: Notify,
}

/// What the fetches brought.
#[derive(Default)]
struct Known {
    /// The keys of the last fetch that succeeded, and when that ended.
    keys: Option<(Arc<[Key]>, Instant)>,
    /// When the last fetch ended, and why it failed.
    last: Option<(Instant, Option<String>)>,
    /// How many fetches have ended.
    fetches: u64,
}

impl Known {
    /// How long after the last fetch no token causes another.
    fn gap(&self) -> Duration {
        match self.last {
            Some((_, Some(_))) => FAILURE_GAP,
            _ => REFRESH_GAP,
        }
    }
}

impl KeySet {
    /// # Errors
    /// When the URL or the roots can't be used.
    pub(super) fn new(config: &TokenConfig) -> Result<Self, TokenConfigError> {
        let url = config.jwt_jwks_url.as_deref().and_then(|url| Url::parse(url).ok());
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
        let mut client = Client::builder().timeout(FETCH_WITHIN).redirect(Policy::custom(within_origin));
        if let Some(path) = &config.extra_ca_file {
            client = client.tls_certs_merge(Certificate::from_pem_bundle(&read(path)?)?);
        }
        Ok(Self {
            url: url.ok_or(TokenConfigError::KeySetUrl)?,
            client: client.build()?,
            wanted: config.jwt_algorithm,
            refresh: config.jwt_jwks_refresh.0,
            max_age: config.jwt_jwks_max_age.0,
            known: watch::Sender::default(),
            asked: Notify::new(),
        })
    }

    /// Fetches the set, and again whenever it is time or a token needs it.
    pub(super) async fn run(&self) {
        loop {
            let (gap, next) = self.fetch_once().await;
            // A request that asked before has its answer.
            self.asked.notified().now_or_never();
            sleep(gap).await;
            let _asked_or_time = timeout(next.saturating_sub(gap), self.asked.notified()).await;
        }
    }

    /// How long until a token may cause the next fetch, and until that comes in any case.
    async fn fetch_once(&self) -> (Duration, Duration) {
        let fetched = self.fetch().await;
        let now = Instant::now();
        let failure = fetched.as_ref().err().cloned();
        if let Some(reason) = &failure {
            tracing::warn!(reason, "the key set for tokens can't be fetched");
        }
        let mut gaps = (FAILURE_GAP, REFRESH_GAP);
        self.known.send_modify(|known| {
            if let Ok(keys) = fetched {
                known.keys = Some((keys, now));
                gaps = (REFRESH_GAP.min(self.refresh), self.refresh);
            }
            known.last = Some((now, failure));
            known.fetches += 1;
        });
        gaps
    }

    /// The error names no URL, which may hold a password.
    async fn fetch(&self) -> Result<Arc<[Key]>, String> {
        let why = |error: reqwest::Error| {
            let error = error.without_url();
            std::error::Error::source(&error)
                .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
        };
        let answer =
            self.client.get(self.url.clone()).send().await.and_then(reqwest::Response::error_for_status);
        let (mut answer, mut body) = (answer.map_err(why)?, Vec::new());
        while let Some(part) = answer.chunk().await.map_err(why)? {
            if body.len() + part.len() > MAX_BYTES {
                return Err(format!("it is longer than {MAX_BYTES} bytes"));
            }
            body.extend_from_slice(&part);
        }
        let Set { keys, unused } = Set::read(&body, self.wanted)?;
        if keys.is_empty() {
            tracing::warn!(
                unused,
                "the key set for tokens holds no key that can be used: every token is refused"
            );
        } else if !unused.is_empty() {
            tracing::debug!(unused, "some keys of the key set are not used");
        }
        Ok(keys)
    }

    /// The keys that count now. The first ones are waited for.
    ///
    /// # Errors
    /// `UNAVAILABLE` when there are none, or only ones that are too old.
    pub(super) async fn current(&self) -> Result<Arc<[Key]>, Refusal> {
        if let Some(keys) = self.keys() {
            return Ok(keys);
        }
        self.wait_for_fetch().await;
        self.keys().ok_or(Refusal::Unavailable)
    }

    /// The keys after another fetch, if it is time for one.
    ///
    /// # Errors
    /// `UNAVAILABLE` when the last fetch failed: the set may hold the key by now.
    pub(super) async fn renewed(&self) -> Result<Arc<[Key]>, Refusal> {
        self.wait_for_fetch().await;
        self.keys().filter(|_| self.degradation().is_none()).ok_or(Refusal::Unavailable)
    }

    /// Waits for the end of the next fetch, unless the last one was just now.
    async fn wait_for_fetch(&self) {
        let mut known = self.known.subscribe();
        let before = {
            let known = known.borrow();
            if known.last.as_ref().is_some_and(|(at, _)| at.elapsed() < known.gap().min(self.refresh)) {
                return;
            }
            known.fetches
        };
        self.asked.notify_one();
        let ended = known.wait_for(|known| known.fetches > before);
        let _in_time = timeout(FETCH_WITHIN + FAILURE_GAP, ended).await;
    }

    fn keys(&self) -> Option<Arc<[Key]>> {
        let known = self.known.borrow();
        let (keys, fetched) = known.keys.as_ref()?;
        (fetched.elapsed() <= self.max_age).then(|| keys.clone())
    }

    /// # Errors
    /// When no token can be checked, with a sentence.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        match self.keys() {
            None => Err("the key set for tokens can't be fetched"),
            Some(keys) if keys.is_empty() => Err("the key set for tokens holds no key that can be used"),
            Some(_) => Ok(()),
        }
    }

    /// Why the last fetch failed.
    pub(super) fn degradation(&self) -> Option<String> {
        self.known.borrow().last.as_ref().and_then(|(_, failure)| failure.clone())
    }
}

/// Only the configured host is trusted to say which keys count.
fn within_origin(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let own = attempt.previous().first().map(Url::origin);
    if own != Some(attempt.url().origin()) {
        return attempt.error("it redirects to another host");
    }
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("it redirects too often");
    }
    attempt.follow()
}
