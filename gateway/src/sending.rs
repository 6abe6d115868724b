//! A session's state of the messages it sends: which one the next of a room comes after, which refused ones hold back
//! those after them, in which order answers go out, and which ones it sent again. Pure.

use std::collections::VecDeque;

use naru_model::{ClientMessageId, MessageId, RoomId};

use crate::refusal::Refusal;

/// A session remembers this many of its resends, and does not get their `CHAT`.
const MAX_RESENDS: usize = 32;
/// This many refused messages of one session hold back others. One that is refused beyond holds nothing back.
const MAX_REFUSED: usize = 256;
/// An empty list frees its memory beyond this many places: most sessions send little.
const KEPT_PLACES: usize = 4;

#[derive(Default)]
pub(crate) struct Sending {
    /// The messages without an `ACK`, in the order in which they were first sent. Few at a time.
    sent: Vec<Sent>,
    /// The answers to plain frames, in the order the frames came; the first is the one of ticket `first`.
    answers: VecDeque<Option<String>>,
    first: u64,
    /// Messages that this session sent again: its client shows them already.
    resent: VecDeque<MessageId>,
}

/// A message that is not answered yet, or was refused and can be sent again.
struct Sent {
    room: RoomId,
    /// The client's own name for it. Without one it can't be sent again, and holds back nothing.
    name: Option<ClientMessageId>,
    id: MessageId,
    /// Set while it waits to be sent again. Messages after it in its room are refused like it.
    refused: Option<Refusal>,
}

impl Sent {
    fn waits_as(&self, room: &RoomId, name: &ClientMessageId) -> bool {
        self.refused.is_some() && self.name.as_ref() == Some(name) && self.room == *room
    }
}

/// What a session knows of a message that it has just sent.
pub(crate) struct Taken {
    /// The unanswered message before it in its room.
    pub(crate) after: Option<MessageId>,
    /// The refusal of a message before it in its room, which was not sent again.
    pub(crate) held_by: Option<Refusal>,
}

