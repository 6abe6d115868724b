//! What a gateway has heard and not yet taken: a bounded queue between the connection, which never waits, and whoever
//! listens.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// However few signals they are, no more than this is kept unread: what Redis itself keeps for a subscriber that
/// does not read, by its default of `client-output-buffer-limit pubsub 32mb`.
const MOST_BYTES: usize = 32 << 20;

/// One entry of the queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// What came on a channel, unread.
    Said {
        /// The channel.
        channel: String,
        /// What was published.
        payload: Vec<u8>,
    },
    /// What came after the last entry may be lost …
    Interrupted,
    /// … up to here.
    Restored,
}

/// The queue. Two things interrupt it, and both must be over before it is restored: nobody listens to Redis
/// (`deaf`), or nobody takes what was heard (`full`).
pub(crate) struct Ear {
    state: Mutex<State>,
    woken: Notify,
    backlog: usize,
}

#[derive(Default)]
struct State {
    heard: VecDeque<Heard>,
    /// The sum of the payloads in it.
    bytes: usize,
    /// The one subscription that is listened to; an earlier one may still have something to say.
    line: u64,
    /// Between the loss of a subscription and the next one.
    deaf: bool,
    /// The queue was full and what came since is dropped, until everything in it was taken.
    full: bool,
    closed: bool,
}

impl Ear {
    /// `backlog`: how many signals it holds.
    pub(crate) fn new(backlog: usize) -> Self {
        Self { state: Mutex::default(), woken: Notify::new(), backlog }
    }

    /// A new subscription begins: from now on only this one is heard. Answers its number.
    pub(crate) fn begin(&self) -> u64 {
        let mut state = self.state();
        state.line += 1;
        state.line
    }

    /// A subscription has heard something.
    pub(crate) fn hear(&self, line: u64, channel: String, payload: Vec<u8>) {
        let mut state = self.state();
        if state.line != line || state.full {
            return;
        }
        if state.heard.len() < self.backlog && state.bytes + payload.len() <= MOST_BYTES {
            state.bytes += payload.len();
            state.heard.push_back(Heard::Said { channel, payload });
        } else {
            state.interrupt();
            state.full = true;
        }
        drop(state);
        self.woken.notify_one();
    }

    /// The subscription is lost.
    pub(crate) fn interrupt(&self) {
        let mut state = self.state();
        state.interrupt();
        state.deaf = true;
        drop(state);
        self.woken.notify_one();
    }

    /// The subscription that began last is in force: all that is published from now on is heard.
    pub(crate) fn restore(&self) {
        let mut state = self.state();
        state.deaf = false;
        if !state.full {
            state.heard.push_back(Heard::Restored);
        }
        drop(state);
        self.woken.notify_one();
    }

    /// Nobody will ever hear anything again.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.woken.notify_one();
    }

    /// The next entry; waits for it. None when closed. Cancelling loses nothing.
    pub(crate) async fn next(&self) -> Option<Heard> {
        loop {
            {
                let mut state = self.state();
                if let Some(heard) = state.take() {
                    return Some(heard);
                }
                if state.closed {
                    return None;
                }
            }
            // Keeps a wake-up that comes between the look and the wait.
            self.woken.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Says so once, however many reasons there are.
    fn interrupt(&mut self) {
        if !self.deaf && !self.full {
            self.heard.push_back(Heard::Interrupted);
        }
    }

    fn take(&mut self) -> Option<Heard> {
        if let Some(heard) = self.heard.pop_front() {
            if let Heard::Said { payload, .. } = &heard {
                self.bytes -= payload.len();
            }
            return Some(heard);
        }
        if self.full {
            // There is room again.
            self.full = false;
            if !self.deaf {
                return Some(Heard::Restored);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What can be taken now: `I`, `R`, or what was said.
    fn taken(ear: &Ear) -> String {
        let mut state = ear.state();
        let mut text = String::new();
        while let Some(heard) = state.take() {
            match heard {
                Heard::Said { channel, .. } => text.push_str(&channel),
                Heard::Interrupted => text.push('I'),
                Heard::Restored => text.push('R'),
            }
        }
        text
    }

    fn hear(ear: &Ear, line: u64, words: &str) {
        for word in words.chars() {
            ear.hear(line, word.to_string(), vec![0]);
        }
    }

    #[test]
    fn a_full_queue_is_interrupted_until_it_was_emptied() {
        let ear = Ear::new(3);
        let line = ear.begin();
        hear(&ear, line, "abcde");
        assert_eq!(taken(&ear), "abcIR");
        hear(&ear, line, "fg");
        assert_eq!(taken(&ear), "fg");
    }

    #[test]
    fn long_payloads_fill_it_too() {
        let ear = Ear::new(1_000);
        let line = ear.begin();
        for word in ["a", "b", "c", "d"] {
            ear.hear(line, word.to_owned(), vec![0; MOST_BYTES / 3]);
        }
        assert_eq!(taken(&ear), "abcIR");
        hear(&ear, line, "e");
        assert_eq!(taken(&ear), "e");
    }

    #[test]
    fn a_lost_subscription_is_interrupted_until_the_next_one() {
        let ear = Ear::new(10);
        let first = ear.begin();
        hear(&ear, first, "a");
        ear.interrupt();
        let second = ear.begin();
        hear(&ear, first, "x");
        assert_eq!(taken(&ear), "aI");
        hear(&ear, second, "b");
        ear.restore();
        hear(&ear, second, "c");
        assert_eq!(taken(&ear), "bRc");
    }

    #[test]
    fn two_reasons_are_one_interruption() {
        // Full, then lost: restored when it is emptied and subscribed again, in either order.
        for emptied_first in [true, false] {
            let ear = Ear::new(1);
            let line = ear.begin();
            hear(&ear, line, "ab");
            ear.interrupt();
            let line = ear.begin();
            let mut text = String::new();
            if emptied_first {
                text += &taken(&ear);
                ear.restore();
            } else {
                ear.restore();
                hear(&ear, line, "x");
            }
            text += &taken(&ear);
            assert_eq!(text, "aIR", "emptied first: {emptied_first}");
            hear(&ear, line, "c");
            assert_eq!(taken(&ear), "c");
        }
        // Lost, then full of what the next subscription brings before it is in force.
        let ear = Ear::new(2);
        ear.begin();
        ear.interrupt();
        let line = ear.begin();
        hear(&ear, line, "ab");
        ear.restore();
        assert_eq!(taken(&ear), "IaR");
    }
}
