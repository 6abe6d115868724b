//! The pushes that the providers took, over HTTP. The table is in this crate's documentation.

use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::handle::Handle;
use crate::provider::Provider;
use crate::reply::{self, Reply};
use crate::server::{PAUSE, Port};

/// How long a client may take to send the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until it is dropped.
pub(crate) async fn serve(port: Port, handle: Handle) {
    // Owns the connections, so that they end with this.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = port.accept() => {
                let Ok(stream) = accepted else {
                    sleep(PAUSE).await;
                    continue;
                };
                let handle = handle.clone();
                let service = service_fn(move |request| ready(Ok::<_, Infallible>(answer(&handle, &request))));
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
                connections.spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

fn answer(handle: &Handle, request: &Request<Incoming>) -> Reply {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz" | "/readyz") => reply::bytes(200, "ok\n"),
        (&Method::GET, "/counts") => {
            let (fcm, apns) = (handle.counts(Provider::Fcm), handle.counts(Provider::Apns));
            reply::json(200, &json!({"taken": handle.taken(), "fcm": fcm, "apns": apns}))
        }
        (&Method::GET, "/pushes") => reply::json(200, &json!({ "pushes": handle.received() })),
        (method, path) => {
            let sentence = format!("There is no {method} {path}: see naru-phones' documentation.");
            reply::json(404, &json!({ "message": sentence }))
        }
    }
}
