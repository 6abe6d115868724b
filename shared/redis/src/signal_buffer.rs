//! A bounded queue of received signals that the gateway has not taken yet, between the connection, which never waits,
//! and the gateway.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The most bytes kept unread, however few signals they are: as many as Redis itself buffers for a subscriber that
/// does not read, by its default of `client-output-buffer-limit pubsub 32mb`.
const MAX_BYTES: usize = 32 << 20;

/// One entry of the queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A payload that was published on a channel, unparsed.
    Published { channel: String, payload: Vec<u8> },
    /// Signals after the last entry may be lost …
    Interrupted,
    /// … up to here.
    Restored,
}

/// The queue. Two states interrupt it, and both must be over before it is restored: there is no subscription
/// (`disconnected`), or received signals are not taken (`full`).
pub(crate) struct SignalBuffer {
    state: Mutex<State>,
    ready: Notify,
    capacity: usize,
}

#[derive(Default)]
struct State {
    received: VecDeque<Received>,
    /// The sum of the payloads in it.
    bytes: usize,
    /// The connection whose signals are accepted; an earlier one may still deliver some.
    generation: u64,
    /// Between the loss of a subscription and the next one.
    disconnected: bool,
    /// The queue was full, and new signals are dropped until everything in it was taken.
    full: bool,
    closed: bool,
}

