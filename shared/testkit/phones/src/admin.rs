//! The pushes that the providers took, over HTTP. The table is in this crate's documentation.

use std::convert::Infallible;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::handle::Handle;
use crate::provider::Provider;
use crate::reply::{self, Reply};

/// How long a client may take to send the head of its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, handle: Handle) {
    // Owns the connections, so that they end with this.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    // There is usually no free file descriptor.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let handle = handle.clone();
                let service = service_fn(move |request| {
                    let handle = handle.clone();
                    async move { Ok::<_, Infallible>(answer(&handle, request)) }
                });
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
                connections.spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A refusal: a status and a sentence.
type Refusal = (u16, String);

fn answer(handle: &Handle, request: Request<Incoming>) -> Reply {
    let (head, _) = request.into_parts();
    route(handle, &head)
        .unwrap_or_else(|(status, sentence)| reply::json(status, &json!({"message": sentence})))
}

fn route(handle: &Handle, head: &Parts) -> Result<Reply, Refusal> {
    let parts: Vec<&str> = head.uri.path().split('/').skip(1).collect();
    match (&head.method, parts.as_slice()) {
        (&Method::GET, ["healthz" | "readyz"]) => Ok(reply::bytes(200, "ok\n")),
        (&Method::GET, ["counts"]) => {
            let counts = |provider| handle.counts(provider);
            Ok(reply::json(
                200,
                &json!({
                    "taken": handle.taken(),
                    "fcm": counts(Provider::Fcm),
                    "apns": counts(Provider::Apns),
                }),
            ))
        }
        (&Method::GET, ["pushes"]) => pushes(handle, head.uri.query().unwrap_or_default()),
        (method, _) => {
            Err((404, format!("There is no {method} {}: see naru-phones' documentation.", head.uri.path())))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    #[serde(default)]
    after: u64,
    token: Option<String>,
}

fn pushes(handle: &Handle, query: &str) -> Result<Reply, Refusal> {
    let which: Which = serde_urlencoded::from_str(query)
        .map_err(|error| (400, format!("The query cannot be read: {error}.")))?;
    // Read before the pushes: a request after this number misses none.
    let mut newest = handle.taken();
    let mut pushes = handle.received_after(which.after);
    newest = newest.max(pushes.last().map_or(0, |push| push.number));
    pushes.retain(|push| which.token.as_ref().is_none_or(|token| push.token == *token));
    Ok(reply::json(200, &json!({"newest": newest, "pushes": pushes})))
}
