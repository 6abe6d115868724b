//! The payload of the bus's tests.

use naru_model::hops::Payload;
use naru_model::{Event, EventId, RoomId, Trace};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Numbered {
    room: RoomId,
    pub(crate) number: u64,
}

impl Payload for Numbered {
    fn event_id(&self) -> EventId {
        EventId::derive(&[&self.number.to_be_bytes()])
    }

    fn room(&self) -> &RoomId {
        &self.room
    }
}

pub(crate) fn numbered(room: &str, number: u64) -> Event<Numbered> {
    Event::new(Numbered { room: RoomId::new(room).expect("a room id"), number }, Trace::start())
}
