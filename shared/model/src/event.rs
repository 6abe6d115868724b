//! The events between workers: a payload in an envelope with its version, its id and its trace.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use crate::InvalidId;
use crate::hops::Payload;

/// An event's identity, derived from its subject: the same event sent twice, by any worker, has the same id and is
/// recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub Uuid);

impl EventId {
    /// Version 5 UUID of the event's subject (RFC 9562), within a name space of Naru's own.
    pub fn derive(about: &[&[u8]]) -> Self {
        const NAMESPACE: Uuid = Uuid::from_u128(0x6e61_7275_7c4e_c58f_3a2f_1d9a_5077_c1ab_u128);
        let mut name = Vec::with_capacity(64);
        for part in about {
            // The length before each part keeps ("ab", "c") and ("a", "bc") apart.
            name.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            name.extend_from_slice(part);
        }
        Self(Uuid::new_v5(&NAMESPACE, &name))
    }
}

impl std::str::FromStr for EventId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Uuid::try_parse(text).map(Self).map_err(|_| InvalidId::new("an eventId", "a UUID"))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// A W3C trace context (`traceparent`), made when a message is accepted and carried to the last push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Trace {
    trace: u128,
    span: u64,
}

impl Trace {
    pub fn start() -> Self {
        // Zero is not a valid id.
        Self { trace: rand::random::<u128>().max(1), span: rand::random::<u64>().max(1) }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-01", self.trace, self.span)
    }
}

impl std::str::FromStr for Trace {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.split('-');
            let (_version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
            let sized = trace.len() == 32 && span.len() == 16;
            let ids = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
            (sized && ids.0 != 0 && ids.1 != 0).then_some(Self { trace: ids.0, span: ids.1 })
        };
        parse().ok_or("not a W3C traceparent")
    }
}

impl Serialize for Trace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Trace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A moment by the clock of a store that consists of several servers: an opaque number that only grows. A server that has come
/// so far has every change that was finished before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreTime(pub u64);

/// An event: a payload and its envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "T: Payload"))]
pub struct Event<T: Payload> {
    /// The version of the payload's shape.
    pub version: u16,
    pub event_id: EventId,
    pub trace: Trace,
    /// The store had what this event tells of at this time; none from a store without a clock, or an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_time: Option<StoreTime>,
    pub payload: T,
}

impl<T: Payload> Event<T> {
    /// Puts a payload in its envelope.
    pub fn new(payload: T, trace: Trace) -> Self {
        Self { version: T::VERSION, event_id: payload.event_id(), trace, store_time: None, payload }
    }

    /// The same, of something that the store had at this time.
    #[must_use]
    pub fn stored_at(self, store_time: Option<StoreTime>) -> Self {
        Self { store_time, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_tells_its_parts_apart() {
        assert_eq!(EventId::derive(&[b"a", b"b"]), EventId::derive(&[b"a", b"b"]));
        assert_ne!(EventId::derive(&[b"ab", b"c"]), EventId::derive(&[b"a", b"bc"]));
    }

    #[test]
    fn an_event_id_is_a_uuid() {
        let id = EventId::derive(&[b"push"]);
        assert_eq!(id.to_string().parse(), Ok(id));
        let refused = "push".parse::<EventId>().unwrap_err();
        assert_eq!(refused.to_string(), "an eventId must be a UUID");
    }

    #[test]
    fn a_trace_is_a_traceparent() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(text.parse::<Trace>().unwrap().to_string(), text);
        for bad in ["", "00-00-00-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            assert!(bad.parse::<Trace>().is_err(), "{bad}");
        }
    }
}
