//! Proof of delivery. What was written to a session counts as delivered when its client said so with a `RECEIVED` or `READ`
//! of that room at or beyond it, or answered a WebSocket ping that was written after it. What is not proven in time becomes
//! a push, by the fanout.
//!
//! A client library answers pings by itself, in the order in which it reads, so a pong says that everything before its
//! ping was read. Pings for proof are few: a session that was written to is asked a second later, for all that was written
//! until then and that its client has not confirmed itself; and one ticker serves all sessions.
//!
//! What is lost on the way to the engine (a full queue, a failed call, a crash) costs a push too many, and no message.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use naru_model::{Message, MessageId, RoomId, Seq, Timestamp, UserId};
use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::Gateway;
use crate::batches::{Batches, Limits, Linger};
use crate::sessions::Session;

/// How many messages one session remembers as unproven. What is written beyond them stays unproven: a client that reads
/// this much without answering a ping is not answering pings.
const MAX_UNPROVEN: usize = 1024;
/// A session that was written this many messages is asked for proof without waiting for the ticker.
const MAX_UNASKED: usize = 256;
/// A session is asked for proof this long after the first message that needs it, and again after as long; where the grace
/// time is short, after a tenth of it. (The fanout looks for proofs after one and a half seconds, and when the grace time is
/// over.)
const MAX_ASK_AFTER: Duration = Duration::from_secs(1);
/// The ticker comes this often within that time, but not more often than a few milliseconds apart.
const TICKS: u32 = 20;
const MIN_TICK: Duration = Duration::from_millis(5);
/// How many proofs are recorded in one call, give or take those of one pong.
const BATCH: usize = 1024;
/// How many may wait to be recorded; beyond, they are dropped.
const QUEUE: usize = 8192;
/// A proof is kept for twice the grace time and this: until the fanout has asked for it, even when it was restarted in
/// between.
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

/// A message that a client has to prove it got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToProve {
    pub(crate) room: RoomId,
    pub(crate) seq: Seq,
    pub(crate) id: MessageId,
    /// When it was accepted.
    pub(crate) timestamp: Timestamp,
}

/// What was written to one session and is not proven yet, and the pings that ask for its proof. An idle session holds an
/// empty one, which owns no memory.
#[derive(Debug)]
pub(crate) struct Unproven {
    /// Whether pings ask for proof, and pongs are one.
    by_ping: bool,
    /// Oldest first.
    written: Vec<ToProve>,
    /// How many of them the last ping covers.
    covered: usize,
    /// The last ping's number. It is its payload.
    ping: u32,
    /// The last ping is not answered yet.
    is_asked: bool,
    /// A ping is wanted whether there is something to prove or not.
    is_wanted: bool,
    /// A ping for proof is to be written as soon as nothing else is.
    is_due: bool,
    /// The ticker knows of the session.
    is_registered: bool,
}

impl Unproven {
    pub(crate) fn new(by_ping: bool) -> Self {
        let (written, covered, ping) = (Vec::new(), 0, 0);
        let [is_asked, is_wanted, is_due, is_registered] = [false; 4];
        Self { by_ping, written, covered, ping, is_asked, is_wanted, is_due, is_registered }
    }

    /// A message was written. Whether the ticker is to be told.
    pub(crate) fn wrote(&mut self, message: ToProve) -> bool {
        if self.written.len() < MAX_UNPROVEN {
            self.written.push(message);
        }
        !std::mem::replace(&mut self.is_registered, true)
    }

    /// The client is to be pinged as a sign of life.
    pub(crate) fn want_ping(&mut self) {
        self.is_wanted = true;
    }

    /// The ticker has come. Whether it is to come again: there is still something to prove.
    pub(crate) fn ask(&mut self, is_too_old: impl Fn(&ToProve) -> bool) -> bool {
        self.take(is_too_old);
        self.is_registered = !self.written.is_empty();
        // Only the last ping's pong counts: a new ping would take its worth from one that is under way.
        self.is_due = self.is_registered && self.by_ping && !self.is_asked;
        self.is_registered
    }

    /// A ping for proof is to be written.
    pub(crate) fn is_due(&self) -> bool {
        self.is_due
    }

    /// A last ping is to cover all that was written.
    pub(crate) fn ask_for_the_rest(&mut self) {
        self.is_due = self.by_ping && self.covered < self.written.len();
    }

