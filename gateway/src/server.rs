//! Accepts connections, and on shutdown ends them in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::TryFutureExt;
use http::header::{HeaderMap, UPGRADE};
use http::{Method, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use warp::Filter;
use warp::filters::BoxedFilter;

use crate::answer_body::AnswerBody;
use crate::client_address::{ClientAddress, client_address};
use crate::gateway::Gateway;
use crate::refusal::Close;
use crate::stall::Counted;
use crate::{api, connect};

/// More routes, tried before the gateway's own: the all-in-one's demo page.
pub type Routes = BoxedFilter<(warp::reply::Response,)>;

/// The connection of a client that has not sent its first request by then is closed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection whose client has not read the whole answer by then, up to twice as long, is closed.
const RESPONSE_WITHIN: Duration = Duration::from_secs(30);
/// When the gateway drains, a connection is closed after this, or after it more once its request is answered.
const HTTP_CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// How many connections there may be besides `max_connections`, for calls over HTTP. Further ones are closed at once.
const MAX_HTTP_CONNECTIONS: usize = 10_000;
/// The part of the drain deadline that is for answering messages; the rest is for closing.
const ANSWER_SHARE: f64 = 0.5;
/// How long leaving presence may take. (Without it, a message published in these moments may get no session and no push.)
const BARRIER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait after the system refused a connection (no more file descriptors, as a rule).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown`, then drains: takes no new work, answers its messages, and closes all connections.
pub(crate) async fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    routes: Option<Routes>,
    shutdown: CancellationToken,
    drained: CancellationToken,
) {
    let service = TowerToHyperService::new(warp::service(all_routes(&gateway, routes)));
    loop {
        let (stream, peer) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        // Sessions have a limit of their own: this one is for what does not become a session.
        if gateway.connections.len() >= gateway.config.max_connections.saturating_add(MAX_HTTP_CONNECTIONS) {
            tracing::debug!(%peer, "too many connections");
            continue;
        }
        let (owner, service) = (gateway.clone(), service.clone());
        gateway.connections.spawn(async move {
            // Frames are small and latency counts: no frame waits for an acknowledgement of the one before.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY was not set");
            }
            let Some(tls) = &owner.tls else { return converse(&owner, stream, peer, service).await };
            match owner.drain.begun.run_until_cancelled(tls.accept(stream)).await {
                Some(Ok(stream)) => converse(&owner, stream, peer, service).await,
                Some(Err(error)) => tracing::debug!(%error, %peer, "a TLS handshake failed"),
                None => {}
            }
        });
    }
    drop(listener);
    drain(&gateway).await;
    drained.cancel();
}

async fn converse<S, B>(
    gateway: &Gateway,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    service: TowerToHyperService<S>,
) where
    S: tower_service::Service<Request<Incoming>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: hyper::body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (trusted, header) = (&gateway.config.trusted_proxies, gateway.config.proxy_header);
    let (has_asked, is_answering) = (AtomicBool::new(false), AtomicBool::new(false));
    let service = service_fn(|mut request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        is_answering.store(true, Ordering::Relaxed);
        as_get(&mut request);
        let client = client_address(peer, request.headers(), trusted, header);
        request.extensions_mut().insert(client);
        let is_answering = &is_answering;
        service.call(request).map_ok(move |mut response| {
            is_answering.store(false, Ordering::Relaxed);
            naru_runtime::admin::guard(response.headers_mut());
            response.map(|body| AnswerBody { body, budget: gateway.budget.clone() })
        })
    });
    let (stream, writes) = Counted::new(stream);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // From the end of an answer to the end of the next request's head: how long an idle connection is kept.
        .header_read_timeout(gateway.config.http_keep_alive.0)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let never_asked = async {
        tokio::time::sleep(REQUEST_TIMEOUT).await;
        if has_asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    // What is being answered is finished. A client that sends its request slowly, or reads the answer slowly, is not waited for.
    let drained = async {
        let begun = Instant::now();
        loop {
            tokio::time::sleep(HTTP_CLOSE_WITHIN).await;
            let is_late = begun.elapsed() >= gateway.config.drain_deadline.0.mul_f64(ANSWER_SHARE);
            if is_late || !is_answering.load(Ordering::Relaxed) {
                return;
            }
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = gateway.drain.begun.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = drained => return,
            }
        }
        () = never_asked => return,
        () = writes.stall(RESPONSE_WITHIN) => {
            tracing::debug!(%peer, "a client did not read its answer");
            return;
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "an HTTP connection ended");
    }
}

/// HEAD is GET without a body, for every path: hyper leaves the body out. It is never a WebSocket handshake.
fn as_get(request: &mut Request<Incoming>) {
    if request.method() == Method::HEAD {
        *request.method_mut() = Method::GET;
        request.headers_mut().remove(UPGRADE);
    }
}

async fn drain(gateway: &Gateway) {
    tracing::info!(sessions = gateway.sessions.count(), in_flight = gateway.pending.in_flight(), "draining");
    gateway.drain.begun.cancel();
    gateway.sessions.all().iter().for_each(|session| session.drain());
    let deadline: Duration = gateway.config.drain_deadline.into();
    if timeout(deadline.mul_f64(ANSWER_SHARE), gateway.pending.emptied()).await.is_err() {
        let in_flight = gateway.pending.in_flight();
        tracing::warn!(in_flight, "not all messages were answered; their senders will resend them");
    }
    let interruptions = gateway.interruptions.subscribe();
    match timeout(BARRIER_TIMEOUT, gateway.presence.pass_drain_barrier(interruptions)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "the drain barrier was not passed: presence or the live layer failed")
        }
        Err(_) => {
            tracing::warn!("the drain barrier was not passed: presence or the live layer did not answer")
        }
    }
    for session in gateway.sessions.all() {
        session.close(Close::GoingAway);
    }
    gateway.connections.close();
    gateway.connections.wait().await;
}

fn all_routes(
    gateway: &Arc<Gateway>,
    routes: Option<Routes>,
) -> impl Filter<Extract = (warp::reply::Response,), Error = warp::Rejection> + Clone + Send + Sync + 'static
{
    let with_gateway = {
        let gateway = gateway.clone();
        warp::any().map(move || gateway.clone())
    };
    let socket = warp::path!("ws")
        .and(warp::get())
        .and(with_gateway.clone())
        .and(warp::header::headers_cloned())
        .and(warp::ext::get::<ClientAddress>())
        .and(warp::ext::optional::<OnUpgrade>())
        .then(|gateway: Arc<Gateway>, headers: HeaderMap, client: ClientAddress, upgrade| async move {
            connect::upgrade(&gateway, &headers, client, upgrade).await.unwrap_or_else(|refusal| {
                tracing::debug!(client = %client.0, code = refusal.row().code, "a handshake was refused");
                gateway.telemetry.count_refused(&refusal);
                connect::refused(&refusal)
            })
        })
        .boxed();
    let more =
        routes.unwrap_or_else(|| warp::any().and_then(|| async { Err(warp::reject::not_found()) }).boxed());
    socket.or(more).unify().or(api::routes(with_gateway)).unify()
}
