//! An answer's bytes count in the [budget](crate::budget) until they are written to its client.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};

use crate::budget::Budget;

/// A body whose parts are charged for.
pub(crate) struct AnswerBody<B> {
    pub(crate) body: B,
    pub(crate) budget: Arc<Budget>,
}

impl<B: Body + Unpin> Body for AnswerBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let budget = self.budget.clone();
        Pin::new(&mut self.body).poll_frame(context).map_ok(|frame| {
            // A part is one piece of memory, which is not copied here.
            frame.map_data(|mut data| budget.charged(data.copy_to_bytes(data.remaining())))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
