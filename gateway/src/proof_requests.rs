//! When each session is asked for proof of the messages written to it: in turns, by one ticker.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use naru_model::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;
use tokio::time::Instant;

use crate::unproven::ToProve;

/// A session is asked for proof this long after the first message that needs it, and again after as long; where the grace
/// time is short, after a tenth of it. (The fanout looks for proofs after one and a half seconds, and when the grace time
/// is over.)
const MAX_ASK_AFTER: Duration = Duration::from_secs(1);
/// The ticker runs this often within that time, but at least [`MIN_TICK`] apart.
const TICKS: u32 = 20;
const MIN_TICK: Duration = Duration::from_millis(5);
/// A proof is kept for twice the grace time and this: until the fanout has asked for it, even when it was restarted in
/// between.
const KEEP_BESIDES: Duration = Duration::from_secs(60);

/// The proof that a message has reached a client; the key `delivery_proof`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryProof {
    /// A pong, or the client's `RECEIVED` or `READ`.
    Pong,
    /// Only the client's `RECEIVED` or `READ`: a proxy in between may answer pings itself.
    Received,
}

/// The sessions that are to be asked for proof, in the order of their turns.
pub(crate) struct ProofRequests<S> {
    /// Whether pings ask for proof, and pongs prove.
    pub(crate) by_ping: bool,
    pub(crate) ask_after: Duration,
    pub(crate) kept_for: Duration,
    turns: Mutex<VecDeque<Turn<S>>>,
    /// Written pings, those for a sign of life included.
    pub(crate) pings: Counter,
}

/// When a session is asked.
type Turn<S> = (Instant, Weak<S>);

impl<S> ProofRequests<S> {
    #[cfg(test)]
    pub(crate) fn by_ping() -> Arc<Self> {
        Self::new(DeliveryProof::Pong, Duration::from_secs(10), Counter::default())
    }

    pub(crate) fn new(proof: DeliveryProof, grace: Duration, pings: Counter) -> Arc<Self> {
        // Without a grace time no proof is asked for.
        let ask_after = if grace.is_zero() { MAX_ASK_AFTER } else { MAX_ASK_AFTER.min(grace / 10) };
        let kept_for = grace.saturating_mul(2).saturating_add(KEEP_BESIDES);
        let by_ping = proof == DeliveryProof::Pong;
        Arc::new(Self { by_ping, ask_after, kept_for, turns: Mutex::default(), pings })
    }

    pub(crate) fn tick_every(&self) -> Duration {
        MIN_TICK.max(self.ask_after / TICKS)
    }

    /// Registers a session that has a message to prove, and is not registered.
    pub(crate) fn register(&self, session: &Arc<S>) {
        self.turns().push_back((Instant::now() + self.ask_after, Arc::downgrade(session)));
    }

    /// Asks the sessions whose turn has come. A session for which `ask` returns true gets another turn.
    pub(crate) fn tick(&self, ask: impl Fn(&S) -> bool) {
        let now = Instant::now();
        let due: Vec<_> = {
            let mut turns = self.turns();
            let due = turns.iter().take_while(|(turn, _)| *turn <= now).count();
            turns.drain(..due).collect()
        };
        for session in due.iter().filter_map(|(_, session)| session.upgrade()) {
            if ask(&session) {
                self.register(&session);
            }
        }
    }

    /// Whether a message is so old that its proof is not asked for any more.
    pub(crate) fn is_too_old(&self, message: &ToProve) -> bool {
        Timestamp::now().since(message.timestamp) >= self.kept_for
    }

    pub(crate) fn turns(&self) -> MutexGuard<'_, VecDeque<Turn<S>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_grace_time_is_short_proofs_are_asked_for_well_within_it() {
        let after = |grace| {
            let asking = ProofRequests::<()>::new(
                DeliveryProof::Pong,
                Duration::from_millis(grace),
                Counter::default(),
            );
            (asking.ask_after.as_millis(), asking.tick_every().as_millis())
        };
        assert_eq!(
            [after(60_000), after(10_000), after(300), after(0)],
            [(1000, 50), (1000, 50), (30, 5), (1000, 50)]
        );
    }
}
