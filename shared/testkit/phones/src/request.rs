//! A request: answered by its provider's behaviour, its validity, and the answer set for its token, in this order.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Request};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::answer::Answer;
use crate::behaviour::Behaviour;
use crate::oauth::TOKEN_ENDPOINT;
use crate::provider::Provider;
use crate::push::Draft;
use crate::reply::{self, Reply};
use crate::state::State;
use crate::{apns, fcm, google};

/// How many bytes of a body are read: a larger one is far too large for either provider.
const MAX_BODY_BYTES: usize = 256 * 1_024;

/// What answers the requests of one connection.
pub(crate) struct Requests {
    provider: Provider,
    behaviour: watch::Receiver<Behaviour>,
    state: Arc<State>,
    /// How many requests are under way.
    streams: AtomicU64,
    /// Cancelled by a request that is answered by closing the connection.
    pub(crate) closing: CancellationToken,
}

impl Requests {
    pub(crate) fn new(provider: Provider, behaviour: watch::Receiver<Behaviour>, state: Arc<State>) -> Self {
        Self { provider, behaviour, state, streams: AtomicU64::new(0), closing: CancellationToken::new() }
    }

    /// Answers a request, or never returns.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Reply {
        let _stream = self.count_stream();
        let (mut head, body) = request.into_parts();
        // A body that ends early has a client that is gone; one that is larger than this is none of Naru's.
        let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else { self.close().await };
        let behaviour = *self.behaviour.borrow();
        match behaviour {
            Behaviour::Hang => return pending().await,
            Behaviour::Slow(delay) => sleep(delay).await,
            _ => {}
        }
        let body = body.to_bytes();
        let reply = match self.provider {
            Provider::Fcm if head.method == Method::POST && head.uri.path() == TOKEN_ENDPOINT => {
                self.access_token(&head, &body).await
            }
            Provider::Fcm => self.send(&head, &body).await,
            Provider::Apns => {
                let id = apns::id(&mut head);
                apns::with_id(self.device(&head, &body).await, id)
            }
        };
        if !reply.status().is_success() {
            self.state.record.count(self.provider, |counts| counts.refused += 1);
        }
        reply
    }

    /// `POST /token`.
    async fn access_token(&self, head: &Parts, body: &[u8]) -> Reply {
        let answer = self.state.script.next(TOKEN_ENDPOINT);
        self.perform(answer, || self.state.authority.answer(&head.headers, body, &self.state.record)).await
    }

    /// `POST /v1/projects/{project}/messages:send`.
    async fn send(&self, head: &Parts, body: &[u8]) -> Reply {
        match fcm::check(head, body, &self.state.authority) {
            Ok(draft) => {
                let reply = fcm::taken(&draft.id);
                self.push(draft, reply).await
            }
            Err(refusal) => *refusal,
        }
    }

    /// `POST /3/device/{token}`.
    async fn device(&self, head: &Parts, body: &[u8]) -> Reply {
        match apns::check(head, body, &self.state.provider_tokens, &self.state.record) {
            Ok(draft) => self.push(draft, reply::bytes(200, "")).await,
            Err(reason) => apns::refused(reason, None),
        }
    }

    /// Answers a valid push; `taken` is the usual answer.
    async fn push(&self, draft: Draft, taken: Reply) -> Reply {
        let answer = self.state.script.next(&draft.token);
        let answer = answer.or_else(|| Answer::by_name(self.provider, &draft.token));
        let take = || {
            self.state.record.take(draft);
            taken
        };
        self.perform(answer, take).await
    }

    /// Gives an answer; `take` makes the usual one.
    async fn perform(&self, answer: Option<Answer>, take: impl FnOnce() -> Reply) -> Reply {
        match answer {
            None => take(),
            Some(Answer::TakenUnanswered) => {
                drop(take());
                self.close().await
            }
            Some(Answer::Close) => self.close().await,
            Some(Answer::Fcm { code, retry_after }) => {
                reply::with_retry_after(*google::refused(code), retry_after)
            }
            Some(Answer::Apns { reason, retry_after, timestamp }) => {
                reply::with_retry_after(apns::refused(reason, timestamp), retry_after)
            }
            Some(Answer::Raw { status, body }) => reply::bytes(status, body),
        }
    }

    /// Closes the connection in the place of an answer.
    async fn close(&self) -> ! {
        self.closing.cancel();
        pending().await
    }

    /// Counts a request, which is under way until the result is dropped.
    fn count_stream(&self) -> Stream<'_> {
        let streams = self.streams.fetch_add(1, Ordering::SeqCst) + 1;
        self.state.record.count(self.provider, |counts| {
            counts.requests += 1;
            counts.max_streams_at_once = counts.max_streams_at_once.max(streams);
        });
        Stream(&self.streams)
    }
}

struct Stream<'a>(&'a AtomicU64);

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
