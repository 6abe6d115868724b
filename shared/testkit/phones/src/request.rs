//! A request: answered by its provider's conduct, its validity, and the answer set for its token, in this order.

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Request};
use tokio::time::sleep;

use crate::answer::{Answer, ApnsReason};
use crate::conduct::Conduct;
use crate::connection::Connection;
use crate::oauth::TOKEN_ENDPOINT;
use crate::provider::Provider;
use crate::record::count;
use crate::reply::{self, Reply};
use crate::{apns, fcm, google};

/// The most of a body that is read, in bytes: a larger body is too large for either provider.
const MAX_BYTES: usize = 256 * 1_024;

/// Answers a request, or never returns.
pub(crate) async fn answer(connection: &Connection, request: Request<Incoming>) -> Reply {
    let _stream = connection.enter();
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BYTES).collect().await {
        Ok(body) => Some(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => None,
        // The body ended early: its client has disconnected.
        Err(_) => connection.close().await,
    };
    let conduct = connection.conduct.borrow().clone();
    let failing = match conduct {
        Conduct::Hang => return std::future::pending().await,
        Conduct::Slow(delay) => {
            sleep(delay).await;
            None
        }
        Conduct::Failing(answer) => Some(answer),
        _ => None,
    };
    let reply = match (connection.provider, &body) {
        (Provider::Fcm, Some(body)) if head.uri.path() == TOKEN_ENDPOINT && head.method == Method::POST => {
            oauth(connection, &head, body).await
        }
        (Provider::Fcm, Some(body)) => send(connection, &head, body, failing).await,
        (Provider::Apns, Some(body)) => device(connection, &head, body, failing).await,
        (Provider::Fcm, None) => *google::too_large(),
        (Provider::Apns, None) => apns::refused(apns::id(&head).as_ref(), ApnsReason::PayloadTooLarge, None),
    };
    if !reply.status().is_success() {
        count(&connection.shared.record.counters(connection.provider).refused);
    }
    reply
}

/// `POST /token`.
async fn oauth(connection: &Connection, head: &Parts, body: &[u8]) -> Reply {
    let shared = &connection.shared;
    let answer = shared.script.asked_for(TOKEN_ENDPOINT).unwrap_or(Answer::Taken);
    let issue = || shared.authority.answer(head, body, shared.record.counters(Provider::Fcm));
    perform(connection, answer, "", issue).await
}

/// `POST /v1/projects/{project}/messages:send`.
async fn send(connection: &Connection, head: &Parts, body: &[u8], failing: Option<Answer>) -> Reply {
    let shared = &connection.shared;
    let judged = fcm::check(head, body, &shared.authority);
    let answer = match (&judged, failing) {
        (_, Some(answer)) if !answer.takes() => answer,
        (Ok(_), Some(answer)) => answer,
        (Ok(judged), None) => shared.script.next(Provider::Fcm, &judged.draft.token),
        (Err(_), _) => Answer::Taken,
    };
    let take = || match judged {
        Ok(judged) if judged.validate_only => fcm::checked(),
        Ok(judged) => {
            let reply = fcm::taken(&judged.draft.id);
            shared.record.take(judged.draft);
            reply
        }
        Err(refused) => *refused,
    };
    perform(connection, answer, "", take).await
}

/// `POST /3/device/{token}`.
async fn device(connection: &Connection, head: &Parts, body: &[u8], failing: Option<Answer>) -> Reply {
    let shared = &connection.shared;
    let counters = shared.record.counters(Provider::Apns);
    let id = apns::id(head);
    let judged = apns::check(head, body, &id, &shared.provider_tokens, counters);
    let answer = match (&judged, failing) {
        (_, Some(answer)) if !answer.takes() => answer,
        (Ok(_), Some(answer)) => answer,
        (Ok(draft), None) => shared.script.next(Provider::Apns, &draft.token),
        (Err(_), _) => Answer::Taken,
    };
    let take = || match judged {
        Ok(draft) => {
            shared.record.take(draft);
            apns::taken(&id)
        }
        Err(reason) => apns::refused(&id, reason, None),
    };
    perform(connection, answer, &id, take).await
}

/// Gives an answer; `take` makes the usual one. `id` is the `apns-id` of the request, if it has one.
async fn perform(connection: &Connection, answer: Answer, id: &str, take: impl FnOnce() -> Reply) -> Reply {
    match answer {
        Answer::Taken => take(),
        Answer::Slow(delay) => {
            sleep(delay).await;
            take()
        }
        Answer::TakenUnheard => {
            drop(take());
            connection.close().await
        }
        Answer::Close => connection.close().await,
        Answer::Hang => std::future::pending().await,
        Answer::Fcm { code, retry_after } => reply::with_retry_after(*google::refused(code), retry_after),
        Answer::Apns { reason, retry_after, timestamp } => {
            reply::with_retry_after(apns::refused(id, reason, timestamp), retry_after)
        }
        Answer::Raw { status, headers, body } => reply::raw(status, &headers, body),
    }
}
