//! The HTTP API: one table of routes, one file per resource.

mod blocks;
mod devices;
mod export;
mod history;
mod page;
mod parked;
mod presence;
mod rooms;
mod users;

use std::convert::Infallible;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use hyper::body::Body as _;
use naru_model::frame::Object;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::timeout;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::path::FullPath;
use warp::reply::Response;

use crate::client_address::ClientAddress;
use crate::connect::log_refused_origin;
use crate::gateway::Gateway;
use crate::limit::cost_of_call;
use crate::refusal::Refusal;
use crate::token::{Identity, bearer};

/// A request whose body has not come by then is refused.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// A request whose caller is known.
pub(crate) struct Call<'a> {
    gateway: &'a Gateway,
    caller: Identity,
    query: &'a str,
    body: &'a [u8],
}

type Answer = Result<Response, Refusal>;

/// All routes but `/ws`. Always answers: a path without a route gets a 404.
pub(crate) fn routes<F>(with_gateway: F) -> BoxedFilter<(Response,)>
where
    F: Filter<Extract = (Arc<Gateway>,), Error = Infallible> + Clone + Send + Sync + 'static,
{
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    with_gateway
        .and(warp::method())
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::get::<ClientAddress>())
        .and(warp::body::stream())
        .then(
            async |gateway: Arc<Gateway>,
                   method,
                   path: FullPath,
                   query: String,
                   headers: HeaderMap,
                   client: ClientAddress,
                   body| {
                let answer = answer(&gateway, &method, path.as_str(), &query, &headers, body).await;
                let mut response = answer.unwrap_or_else(|refusal| {
                    tracing::debug!(client = %client.0, code = refusal.row().code, "a request was refused");
                    gateway.telemetry.count_refused(&refusal);
                    refused(&refusal)
                });
                allow_origin(&gateway, &headers, &mut response);
                response
            },
        )
        .boxed()
}

async fn answer(
    gateway: &Gateway,
    method: &Method,
    path: &str,
    query: &str,
    headers: &HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Answer {
    // With an admin address they are answered there only.
    if method == Method::GET
        && gateway.config.admin_listen.is_none()
        && let Some(answer) = naru_runtime::admin::respond(path, &gateway.health, &gateway.metrics).await
    {
        return Ok(reply(answer.status, answer.content_type, answer.body));
    }
    if method == Method::OPTIONS {
        return Ok(preflight());
    }
    let segments = segments(path)?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let ["api", resource @ ..] = segments.as_slice() else {
        return Err(Refusal::NotFound);
    };
    let token = bearer(headers).ok_or(Refusal::Unauthenticated("no token: send Authorization: Bearer"))?;
    let caller = gateway.verifier.verify(token).await?;
    gateway.budget.admit()?;
    gateway.limits.call(&caller, cost_of_call(method, resource))?;
    gateway.users.admit(&caller).await?;
    let body = tokio::select! {
        biased;
        body = timeout(BODY_WITHIN, read(body, gateway.config.max_frame_bytes)) => {
            body.unwrap_or_else(|_| Err(Refusal::Invalid("the body did not come in time".to_owned())))?
        }
        // A client that is still sending is not waited for.
        () = gateway.drain.begun.cancelled() => return Err(Refusal::Overloaded),
    };
    let call = Call { gateway, caller, query, body: &body };
    let answer = dispatch(&call, method, resource).await;
    if let Ok(response) = &answer {
        gateway.limits.answered_call(&call.caller, response.body().size_hint().lower());
    }
    answer
}

async fn dispatch(call: &Call<'_>, method: &Method, resource: &[&str]) -> Answer {
    // Messages go to the store in batches, whoever sends them.
    let is_message = method == Method::POST && matches!(resource, ["rooms", _, "messages"]);
    let _turn = if is_message { None } else { Some(call.gateway.turns.next(&call.caller).await?) };
    match (method.as_str(), resource) {
        ("POST", ["rooms"]) => rooms::create(call).await,
        ("GET", ["rooms"]) => rooms::list(call).await,
        ("GET", ["rooms", room]) => rooms::show(call, &id(room)?).await,
        ("POST", ["rooms", room, "members"]) => rooms::add_member(call, &id(room)?).await,
        ("DELETE", ["rooms", room, "members", user]) => {
            rooms::remove_member(call, &id(room)?, &id(user)?).await
        }
        ("PUT", ["rooms", room, "settings"]) => rooms::configure(call, &id(room)?).await,
        ("GET", ["rooms", room, "messages"]) => history::read(call, &id(room)?).await,
        ("POST", ["rooms", room, "messages"]) => history::send(call, id(room)?).await,
        ("GET", ["devices"]) => devices::list(call).await,
        ("PUT", ["devices", device]) => devices::register(call, id(device)?).await,
        ("DELETE", ["devices", device]) => devices::remove(call, &id(device)?).await,
        ("GET", ["parked"]) => parked::list(call).await,
        ("GET", ["parked", event]) => parked::show(call, id(event)?).await,
        ("DELETE", ["parked", event]) => parked::drop(call, id(event)?).await,
        ("POST", ["parked", event, "replay"]) => parked::replay(call, id(event)?).await,
        ("GET", ["blocks"]) => blocks::list(call).await,
        ("PUT", ["blocks", user]) => blocks::add(call, &id(user)?).await,
        ("DELETE", ["blocks", user]) => blocks::remove(call, &id(user)?).await,
        ("DELETE", ["users", user, "sessions"]) => users::end_sessions(call, &id(user)?).await,
        ("DELETE", ["users", user]) => users::erase(call, &id(user)?).await,
        ("GET", ["users", user, "erasure"]) => users::erasure(call, &id(user)?).await,
        ("GET", ["users", user, "export"]) => export::export(call, &id(user)?).await,
        ("GET", ["presence"]) => presence::show(call).await,
        _ => Err(Refusal::NotFound),
    }
}

impl Call<'_> {
    /// Refuses a caller who is not the app's backend.
    fn needs_service(&self, why: &'static str) -> Result<(), Refusal> {
        if self.caller.is_service { Ok(()) } else { Err(Refusal::Forbidden(why)) }
    }

    /// The body, as the type of this call.
    fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        let read = serde_json::from_slice(self.body).map(|Object(body)| body);
        read.map_err(|error| Refusal::Invalid(error.to_string()))
    }

    /// The query, as the type of this call.
    fn query<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_urlencoded::from_str(self.query).map_err(|error| Refusal::Invalid(error.to_string()))
    }
}

