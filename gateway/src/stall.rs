//! Notices an answer over HTTP that its client does not read. Once a connection has become a WebSocket, its session does.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Counts the beginnings and the ends of what is written to a connection: odd while something is not written to its end.
#[derive(Clone, Default)]
pub(crate) struct Writes(Arc<AtomicU64>);

impl Writes {
    fn are_begun(&self) {
        if self.0.load(Ordering::Relaxed).is_multiple_of(2) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn are_over(&self) {
        if !self.0.load(Ordering::Relaxed).is_multiple_of(2) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until something was not written to its end for this long, up to twice as long.
    pub(crate) async fn stall(&self, span: Duration) {
        let mut before = 0;
        loop {
            tokio::time::sleep(span).await;
            let now = self.0.load(Ordering::Relaxed);
            if now == before && !now.is_multiple_of(2) {
                return;
            }
            before = now;
        }
    }
}

/// A stream whose writes are counted. hyper flushes it when an answer is written to its end.
pub(crate) struct Counted<S> {
    stream: S,
    writes: Writes,
}

impl<S> Counted<S> {
    pub(crate) fn new(stream: S) -> (Self, Writes) {
        let writes = Writes::default();
        (Self { stream, writes: writes.clone() }, writes)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes.are_begun();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes.are_begun();
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context));
        self.writes.are_over();
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{Instant, timeout};

    use super::*;

    const SPAN: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_not_read_stalls_and_an_idle_connection_does_not() {
        let (near, mut far) = tokio::io::duplex(8);
        let (mut stream, writes) = Counted::new(near);
        stream.write_all(b"12345678").await.unwrap();
        stream.flush().await.unwrap();
        timeout(10 * SPAN, writes.stall(SPAN)).await.expect_err("all is written");
        let begun = Instant::now();
        let writing = async {
            stream.write_all(b"9").await.unwrap();
            stream.flush().await.unwrap();
        };
        tokio::select! {
            () = writing => panic!("the other side does not read"),
            () = writes.stall(SPAN) => assert!((SPAN..=2 * SPAN).contains(&begun.elapsed())),
        }
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 8);
    }
}
