//! Proof of delivery. A message written to a session counts as delivered when its client sent a `RECEIVED` or `READ` of
//! that room at or beyond it, or answered a WebSocket ping that was written after it. The fanout makes a push of a message
//! that is not proven in time.
//!
//! A client library answers pings by itself, in the order in which it reads, so a pong proves that all frames before its
//! ping were read. Pings for proof are few: a session that was written to is pinged a second later, for all messages
//! written until then that its client has not confirmed itself; and one ticker serves all sessions.
//!
//! A proof that is lost on the way to the engine (a full queue, a failed call, a crash) costs a needless push, and no
//! message.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use naru_engines::{Engines, live};
use naru_model::{Message, MessageId, UserId};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::task::TaskTracker;

use crate::batches::{Batches, Limits, Linger};
use crate::proof_requests::{DeliveryProof, ProofRequests};
use crate::session_state::Session;
use crate::telemetry::Telemetry;
use crate::unproven::ToProve;

/// How many proofs are recorded in one call, give or take those of one pong.
const BATCH: usize = 1024;
/// How many may wait to be recorded; beyond that, they are dropped.
const QUEUE: usize = 8192;

/// The messages that one pong, or one position, has proven.
pub(crate) struct Proven {
    user: UserId,
    messages: Vec<MessageId>,
}

/// Takes the proofs of clients, and asks for them.
pub(crate) struct Proofs {
    queue: mpsc::Sender<Proven>,
    pub(crate) requests: Arc<ProofRequests<Session>>,
    /// Whether proof is asked for at all: there is a grace time.
    pub(crate) are_asked_for: bool,
    telemetry: Arc<Telemetry>,
}

/// Records the proofs that were taken.
pub(crate) struct ProofRecorder {
    queue: Batches<Proven>,
    proofs: Arc<dyn live::Proofs>,
    /// How long a proof is kept.
    kept_for: Duration,
    telemetry: Arc<Telemetry>,
}

impl Proofs {
    pub(crate) fn new(
        engines: &Engines,
        proof: DeliveryProof,
        grace: Duration,
        telemetry: &Arc<Telemetry>,
    ) -> (Self, ProofRecorder) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let requests = ProofRequests::new(proof, grace, telemetry.pings.clone());
        let size = |proven: &Proven| proven.messages.len();
        // A batch that follows closely on another waits for more: the fanout asks for these proofs later.
        let linger = Linger { span: requests.ask_after / 10, enough: BATCH, busy_from: 0 };
        let recorder = ProofRecorder {
            queue: Batches::new(queue, Limits { max: BATCH, max_size: BATCH, size, linger }),
            proofs: engines.proofs.clone(),
            kept_for: requests.kept_for,
            telemetry: telemetry.clone(),
        };
        let telemetry = telemetry.clone();
        (Self { queue: sender, requests, are_asked_for: !grace.is_zero(), telemetry }, recorder)
    }

    /// The proof that a message needs; none when it is so old that its proof is not asked for any more. (Its sender needs
    /// no proof.)
    pub(crate) fn to_prove(&self, message: &Message) -> Option<ToProve> {
        let to_prove = ToProve {
            room: message.chat_room_id.clone(),
            seq: message.seq,
            id: message.id,
            timestamp: message.timestamp,
        };
        (self.are_asked_for && !self.requests.is_too_old(&to_prove)).then_some(to_prove)
    }

    /// Takes the proof that a session's client has received these messages.
    pub(crate) fn prove(&self, session: &Session, messages: Vec<MessageId>) {
        let count = messages.len() as u64;
        if count == 0 {
            return;
        }
        let proven = Proven { user: session.identity.user.clone(), messages };
        match self.queue.try_send(proven) {
            Ok(()) => self.telemetry.proven.inc_by(count),
            Err(_) => self.telemetry.unrecorded.inc_by(count),
        };
    }

    /// Asks sessions for proof, each in its turn, until the last connection has ended.
    pub(crate) async fn ask(&self, connections: &TaskTracker) {
        let requests = &self.requests;
        let ticking = async {
            let mut ticks = tokio::time::interval(requests.tick_every());
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                requests.tick(|session: &Session| !session.is_closing() && session.ask(requests));
            }
        };
        tokio::select! {
            () = ticking => {}
            () = connections.wait() => {}
        }
    }
}

impl ProofRecorder {
    /// Records proofs, in batches, until the last connection has ended.
    pub(crate) async fn run(mut self, connections: &TaskTracker) {
        let mut batch = Vec::new();
        let mut ended = pin!(connections.wait());
        loop {
            let is_over = tokio::select! {
                _more_will_come = self.queue.next(&mut batch) => false,
                () = &mut ended => true,
            };
            self.record(&mut batch).await;
            if is_over {
                break;
            }
        }
        self.queue.fill(&mut batch);
        while !batch.is_empty() {
            self.record(&mut batch).await;
            self.queue.fill(&mut batch);
        }
    }

    async fn record(&self, batch: &mut Vec<Proven>) {
        let proofs = batch.drain(..).flat_map(|Proven { user, messages }| {
            messages.into_iter().map(move |message| (message, user.clone()))
        });
        let proofs: Vec<(MessageId, UserId)> = proofs.collect();
        if proofs.is_empty() {
            return;
        }
        if let Err(error) = self.proofs.record(&proofs, self.kept_for).await {
            tracing::warn!(%error, count = proofs.len(), "deliveries were proven in vain: their recipients get pushes");
            self.telemetry.unrecorded.inc_by(proofs.len() as u64);
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::unproven::tests::message;

    /// Writes the queue; returns the pings in it.
    fn write(session: &Arc<Session>) -> Vec<bytes::Bytes> {
        let written = std::iter::from_fn(|| session.try_next());
        written.filter(|message| message.is_ping()).map(|ping| ping.into_data()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_asked_once_a_second_while_something_is_unproven_and_otherwise_not_at_all() {
        let asking = ProofRequests::by_ping();
        let session = Session::of_ada(8, asking.clone());
        let mut pings = Vec::new();
        for number in 0..100 {
            // For three seconds a message every 50 ms, none of which is proven until then.
            if number < 60 {
                session.send_message("CHAT".into(), Some(message(number, "r")));
            }
            assert!(write(&session).is_empty());
            tokio::time::advance(asking.tick_every()).await;
            asking.tick(|session: &Session| session.ask(&asking));
            for ping in write(&session) {
                pings.push(number + 1);
                assert!(!session.pong(&ping).is_empty(), "its client answers");
            }
        }
        assert_eq!(pings, [20, 40, 60], "one for each second in which something was written");
        assert_eq!(asking.turns().len(), 0, "an idle session is not looked at");
    }
}
