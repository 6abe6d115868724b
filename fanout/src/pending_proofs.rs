//! Published messages that wait for proofs, and what is to be written when they need none any more: plain data.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use naru_engines::store::Closing;
use naru_model::message::Outcome;
use naru_model::{Message, RoomId, Trace, UserId};
use tokio::time::Instant;

/// The cost of a waiting message beside its content.
pub(crate) const BYTES_EACH: usize = 300;

/// A published message, and the recipients who have not proven to have it.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) message: Message,
    pub(crate) trace: Trace,
    /// Empty: every recipient is accounted for.
    pub(crate) unproven: Vec<UserId>,
    /// Its share of the budget, however many recipients have proven to have it since.
    pub(crate) bytes: usize,
}

impl Published {
    pub(crate) fn new(message: Message, trace: Trace, unproven: Vec<UserId>) -> Self {
        let bytes = BYTES_EACH + message.content.len() + size_of_val(&*unproven);
        Self { message, trace, unproven, bytes }
    }
}

/// Waiting messages, in the order in which they were taken over: all wait equally long.
pub(crate) type Waiting = VecDeque<(Instant, Published)>;

/// Takes the messages of at least this age.
pub(crate) fn due(waiting: &mut Waiting, now: Instant, age: Duration) -> Waiting {
    let count = waiting.partition_point(|(at, _)| now.duration_since(*at) >= age);
    waiting.drain(..count).collect()
}

/// All published messages whose entries are open.
#[derive(Default)]
pub(crate) struct PendingProofs {
    /// Messages whose proofs were not asked for yet.
    pub(crate) before_first_check: Waiting,
    /// Messages whose proofs were asked for once.
    pub(crate) until_grace_end: Waiting,
    /// Of the messages that wait for proofs.
    pub(crate) bytes: usize,
    /// The finished entries that are not closed, those in [`Writes`] included.
    pub(crate) unclosed: usize,
    /// Finished entries, to be closed, the oldest first.
    closings: Vec<Closing>,
    /// The newest message of each room that is to be moved up in lists.
    newest: HashMap<RoomId, Message>,
}

/// What is written for many messages at once.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    /// The newest messages of rooms that are to be moved up in lists.
    pub(crate) newest: Vec<Message>,
    /// Finished entries, to be closed, the oldest first.
    pub(crate) closings: Vec<Closing>,
}

impl PendingProofs {
    pub(crate) fn add(&mut self, published: Published, now: Instant) {
        self.move_up(&published.message);
        if published.unproven.is_empty() {
            self.close(&published);
        } else {
            self.bytes += published.bytes;
            self.before_first_check.push_back((now, published));
        }
    }

    fn move_up(&mut self, message: &Message) {
        match self.newest.get_mut(&message.chat_room_id) {
            Some(newest) if newest.seq >= message.seq => {}
            Some(newest) => *newest = message.clone(),
            None => drop(self.newest.insert(message.chat_room_id.clone(), message.clone())),
        }
    }

    pub(crate) fn close(&mut self, Published { message: Message { id, seq, .. }, .. }: &Published) {
        self.closings.push(Closing { id: *id, outcome: Outcome::Saved { seq: *seq } });
        self.unclosed += 1;
    }

    pub(crate) fn take_writes(&mut self) -> Writes {
        let newest = std::mem::take(&mut self.newest).into_values().collect();
        Writes { newest, closings: std::mem::take(&mut self.closings) }
    }

    /// The writes that were taken have ended; what is left of them is to be repeated.
    pub(crate) fn written(&mut self, left: Writes) {
        left.newest.iter().for_each(|message| self.move_up(message));
        self.closings.splice(..0, left.closings);
        self.unclosed = self.closings.len();
    }

    pub(crate) fn has_writes(&self) -> bool {
        !(self.closings.is_empty() && self.newest.is_empty())
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !(self.before_first_check.is_empty() && self.until_grace_end.is_empty())
    }

    /// How many messages wait for proofs.
    pub(crate) fn count(&self) -> i64 {
        i64::try_from(self.before_first_check.len() + self.until_grace_end.len()).unwrap_or(i64::MAX)
    }
}
