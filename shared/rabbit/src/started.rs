//! A request to the broker that is queued before it is awaited.
//!
//! lapin queues a request's frames on the connection when its future is first polled, not when it is made. Requests that need
//! an order (messages in a queue, acks on a channel) are begun in that order, under a lock if need be, and awaited
//! afterwards.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

pub(crate) enum Started<T> {
    Ended(T),
    Pending(Pin<Box<dyn Future<Output = T> + Send>>),
}

impl<T> Started<T> {
    /// Polls the request once. Its frames are queued when this returns, and stay so if the answer is not awaited.
    pub(crate) fn begin(request: impl Future<Output = T> + Send + 'static) -> Self {
        let mut request = Box::pin(request);
        match request.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Self::Ended(answer),
            Poll::Pending => Self::Pending(request),
        }
    }

    pub(crate) async fn end(self) -> T {
        match self {
            Self::Ended(answer) => answer,
            Self::Pending(request) => request.await,
        }
    }
}
