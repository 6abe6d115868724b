//! A session's state of the messages it sends: which one the next of a room comes after, in which order answers go out,
//! and which ones it sent again. Pure.

use std::collections::VecDeque;

use naru_model::{MessageId, RoomId};

/// A session remembers this many of its resends, and does not get their `CHAT`.
const MAX_RESENDS: usize = 32;
/// An empty list frees its memory beyond this many places: most sessions send little.
const KEPT_PLACES: usize = 4;

/// See the module.
#[derive(Default)]
pub(crate) struct Sending {
    /// The last message per room that is not yet answered: the next one comes after it. Few at a time.
    unanswered: Vec<(RoomId, MessageId)>,
    /// The answers to plain frames, in the order the frames came; the first is the one of ticket `first`.
    answers: VecDeque<Option<String>>,
    first: u64,
    /// Messages that this session sent again: its client shows them already.
    resent: VecDeque<MessageId>,
}

/// The place of an answer among the answers to plain frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Sending {
    /// Notes a message as sent and not yet answered; returns the unanswered one before it in its room.
    pub(crate) fn sent(&mut self, room: &RoomId, id: MessageId) -> Option<MessageId> {
        match self.unanswered.iter_mut().find(|(other, _)| other == room) {
            Some((_, last)) => Some(std::mem::replace(last, id)),
            None => {
                self.unanswered.push((room.clone(), id));
                None
            }
        }
    }

    /// Notes that a message is being answered.
    pub(crate) fn answered(&mut self, id: MessageId) {
        self.unanswered.retain(|(_, last)| *last != id);
        if self.unanswered.is_empty() {
            self.unanswered.shrink_to(KEPT_PLACES);
        }
    }

    /// A ticket for the answer to a plain frame.
    pub(crate) fn ticket(&mut self) -> Ticket {
        self.answers.push_back(None);
        Ticket(self.first + self.answers.len() as u64 - 1)
    }

    /// Takes the answer to a plain frame: it goes out after all before it, and with it the answers that waited for it.
    pub(crate) fn answer(&mut self, ticket: Ticket, text: String, put: impl Fn(String)) {
        let place = ticket.0.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        let Some(answer) = place.and_then(|place| self.answers.get_mut(place)) else { return };
        *answer = Some(text);
        while let Some(Some(_)) = self.answers.front() {
            self.first += 1;
            self.answers.pop_front().flatten().into_iter().for_each(&put);
        }
    }

    /// How many answers to plain frames wait for another one, or have not come yet.
    pub(crate) fn waiting_answers(&self) -> usize {
        self.answers.len()
    }

    /// Notes that the session sent a message again that an earlier session had sent first.
    pub(crate) fn sent_again(&mut self, id: MessageId) {
        if self.resent.len() == MAX_RESENDS {
            self.resent.pop_front();
        }
        self.resent.push_back(id);
    }

    pub(crate) fn has_sent_again(&self, id: MessageId) -> bool {
        self.resent.contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_follows_the_last_unanswered_one_of_its_room() {
        let (mut sending, room) = (Sending::default(), RoomId::new("r").unwrap());
        let [one, two, three] = [1, 2, 3].map(|byte| MessageId::from_bytes([byte; 12]));
        assert_eq!(sending.sent(&room, one), None);
        assert_eq!(sending.sent(&room, two), Some(one));
        sending.answered(one);
        sending.answered(two);
        assert_eq!(sending.sent(&room, three), None);
    }
}