impl SignalBuffer {
    /// `capacity`: how many signals it holds.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), ready: Notify::new(), capacity }
    }

    /// A new connection subscribes: from now on only its signals are accepted. Answers its generation.
    pub(crate) fn begin(&self) -> u64 {
        let mut state = self.state();
        state.generation += 1;
        state.generation
    }

    /// A connection has received a signal.
    pub(crate) fn push(&self, generation: u64, channel: String, payload: Vec<u8>) {
        self.change(|state| {
            if state.generation != generation || state.full {
                return;
            }
            if state.received.len() < self.capacity && state.bytes + payload.len() <= MAX_BYTES {
                state.bytes += payload.len();
                state.received.push_back(Received::Published { channel, payload });
            } else {
                state.interrupt();
                state.full = true;
            }
        });
    }

    /// The subscription is lost.
    pub(crate) fn interrupt(&self) {
        self.change(|state| {
            state.interrupt();
            state.disconnected = true;
        });
    }

    /// The subscription that began last is in force: every signal published from now on is received.
    pub(crate) fn restore(&self) {
        self.change(|state| {
            state.disconnected = false;
            if !state.full {
                state.received.push_back(Received::Restored);
            }
        });
    }

    /// No signal will be received again.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.ready.notify_one();
    }

    /// Moves all entries into `taken`, which is empty; waits until there is one. False when closed. Cancelling loses
    /// nothing.
    pub(crate) async fn take(&self, taken: &mut VecDeque<Received>) -> bool {
        loop {
            {
                let mut state = self.state();
                state.take(taken);
                if !taken.is_empty() {
                    return true;
                }
                if state.closed {
                    return false;
                }
            }
            // `ready` keeps a wake-up between the check and the wait.
            self.ready.notified().await;
        }
    }

    /// Wakes the taking task only when there was nothing to take before: one wake-up for all entries taken together.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        let was_ready = state.is_ready();
        change(&mut state);
        let wake = !was_ready && state.is_ready();
        drop(state);
        if wake {
            self.ready.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No holder can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_ready(&self) -> bool {
        self.full || !self.received.is_empty()
    }

    /// Adds one entry, however many reasons there are.
    fn interrupt(&mut self) {
        if !self.disconnected && !self.full {
            self.received.push_back(Received::Interrupted);
        }
    }

    fn take(&mut self, taken: &mut VecDeque<Received>) {
        mem::swap(&mut self.received, taken);
        self.bytes = 0;
        if mem::take(&mut self.full) && !self.disconnected {
            taken.push_back(Received::Restored);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// The entries to be taken now: see [`text`].
    fn taken(buffer: &SignalBuffer) -> String {
        let mut taken = VecDeque::new();
        buffer.state().take(&mut taken);
        text(taken)
    }

    /// `I`, `R`, and the channels of payloads.
    fn text(taken: VecDeque<Received>) -> String {
        let texts = taken.into_iter().map(|received| match received {
            Received::Published { channel, .. } => channel,
            Received::Interrupted => "I".to_owned(),
            Received::Restored => "R".to_owned(),
        });
        texts.collect()
    }

    fn push(buffer: &SignalBuffer, generation: u64, channels: &str) {
        for channel in channels.chars() {
            buffer.push(generation, channel.to_string(), vec![0]);
        }
    }

    #[test]
    fn a_full_buffer_is_interrupted_until_it_was_emptied() {
        let buffer = SignalBuffer::new(3);
        let generation = buffer.begin();
        push(&buffer, generation, "abcde");
        assert_eq!(taken(&buffer), "abcIR");
        push(&buffer, generation, "fg");
        assert_eq!(taken(&buffer), "fg");
    }

    #[test]
    fn long_payloads_fill_it_too() {
        let buffer = SignalBuffer::new(1_000);
        let generation = buffer.begin();
        for channel in ["a", "b", "c", "d"] {
            buffer.push(generation, channel.to_owned(), vec![0; MAX_BYTES / 3]);
        }
        assert_eq!(taken(&buffer), "abcIR");
        push(&buffer, generation, "e");
        assert_eq!(taken(&buffer), "e");
    }

    #[test]
    fn a_lost_subscription_is_interrupted_until_the_next_one() {
        let buffer = SignalBuffer::new(10);
        let first = buffer.begin();
        push(&buffer, first, "a");
        buffer.interrupt();
        let second = buffer.begin();
        push(&buffer, first, "x");
        assert_eq!(taken(&buffer), "aI");
        push(&buffer, second, "b");
        buffer.restore();
        push(&buffer, second, "c");
        assert_eq!(taken(&buffer), "bRc");
    }

    #[test]
    fn two_reasons_are_one_interruption() {
        // Full, then lost: restored when it is emptied and subscribed again, in either order.
        for emptied_first in [true, false] {
            let buffer = SignalBuffer::new(1);
            let generation = buffer.begin();
            push(&buffer, generation, "ab");
            buffer.interrupt();
            let generation = buffer.begin();
            let mut text = String::new();
            if emptied_first {
                text += &taken(&buffer);
                buffer.restore();
            } else {
                buffer.restore();
                push(&buffer, generation, "x");
            }
            text += &taken(&buffer);
            assert_eq!(text, "aIR", "emptied first: {emptied_first}");
            push(&buffer, generation, "c");
            assert_eq!(taken(&buffer), "c");
        }
        // Lost, then filled by the next subscription before it is in force.
        let buffer = SignalBuffer::new(2);
        buffer.begin();
        buffer.interrupt();
        let generation = buffer.begin();
        push(&buffer, generation, "ab");
        buffer.restore();
        assert_eq!(taken(&buffer), "IaR");
    }

    #[test]
    fn any_signal_that_can_be_taken_wakes_the_waiting_reader() {
        type Change = fn(&SignalBuffer, u64);
        let changes: [(Change, &str); 3] = [
            (|buffer, generation| push(buffer, generation, "a"), "IR"),
            (|buffer, _| buffer.interrupt(), "I"),
            // Full while disconnected: there is nothing to take before it is restored.
            (
                |buffer, generation| {
                    push(buffer, generation, "a");
                    buffer.restore();
                },
                "R",
            ),
        ];
        let buffer = SignalBuffer::new(0);
        let generation = buffer.begin();
        for (change, expected) in changes {
            let mut received = VecDeque::new();
            {
                let mut taking = pin!(buffer.take(&mut received));
                let mut context = Context::from_waker(Waker::noop());
                assert_eq!(taking.as_mut().poll(&mut context), Poll::Pending);
                change(&buffer, generation);
                assert_eq!(taking.as_mut().poll(&mut context), Poll::Ready(true));
            }
            assert_eq!(text(received), expected);
        }
    }
}