    /// The ping to write now, if one is due. One for proof comes when nothing else waits to be written, so that a burst
    /// shares it; or when a lot was written.
    pub(crate) fn next_ping(&mut self, more_waits: bool) -> Option<[u8; 4]> {
        let is_due = self.is_due && !more_waits;
        let is_much = self.by_ping && !self.is_asked && self.written.len() >= MAX_UNASKED;
        if !(self.is_wanted || is_due || is_much) {
            return None;
        }
        self.ping = self.ping.wrapping_add(1);
        (self.covered, self.is_asked) = (self.written.len(), true);
        (self.is_wanted, self.is_due) = (false, false);
        Some(self.ping.to_be_bytes())
    }

    /// A pong has come: what it proves, where pongs do. Only the last ping's counts, because a client that has several to
    /// answer may answer just the last (RFC 6455, 5.5.3), and the last one covers what those before it do.
    pub(crate) fn pong(&mut self, payload: &[u8]) -> Vec<MessageId> {
        if !self.is_asked || payload != self.ping.to_be_bytes() {
            return Vec::new();
        }
        self.is_asked = false;
        let covered = std::mem::take(&mut self.covered);
        if !self.by_ping {
            return Vec::new();
        }
        let proven = self.written.drain(..covered).map(|message| message.id).collect();
        self.tidy();
        proven
    }

    /// The client has everything of a room up to a place: what that proves.
    pub(crate) fn received(&mut self, room: &RoomId, upto: Seq) -> Vec<MessageId> {
        self.take(|message| message.seq <= upto && message.room == *room)
    }

    /// Takes out the messages for which this holds.
    fn take(&mut self, is_meant: impl Fn(&ToProve) -> bool) -> Vec<MessageId> {
        let (mut taken, mut place) = (Vec::new(), 0);
        let covered = self.covered;
        self.written.retain(|message| {
            let is_meant = is_meant(message);
            if is_meant {
                taken.push(message.id);
                self.covered -= usize::from(place < covered);
            }
            place += 1;
            !is_meant
        });
        self.tidy();
        taken
    }

    /// An idle session owns no memory, and has nothing to be asked.
    fn tidy(&mut self) {
        if self.written.is_empty() {
            (self.written, self.is_due) = (Vec::new(), false);
        }
    }
}

/// The sessions that are to be asked for proof, in the order of their turns.
pub(crate) struct ProofRequests {
    /// Whether pings ask, and pongs prove.
    pub(crate) by_ping: bool,
    ask_after: Duration,
    kept_for: Duration,
    turns: Mutex<VecDeque<Turn>>,
    /// Pings that were written, those for a sign of life included.
    pub(crate) pings: Counter,
}

/// When a session is asked.
type Turn = (Instant, Weak<Session>);

impl ProofRequests {
    #[cfg(test)]
    pub(crate) fn by_ping() -> Arc<Self> {
        Self::new(DeliveryProof::Pong, Duration::from_secs(10), Counter::default())
    }

    pub(crate) fn new(proof: DeliveryProof, grace: Duration, pings: Counter) -> Arc<Self> {
        // Without a grace time nothing is asked for.
        let ask_after = if grace.is_zero() { MAX_ASK_AFTER } else { MAX_ASK_AFTER.min(grace / 10) };
        let kept_for = grace.saturating_mul(2).saturating_add(KEEP_BESIDES);
        let by_ping = proof == DeliveryProof::Pong;
        Arc::new(Self { by_ping, ask_after, kept_for, turns: Mutex::default(), pings })
    }

    fn tick_every(&self) -> Duration {
        MIN_TICK.max(self.ask_after / TICKS)
    }

    /// A session was written something that it has to prove, and is not registered.
    pub(crate) fn register(&self, session: &Arc<Session>) {
        self.turns().push_back((Instant::now() + self.ask_after, Arc::downgrade(session)));
    }

    /// Asks those whose turn has come. Who has still something to prove gets another turn.
    fn tick(&self) {
        let now = Instant::now();
        let due: Vec<_> = {
            let mut turns = self.turns();
            let due = turns.iter().take_while(|(turn, _)| *turn <= now).count();
            turns.drain(..due).collect()
        };
        for session in due.iter().filter_map(|(_, session)| session.upgrade()) {
            if !session.is_closing() && session.ask(self) {
                self.register(&session);
            }
        }
    }

    /// Its proof is not asked for any more.
    pub(crate) fn is_too_old(&self, message: &ToProve) -> bool {
        Timestamp::now().since(message.timestamp) >= self.kept_for
    }

