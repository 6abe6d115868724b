//! What a gateway holds of one session: the queue of its frames, and what it has sent and not proven. `session` serves it.
//!
//! A task that writes to a session never waits for it. A session whose queue is full has a client that does not read; it
//! is closed, and the client gets all messages from the store when it connects again. A `TYPING`, `RECEIVED` or `READ` never
//! closes a session: they take a quarter of a queue at most, then only the last of each kind, room and user waits, and a full
//! queue drops them first.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use naru_engines::store::UserRecord;
use naru_model::{ClientMessageId, MessageId, RoomId, Seq, SessionId, UserId};
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::budget::{Budget, Charge};
use crate::proof_requests::ProofRequests;
use crate::refusal::{Close, Refusal};
use crate::room_heads::Epoch;
use crate::sending::{Sending, Taken, Ticket};
use crate::token::Identity;
use crate::unproven::{ToProve, Unproven};

/// An empty queue frees its memory beyond this many places: most sessions are idle most of the time.
const KEPT_PLACES: usize = 4;
/// Signals, and parts of answers, may take one in this many of a queue's places, and of its bytes.
const SHARE: usize = 4;
/// What a frame in a queue takes beside its text.
const FRAME_BYTES: usize = size_of::<Outgoing>();

/// How much the queue of each session holds.
pub(crate) struct QueueLimits {
    frames: usize,
    bytes: usize,
    /// How many parts of an answer: see [`Session::send_part`].
    pub(crate) parts: usize,
    budget: Arc<Budget>,
}

impl QueueLimits {
    /// `largest`: the bytes that a message takes at most, unless much of it is escaped.
    pub(crate) fn new(frames: usize, bytes: usize, largest: usize, budget: &Arc<Budget>) -> Arc<Self> {
        let parts = (frames / SHARE).min(bytes / SHARE / (largest + FRAME_BYTES)).max(1);
        Arc::new(Self { frames, bytes, parts, budget: budget.clone() })
    }
}

pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) identity: Identity,
    /// The epoch of its user's sessions in which it began.
    epoch: u64,
    /// What is kept of its user, as it was when so many changes of records were noted.
    record: Mutex<(Arc<UserRecord>, u64)>,
    queue: Mutex<Queue>,
    pub(crate) limits: Arc<QueueLimits>,
    filled: Notify,
    /// Sends that are not answered yet: each answer will take a place in the queue.
    unanswered: AtomicUsize,
    /// Notified when a frame has left the queue.
    eased: Notify,
    closing: OnceLock<Close>,
    /// Pings since the last sign of life.
    pings_unanswered: AtomicU32,
    /// A frame was refused because its client sends too fast.
    is_too_fast: AtomicBool,
    /// Presence was told of the session.
    is_attached: AtomicBool,
    /// The gateway drains: no more frames are read.
    is_drained: AtomicBool,
    /// Notified when the session is to end, or no more frames are read.
    stopped: Notify,
    sending: Mutex<Sending>,
    /// The epoch of its client's first `SYNC`; 0 before that.
    known_in: AtomicU32,
    proof_requests: Arc<ProofRequests<Session>>,
}

/// The frames for the client, and the written messages that the client has still to prove.
struct Queue {
    /// Frames that are not written yet.
    frames: VecDeque<Outgoing>,
    all: Tally,
    /// Those of them that are parts of an answer.
    parts: Tally,
    unproven: Unproven,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    frames: usize,
    bytes: usize,
}

/// What a frame may do to a full queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It closes the session.
    Event,
    /// It is taken all the same: [`Session::parts_are_written`] was waited for.
    Part,
    /// It is dropped. The number stands for its kind, room and user.
    Signal(u64),
}

/// A frame for the client.
struct Outgoing {
    message: Message,
    /// The message whose receipt the client has to prove.
    to_prove: Option<ToProve>,
    kind: Kind,
    _charge: Charge,
}

impl Outgoing {
    fn bytes(&self) -> usize {
        self.message.len() + FRAME_BYTES
    }
}

impl Queue {
    fn push(&mut self, frame: Outgoing) {
        self.count(&frame, usize::wrapping_add);
        self.frames.push_back(frame);
    }

    fn pop(&mut self) -> Option<Outgoing> {
        let frame = self.frames.pop_front()?;
        self.count(&frame, usize::wrapping_sub);
        if self.frames.is_empty() {
            self.frames.shrink_to(KEPT_PLACES);
        }
        Some(frame)
    }

