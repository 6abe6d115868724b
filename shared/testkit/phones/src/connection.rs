//! A connection: TLS and HTTP, under its provider's conduct.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::conduct::Conduct;
use crate::provider::Provider;
use crate::record::{Gauge, count};
use crate::request;

/// How long a client may take for the TLS handshake, or for the head of a request on HTTP/1.1.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client may take to close a connection that was closed here.
const LINGER: Duration = Duration::from_secs(2);
/// HTTP/2 in ALPN.
const H2: &[u8] = b"h2";

/// The state that the requests of a connection share.
pub(crate) struct Connection {
    pub(crate) provider: Provider,
    pub(crate) conduct: watch::Receiver<Conduct>,
    pub(crate) shared: Arc<Shared>,
    /// How many requests are under way.
    pub(crate) streams: AtomicU64,
    /// Cancelled by a request that is answered by closing the connection.
    pub(crate) closing: CancellationToken,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(
    provider: Provider,
    stream: TcpStream,
    tls: TlsAcceptor,
    mut conduct: watch::Receiver<Conduct>,
    shared: Arc<Shared>,
) {
    let _only_slower = stream.set_nodelay(true);
    let Ok((stream, mut socket)) = twice(stream) else {
        return;
    };
    let Ok(Ok(stream)) = timeout(PATIENCE, tls.accept(stream)).await else {
        return;
    };
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(H2);
    // APNs supports HTTP/2 only; a client without ALPN gets this far.
    if provider == Provider::Apns && !is_h2 {
        return;
    }
    let counters = shared.record.counters(provider);
    count(&counters.connections);
    let (_open, _) = Gauge::enter(&counters.open_connections);

    let connection = Arc::new(Connection {
        provider,
        conduct: conduct.clone(),
        shared: shared.clone(),
        streams: AtomicU64::new(0),
        closing: CancellationToken::new(),
    });
    let requests = CancellationToken::new();
    let _ends_with_this = requests.clone().drop_guard();
    let mut builder = auto::Builder::new(Within(requests));
    builder = if is_h2 { builder.http2_only() } else { builder.http1_only() };
    let streams = conduct.borrow_and_update().streams();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(streams);
    let answering = connection.clone();
    let service = service_fn(move |request| {
        let connection = answering.clone();
        async move { Ok::<_, Infallible>(request::answer(&connection, request).await) }
    });
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));

    let from_now = |after: Duration| Instant::now() + after;
    let mut go_away = conduct.borrow().go_away().map(from_now);
    let mut is_going = false;
    loop {
        tokio::select! {
            _ended = serving.as_mut() => return linger(&mut socket).await,
            () = connection.closing.cancelled() => return,
            () = at(go_away), if !is_going => {
                serving.as_mut().graceful_shutdown();
                is_going = true;
            }
            changed = conduct.changed() => {
                if changed.is_err() {
                    return;
                }
                let conduct = conduct.borrow_and_update();
                // The limit of streams is announced once in a connection.
                let is_outdated = conduct.streams() != streams;
                go_away = if is_outdated { Some(Instant::now()) } else { conduct.go_away().map(from_now) };
            }
        }
    }
}

/// The same socket, twice.
fn twice(stream: TcpStream) -> io::Result<(TcpStream, TcpStream)> {
    let stream = stream.into_std()?;
    let again = stream.try_clone()?;
    Ok((TcpStream::from_std(stream)?, TcpStream::from_std(again)?))
}

/// Reads on, past TLS, until the client has closed the connection, too. A connection that is closed with unread input is
/// reset by the system, and its client loses answers that it has not read yet.
async fn linger(socket: &mut TcpStream) {
    let mut unread = [0; 1024];
    let until_closed = async { while socket.read(&mut unread).await.is_ok_and(|length| length > 0) {} };
    let _closed_now = timeout(LINGER, until_closed).await;
}

/// Waits for that moment; forever without one.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Runs the requests of a connection until it ends.
#[derive(Clone)]
struct Within(CancellationToken);

impl<F> Executor<F> for Within
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, request: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(request));
    }
}

impl Connection {
    /// Counts a request until the gauge is dropped.
    pub(crate) fn enter(&self) -> Gauge<'_> {
        let counters = self.shared.record.counters(self.provider);
        count(&counters.requests);
        let (stream, now) = Gauge::enter(&self.streams);
        counters.most_streams_at_once.fetch_max(now, Ordering::SeqCst);
        stream
    }

    /// Closes the connection in the place of an answer.
    pub(crate) async fn close(&self) -> ! {
        self.closing.cancel();
        std::future::pending().await
    }
}
