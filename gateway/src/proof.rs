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

use naru_model::{Message, MessageId, UserId};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::Gateway;
use crate::batches::{Batches, Limits, Linger};
use crate::sessions::Session;
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

pub(crate) fn channel() -> (mpsc::Sender<Proven>, mpsc::Receiver<Proven>) {
    mpsc::channel(QUEUE)
}

impl Gateway {
    /// The proof that a message needs; none when it is so old that its proof is not asked for any more. (Its sender needs
    /// no proof.)
    pub(crate) fn to_prove(&self, message: &Message) -> Option<ToProve> {
        let to_prove = ToProve {
            room: message.chat_room_id.clone(),
            seq: message.seq,
            id: message.id,
            timestamp: message.timestamp,
        };
        let is_asked_for =
            !self.config.delivery_grace.0.is_zero() && !self.proof_requests.is_too_old(&to_prove);
        is_asked_for.then_some(to_prove)
    }

    /// Records that a session's client has proven the receipt of these messages.
    pub(crate) fn prove(&self, session: &Session, messages: Vec<MessageId>) {
        let count = messages.len() as u64;
        if count == 0 {
            return;
        }
        let proven = Proven { user: session.identity.user.clone(), messages };
        match self.proofs.try_send(proven) {
            Ok(()) => self.telemetry.proven.inc_by(count),
            Err(_) => self.telemetry.unrecorded.inc_by(count),
        };
    }
}

/// Asks sessions for proof, each in its turn, until the last connection has ended.
pub(crate) async fn ask(gateway: &Gateway) {
    let ticking = async {
        let mut ticks = tokio::time::interval(gateway.proof_requests.tick_every());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let requests = &gateway.proof_requests;
            requests.tick(|session: &Session| !session.is_closing() && session.ask(requests));
        }
    };
    tokio::select! {
        () = ticking => {}
        () = gateway.connections.wait() => {}
    }
}

/// Records proofs, in batches, until the last connection has ended.
pub(crate) async fn run(gateway: &Gateway, queue: mpsc::Receiver<Proven>) {
    let size = |proven: &Proven| proven.messages.len();
    // A batch that follows closely on another waits for more: the fanout asks for these proofs later.
    let linger = Linger { span: gateway.proof_requests.ask_after / 10, enough: BATCH, busy_from: 0 };
    let mut batches = Batches::new(queue, Limits { max: BATCH, max_size: BATCH, size, linger });
    let mut batch = Vec::new();
    let mut ended = pin!(gateway.connections.wait());
    loop {
        let is_over = tokio::select! {
            _more_will_come = batches.next(&mut batch) => false,
            () = &mut ended => true,
        };
        record(gateway, &mut batch).await;
        if is_over {
            break;
        }
    }
    batches.fill(&mut batch);
    while !batch.is_empty() {
        record(gateway, &mut batch).await;
        batches.fill(&mut batch);
    }
}

async fn record(gateway: &Gateway, batch: &mut Vec<Proven>) {
    let proofs = batch.drain(..).flat_map(|Proven { user, messages }| {
        messages.into_iter().map(move |message| (message, user.clone()))
    });
    let proofs: Vec<(MessageId, UserId)> = proofs.collect();
    if proofs.is_empty() {
        return;
    }
    let keep = gateway.proof_requests.kept_for;
    if let Err(error) = gateway.engines.proofs.record(&proofs, keep).await {
        tracing::warn!(%error, count = proofs.len(), "deliveries were proven in vain: their recipients get pushes");
        gateway.telemetry.unrecorded.inc_by(proofs.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use naru_model::Timestamp;

    use super::*;
    use crate::proof_requests::ProofRequests;
    use crate::token::Identity;
    use crate::unproven::tests::message;

    /// Writes the queue; returns the pings in it.
    fn write(session: &Arc<Session>) -> Vec<bytes::Bytes> {
        let written = std::iter::from_fn(|| session.try_next()).map(|frame| frame.message);
        written.filter(|message| message.is_ping()).map(|ping| ping.into_data()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_asked_once_a_second_while_something_is_unproven_and_otherwise_not_at_all() {
        let asking = ProofRequests::by_ping();
        let user = UserId::new("ada").unwrap();
        let expires_at = Timestamp::from_millis(0);
        let identity = Identity { name: "Ada".into(), user, device: None, is_service: false, expires_at };
        let session = Session::new(identity, 8, asking.clone());
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
