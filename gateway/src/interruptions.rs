//! Interruptions after which clients may have missed messages: signals of the live layer were lost, or the gateway's lease
//! on presence had lapsed, so that messages were published that do not name its sessions.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// Counts the interruptions that are over.
pub(crate) struct Interruptions {
    over: watch::Sender<u64>,
    /// Up to which one their clients have been asked to `SYNC`.
    recovered: AtomicU64,
}

impl Interruptions {
    pub(crate) fn new() -> Self {
        Self { over: watch::Sender::new(0), recovered: AtomicU64::new(0) }
    }

    /// An interruption is over.
    pub(crate) fn report(&self) {
        self.over.send_modify(|count| *count += 1);
    }

    /// Changes when an interruption is over.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.over.subscribe()
    }

    /// Notes up to which interruption clients have been asked to `SYNC`.
    pub(crate) fn recovered(&self, up_to: u64) {
        self.recovered.store(up_to, Ordering::Release);
    }

    /// Whether nothing is to be done for any interruption.
    pub(crate) fn are_recovered(&self) -> bool {
        *self.over.borrow() == self.recovered.load(Ordering::Acquire)
    }
}
