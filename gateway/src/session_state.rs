//! What a gateway holds of one session: the queue of its frames, and what it has sent and not proven. `session` serves it.
//!
//! A task that writes to a session never waits for it. A session whose queue is full has a client that does not read; it
//! is closed, and the client gets all messages from the store when it connects again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use naru_engines::store::UserRecord;
use naru_model::{ClientMessageId, MessageId, RoomId, Seq, SessionId, UserId};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::proof_requests::ProofRequests;
use crate::refusal::{Close, Refusal};
use crate::room_heads::Epoch;
use crate::sending::{Sending, Taken, Ticket};
use crate::token::Identity;
use crate::unproven::{ToProve, Unproven};

/// An empty queue frees its memory beyond this many places: most sessions are idle most of the time.
const KEPT_PLACES: usize = 4;

pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) identity: Identity,
    /// The epoch of its user's sessions in which it began.
    epoch: u64,
    /// What is kept of its user, as it was when so many changes of records were noted.
    record: Mutex<(Arc<UserRecord>, u64)>,
    queue: Mutex<Queue>,
    /// How many frames the queue holds.
    pub(crate) places: usize,
    filled: Notify,
    /// Sends that are not answered yet: each answer will take a place in the queue.
    unanswered: AtomicUsize,
    /// Notified when a frame has left the queue.
    eased: Notify,
    closing: OnceLock<Close>,
    /// Presence was told of the session.
    is_attached: AtomicBool,
    /// Pings since the last sign of life.
    pings_unanswered: AtomicU32,
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
    /// At most `places` frames that are not written yet.
    frames: VecDeque<Outgoing>,
    unproven: Unproven,
}

/// A frame for the client.
pub(crate) struct Outgoing {
    pub(crate) message: Message,
    /// The message whose receipt the client has to prove.
    to_prove: Option<ToProve>,
    /// Held until the frame is written, for frames that may take only a part of the queue.
    _share: Option<OwnedSemaphorePermit>,
}

impl Outgoing {
    fn text(text: Utf8Bytes) -> Self {
        Self { message: Message::Text(text), to_prove: None, _share: None }
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
    /// A session with a queue of `places` frames; `record` is what its user was admitted by.
    pub(crate) fn new(
        identity: Identity,
        record: Arc<UserRecord>,
        places: usize,
        proof_requests: Arc<ProofRequests<Session>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: SessionId::generate(),
            identity,
            epoch: record.session_epoch,
            record: Mutex::new((record, 0)),
            queue: Mutex::new(Queue {
                frames: VecDeque::new(),
                unproven: Unproven::new(proof_requests.by_ping),
            }),
            places,
            filled: Notify::new(),
            unanswered: AtomicUsize::new(0),
            eased: Notify::new(),
            closing: OnceLock::new(),
            is_attached: AtomicBool::new(false),
            pings_unanswered: AtomicU32::new(0),
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
    pub(crate) fn send(&self, text: impl Into<Utf8Bytes>) {
        self.put(Outgoing::text(text.into()));
        self.wake();
    }

    /// Puts a `CHAT` in the queue; the client may have to prove its receipt.
    pub(crate) fn send_message(&self, text: Utf8Bytes, to_prove: Option<ToProve>) {
        self.put(Outgoing { to_prove, ..Outgoing::text(text) });
        self.wake();
    }

    /// Puts a frame before all others: the `WELCOME`, which live messages must not overtake.
    pub(crate) fn send_first(&self, text: impl Into<Utf8Bytes>) {
        self.queue().frames.push_front(Outgoing::text(text.into()));
        self.wake();
    }

    /// Puts one frame of a long answer in the queue; `share` is given back when the frame is written, and so keeps such
    /// answers from filling the queue.
    pub(crate) fn send_in_turn(&self, text: String, to_prove: Option<ToProve>, share: OwnedSemaphorePermit) {
        self.put(Outgoing { to_prove, _share: Some(share), ..Outgoing::text(text.into()) });
        self.wake();
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
        if queue.frames.len() >= self.places {
            drop(queue);
            return self.close(Close::SlowConsumer);
        }
        queue.frames.push_back(frame);
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
    pub(crate) fn try_next(self: &Arc<Self>) -> Option<Outgoing> {
        let mut queue = self.queue();
        let more_waits = !queue.frames.is_empty();
        if let Some(ping) = queue.unproven.next_ping(more_waits) {
            self.proof_requests.pings.inc();
            let message = Message::Ping(bytes::Bytes::copy_from_slice(&ping));
            return Some(Outgoing { message, to_prove: None, _share: None });
        }
        let mut frame = queue.frames.pop_front()?;
        if queue.frames.is_empty() {
            queue.frames.shrink_to(KEPT_PLACES);
        }
        let is_first = frame.to_prove.take().is_some_and(|message| queue.unproven.wrote(message));
        drop(queue);
        if is_first {
            self.proof_requests.register(self);
        }
        self.eased.notify_one();
        Some(frame)
    }

    /// Waits until frames in the queue and answers to come take less than half of its places: a client that sends a lot is
    /// read more slowly rather than closed because of the answers to it. One task calls this.
    pub(crate) async fn has_capacity(&self) {
        while self.taken() >= self.places.div_ceil(2) {
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

    /// Drops the frames of the queue: they will not be read. An answer that waits for its share of the queue goes on.
    pub(crate) fn give_up(&self) {
        self.queue().frames.clear();
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
            if self.is_closing() || self.is_drained.load(Ordering::Relaxed) {
                return;
            }
            notified.await;
        }
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
    pub(crate) fn answer(&self, ticket: Option<Ticket>, text: impl Into<Utf8Bytes>) {
        match ticket {
            None => self.put(Outgoing::text(text.into())),
            // Under the lock, so that two tasks that answer at the same time keep the order, too.
            Some(ticket) => self.sending().answer(ticket, text.into(), |text| self.put(Outgoing::text(text))),
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
mod tests {
    use naru_model::Timestamp;

    use super::*;

    fn session() -> Arc<Session> {
        let user = UserId::new("ada").unwrap();
        let expires_at = Timestamp::from_millis(0);
        let identity = Identity {
            name: "Ada".into(),
            user,
            device: None,
            is_service: false,
            issued_at: None,
            expires_at,
        };
        Session::new(identity, Arc::default(), 2, ProofRequests::by_ping())
    }

    fn drain(session: &Arc<Session>) -> Vec<String> {
        std::iter::from_fn(|| session.try_next()).map(|out| out.message.to_string()).collect()
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
                session.answer(Some(session.ticket()), "done");
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
        session.answer(Some(second), "two");
        assert!(drain(&session).is_empty(), "an answer must not overtake");
        session.answer(Some(first), "one");
        assert_eq!(drain(&session), ["one", "two"]);
        let third = session.ticket();
        session.answer(Some(third), "three");
        assert_eq!(drain(&session), ["three"]);
    }

    #[tokio::test]
    async fn a_full_queue_closes_the_session_and_never_waits() {
        let session = session();
        for text in ["one", "two", "three"] {
            session.send(text);
        }
        assert_eq!(session.closed().await, Close::SlowConsumer);
    }

    #[test]
    fn the_welcome_comes_first() {
        let session = session();
        session.send("a message that came while presence was told");
        session.send_first("WELCOME");
        assert_eq!(drain(&session)[0], "WELCOME");
    }
}
