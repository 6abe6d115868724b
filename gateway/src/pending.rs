//! Who waits for an answer about which message, and for how long. Bounded: a gateway takes no more messages than it can
//! answer for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use naru_model::frame::{Ack, ServerFrame};
use naru_model::message::{Accepted, Outcome};
use naru_model::{ClientMessageId, MessageId, RoomId, Seq, Timestamp};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::refusal::{Refusal, to_text};
use crate::sessions::{Session, Ticket};

/// A confirmation that has not come by then is looked up in the store …
const LOOK_AFTER: Duration = Duration::from_millis(500);
/// … and again after twice as long, up to this.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_secs(4);
/// After this the sender is told that the message's fate is unknown. Its client will have said so long before.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

/// The right to have one message in hand; given back when it is dropped.
pub(crate) struct Permit(Arc<Pending>);

impl Drop for Permit {
    fn drop(&mut self) {
        if self.0.in_hand.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.emptied.notify_waiters();
        }
    }
}

/// Who is to be answered about one message.
pub(crate) struct Waiter {
    pub(crate) asker: Asker,
    pub(crate) client_message_id: ClientMessageId,
    pub(crate) chat_room_id: RoomId,
    /// The id under which the asker's session counts it as unanswered.
    pub(crate) sent_as: MessageId,
    pub(crate) _permit: Permit,
}

pub(crate) enum Asker {
    Session { session: Arc<Session>, ticket: Option<Ticket> },
    Http(oneshot::Sender<Result<Ack, Refusal>>),
}

impl Waiter {
    /// Tells the sender that the message is saved.
    pub(crate) fn confirm(self, id: MessageId, seq: Seq, timestamp: Timestamp) {
        let Self { client_message_id, chat_room_id, .. } = &self;
        let ack = Ack {
            client_message_id: client_message_id.clone(),
            id,
            chat_room_id: chat_room_id.clone(),
            seq,
            timestamp,
        };
        match self.asker {
            Asker::Session { session, ticket } => {
                session.answered(&self.chat_room_id, self.sent_as);
                session.answer(ticket, to_text(&ServerFrame::Ack(&ack)));
            }
            // Whoever asked may have gone.
            Asker::Http(answer) => drop(answer.send(Ok(ack))),
        }
    }

    /// Tells the sender that the message was not accepted, or that its fate is unknown.
    pub(crate) fn refuse(self, refusal: Refusal) {
        match self.asker {
            Asker::Session { session, ticket } => {
                session.answered(&self.chat_room_id, self.sent_as);
                session.answer(ticket, refusal.frame(Some(&self.client_message_id)));
            }
            Asker::Http(answer) => drop(answer.send(Err(refusal))),
        }
    }

    /// Tells the sender how the message ended.
    pub(crate) fn settle(self, id: MessageId, outcome: Outcome, timestamp: Timestamp) {
        match outcome {
            Outcome::Saved { seq } => self.confirm(id, seq, timestamp),
            Outcome::Rejected { reason } => self.refuse(reason.into()),
        }
    }
}

struct Waiting {
    waiters: Vec<Waiter>,
    timestamp: Timestamp,
    since: Instant,
    look_at: Instant,
}

/// The table.
pub(crate) struct Pending {
    most: usize,
    in_hand: AtomicUsize,
    waiting: Mutex<HashMap<MessageId, Waiting>>,
    emptied: Notify,
}

impl Pending {
    /// A table of at most `most` messages.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        let (in_hand, waiting, emptied) = (AtomicUsize::new(0), Mutex::default(), Notify::new());
        Arc::new(Self { most, in_hand, waiting, emptied })
    }

    /// The right to take one more message.
    ///
    /// # Errors
    /// `OVERLOADED` when too many are in hand.
    pub(crate) fn admit(self: &Arc<Self>) -> Result<Permit, Refusal> {
        let others = self.in_hand.fetch_add(1, Ordering::Relaxed);
        let permit = Permit(self.clone());
        if others < self.most { Ok(permit) } else { Err(Refusal::Overloaded) }
    }

    /// How many messages are in hand: taken and not yet answered.
    pub(crate) fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed)
    }

    /// Waits for the outcome of a message. Must be said before the message is handed on.
    pub(crate) fn wait(&self, id: MessageId, timestamp: Timestamp, waiter: Waiter) {
        let now = Instant::now();
        let fresh = || Waiting { waiters: Vec::new(), timestamp, since: now, look_at: now + LOOK_AFTER };
        self.waiting().entry(id).or_insert_with(fresh).waiters.push(waiter);
    }

    /// A message has ended: answers all who wait for it.
    pub(crate) fn settle(&self, id: MessageId, outcome: Outcome) {
        let ended = self.waiting().remove(&id);
        if let Some(Waiting { waiters, timestamp, .. }) = ended {
            waiters.into_iter().for_each(|waiter| waiter.settle(id, outcome, timestamp));
        }
    }

    /// The messages whose confirmation is overdue, each at growing intervals. Those who have waited too long are told
    /// that the fate of their message is unknown.
    pub(crate) fn overdue(&self) -> Vec<MessageId> {
        let now = Instant::now();
        let mut overdue = Vec::new();
        let given_up: Vec<_> = {
            let mut waiting = self.waiting();
            for (id, entry) in waiting.iter_mut().filter(|(_, entry)| entry.look_at <= now) {
                entry.look_at = now + now.duration_since(entry.since).clamp(LOOK_AFTER, LOOK_AT_MOST_EVERY);
                overdue.push(*id);
            }
            waiting.extract_if(|_, entry| now.duration_since(entry.since) >= GIVE_UP_AFTER).collect()
        };
        for waiter in given_up.into_iter().flat_map(|(_, entry)| entry.waiters) {
            waiter.refuse(Refusal::Unavailable);
        }
        overdue
    }

    /// Waits until no message is in hand.
    pub(crate) async fn emptied(&self) {
        loop {
            let notified = self.emptied.notified();
            if self.in_hand() == 0 {
                return;
            }
            notified.await;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<MessageId, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is needed to answer about an accepted message.
pub(crate) fn waiter(accepted: &Accepted, asker: Asker, permit: Permit) -> Waiter {
    Waiter {
        asker,
        client_message_id: accepted.client_message_id.clone(),
        chat_room_id: accepted.chat_room_id.clone(),
        sent_as: accepted.id,
        _permit: permit,
    }
}
