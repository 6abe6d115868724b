//! The HTTP clients for pushes: one per provider, built alike.
//!
//! Apple and Google use HTTP/2, which reports what a status can't: a stream is *refused* when there are too many at once, and
//! a server that shuts down names (GOAWAY) the requests it has not looked at. Neither is a failed push: it was not tried. So
//! it is sent again here, at once, over the connection there is then, for as long as one call may take.

use std::error::Error;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::RETRY_AFTER;
use reqwest::{Certificate, Client, ClientBuilder, RequestBuilder, Url, redirect};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::{BuildError, Config};

/// How long one call of FCM, APNs or a token endpoint may take, from connecting to the whole answer.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections are kept for this long between pushes. Apple asks for connections that last.
const IDLE: Duration = Duration::from_secs(3600);
/// A connection that is silent for so long gets a keep-alive ping.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// A connection that does not answer it for so long is closed.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The first wait before a request that was not looked at is sent again; it grows, up to the second.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// More than any answer that is about a push.
const LONGEST_ANSWER: usize = 64 * 1024;

/// A client that calls exactly the configured host: no redirects, no proxy from the environment.
///
/// # Errors
/// When `extra_ca_file` can't be used.
pub(crate) fn client(config: &Config) -> Result<ClientBuilder, BuildError> {
    let mut builder = Client::builder()
        .user_agent(concat!("naru/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .no_proxy();
    if let Some(path) = &config.extra_ca_file {
        builder = builder.tls_certs_merge(certificates(path)?);
    }
    Ok(builder)
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, BuildError> {
    let unusable = |source| BuildError::ExtraCa { path: path.to_owned(), source };
    let pem = std::fs::read(path).map_err(|error| unusable(error.into()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.into()))?;
    if certificates.is_empty() {
        return Err(unusable("it holds no certificate".into()));
    }
    Ok(certificates)
}

/// A provider's base URL: the configured one, or its own. A path in it is kept.
///
/// # Errors
/// When it can't be called.
pub(crate) fn base_url(
    key: &'static str,
    configured: Option<&str>,
    own: &'static str,
) -> Result<Url, BuildError> {
    let url = Url::parse(configured.unwrap_or(own)).ok();
    url.filter(|url| matches!(url.scheme(), "http" | "https")).ok_or(BuildError::BaseUrl { key })
}

/// The URL of this path below a base URL.
pub(crate) fn below(base: &Url, path: &[&str]) -> Url {
    let mut url = base.clone();
    // Every http URL has segments.
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    url
}

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// `Retry-After`, unparsed.
    pub(crate) fn retry_after(&self) -> Option<&str> {
        self.header(RETRY_AFTER.as_str())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// The connection was not made.
    #[error("no connection")]
    Connect,
    /// The push may have been taken all the same.
    #[error("no answer in time")]
    Timeout,
    /// The push may have been taken all the same.
    #[error("the connection broke")]
    Broken,
    /// The first push on a new connection got no answer, so this one was not sent.
    #[error("nothing has been answered on a new connection yet")]
    NotSent,
}

/// The outcome of one request.
enum Sent {
    Answered(Answer),
    /// It was not looked at, and can be sent again.
    NotLookedAt,
    Failed(NoAnswer),
}

/// One provider's HTTP client.
pub(crate) struct Transport {
    client: Client,
}

impl Transport {
    /// A transport that uses HTTP/2 from the first byte, and nothing else.
    ///
    /// # Errors
    /// When `extra_ca_file` can't be used, or TLS can't be set up.
    pub(crate) fn new(config: &Config) -> Result<Self, BuildError> {
        let client = client(config)?
            .http2_prior_knowledge()
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .http2_keep_alive_while_idle(true)
            .pool_idle_timeout(IDLE);
        Ok(Self { client: client.build().map_err(BuildError::Client)? })
    }

    /// A transport for a base URL without TLS, behind which is a proxy or a test: HTTP/1.1, which all of them support.
    ///
    /// # Errors
    /// As [`Transport::new`].
    pub(crate) fn plain(config: &Config) -> Result<Self, BuildError> {
        let client = client(config)?.pool_max_idle_per_host(config.push_concurrency.get());
        Ok(Self { client: client.build().map_err(BuildError::Client)? })
    }

    /// Makes one call: `request` builds the request, and builds it again when it was not looked at.
    ///
    /// # Errors
    /// When there is no answer within [`CALL_TIMEOUT`].
    pub(crate) async fn call(
        &self,
        gate: Option<&Gate>,
        request: impl Fn(&Client) -> RequestBuilder + Sync,
    ) -> Result<Answer, NoAnswer> {
        let first = match gate {
            None => None,
            Some(gate) => gate.pass().await?,
        };
        let deadline = Instant::now() + CALL_TIMEOUT;
        let mut wait = AGAIN_AFTER.0;
        let failure = loop {
            let sent = timeout_at(deadline, send(request(&self.client)));
            match sent.await.unwrap_or(Sent::Failed(NoAnswer::Timeout)) {
                Sent::Answered(answer) => {
                    if let Some(first) = first {
                        first.has_an_answer();
                    }
                    return Ok(answer);
                }
                Sent::Failed(failure) => break failure,
                Sent::NotLookedAt if Instant::now() + wait >= deadline => break NoAnswer::Timeout,
                Sent::NotLookedAt => {
                    sleep(wait).await;
                    wait = (wait * 2).min(AGAIN_AFTER.1);
                }
            }
        };
        if let Some(gate) = gate {
            gate.close();
        }
        Err(failure)
    }
}

async fn send(request: RequestBuilder) -> Sent {
    match receive(request).await {
        Ok(answer) => Sent::Answered(answer),
        Err(error) if was_not_looked_at(&error) => Sent::NotLookedAt,
        Err(error) => {
            // Without the URL: at APNs it holds a token.
            let error = error.without_url();
            tracing::debug!(?error, "no answer");
            Sent::Failed(no_answer(&error))
        }
    }
}

/// Sends a request and reads its whole answer, but no more than [`LONGEST_ANSWER`] of it.
pub(crate) async fn receive(request: RequestBuilder) -> reqwest::Result<Answer> {
    let mut response = request.send().await?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk[..chunk.len().min(LONGEST_ANSWER - body.len())]);
        if body.len() == LONGEST_ANSWER {
            break;
        }
    }
    let status = response.status().as_u16();
    Ok(Answer { status, headers: std::mem::take(response.headers_mut()), body: body.into() })
}

/// The kind of a request's failure.
pub(crate) fn no_answer(error: &reqwest::Error) -> NoAnswer {
    if error.is_timeout() {
        NoAnswer::Timeout
    } else if error.is_connect() {
        NoAnswer::Connect
    } else {
        NoAnswer::Broken
    }
}

/// Whether the server reported that it did nothing with the request (RFC 9113, 8.7: a refused stream, or one beyond the last
/// that a GOAWAY names), or it was never written.
fn was_not_looked_at(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(this) = cause {
        if let Some(error) = this.downcast_ref::<h2::Error>() {
            let reason = error.reason();
            let is_refused = error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM);
            let is_leaving = error.is_go_away() && reason == Some(h2::Reason::NO_ERROR);
            return error.is_remote() && (is_refused || is_leaving);
        }
        if this.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        cause = this.source();
    }
    false
}

