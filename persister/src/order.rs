//! A batch is saved in the order it came in, but no message before the one it comes `after`.

use std::collections::{HashMap, HashSet};

use naru_model::MessageId;
use naru_model::hops::Accepted;

/// The messages of a batch, each once, and the order they came in.
#[derive(Default)]
pub(crate) struct Order {
    messages: HashMap<MessageId, Accepted>,
    came: Vec<MessageId>,
}

impl Order {
    /// Adds a message; one that is there already changes nothing.
    pub(crate) fn add(&mut self, message: Accepted) {
        let id = message.id;
        if self.messages.insert(id, message).is_none() {
            self.came.push(id);
        }
    }

    /// Whether a message is there.
    pub(crate) fn has(&self, id: MessageId) -> bool {
        self.messages.contains_key(&id)
    }

    /// The ids that messages name in `after` and that are not there.
    pub(crate) fn missing(&self) -> HashSet<MessageId> {
        self.messages.values().filter_map(|message| message.after).filter(|id| !self.has(*id)).collect()
    }

    /// The messages in the order they are to be saved in.
    pub(crate) fn into_run(mut self) -> Vec<Accepted> {
        let mut run = Vec::with_capacity(self.came.len());
        let mut chain = Vec::new();
        for id in std::mem::take(&mut self.came) {
            // A message leaves the map when it joins the chain, so that a cycle, which no client should send, ends too.
            let mut next = Some(id);
            while let Some(message) = next.and_then(|id| self.messages.remove(&id)) {
                next = message.after;
                chain.push(message);
            }
            run.extend(chain.drain(..).rev());
        }
        run
    }
}

#[cfg(test)]
mod tests {
    use naru_model::{ClientMessageId, RoomId, Timestamp, Trace, UserId};
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> MessageId {
        MessageId::from_bytes([number; 12])
    }

    fn message(number: u8, after: Option<u8>) -> Accepted {
        Accepted {
            id: id(number),
            chat_room_id: RoomId::new("r").unwrap(),
            sender_id: UserId::new("ada").unwrap(),
            sender_name: "Ada".into(),
            content: "x".into(),
            timestamp: Timestamp::from_millis(0),
            client_message_id: ClientMessageId::from(id(number)),
            after: after.map(id),
            origin: None,
            trace: Trace::start(),
        }
    }

    fn run(messages: impl IntoIterator<Item = Accepted>) -> Vec<u8> {
        let mut order = Order::default();
        messages.into_iter().for_each(|message| order.add(message));
        order.into_run().iter().map(|message| message.id.bytes()[0]).collect()
    }

    #[test]
    fn a_message_waits_for_the_one_it_comes_after() {
        assert_eq!(run([message(3, Some(2)), message(1, None), message(2, Some(1))]), [1, 2, 3]);
        assert_eq!(
            run([message(2, Some(9)), message(1, None)]),
            [2, 1],
            "what is not there is not waited for"
        );
        assert_eq!(run([message(1, None), message(1, None)]), [1], "each is saved once");
        assert_eq!(run([message(1, Some(2)), message(2, Some(1))]).len(), 2, "a circle ends");
    }

    proptest! {
        #[test]
        fn a_chain_comes_out_in_order_however_it_went_in(mut numbers in Just((0_u8..50).collect::<Vec<_>>()).prop_shuffle()) {
            let came = numbers.iter().map(|&number| message(number, number.checked_sub(1)));
            let saved = run(came);
            numbers.sort_unstable();
            prop_assert_eq!(saved, numbers);
        }
    }
}