    fn count(&mut self, frame: &Outgoing, change: fn(usize, usize) -> usize) {
        let parts = (frame.kind == Kind::Part).then_some(&mut self.parts);
        for tally in [Some(&mut self.all), parts].into_iter().flatten() {
            tally.frames = change(tally.frames, 1);
            tally.bytes = change(tally.bytes, frame.bytes());
        }
    }

    /// Whether an event of so many bytes has a place; parts of answers take none from it. One alone always has.
    fn has_place(&self, bytes: usize, limits: &QueueLimits) -> bool {
        let frames = self.all.frames - self.parts.frames;
        let queued = self.all.bytes - self.parts.bytes;
        frames < limits.frames && (frames == 0 || queued + bytes <= limits.bytes)
    }

    fn drop_signals(&mut self) {
        let frames = std::mem::take(&mut self.frames);
        (self.all, self.parts) = (Tally::default(), Tally::default());
        frames
            .into_iter()
            .filter(|frame| !matches!(frame.kind, Kind::Signal(_)))
            .for_each(|frame| self.push(frame));
    }
}

/// Wakes a session when it is dropped: the session then writes the frames of its queue.
pub(crate) struct Wake(pub(crate) Arc<Session>);

impl Drop for Wake {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl Session {
    /// `record` is what its user was admitted by.
    pub(crate) fn new(
        identity: Identity,
        record: Arc<UserRecord>,
        limits: Arc<QueueLimits>,
        proof_requests: Arc<ProofRequests<Session>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: SessionId::generate(),
            identity,
            epoch: record.session_epoch,
            record: Mutex::new((record, 0)),
            queue: Mutex::new(Queue {
                frames: VecDeque::new(),
                all: Tally::default(),
                parts: Tally::default(),
                unproven: Unproven::new(proof_requests.by_ping),
            }),
            limits,
            filled: Notify::new(),
            unanswered: AtomicUsize::new(0),
            eased: Notify::new(),
            closing: OnceLock::new(),
            pings_unanswered: AtomicU32::new(0),
            is_too_fast: AtomicBool::new(false),
            is_attached: AtomicBool::new(false),
            is_drained: AtomicBool::new(false),
            stopped: Notify::new(),
            sending: Mutex::default(),
            known_in: AtomicU32::new(0),
            proof_requests,
        })
    }

    /// Takes the record of its user, as of so many changes, by which the session may have ended.
    pub(crate) fn take_record(&self, record: Arc<UserRecord>, as_of: u64) {
        if record.session_epoch > self.epoch || !self.identity.counts_by(&record) {
            self.close(Close::Revoked);
        }
        let mut known = self.record();
        if as_of >= known.1 {
            *known = (record, as_of);
        }
    }

    /// Whether its user blocks another.
    pub(crate) fn blocks(&self, other: &UserId) -> bool {
        self.record().0.blocked.binary_search(other).is_ok()
    }

    /// Puts a frame in the queue. A full queue closes the session.
    pub(crate) fn send(&self, text: String) {
        self.put(self.own(text));
        self.wake();
    }

    /// Puts a `CHAT` in the queue, which other sessions get as well; the client may have to prove its receipt.
    pub(crate) fn send_message(&self, text: Utf8Bytes, to_prove: Option<ToProve>) {
        self.put(Outgoing { to_prove, ..self.shared(text) });
        self.wake();
    }

    /// Puts a frame before all others: the `WELCOME`, which live messages must not overtake.
    pub(crate) fn send_first(&self, text: String) {
        let (frame, mut queue) = (self.own(text), self.queue());
        queue.count(&frame, usize::wrapping_add);
        queue.frames.push_front(frame);
        drop(queue);
        self.wake();
    }

    /// Puts one part of a long answer in the queue. [`Self::parts_are_written`] keeps such answers short of filling it.
    pub(crate) fn send_part(&self, text: String, to_prove: Option<ToProve>) {
        self.put(Outgoing { to_prove, kind: Kind::Part, ..self.own(text) });
        self.wake();
    }

    /// Puts a signal in the queue. Where a queue holds enough, it takes the place of one with the same key, or is dropped;
    /// returns whether it was taken.
    pub(crate) fn send_signal(&self, key: u64, text: Utf8Bytes) -> bool {
        let kind = Kind::Signal(key);
        let frame = Outgoing { kind, ..self.shared(text) };
        let QueueLimits { frames, bytes, .. } = *self.limits;
        let mut queue = self.queue();
        if queue.all.frames < frames.div_ceil(SHARE) && queue.all.bytes < bytes / SHARE {
            queue.push(frame);
            drop(queue);
            self.wake();
            return true;
        }
        let same = queue.frames.iter().rposition(|other| other.kind == kind);
        let Some(place) = same else { return false };
        let bytes = frame.bytes();
        let replaced = std::mem::replace(&mut queue.frames[place], frame);
        queue.all.bytes = queue.all.bytes + bytes - replaced.bytes();
        true
    }

    fn own(&self, text: String) -> Outgoing {
        let _charge = self.limits.budget.charge(FRAME_BYTES + text.capacity());
        Outgoing { message: Message::text(text), to_prove: None, kind: Kind::Event, _charge }
    }

    /// A frame whose text was charged for when it was made.
    fn shared(&self, text: Utf8Bytes) -> Outgoing {
        let _charge = self.limits.budget.charge(FRAME_BYTES);
        Outgoing { message: Message::Text(text), to_prove: None, kind: Kind::Event, _charge }
    }

    /// Waits until there is a place for so many parts; `false` when the session is to stop.
    pub(crate) async fn parts_are_written(&self, more: usize) -> bool {
        loop {
            if self.is_stopped() {
                return false;
            }
            if self.queue().parts.frames <= self.limits.parts.saturating_sub(more) {
                return true;
            }
            tokio::select! {
                // Its client reads.
                () = self.eased.notified() => self.is_alive(),
                () = self.stopped() => {}
            }
        }
    }

    /// The bytes that wait for the client.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queue().all.bytes
    }

    /// Has the client pinged for a sign of life; returns how many times since the last one.
    pub(crate) fn ping(&self) -> u32 {
        self.queue().unproven.want_ping();
        self.wake();
        self.pings_unanswered.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Notes a sign of life.
    pub(crate) fn is_alive(&self) {
        self.pings_unanswered.store(0, Ordering::Relaxed);
    }

    fn put(&self, frame: Outgoing) {
        let mut queue = self.queue();
        if frame.kind == Kind::Event && !queue.has_place(frame.bytes(), &self.limits) {
            queue.drop_signals();
            if !queue.has_place(frame.bytes(), &self.limits) {
                drop(queue);
                return self.close(Close::SlowConsumer);
            }
        }
        queue.push(frame);
    }

    /// Lets the session write the frames of its queue.
    pub(crate) fn wake(&self) {
        self.filled.notify_one();
    }

    /// Takes a client's pong; returns the messages that it proves.
    pub(crate) fn pong(&self, payload: &[u8]) -> Vec<MessageId> {
        self.queue().unproven.pong(payload)
    }

    /// Takes a client's position in a room; returns the messages up to it that were not proven before.
    pub(crate) fn received(&self, room: &RoomId, up_to: Seq) -> Vec<MessageId> {
        self.queue().unproven.received(room, up_to)
    }

    /// Asks for proof of written messages when it is the session's turn. Returns whether messages are still unproven.
    pub(crate) fn ask(&self, requests: &ProofRequests<Session>) -> bool {
        let mut queue = self.queue();
        let is_unproven = queue.unproven.ask(|message| requests.is_too_old(message));
        let is_due = queue.unproven.is_due();
        drop(queue);
        if is_due {
            self.wake();
        }
        is_unproven
    }

    /// Asks for proof of the messages that no ping covers yet: the last ping before a session ends.
    pub(crate) fn ask_for_the_rest(&self) {
        self.queue().unproven.ask_for_the_rest();
    }

    /// Notes that presence was told of the session.
    pub(crate) fn attached(&self) {
        self.is_attached.store(true, Ordering::Relaxed);
    }

    /// Whether presence was told of the session.
    pub(crate) fn is_attached(&self) -> bool {
        self.is_attached.load(Ordering::Relaxed)
    }

    /// Notes that all rooms of its client are known, as long as this epoch lasts. Only the first time: a later `SYNC` may
    /// name fewer.
    pub(crate) fn is_known_in(&self, epoch: Epoch) {
        let _known = self.known_in.compare_exchange(0, epoch, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The epoch in which all rooms of its client became known.
    pub(crate) fn known_in(&self) -> Option<Epoch> {
        Some(self.known_in.load(Ordering::Relaxed)).filter(|epoch| *epoch != 0)
    }

    /// Waits until there may be a frame to write. One task calls this.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// The next frame for the client, if there is one: a ping that is due, or the first in the queue. It counts as written:
    /// a `RECEIVED` may prove it from now on.
    pub(crate) fn try_next(self: &Arc<Self>) -> Option<Message> {
        let mut queue = self.queue();
        let more_waits = !queue.frames.is_empty();
        if let Some(ping) = queue.unproven.next_ping(more_waits) {
            self.proof_requests.pings.inc();
            return Some(Message::Ping(bytes::Bytes::copy_from_slice(&ping)));
        }
        let mut frame = queue.pop()?;
        let is_first = frame.to_prove.take().is_some_and(|message| queue.unproven.wrote(message));
        drop(queue);
        if is_first {
            self.proof_requests.register(self);
        }
        self.eased.notify_one();
        Some(frame.message)
    }

    /// Notes a refusal: a client that sends too fast is read more slowly for it.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        if let Refusal::RateLimited { .. } = refusal {
            self.is_too_fast.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a frame was refused for its client's rate since this was asked last.
    pub(crate) fn was_too_fast(&self) -> bool {
        self.is_too_fast.swap(false, Ordering::Relaxed)
    }

    /// Waits until frames in the queue and answers to come take less than half of its places: a client that sends a lot is
    /// read more slowly rather than closed because of the answers to it. One task calls this.
    pub(crate) async fn has_capacity(&self) {
        while self.taken() >= self.limits.frames.div_ceil(2) {
            self.eased.notified().await;
        }
    }

    /// How many places are or will be taken: by queued frames, sends without an answer, answers that wait for others.
    fn taken(&self) -> usize {
        // One lock after the other: in one expression both would be held, and an answer takes them the other way round.
        let frames = self.queue().frames.len();
        let answers = self.sending().waiting_answers();
        frames + self.unanswered.load(Ordering::Relaxed) + answers
    }

    /// Drops the frames of the queue: they will not be read.
    pub(crate) fn give_up(&self) {
        while self.queue().pop().is_some() {}
    }

    /// Ends the session, for the first reason given.
    pub(crate) fn close(&self, reason: Close) {
        if self.closing.set(reason).is_ok() {
            self.stopped.notify_waiters();
        }
    }

    /// Stops reading: the client will send frames from now on again to another gateway.
    pub(crate) fn drain(&self) {
        self.is_drained.store(true, Ordering::Relaxed);
        self.stopped.notify_waiters();
    }

    /// Whether the session is to end.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get().is_some()
    }

    /// Waits until the session is to end; returns the reason.
    pub(crate) async fn closed(&self) -> Close {
        loop {
            let notified = self.stopped.notified();
            if let Some(reason) = self.closing.get() {
                return *reason;
            }
            notified.await;
        }
    }

    /// Waits until no more frames are to be read.
    pub(crate) async fn stopped(&self) {
        loop {
            let notified = self.stopped.notified();
            if self.is_stopped() {
                return;
            }
            notified.await;
        }
    }

    fn is_stopped(&self) -> bool {
        self.is_closing() || self.is_drained.load(Ordering::Relaxed)
    }

    /// Notes a message as sent and not yet answered.
    pub(crate) fn sent(&self, room: &RoomId, name: Option<&ClientMessageId>, id: MessageId) -> Taken {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        self.sending().sent(room, name, id)
    }

    /// Forgets a refused message that its client will not send again.
    pub(crate) fn forget(&self, room: &RoomId, name: &ClientMessageId) {
        self.sending().forget(room, name);
    }

    /// Takes a ticket for the answer to a plain frame.
    pub(crate) fn ticket(&self) -> Ticket {
        self.sending().ticket()
    }

    /// Puts the answer to a frame in the queue, and does not [wake](Self::wake) the session. The answer to a plain frame
    /// waits for those before it.
    pub(crate) fn answer(&self, ticket: Option<Ticket>, text: String) {
        match ticket {
            None => self.put(self.own(text)),
            // Under the lock, so that two tasks that answer at the same time keep the order, too.
            Some(ticket) => self.sending().answer(ticket, text, |text| self.put(self.own(text))),
        }
    }

    /// Notes that a message of this session is being answered; none: with an `ACK`.
    pub(crate) fn answered(&self, id: MessageId, refusal: Option<&Refusal>) {
        self.unanswered.fetch_sub(1, Ordering::Relaxed);
        self.sending().answered(id, refusal);
    }

    /// Notes that this session sent a message again that an earlier session had sent first.
    pub(crate) fn sent_again(&self, id: MessageId) {
        self.sending().sent_again(id);
    }

    /// Whether this session sent a message, first or again, and so its client shows it already.
    pub(crate) fn has_sent(&self, id: MessageId, origin: Option<&SessionId>) -> bool {
        origin == Some(&self.id) || self.sending().has_sent_again(id)
    }

    fn record(&self) -> MutexGuard<'_, (Arc<UserRecord>, u64)> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sending(&self) -> MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl QueueLimits {
    /// For tests that fill a queue with frames.
    pub(crate) fn of_frames(frames: usize) -> Arc<Self> {
        Self::new(frames, 1 << 20, 1024, &Budget::new(1 << 20, Default::default()))
    }
}

#[cfg(test)]
impl Session {
    /// Ada's, with a queue of so many frames.
    pub(crate) fn of_ada(frames: usize, proof_requests: Arc<ProofRequests<Session>>) -> Arc<Self> {
        let identity = Identity {
            user: UserId::new("ada").unwrap(),
            name: "Ada".into(),
            device: None,
            is_service: false,
            issued_at: None,
            expires_at: naru_model::Timestamp::from_millis(0),
        };
        Self::new(identity, Arc::default(), QueueLimits::of_frames(frames), proof_requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Arc<Session> {
        Session::of_ada(2, ProofRequests::by_ping())
    }

    fn drain(session: &Arc<Session>) -> Vec<String> {
        std::iter::from_fn(|| session.try_next()).map(|message| message.to_string()).collect()
    }

    /// An answer locks the answers, then the queue: the code that counts both must hold one lock at a time.
    #[test]
    fn what_counts_the_places_taken_never_waits_for_an_answer_that_waits_for_it() {
        const TIMES: usize = 300_000;
        let (session, (done, ended)) = (session(), std::sync::mpsc::channel());
        let (counting, counted) = (session.clone(), done.clone());
        std::thread::spawn(move || {
            for _ in 0..TIMES {
                std::hint::black_box(counting.taken());
            }
            counted.send(())
        });
        std::thread::spawn(move || {
            for _ in 0..TIMES {
                session.answer(Some(session.ticket()), "done".to_owned());
                session.give_up();
            }
            done.send(())
        });
        for _ in 0..2 {
            ended.recv_timeout(std::time::Duration::from_secs(30)).expect("one waits for the other");
        }
    }

    #[test]
    fn answers_to_plain_frames_keep_the_order_of_the_frames() {
        let session = session();
        let (first, second) = (session.ticket(), session.ticket());
        session.answer(Some(second), "two".to_owned());
        assert!(drain(&session).is_empty(), "an answer must not overtake");
        session.answer(Some(first), "one".to_owned());
        assert_eq!(drain(&session), ["one", "two"]);
        let third = session.ticket();
        session.answer(Some(third), "three".to_owned());
        assert_eq!(drain(&session), ["three"]);
    }

    #[tokio::test]
    async fn a_full_queue_closes_the_session_and_never_waits() {
        let session = session();
        for text in ["one", "two", "three"] {
            session.send(text.to_owned());
        }
        assert_eq!(session.closed().await, Close::SlowConsumer);
    }

    #[test]
    fn the_welcome_comes_first() {
        let session = session();
        session.send("a message that came while presence was told".to_owned());
        session.send_first("WELCOME".to_owned());
        assert_eq!(drain(&session)[0], "WELCOME");
    }

    /// Signals are made one, are dropped where they would fill the queue, and leave it for what must not be dropped.
    #[test]
    fn signals_never_close_a_session() {
        let session = Session::of_ada(8, ProofRequests::by_ping());
        for round in 0..100 {
            assert!(session.send_signal(1, format!("typing {round}").into()));
        }
        for key in 2..100 {
            assert!(!session.send_signal(key, "typing".into()), "a quarter of the queue is for them");
        }
        assert_eq!(drain(&session), ["typing 0", "typing 99"]);
        for key in 0..2 {
            assert!(session.send_signal(key, "typing".into()));
        }
        for number in 0..8 {
            session.send(number.to_string());
        }
        assert!(!session.is_closing());
        assert_eq!(drain(&session), ["0", "1", "2", "3", "4", "5", "6", "7"]);
        assert_eq!(session.queued_bytes(), 0);
    }

    #[test]
    fn a_queue_is_full_by_its_bytes_too() {
        let session = session();
        session.send("x".repeat(2 << 20));
        assert!(!session.is_closing(), "one alone has a place");
        session.send("y".to_owned());
        assert!(session.is_closing());
    }
}
