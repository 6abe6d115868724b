//! Proof of delivery: a message counts as delivered when the client has answered a WebSocket ping that was written after
//! it. Whoever proves nothing in time gets a push (the hop `owed`).
//!
//! A client library answers pings by itself, in the order in which it reads, so a pong says that everything before its
//! ping was read. A client's `RECEIVED` needs nothing here: it is stored as its position, which the notifier looks at too.
//!
//! What is lost on the way to the engine (a full queue, a failed call, a crash) costs a push too many, and no message.

use std::pin::pin;
use std::time::Duration;

use naru_model::{Message, MessageId, Timestamp, UserId};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::Gateway;
use crate::sessions::Session;

/// How many messages one session remembers as unproven. What is written beyond them stays unproven: a client that reads
/// this much without answering a ping is not answering pings.
const MOST_UNPROVEN: usize = 1024;
/// A client that is written to without a pause is pinged after this many messages.
const ASK_AFTER: usize = 64;
/// How many proofs are recorded in one call …
const BATCH: usize = 1024;
/// … and how long the first of them waits for others: a proof has the whole grace time.
const LINGER: Duration = Duration::from_millis(5);
/// How many pongs may wait to be recorded; beyond, they are dropped.
const QUEUE: usize = 8192;
/// A proof is kept for twice the grace time and this: until its `owed` event was handled, even when the notifier was
/// restarted in between.
const KEEP_BESIDES: Duration = Duration::from_secs(60);

/// What proves that a message has reached a client; the key `delivery_proof`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryProof {
    /// A pong, or the client's `RECEIVED`.
    Pong,
    /// Only the client's `RECEIVED`: a proxy in between may answer pings itself.
    Received,
}

/// What was written to one session and is not proven yet, and the pings that ask for its proof. An idle session holds an
/// empty one, which owns no memory.
#[derive(Debug, Default)]
pub(crate) struct Unproven {
    /// Oldest first.
    written: Vec<MessageId>,
    /// How many of them the last ping covers.
    covered: usize,
    /// The last ping's number. It is its payload.
    ping: u32,
    /// The last ping is not answered yet.
    is_asked: bool,
    /// A ping is wanted whether there is something to prove or not.
    is_wanted: bool,
}

impl Unproven {
    /// A message was written.
    pub(crate) fn wrote(&mut self, message: MessageId) {
        if self.written.len() < MOST_UNPROVEN {
            self.written.push(message);
        }
    }

    /// The client is to be pinged as a sign of life.
    pub(crate) fn want_ping(&mut self) {
        self.is_wanted = true;
    }

    /// The ping to write now, if one is due: one at a time for deliveries, and as a rule only when nothing else waits to
    /// be written, so that a burst shares it.
    pub(crate) fn next_ping(&mut self, more_waits: bool) -> Option<[u8; 4]> {
        let pause = !more_waits || self.written.len() >= ASK_AFTER;
        if !(self.is_wanted || self.has_to_ask() && pause) {
            return None;
        }
        self.ping = self.ping.wrapping_add(1);
        (self.covered, self.is_asked, self.is_wanted) = (self.written.len(), true, false);
        Some(self.ping.to_be_bytes())
    }

    /// Whether there is something to prove and no ping under way.
    pub(crate) fn has_to_ask(&self) -> bool {
        !self.is_asked && !self.written.is_empty()
    }

    /// A pong has come: what it proves. Only the last ping's counts, because a client that has several to answer may
    /// answer just the last (RFC 6455, 5.5.3), and the last one covers what those before it do.
    pub(crate) fn pong(&mut self, payload: &[u8]) -> Vec<MessageId> {
        if !self.is_asked || payload != self.ping.to_be_bytes() {
            return Vec::new();
        }
        self.is_asked = false;
        let covered = std::mem::take(&mut self.covered);
        if covered == self.written.len() {
            return std::mem::take(&mut self.written);
        }
        self.written.drain(..covered).collect()
    }
}

/// What one pong has proven.
pub(crate) struct Proven {
    user: UserId,
    messages: Vec<MessageId>,
}

pub(crate) fn channel() -> (mpsc::Sender<Proven>, mpsc::Receiver<Proven>) {
    mpsc::channel(QUEUE)
}

impl Gateway {
    /// Whether deliveries are followed by pings here.
    fn asks_for_proof(&self) -> bool {
        !self.config.delivery_grace.0.is_zero() && self.config.delivery_proof == DeliveryProof::Pong
    }

    /// What a session that is given a message will have to prove: nothing when the message is its own user's, or so old
    /// that nobody asks for its proof any more.
    pub(crate) fn to_prove(&self, message: &Message, session: &Session) -> Option<MessageId> {
        let is_asked_for = self.asks_for_proof()
            && message.sender_id != session.identity.user
            && Timestamp::now().since(message.timestamp) < self.proofs_kept_for();
        is_asked_for.then_some(message.id)
    }

