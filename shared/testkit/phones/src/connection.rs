//! A connection: TLS and HTTP/2, under its provider's behaviour.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use crate::behaviour::Behaviour;
use crate::provider::Provider;
use crate::request::Requests;
use crate::state::State;

/// How long a client may take for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to close a connection that was closed here.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves a connection until it ends.
pub(crate) async fn serve(
    provider: Provider,
    stream: TcpStream,
    tls: TlsAcceptor,
    mut behaviour: watch::Receiver<Behaviour>,
    state: Arc<State>,
) {
    let _only_slower = stream.set_nodelay(true);
    let Ok((stream, mut socket)) = twice(stream) else {
        return;
    };
    let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await else {
        return;
    };
    state.record.count(provider, |counts| counts.connections += 1);

    let requests = Arc::new(Requests::new(provider, behaviour.clone(), state));
    let answering = requests.clone();
    let service = service_fn(move |request| {
        let requests = answering.clone();
        async move { Ok::<_, Infallible>(requests.answer(request).await) }
    });
    let max_streams = behaviour.borrow_and_update().max_streams();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).max_concurrent_streams(max_streams);
    // Dropped, it ends its requests.
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));

    let from_now = |after: Duration| Instant::now() + after;
    let mut go_away = behaviour.borrow().go_away().map(from_now);
    let mut is_going = false;
    loop {
        tokio::select! {
            _ended = serving.as_mut() => return linger(&mut socket).await,
            () = requests.closing.cancelled() => return,
            () = at(go_away), if !is_going => {
                serving.as_mut().graceful_shutdown();
                is_going = true;
            }
            changed = behaviour.changed() => {
                if changed.is_err() {
                    return;
                }
                let behaviour = *behaviour.borrow_and_update();
                // The limit of streams is announced once in a connection.
                let is_outdated = behaviour.max_streams() != max_streams;
                go_away = if is_outdated { Some(Instant::now()) } else { behaviour.go_away().map(from_now) };
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
    let _closed_now = timeout(CLOSE_TIMEOUT, until_closed).await;
}

/// Waits for that moment; forever without one.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}