/// The place of an answer among the answers to plain frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Sending {
    /// Notes a message as sent and not yet answered. One that was refused keeps its place in the order.
    pub(crate) fn sent(&mut self, room: &RoomId, name: Option<&ClientMessageId>, id: MessageId) -> Taken {
        let own = name.and_then(|name| self.sent.iter().position(|sent| sent.waits_as(room, name)));
        let before = self.sent.iter().take(own.unwrap_or(self.sent.len())).filter(|sent| sent.room == *room);
        let held_by = before.clone().find_map(|sent| sent.refused.clone());
        let after = before.rev().find(|sent| sent.refused.is_none()).map(|sent| sent.id);
        match own.and_then(|place| self.sent.get_mut(place)) {
            Some(own) => (own.id, own.refused) = (id, None),
            None => self.sent.push(Sent { room: room.clone(), name: name.cloned(), id, refused: None }),
        }
        Taken { after, held_by }
    }

    /// Notes that a message is being answered. One that was refused, and can be sent again, holds back those after it.
    pub(crate) fn answered(&mut self, id: MessageId, refusal: Option<&Refusal>) {
        let Some(place) = self.sent.iter().position(|sent| sent.id == id) else { return };
        let Sent { room, name, .. } = self.sent.remove(place);
        if let Some(name) = &name {
            let is_held = |sent: &Sent| sent.waits_as(&room, name);
            match refusal.filter(|refusal| refusal.holds_back()) {
                None => self.forget(&room, name),
                Some(refusal) if !self.sent.iter().any(is_held) && self.refused_count() < MAX_REFUSED => {
                    let refused = Some(refusal.clone());
                    self.sent.insert(place, Sent { room, name: Some(name.clone()), id, refused });
                }
                Some(_) => {}
            }
        }
        self.free();
    }

    /// Forgets a refused message: it holds back no other one any more.
    pub(crate) fn forget(&mut self, room: &RoomId, name: &ClientMessageId) {
        self.sent.retain(|sent| !sent.waits_as(room, name));
        self.free();
    }

    fn refused_count(&self) -> usize {
        self.sent.iter().filter(|sent| sent.refused.is_some()).count()
    }

    fn free(&mut self) {
        if self.sent.is_empty() {
            self.sent.shrink_to(KEPT_PLACES);
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
    use std::time::Duration;

    use super::*;

    const TOO_FAST: Refusal = Refusal::RateLimited { retry_after: Duration::from_millis(250) };

    fn id(number: u8) -> MessageId {
        MessageId::from_bytes([number; 12])
    }

    fn name(number: u8) -> ClientMessageId {
        ClientMessageId::new(format!("m-{number}")).unwrap()
    }

    fn room(name: &str) -> RoomId {
        RoomId::new(name).unwrap()
    }

    /// Sends a message: the one it comes after, and whether it is refused because of another one.
    fn send(sending: &mut Sending, in_room: &str, number: u8) -> (Option<u8>, bool) {
        let taken = sending.sent(&room(in_room), Some(&name(number)), id(number));
        if let Some(refusal) = &taken.held_by {
            assert_eq!(*refusal, TOO_FAST, "the same refusal");
            sending.answered(id(number), Some(refusal));
        }
        (taken.after.map(|after| after.bytes()[0]), taken.held_by.is_some())
    }

    #[test]
    fn a_message_follows_the_last_unanswered_one_of_its_room() {
        let mut sending = Sending::default();
        assert_eq!(send(&mut sending, "r", 1), (None, false));
        assert_eq!(send(&mut sending, "r", 2), (Some(1), false));
        assert_eq!(send(&mut sending, "other", 9), (None, false));
        assert_eq!(send(&mut sending, "r", 3), (Some(2), false));
        sending.answered(id(3), Some(&Refusal::Conflict("")));
        assert_eq!(send(&mut sending, "r", 4), (Some(2), false), "what is in flight goes before it");
        [1, 2, 4].iter().for_each(|number| sending.answered(id(*number), None));
        assert_eq!(send(&mut sending, "r", 5), (None, false));
    }

    #[test]
    fn a_refused_message_holds_back_those_after_it_until_it_was_sent_again() {
        let mut sending = Sending::default();
        send(&mut sending, "r", 1);
        send(&mut sending, "r", 2);
        sending.answered(id(2), Some(&TOO_FAST));
        assert_eq!(send(&mut sending, "r", 3), (Some(1), true));
        assert_eq!(send(&mut sending, "other", 9), (None, false), "of its room only");
        // Three was refused after two: it waits for two.
        assert_eq!(send(&mut sending, "r", 3), (Some(1), true));
        assert_eq!(send(&mut sending, "r", 2), (Some(1), false));
        assert_eq!(send(&mut sending, "r", 4), (Some(2), true), "three was sent before it");
        assert_eq!(send(&mut sending, "r", 3), (Some(2), false));
        assert_eq!(send(&mut sending, "r", 4), (Some(3), false));
    }

    #[test]
    fn a_message_whose_fate_is_unknown_goes_before_one_that_was_refused_sooner() {
        let mut sending = Sending::default();
        send(&mut sending, "r", 1);
        send(&mut sending, "r", 2);
        sending.answered(id(2), Some(&TOO_FAST));
        sending.answered(id(1), Some(&TOO_FAST));
        assert_eq!(send(&mut sending, "r", 2), (None, true));
        assert_eq!(send(&mut sending, "r", 1), (None, false));
        assert_eq!(send(&mut sending, "r", 2), (Some(1), false));
    }

    #[test]
    fn what_is_dropped_or_refused_for_good_holds_back_nothing() {
        let mut sending = Sending::default();
        for number in 1..=3 {
            send(&mut sending, "r", number);
            sending.answered(id(number), Some(&TOO_FAST));
        }
        sending.forget(&room("r"), &name(1));
        send(&mut sending, "r", 2);
        sending.answered(id(2), Some(&Refusal::RoomNotFound));
        assert_eq!(send(&mut sending, "r", 3), (None, false));
        let plain = sending.sent(&room("r"), None, id(8));
        assert_eq!(plain.after, Some(id(3)));
        sending.answered(id(8), Some(&TOO_FAST));
        assert_eq!(send(&mut sending, "r", 4), (Some(3), false), "without a name it can't be sent again");
    }

    #[test]
    fn a_message_whose_fate_is_unknown_holds_back_nothing() {
        let mut sending = Sending::default();
        send(&mut sending, "r", 1);
        sending.answered(id(1), Some(&Refusal::Unavailable));
        assert_eq!(send(&mut sending, "r", 2), (None, false));
    }

    #[test]
    fn the_memory_is_bounded() {
        let (mut sending, room) = (Sending::default(), room("r"));
        for number in 0..2 * MAX_REFUSED {
            let (id, name) = (MessageId::generate(), ClientMessageId::new(format!("m-{number}")).unwrap());
            sending.sent(&room, Some(&name), id);
            sending.answered(id, Some(&TOO_FAST));
        }
        assert_eq!(sending.sent.len(), MAX_REFUSED);
    }
}