    /// A session's client has answered a ping.
    pub(crate) fn pong(&self, session: &Session, payload: &[u8]) {
        let messages = session.pong(payload);
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

    fn proofs_kept_for(&self) -> Duration {
        self.config.delivery_grace.0.saturating_mul(2).saturating_add(KEEP_BESIDES)
    }
}

/// Records what is proven, in groups, until the last connection has ended.
pub(crate) async fn run(gateway: &Gateway, queue: &mut mpsc::Receiver<Proven>) {
    let mut batch = Vec::new();
    let mut ended = pin!(gateway.connections.wait());
    let mut is_over = false;
    while !is_over {
        tokio::select! {
            () = collect(queue, &mut batch) => {}
            () = &mut ended => {
                while let Ok(proven) = queue.try_recv() {
                    add(&mut batch, proven);
                }
                is_over = true;
            }
        }
        for proofs in batch.chunks(BATCH) {
            if let Err(error) = gateway.engines.proofs.record(proofs, gateway.proofs_kept_for()).await {
                tracing::warn!(%error, count = proofs.len(), "deliveries were proven in vain: their recipients get pushes");
                gateway.telemetry.unrecorded.inc_by(proofs.len() as u64);
            }
        }
        batch.clear();
    }
}

/// Fills a batch with what is there and what comes in a moment. Cancelled, it leaves what it has in the batch.
async fn collect(queue: &mut mpsc::Receiver<Proven>, batch: &mut Vec<(MessageId, UserId)>) {
    let Some(first) = queue.recv().await else { return std::future::pending().await };
    add(batch, first);
    let others = async {
        while batch.len() < BATCH
            && let Some(next) = queue.recv().await
        {
            add(batch, next);
        }
    };
    let _enough_waited = timeout(LINGER, others).await;
}

fn add(batch: &mut Vec<(MessageId, UserId)>, Proven { user, messages }: Proven) {
    batch.extend(messages.into_iter().map(|message| (message, user.clone())));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> MessageId {
        MessageId::from_bytes([number; 12])
    }

    fn wrote(messages: impl IntoIterator<Item = u8>) -> Unproven {
        let mut unproven = Unproven::default();
        messages.into_iter().for_each(|number| unproven.wrote(id(number)));
        unproven
    }

    #[test]
    fn nothing_to_prove_is_no_reason_to_ping() {
        let mut unproven = Unproven::default();
        assert_eq!(unproven.next_ping(false), None);
        unproven.want_ping();
        let ping = unproven.next_ping(true).expect("a sign of life is wanted");
        assert_eq!(unproven.next_ping(false), None);
        assert_eq!(unproven.pong(&ping), []);
    }

    #[test]
    fn a_burst_shares_a_ping_and_the_next_one_follows_the_pong() {
        let mut unproven = wrote([1, 2]);
        assert_eq!(unproven.next_ping(true), None, "more is about to be written");
        unproven.wrote(id(3));
        let first = unproven.next_ping(false).expect("a pause");
        unproven.wrote(id(4));
        assert_eq!(unproven.next_ping(false), None, "one at a time");
        assert_eq!(unproven.pong(&first), [id(1), id(2), id(3)]);
        let second = unproven.next_ping(false).expect("more was delivered meanwhile");
        assert_eq!(unproven.pong(&second), [id(4)]);
        assert!(!unproven.has_to_ask());
        assert_eq!(unproven.written.capacity(), 0, "an idle session owns no memory");
    }

    #[test]
    fn a_pong_proves_nothing_that_was_written_after_its_ping_and_nothing_twice() {
        let mut unproven = wrote([1]);
        let ping = unproven.next_ping(false).unwrap();
        unproven.wrote(id(2));
        assert_eq!(unproven.pong(&ping), [id(1)]);
        assert_eq!(unproven.pong(&ping), [], "the same pong again");
        assert_eq!(unproven.written, [id(2)]);
    }

    #[test]
    fn pongs_that_answer_no_ping_prove_nothing() {
        let mut unproven = wrote([1]);
        assert_eq!(unproven.pong(&[]), []);
        assert_eq!(unproven.pong(&0_u32.to_be_bytes()), [], "there was no ping yet");
        unproven.next_ping(false).unwrap();
        assert_eq!(unproven.pong(b"hello"), []);
    }

    /// A client that has two pings to answer may answer only the later one.
    #[test]
    fn a_sign_of_life_covers_what_an_unanswered_ping_asked_for() {
        let mut unproven = wrote([1]);
        let first = unproven.next_ping(false).unwrap();
        unproven.wrote(id(2));
        unproven.want_ping();
        let second = unproven.next_ping(false).expect("a sign of life is not put off");
        assert_eq!(unproven.pong(&first), [], "the later one will say more");
        assert_eq!(unproven.pong(&second), [id(1), id(2)]);
    }

    #[test]
    fn without_a_pause_there_are_pings_too() {
        let mut unproven = wrote((0..ASK_AFTER).map(|number| u8::try_from(number).unwrap()));
        assert!(unproven.next_ping(true).is_some());
    }

    #[test]
    fn who_never_answers_is_not_remembered_without_bound() {
        let mut unproven = wrote(std::iter::repeat_n(1, 2 * MOST_UNPROVEN));
        assert_eq!(unproven.written.len(), MOST_UNPROVEN);
        let ping = unproven.next_ping(false).unwrap();
        assert_eq!(unproven.pong(&ping).len(), MOST_UNPROVEN);
    }
}