    fn turns(&self) -> MutexGuard<'_, VecDeque<Turn>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one pong, or one position, has proven.
pub(crate) struct Proven {
    user: UserId,
    messages: Vec<MessageId>,
}

pub(crate) fn channel() -> (mpsc::Sender<Proven>, mpsc::Receiver<Proven>) {
    mpsc::channel(QUEUE)
}

impl Gateway {
    /// What must be proven of a message; nothing when it is so old that its proof is not asked for any more. (Its sender
    /// has nothing to prove.)
    pub(crate) fn to_prove(&self, message: &Message) -> Option<ToProve> {
        let to_prove = ToProve {
            room: message.chat_room_id.clone(),
            seq: message.seq,
            id: message.id,
            timestamp: message.timestamp,
        };
        let is_asked_for = !self.config.delivery_grace.0.is_zero() && !self.proof_requests.is_too_old(&to_prove);
        is_asked_for.then_some(to_prove)
    }

    /// A session's client has proven that it has these messages.
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
            gateway.proof_requests.tick();
        }
    };
    tokio::select! {
        () = ticking => {}
        () = gateway.connections.wait() => {}
    }
}

/// Records what is proven, in batches, until the last connection has ended.
pub(crate) async fn run(gateway: &Gateway, queue: mpsc::Receiver<Proven>) {
    let size = |proven: &Proven| proven.messages.len();
    // One that follows closely on another waits a moment for more: there is time enough until they are asked for.
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
    use super::*;
    use crate::token::Identity;

    fn id(number: usize) -> MessageId {
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&number.to_be_bytes());
        MessageId::from_bytes(bytes)
    }

    /// The message with this number, at that place of a room.
    fn message(number: usize, room: &str) -> ToProve {
        let room = RoomId::new(room).unwrap();
        ToProve { room, seq: Seq(number as u64), id: id(number), timestamp: Timestamp::now() }
    }

    fn wrote(numbers: impl IntoIterator<Item = usize>) -> Unproven {
        let mut unproven = Unproven::new(true);
        numbers.into_iter().for_each(|number| _ = unproven.wrote(message(number, "r")));
        unproven
    }

    /// The ticker comes.
    fn ask(unproven: &mut Unproven) -> bool {
        unproven.ask(|_| false)
    }

    #[test]
    fn nothing_to_prove_is_no_reason_to_ping() {
        let mut unproven = Unproven::new(true);
        assert!(!ask(&mut unproven));
        assert_eq!(unproven.next_ping(false), None);
        unproven.want_ping();
        let ping = unproven.next_ping(true).expect("a sign of life is wanted");
        assert_eq!(unproven.next_ping(false), None);
        assert_eq!(unproven.pong(&ping), []);
    }

    #[test]
    fn only_the_ticker_asks_and_a_burst_shares_its_ping() {
        let mut unproven = wrote([1, 2]);
        assert_eq!(unproven.next_ping(false), None, "the ticker has not come");
        assert!(ask(&mut unproven));
        assert_eq!(unproven.next_ping(true), None, "more is about to be written");
        unproven.wrote(message(3, "r"));
        let first = unproven.next_ping(false).expect("nothing else waits");
        assert_eq!(unproven.next_ping(false), None, "one for each tick");
        assert_eq!(unproven.pong(&first), [id(1), id(2), id(3)]);
        assert_eq!(unproven.written.capacity(), 0, "an idle session owns no memory");
        assert!(!ask(&mut unproven));
        assert_eq!(unproven.next_ping(false), None);
    }

    #[test]
    fn a_ping_that_is_not_answered_yet_is_not_followed_by_another() {
        let mut unproven = wrote([1]);
        ask(&mut unproven);
        let ping = unproven.next_ping(false).unwrap();
        unproven.wrote(message(2, "r"));
        assert!(ask(&mut unproven), "the ticker comes again");
        assert_eq!(unproven.next_ping(false), None);
        assert_eq!(unproven.pong(&ping), [id(1)]);
        assert!(ask(&mut unproven));
        assert!(unproven.next_ping(false).is_some());
    }

    #[test]
    fn a_pong_proves_nothing_that_was_written_after_its_ping_and_nothing_twice() {
        let mut unproven = wrote([1]);
        ask(&mut unproven);
        let ping = unproven.next_ping(false).unwrap();
        unproven.wrote(message(2, "r"));
        assert_eq!(unproven.pong(&ping), [id(1)]);
        assert_eq!(unproven.pong(&ping), [], "the same pong again");
        assert_eq!(unproven.written.iter().map(|message| message.id).collect::<Vec<_>>(), [id(2)]);
    }

    #[test]
    fn pongs_that_answer_no_ping_prove_nothing() {
        let mut unproven = wrote([1]);
        assert_eq!(unproven.pong(&[]), []);
        assert_eq!(unproven.pong(&0_u32.to_be_bytes()), [], "there was no ping yet");
        ask(&mut unproven);
        unproven.next_ping(false).unwrap();
        assert_eq!(unproven.pong(b"hello"), []);
    }

    /// A client that has two pings to answer may answer only the later one.
    #[test]
    fn a_sign_of_life_covers_what_an_unanswered_ping_asked_for() {
        let mut unproven = wrote([1]);
        ask(&mut unproven);
        let first = unproven.next_ping(false).unwrap();
        unproven.wrote(message(2, "r"));
        unproven.want_ping();
        let second = unproven.next_ping(false).expect("a sign of life is not put off");
        assert_eq!(unproven.pong(&first), [], "the later one will say more");
        assert_eq!(unproven.pong(&second), [id(1), id(2)]);
    }

    #[test]
    fn a_received_proves_its_room_up_to_its_place_without_a_pong() {
        let mut unproven = wrote([1, 2]);
        unproven.wrote(message(2, "other"));
        unproven.wrote(message(3, "r"));
        ask(&mut unproven);
        let ping = unproven.next_ping(false).unwrap();
        unproven.wrote(message(4, "r"));
        let room = RoomId::new("r").unwrap();
        assert_eq!(unproven.received(&room, Seq(2)), [id(1), id(2)]);
        assert_eq!(unproven.received(&room, Seq(2)), [], "nothing twice");
        assert_eq!(unproven.pong(&ping), [id(2), id(3)], "what its ping covered and was not proven yet");
        assert_eq!(unproven.received(&room, Seq(9)), [id(4)]);
        assert!(!ask(&mut unproven), "there is nothing left to ask for");
    }

    #[test]
    fn a_received_in_time_saves_the_ping() {
        let mut unproven = wrote([1]);
        ask(&mut unproven);
        unproven.received(&RoomId::new("r").unwrap(), Seq(1));
        assert_eq!(unproven.next_ping(false), None);
    }

    #[test]
    fn where_only_a_received_counts_nothing_is_pinged_for_and_no_pong_proves() {
        let mut unproven = Unproven::new(false);
        (1..2 * MAX_UNASKED).for_each(|number| _ = unproven.wrote(message(number, "r")));
        assert!(ask(&mut unproven));
        unproven.ask_for_the_rest();
        assert_eq!(unproven.next_ping(false), None);
        unproven.want_ping();
        let ping = unproven.next_ping(false).unwrap();
        assert_eq!(unproven.pong(&ping), []);
        assert_eq!(unproven.received(&RoomId::new("r").unwrap(), Seq(1)), [id(1)]);
    }

    #[test]
    fn a_client_that_is_written_to_a_lot_is_asked_sooner() {
        let mut unproven = wrote(0..MAX_UNASKED);
        assert!(unproven.next_ping(true).is_some());
        assert_eq!(unproven.next_ping(true), None, "one at a time");
    }

    #[test]
    fn a_client_that_never_answers_is_not_remembered_without_bound() {
        let mut unproven = wrote(0..2 * MAX_UNPROVEN);
        assert_eq!(unproven.written.len(), MAX_UNPROVEN);
        let ping = unproven.next_ping(false).unwrap();
        assert!(!unproven.ask(|_| true), "nor when its proof is not asked for any more");
        assert_eq!((unproven.pong(&ping), unproven.written.capacity()), (Vec::new(), 0));
    }

    /// Writes what waits; the pings among it.
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
            asking.tick();
            for ping in write(&session) {
                pings.push(number + 1);
                assert!(!session.pong(&ping).is_empty(), "its client answers");
            }
        }
        assert_eq!(pings, [20, 40, 60], "one for each second in which something was written");
        assert_eq!(asking.turns().len(), 0, "an idle session is not looked at");
    }

    #[test]
    fn where_the_grace_time_is_short_proofs_are_asked_for_well_within_it() {
        let after = |grace| {
            let asking = ProofRequests::new(DeliveryProof::Pong, Duration::from_millis(grace), Counter::default());
            (asking.ask_after.as_millis(), asking.tick_every().as_millis())
        };
        assert_eq!(
            [after(60_000), after(10_000), after(300), after(0)],
            [(1000, 50), (1000, 50), (30, 5), (1000, 50)]
        );
    }
}
