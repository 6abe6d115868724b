//! The messages in flight: the waiters for their answers, and since when. Bounded: a gateway takes no more messages than it
//! can answer. The next one waits for a place, so that a crowd of senders is slowed to what the way through the store takes;
//! to refuse all that is too much would take the time that the messages in flight need.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use naru_model::frame::{Ack, ServerFrame};
use naru_model::live::Confirmation;
use naru_model::message::{Accepted, Outcome};
use naru_model::{ClientMessageId, MessageId, RoomId, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout};

use crate::refusal::{Refusal, to_text};
use crate::sending::Ticket;
use crate::session_state::{Session, Wake};

/// A confirmation that has not come by then is looked up in the store …
const CHECK_AFTER: Duration = Duration::from_millis(500);
/// … and again after twice as long, up to this.
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(4);
/// How many are looked up at a time. Where more are overdue the store is slow, and must not get more load from it.
const MAX_LOOKED_UP: usize = 256;
/// After this the sender is answered that the message's fate is unknown. Its client has given up long before.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a message may wait for a place, and how long places may be short before some are refused that would have to wait …
const PLACE_TIMEOUT: Duration = Duration::from_secs(1);
/// … the next one after this divided by the square root of how many were: ever more while the shortage lasts, as CoDel drops
/// packets (RFC 8289). A refusal holds back its session's next messages, so at some number the others find places.
const REFUSAL_INTERVAL: Duration = Duration::from_millis(25);
/// A shortage of places is over when no message has found none for so long …
const SHORTAGE_END: Duration = Duration::from_millis(250);
/// … and the next one begins with half of the refusals that it ended with, and at once, unless it comes later than this: where
/// senders go on as before, each new shortage would fill the sockets again.
const SHORTAGE_FORGOTTEN: Duration = Duration::from_secs(10);

/// A time in which messages find no place at once.
#[derive(Clone, Copy)]
struct Shortage {
    /// When a message found none last.
    last: Instant,
    /// How many messages were refused.
    refused: u32,
    /// When the next one is.
    refuse_at: Instant,
}

/// The right to have one message in flight; released when it is dropped.
pub(crate) struct Permit {
    _place: OwnedSemaphorePermit,
}

/// A sender that is to be answered about one message.
pub(crate) struct Waiter {
    pub(crate) asker: Asker,
    pub(crate) client_message_id: ClientMessageId,
    pub(crate) chat_room_id: RoomId,
    /// The id under which the asker's session counts the message as unanswered.
    pub(crate) sent_as: MessageId,
    pub(crate) _permit: Permit,
}

pub(crate) enum Asker {
    Session { session: Arc<Session>, ticket: Option<Ticket> },
    Http(oneshot::Sender<Result<Ack, Refusal>>),
}

impl Waiter {
    /// Answers the sender with the outcome. A session writes the answer once the returned `Wake` is dropped: so answers of
    /// one group are written together.
    pub(crate) fn resolve(self, id: MessageId, outcome: Outcome, timestamp: Timestamp) -> Option<Wake> {
        let seq = match outcome {
            Outcome::Saved { seq } => seq,
            Outcome::Rejected { reason } => return self.refuse(reason.into()),
        };
        let Self { asker, client_message_id, chat_room_id, sent_as, _permit } = self;
        let ack = Ack { client_message_id, id, chat_room_id, seq, timestamp };
        match asker {
            Asker::Session { session, ticket } => {
                session.answered(sent_as, None);
                session.answer(ticket, to_text(&ServerFrame::Ack(&ack)));
                Some(Wake(session))
            }
            Asker::Http(answer) => {
                // The client may have disconnected.
                let _ = answer.send(Ok(ack));
                None
            }
        }
    }

    /// Answers the sender that the message was not accepted, or that its fate is unknown.
    pub(crate) fn refuse(self, refusal: Refusal) -> Option<Wake> {
        match self.asker {
            Asker::Session { session, ticket } => {
                session.answered(self.sent_as, Some(&refusal));
                session.answer(ticket, refusal.frame(Some(&self.client_message_id)));
                Some(Wake(session))
            }
            Asker::Http(answer) => {
                let _ = answer.send(Err(refusal));
                None
            }
        }
    }
}

struct Waiting {
    first: Waiter,
    /// The senders of its resends.
    others: Vec<Waiter>,
    timestamp: Timestamp,
    since: Instant,
    check_at: Instant,
}