/// For a parameter that may be absent: `limit=`, without a value, is the same.
fn unless_empty<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    let text = String::deserialize(deserializer)?;
    let value = (!text.is_empty()).then(|| text.parse()).transpose();
    value.map_err(serde::de::Error::custom)
}

/// A refusal as an HTTP answer.
pub(crate) fn refused(refusal: &Refusal) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        code: &'a str,
        message: &'a str,
    }
    let body = Body { code: refusal.row().code, message: &refusal.message() };
    let mut response = json(refusal.row().status, &body);
    if let Some(span) = refusal.retry_after() {
        // The header counts in whole seconds, rounded up.
        let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    if matches!(refusal, Refusal::Unauthenticated(_)) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    reply(status, "application/json", crate::refusal::to_text(body))
}

fn reply(status: StatusCode, content_type: &'static str, mut body: String) -> Response {
    // What is charged for is its length.
    body.shrink_to_fit();
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn no_content() -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn segments(path: &str) -> Result<Vec<String>, Refusal> {
    let decoded = path.strip_prefix('/').unwrap_or(path).split('/').map(|segment| {
        let text = percent_encoding::percent_decode_str(segment).decode_utf8();
        text.map(|text| text.into_owned()).map_err(|_| Refusal::Invalid("the path is not UTF-8".to_owned()))
    });
    decoded.collect()
}

fn id<T: FromStr<Err = naru_model::InvalidId>>(segment: &str) -> Result<T, Refusal> {
    Ok(segment.parse()?)
}

async fn read(
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    limit: usize,
) -> Result<Bytes, Refusal> {
    let mut body = std::pin::pin!(body);
    let mut whole = BytesMut::new();
    while let Some(part) = body.next().await {
        let mut part = part.map_err(|_| Refusal::Invalid("the body ended early".to_owned()))?;
        if whole.len() + part.remaining() > limit {
            return Err(Refusal::TooLarge { limit });
        }
        let length = part.remaining();
        whole.extend_from_slice(&part.copy_to_bytes(length));
    }
    Ok(whole.freeze())
}

fn preflight() -> Response {
    let mut response = no_content();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PUT, DELETE"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("authorization, content-type"),
    );
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// Lets the pages of allowed origins read the answer.
fn allow_origin(gateway: &Gateway, headers: &HeaderMap, response: &mut Response) {
    if let Some(origin) = headers.get(header::ORIGIN) {
        if !gateway.config.allowed_origins.allow(headers) {
            return log_refused_origin(headers);
        }
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("origin"));
    }
}
