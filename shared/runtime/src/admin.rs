//! The three pages for an orchestrator: liveness (`/healthz`), readiness (`/readyz`), metrics (`/metrics`).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Metrics;

/// A check that takes longer has failed: an orchestrator waits seconds, not minutes.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// A client that has not sent its request by then is disconnected.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the answers under way may take once the server is to stop.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Whether this process can serve: a list of named checks. Clones are the same list.
#[derive(Clone)]
pub struct Health {
    shutdown: CancellationToken,
    checks: Arc<RwLock<BTreeMap<&'static str, Check>>>,
    degradations: Arc<RwLock<BTreeMap<&'static str, Degradation>>>,
}

type Degradation = Arc<dyn Fn() -> Option<String> + Send + Sync>;
type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// The result of [`Health::report`]; as JSON `{"ready":false,"failing":{"store":"…"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether no check fails.
    pub ready: bool,
    /// The checks that fail, and why.
    pub failing: BTreeMap<&'static str, String>,
    /// What fails and does not yet keep the process from serving.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub degraded: BTreeMap<&'static str, String>,
}

impl Health {
    /// No checks yet. Once `shutdown` is cancelled the process drains, and is not ready whatever the checks answer.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { shutdown, checks: Arc::default(), degradations: Arc::default() }
    }

    /// Adds a check, or replaces the one of the same name. Its error is shown to every client of `/readyz`: one
    /// sentence, without addresses or secrets.
    pub fn register<F>(&self, name: &'static str, check: F)
    where
        F: Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync + 'static,
    {
        self.checks.write().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::new(check));
    }

    /// Adds something that `/readyz` shows as degraded while it answers a sentence, and that does not fail it: every process
    /// may have the same fault, and none of them would be left to serve.
    pub fn register_degraded(
        &self,
        name: &'static str,
        degradation: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) {
        self.degradations.write().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::new(degradation));
    }

    /// Runs all checks at once, each for at most two seconds.
    pub async fn report(&self) -> Report {
        let checks = self.checks.read().unwrap_or_else(PoisonError::into_inner).clone();
        let outcomes = checks.into_iter().map(|(name, check)| async move {
            let outcome = tokio::time::timeout(CHECK_TIMEOUT, check()).await;
            let reason =
                outcome.unwrap_or_else(|_| Err(format!("no answer within {CHECK_TIMEOUT:?}"))).err()?;
            Some((name, reason))
        });
        let mut failing: BTreeMap<_, _> = join_all(outcomes).await.into_iter().flatten().collect();
        if self.shutdown.is_cancelled() {
            failing.insert("draining", "the process is shutting down".into());
        }
        let degradations = self.degradations.read().unwrap_or_else(PoisonError::into_inner);
        let degraded =
            degradations.iter().filter_map(|(name, degradation)| Some((*name, degradation()?))).collect();
        Report { ready: failing.is_empty(), failing, degraded }
    }
}

/// An answer to one of the three paths, for any HTTP server to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 200, or 503 when not ready.
    pub status: StatusCode,
    /// The value of the `content-type` header.
    pub content_type: &'static str,
    /// The whole body.
    pub body: String,
}

/// Answers a GET of `/healthz`, `/readyz` or `/metrics`; `None` is any other path.
///
/// `/healthz` reports only that the process runs its tasks: a broken database is no reason to restart it.
pub async fn respond(path: &str, health: &Health, metrics: &Metrics) -> Option<Answer> {
    let (status, content_type, body) = match path {
        "/healthz" => (StatusCode::OK, "text/plain; charset=utf-8", "ok\n".to_owned()),
        "/readyz" => {
            let report = health.report().await;
            let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            (status, "application/json", serde_json::to_string(&report).expect("a report is plain JSON"))
        }
        "/metrics" => (StatusCode::OK, Metrics::CONTENT_TYPE, metrics.encode()),
        _ => return None,
    };
    Some(Answer { status, content_type, body })
}

/// A small HTTP server for these pages alone.
pub struct AdminServer {
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
}

impl AdminServer {
    /// Binds the address (port 0: any) and answers the one it got; no request is answered before [`AdminServer::serve`].
    ///
    /// # Errors
    /// When the address can't be bound.
    pub async fn bind(
        address: SocketAddr,
        health: Health,
        metrics: Metrics,
    ) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((Self { listener, health, metrics }, address))
    }

    /// Answers until `shutdown` is cancelled, then finishes the answers under way.
    ///
    /// With a token that is cancelled after the workers have stopped, the drain can be observed.
    ///
    /// # Errors
    /// When the system accepts no connection, as without free file descriptors; it may be called again.
    pub async fn serve(&self, shutdown: CancellationToken) -> io::Result<()> {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => {
                    let (stream, _) = accepted?;
                    let (health, metrics) = (self.health.clone(), self.metrics.clone());
                    connections.spawn(answer_all(stream, health, metrics, shutdown.clone()));
                }
                Some(_) = connections.join_next() => {}
                () = shutdown.cancelled() => break,
            }
        }
        while connections.join_next().await.is_some() {}
        Ok(())
    }
}

