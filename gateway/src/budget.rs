//! The bytes that wait for clients to read them: frames in the queues of sessions, and answers over HTTP. One budget for the
//! process: beyond it, sessions that hold the most are closed, and new work is refused.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::{Bytes, Utf8Bytes};

use crate::refusal::{Close, Refusal};
use crate::registry::SessionRegistry;
use crate::session_state::Session;

/// How long closed sessions have to free their memory before others are closed.
const RELIEVE_INTERVAL: Duration = Duration::from_millis(50);

/// See the module.
pub(crate) struct Budget {
    max: usize,
    used: Gauge,
    exceeded: Notify,
}

/// Bytes of the budget; given back when it is dropped.
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.dec_by(signed(self.bytes));
    }
}

/// Bytes with the charge for them, which is given back with the last reference to them.
struct Charged<T> {
    bytes: T,
    _charge: Charge,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Charged<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl Budget {
    /// A budget of `max` bytes. `used` shows how many are taken.
    pub(crate) fn new(max: usize, used: Gauge) -> Arc<Self> {
        Arc::new(Self { max, used, exceeded: Notify::new() })
    }

    /// Takes bytes, even beyond the budget: what is exceeded by little is relieved in moments.
    pub(crate) fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        self.used.inc_by(signed(bytes));
        if self.is_exceeded() {
            self.exceeded.notify_one();
        }
        Charge { budget: self.clone(), bytes }
    }

    /// Takes the bytes of something that is shared, once for all its references.
    pub(crate) fn charged(self: &Arc<Self>, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        let _charge = self.charge(bytes.as_ref().len());
        Bytes::from_owner(Charged { bytes, _charge })
    }

    /// The same of a frame: all that its text takes, which may be twice its length.
    pub(crate) fn frame(self: &Arc<Self>, text: String) -> Utf8Bytes {
        let _charge = self.charge(text.capacity());
        Utf8Bytes::try_from(Bytes::from_owner(Charged { bytes: text, _charge })).expect("a String is UTF-8")
    }

    /// # Errors
    /// `OVERLOADED` when the budget is exceeded.
    pub(crate) fn admit(&self) -> Result<(), Refusal> {
        if self.is_exceeded() { Err(Refusal::Overloaded) } else { Ok(()) }
    }

    fn is_exceeded(&self) -> bool {
        self.used.get() > signed(self.max)
    }

    /// Whenever the budget is exceeded, closes sessions that have most in their queues, until three quarters are left.
    pub(crate) async fn relieve(&self, sessions: &SessionRegistry) {
        loop {
            self.exceeded.notified().await;
            while self.is_exceeded() {
                let closed = self.close_largest(sessions.all());
                tracing::warn!(
                    closed,
                    "clients do not read what waits for them: too many bytes for this gateway"
                );
                tokio::time::sleep(RELIEVE_INTERVAL).await;
            }
        }
    }

    /// Closes sessions, those with the longest queues first. Returns how many. One that holds less than its share is never
    /// closed for what others hold.
    fn close_largest(&self, mut sessions: Vec<Arc<Session>>) -> usize {
        let share = self.max / 2 / sessions.len().max(1);
        sessions.retain(|session| session.queued_bytes() > share && !session.is_closing());
        sessions.sort_by_cached_key(|session| Reverse(session.queued_bytes()));
        let mut excess = self.used.get() - signed(self.max / 4 * 3);
        let mut closed = 0;
        for session in sessions {
            if excess <= 0 {
                break;
            }
            excess -= signed(session.queued_bytes());
            session.close(Close::Overloaded);
            closed += 1;
        }
        closed
    }
}