/// Guards a provider that takes one request on a new connection until it has accepted our key, and refuses the others (Apple
/// documents it of token-based connections): the first goes alone, and once it has any answer, all go.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
}

#[derive(Default)]
enum State {
    /// There is no connection, or none is known.
    #[default]
    Closed,
    /// The first is under way. When its end is dropped, the others check again.
    Trying(watch::Receiver<()>),
    Open,
}

/// The right to go first. Dropping it before the gate is open closes the gate.
struct First<'a> {
    gate: &'a Gate,
    _ends: watch::Sender<()>,
}

impl Drop for First<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        if let State::Trying(_) = *state {
            *state = State::Closed;
        }
    }
}

impl First<'_> {
    /// Opens the gate for all.
    fn has_an_answer(self) {
        *self.gate.state() = State::Open;
    }
}

impl Gate {
    /// Waits until a request may go; returns whether it goes first.
    ///
    /// # Errors
    /// When the first request got no answer.
    async fn pass(&self) -> Result<Option<First<'_>>, NoAnswer> {
        let mut first_ends = {
            let mut state = self.state();
            match &*state {
                State::Open => return Ok(None),
                State::Trying(ends) => ends.clone(),
                State::Closed => {
                    let (tell, ends) = watch::channel(());
                    *state = State::Trying(ends);
                    return Ok(Some(First { gate: self, _ends: tell }));
                }
            }
        };
        // The sender is only dropped, which is an error here.
        let _ended = first_ends.changed().await;
        match *self.state() {
            State::Open => Ok(None),
            // `Trying`: a later push goes first anew.
            State::Closed | State::Trying(_) => Err(NoAnswer::NotSent),
        }
    }

    /// Closes the gate: the connection may be gone.
    fn close(&self) {
        let mut state = self.state();
        if let State::Open = *state {
            *state = State::Closed;
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_path_stands_below_that_of_the_base() {
        for base in ["https://push.example/fcm", "https://push.example/fcm/"] {
            let url = below(&Url::parse(base).unwrap(), &["v1", "messages:send", "a/b"]);
            assert_eq!(url.as_str(), "https://push.example/fcm/v1/messages:send/a%2Fb");
        }
    }

    #[test]
    fn one_goes_first_and_the_others_follow_its_answer() {
        let gate = Gate::default();
        let first = gate.pass().now_or_never().unwrap().unwrap().expect("the first");
        let mut second = Box::pin(gate.pass());
        assert!((&mut second).now_or_never().is_none(), "it waits");
        first.has_an_answer();
        assert!(second.now_or_never().unwrap().unwrap().is_none());
        assert!(gate.pass().now_or_never().unwrap().unwrap().is_none(), "open for all");
    }

    #[test]
    fn without_an_answer_the_waiting_ones_are_not_sent_and_the_next_goes_first() {
        let gate = Gate::default();
        let first = gate.pass().now_or_never().unwrap().unwrap().expect("the first");
        let mut second = Box::pin(gate.pass());
        assert!((&mut second).now_or_never().is_none(), "it waits");
        drop(first);
        assert_eq!(second.now_or_never().unwrap().err(), Some(NoAnswer::NotSent));
        assert!(gate.pass().now_or_never().unwrap().unwrap().is_some());
    }

    #[test]
    fn a_broken_connection_closes_the_gate() {
        let gate = Gate::default();
        gate.pass().now_or_never().unwrap().unwrap().expect("the first").has_an_answer();
        gate.close();
        assert!(gate.pass().now_or_never().unwrap().unwrap().is_some(), "somebody goes first again");
    }
}