impl Waiting {
    fn waiters(self) -> impl Iterator<Item = Waiter> {
        std::iter::once(self.first).chain(self.others)
    }
}

pub(crate) struct Pending {
    max: u32,
    /// The places of messages.
    messages: Arc<Semaphore>,
    /// As many again, of messages that would be refused, while it is looked up whether they are resends.
    look_ups: Arc<Semaphore>,
    shortage: Mutex<Option<Shortage>>,
    waiting: Mutex<HashMap<MessageId, Waiting>>,
}

impl Pending {
    /// A table of at most `max` messages.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let places = || Arc::new(Semaphore::new((max as usize).min(Semaphore::MAX_PERMITS)));
        let (messages, look_ups) = (places(), places());
        Arc::new(Self { max, messages, look_ups, shortage: Mutex::default(), waiting: Mutex::default() })
    }

    /// The right to take one more message, in the order in which it was asked for.
    ///
    /// # Errors
    /// `OVERLOADED` when there is no place within a second; at once for some, when places have been short for longer.
    pub(crate) async fn admit(&self) -> Result<Permit, Refusal> {
        if let Ok(_place) = self.messages.clone().try_acquire_owned() {
            return Ok(Permit { _place });
        }
        if self.is_refused() {
            return Err(Refusal::Overloaded);
        }
        // Boxed, because every connection would keep memory for a wait that hardly any message has.
        match timeout(PLACE_TIMEOUT, self.messages.clone().acquire_owned()).boxed().await {
            Ok(Ok(_place)) => Ok(Permit { _place }),
            _ => Err(Refusal::Overloaded),
        }
    }

    /// Whether a message that finds no place is refused at once.
    fn is_refused(&self) -> bool {
        let now = Instant::now();
        let mut shortage = self.shortage.lock().unwrap_or_else(PoisonError::into_inner);
        let next = match *shortage {
            Some(Shortage { last, refused, refuse_at }) if now - last < SHORTAGE_END => {
                Shortage { last: now, refused, refuse_at }
            }
            Some(Shortage { last, refused, .. }) if refused > 0 && now - last < SHORTAGE_FORGOTTEN => {
                Shortage { last: now, refused: refused / 2, refuse_at: now }
            }
            _ => Shortage { last: now, refused: 0, refuse_at: now + PLACE_TIMEOUT },
        };
        let shortage = shortage.insert(next);
        let is_refused = now >= shortage.refuse_at;
        if is_refused {
            shortage.refused += 1;
            shortage.refuse_at = now + REFUSAL_INTERVAL.div_f64(f64::from(shortage.refused).sqrt());
        }
        is_refused
    }

    /// The right to look up whether a message that would be refused is a resend.
    ///
    /// # Errors
    /// `UNAVAILABLE` when there are too many: it may be a resend of a message that was taken.
    pub(crate) fn admit_look_up(&self) -> Result<Permit, Refusal> {
        let _place = self.look_ups.clone().try_acquire_owned().map_err(|_| Refusal::Unavailable)?;
        Ok(Permit { _place })
    }

    /// How many messages are in flight: taken and not yet answered.
    pub(crate) fn in_flight(&self) -> usize {
        let places = [&self.messages, &self.look_ups];
        places.iter().map(|places| (self.max as usize).saturating_sub(places.available_permits())).sum()
    }

    /// Registers a waiter for the outcome of a message. Must be called before the message is enqueued.
    pub(crate) fn wait(&self, id: MessageId, timestamp: Timestamp, waiter: Waiter) {
        let now = Instant::now();
        match self.waiting().entry(id) {
            Entry::Occupied(entry) => entry.into_mut().others.push(waiter),
            Entry::Vacant(entry) => {
                let check_at = now + CHECK_AFTER;
                entry.insert(Waiting { first: waiter, others: Vec::new(), timestamp, since: now, check_at });
            }
        }
    }

    /// Answers all waiters of messages that have ended.
    pub(crate) fn resolve(&self, confirmations: &[Confirmation]) {
        let mut waiting = self.waiting();
        let ended = confirmations.iter().filter_map(|ended| Some((ended, waiting.remove(&ended.id)?)));
        let ended: Vec<_> = ended.collect();
        drop(waiting);
        let answers = ended.into_iter().flat_map(|(&Confirmation { id, outcome }, waiting)| {
            let timestamp = waiting.timestamp;
            waiting.waiters().map(move |waiter| waiter.resolve(id, outcome, timestamp))
        });
        // Sessions are woken when all waiters are answered.
        let _answers: Vec<Option<Wake>> = answers.collect();
    }

    /// Messages whose confirmation is overdue, each at growing intervals; of many, some. Senders that have waited too long
    /// are answered that the fate of their message is unknown.
    pub(crate) fn overdue(&self) -> Vec<MessageId> {
        let now = Instant::now();
        let mut overdue = Vec::new();
        let given_up: Vec<_> = {
            let mut waiting = self.waiting();
            let due = waiting.iter_mut().filter(|(_, entry)| entry.check_at <= now);
            for (id, entry) in due.take(MAX_LOOKED_UP) {
                entry.check_at = now + now.duration_since(entry.since).clamp(CHECK_AFTER, MAX_CHECK_INTERVAL);
                overdue.push(*id);
            }
            waiting.extract_if(|_, entry| now.duration_since(entry.since) >= ANSWER_TIMEOUT).collect()
        };
        for waiter in given_up.into_iter().flat_map(|(_, entry)| entry.waiters()) {
            waiter.refuse(Refusal::Unavailable);
        }
        overdue
    }

    /// Waits until no message is in flight. Messages that wait for a place then come first.
    pub(crate) async fn emptied(&self) {
        for places in [&self.messages, &self.look_ups] {
            let _all = places.acquire_many(self.max).await;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<MessageId, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The waiter for the answer to an accepted message.
pub(crate) fn waiter(accepted: &Accepted, asker: Asker, permit: Permit) -> Waiter {
    Waiter {
        asker,
        client_message_id: accepted.client_message_id.clone(),
        chat_room_id: accepted.chat_room_id.clone(),
        sent_as: accepted.id,
        _permit: permit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_message_waits_for_a_place_in_its_turn_and_is_refused_in_time() {
        let pending = Pending::new(2);
        let places = [pending.admit().await.unwrap(), pending.admit().await.unwrap()];
        assert_eq!(pending.in_flight(), 2);
        let (mut third, mut fourth) = (Box::pin(pending.admit()), Box::pin(pending.admit()));
        assert!(third.as_mut().now_or_never().is_none() && fourth.as_mut().now_or_never().is_none());
        let [one, other] = places;
        drop(one);
        assert!(fourth.as_mut().now_or_never().is_none(), "the other one came first");
        let third = third.now_or_never().unwrap().unwrap();
        assert_eq!(fourth.await.err(), Some(Refusal::Overloaded), "within a second");
        assert!(pending.emptied().now_or_never().is_none());
        drop((other, third));
        pending.emptied().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_longer_a_shortage_lasts_the_more_messages_are_refused_at_once() {
        let pending = Pending::new(1);
        let place = pending.admit().await.unwrap();
        let refused_within = async |span: Duration| {
            let end = Instant::now() + span;
            let mut refused = 0;
            while Instant::now() < end {
                // Without a place it waits, or is refused at once.
                refused += usize::from(Box::pin(pending.admit()).as_mut().now_or_never().is_some());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            refused
        };
        assert_eq!(refused_within(PLACE_TIMEOUT).await, 0);
        let [first, second] = [refused_within(PLACE_TIMEOUT).await, refused_within(PLACE_TIMEOUT).await];
        // 400 in the first second, and 1,600 in two, had they been tried that often.
        assert!((300..=450).contains(&first) && second > first, "{first}, {second}");
        tokio::time::sleep(SHORTAGE_END).await;
        assert!(refused_within(Duration::from_millis(100)).await > 10, "it has hardly been over");
        tokio::time::sleep(SHORTAGE_FORGOTTEN).await;
        assert_eq!(refused_within(PLACE_TIMEOUT).await, 0, "it was over");
        drop(place);
    }

    #[tokio::test]
    async fn look_ups_take_no_place_of_a_message() {
        let pending = Pending::new(1);
        let look_up = pending.admit_look_up().unwrap();
        assert_eq!(pending.admit_look_up().err(), Some(Refusal::Unavailable));
        let place = pending.admit().await.unwrap();
        assert_eq!(pending.in_flight(), 2);
        assert!(pending.emptied().now_or_never().is_none());
        drop(place);
        assert!(pending.emptied().now_or_never().is_none());
        drop(look_up);
        pending.emptied().await;
    }
}