async fn answer_all(stream: TcpStream, health: Health, metrics: Metrics, shutdown: CancellationToken) {
    let service = service_fn(|request| answer(request, &health, &metrics));
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            // A client that sends or reads slowly is not waited for.
            let Ok(result) = timeout(CLOSE_WITHIN, connection).await else { return };
            result
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an admin connection broke");
    }
}

async fn answer(
    request: Request<Incoming>,
    health: &Health,
    metrics: &Metrics,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let answer = if request.method() == Method::GET || request.method() == Method::HEAD {
        respond(request.uri().path(), health, metrics).await
    } else {
        None
    };
    let Answer { status, content_type, body } = answer.unwrap_or_else(|| Answer {
        status: StatusCode::NOT_FOUND,
        content_type: "text/plain; charset=utf-8",
        body: "GET /healthz, /readyz or /metrics\n".to_owned(),
    });
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    guard(response.headers_mut());
    Ok(response)
}

/// An answer is for one caller at one moment: no cache keeps it, and no browser reads it as another type than it says.
pub fn guard(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    fn health() -> (Health, CancellationToken) {
        let shutdown = CancellationToken::new();
        (Health::new(shutdown.clone()), shutdown)
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_names_what_fails_and_what_does_not_answer() {
        let (health, _) = health();
        health.register("bus", || async { Ok(()) }.boxed());
        assert!(health.report().await.ready);

        health.register("store", || async { Err("no primary".into()) }.boxed());
        health.register("live", || pending().boxed());
        health.register("push", || pending().boxed());
        let started = Instant::now();
        let report = health.report().await;
        assert!(started.elapsed() < 2 * CHECK_TIMEOUT, "the checks ran one after the other");
        assert_eq!(
            serde_json::to_string(&report).expect("JSON"),
            r#"{"ready":false,"failing":{"live":"no answer within 2s","push":"no answer within 2s","store":"no primary"}}"#
        );
    }

    #[tokio::test]
    async fn a_draining_process_is_alive_but_not_ready() {
        let (health, shutdown) = health();
        shutdown.cancel();
        let metrics = Metrics::new();
        let ready = respond("/readyz", &health, &metrics).await.expect("a page");
        assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ready.body, r#"{"ready":false,"failing":{"draining":"the process is shutting down"}}"#);
        let alive = respond("/healthz", &health, &metrics).await.expect("a page");
        assert_eq!(alive.status, StatusCode::OK);
        assert_eq!(respond("/", &health, &metrics).await, None);
    }

    #[tokio::test]
    async fn the_server_answers_over_a_socket_and_leaves_when_told() {
        let (health, shutdown) = health();
        health.register("store", || async { Err("no primary".into()) }.boxed());
        let (server, address) =
            AdminServer::bind(([127, 0, 0, 1], 0).into(), health, Metrics::new()).await.expect("a free port");
        let serving = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { server.serve(shutdown).await }
        });

        let ready = ask(address, "GET /readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
        assert!(ready.contains("content-type: application/json\r\n"), "{ready}");
        assert!(ready.contains("cache-control: no-store\r\n"), "{ready}");
        assert!(ready.contains("x-content-type-options: nosniff\r\n"), "{ready}");
        assert!(ready.ends_with(r#"{"ready":false,"failing":{"store":"no primary"}}"#), "{ready}");
        assert!(ask(address, "GET /healthz").await.ends_with("\r\n\r\nok\n"));
        let head = ask(address, "HEAD /healthz").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-length: 3\r\n"), "{head}");
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        assert!(ask(address, "GET /metrics").await.ends_with("# EOF\n"));
        assert!(ask(address, "GET /").await.starts_with("HTTP/1.1 404 "));
        assert!(ask(address, "POST /metrics").await.starts_with("HTTP/1.1 404 "));

        let mut idle = TcpStream::connect(address).await.expect("it listens");
        idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: naru\r\n\r\n").await.expect("it reads");
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            assert_ne!(idle.read_buf(&mut answer).await.expect("it answers"), 0, "it kept the connection");
        }
        let mut slow = TcpStream::connect(address).await.expect("it listens");
        slow.write_all(b"GET /healthz HTTP/1.1\r\n").await.expect("it reads");
        shutdown.cancel();
        let stopped = timeout(REQUEST_TIMEOUT / 2, serving).await;
        stopped.expect("it does not wait for a request").expect("no panic").expect("no error");
        assert_eq!(idle.read(&mut [0]).await.expect("a clean end"), 0);
    }

    /// Sends one request on its own connection, as text; answers the whole response.
    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let request = format!("{request} HTTP/1.1\r\nhost: naru\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        answer
    }
}
