//! Events as an AMQP message: the body is a JSON array of events of one queue, and the headers hold the queue's own data
//! about them (attempt, earliest delivery).

use std::fmt::Display;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use naru_engines::{EngineError, EngineResult};
use naru_model::hops::{Hop, Payload};
use naru_model::{Event, Timestamp};
use serde_json::value::RawValue;

use crate::ENGINE;
use crate::layout::LAYOUT;

/// The attempt, from 1. Absent: the first.
const ATTEMPT: &str = "attempt";
/// The earliest delivery, in milliseconds since 1970. Absent: at once.
const NOT_BEFORE: &str = "notBefore";
/// The [`LAYOUT`] of the message.
const WRITTEN_BY: &str = "layout";
/// On parked messages: the queue it came from, and why it can't be read.
const QUEUE: &str = "queue";
const REASON: &str = "reason";

/// How many events a message holds at most: a receiver's buffer is bounded in messages.
const MAX_EVENTS: usize = 256;
/// How many bytes its body has at most, unless one event is longer by itself.
const MAX_BYTES: usize = 1 << 20;

/// AMQP's delivery mode for "survives the broker".
const PERSISTENT: u8 = 2;

/// A message to publish.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) queue: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
}

/// A message that was delivered.
#[derive(Debug)]
pub(crate) struct Incoming<T: Payload> {
    /// In order.
    pub(crate) events: Vec<Event<T>>,
    pub(crate) attempt: u32,
    pub(crate) not_before: Option<Timestamp>,
    /// Its unreadable parts.
    pub(crate) unreadable: Vec<Unreadable>,
    properties: BasicProperties,
}

/// An array of one event, or a whole body.
#[derive(Debug)]
pub(crate) struct Unreadable {
    body: Vec<u8>,
    reason: String,
}

/// Events for a queue, in as few messages as possible.
///
/// # Errors
/// `Permanent` when an event has no JSON.
pub(crate) fn write<'a, T: Payload>(
    hop: &Hop,
    queue: &ShortString,
    events: impl IntoIterator<Item = &'a Event<T>>,
    attempt: u32,
    not_before: Option<Timestamp>,
) -> EngineResult<Vec<Outgoing>> {
    let mut bodies: Vec<(usize, Vec<u8>)> = Vec::new();
    for event in events {
        let json = serde_json::to_vec(event).map_err(|error| EngineError::permanent(ENGINE, error))?;
        match bodies.last_mut() {
            Some((count, body)) if *count < MAX_EVENTS && body.len() + json.len() + 2 <= MAX_BYTES => {
                body.push(b',');
                body.extend(json);
                *count += 1;
            }
            _ => bodies.push((1, [b"[", &json[..]].concat())),
        }
    }
    let mut headers = FieldTable::default();
    headers.insert(WRITTEN_BY.into(), AMQPValue::LongInt(LAYOUT));
    if attempt > 1 {
        headers.insert(ATTEMPT.into(), AMQPValue::LongLongInt(attempt.into()));
    }
    if let Some(not_before) = not_before {
        headers.insert(NOT_BEFORE.into(), AMQPValue::LongLongInt(not_before.as_millis()));
    }
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_type(hop.name.into())
        .with_timestamp(u64::try_from(Timestamp::now().as_millis() / 1_000).unwrap_or(0))
        .with_headers(headers);
    let message = |(_, mut body): (usize, Vec<u8>)| {
        body.push(b']');
        Outgoing { queue: queue.clone(), properties: properties.clone(), body }
    };
    Ok(bodies.into_iter().map(message).collect())
}

pub(crate) fn read<T: Payload>(delivery: Delivery) -> Incoming<T> {
    let Delivery { data, properties, .. } = delivery;
    let number = |name| integer(properties.headers().as_ref()?.inner().get(name)?);
    let attempt = number(ATTEMPT).and_then(|attempt| u32::try_from(attempt).ok()).unwrap_or(1);
    let not_before = number(NOT_BEFORE).map(Timestamp::from_millis);
    let (events, unreadable) = match number(WRITTEN_BY) {
        Some(layout) if layout == i64::from(LAYOUT) => read_events(data),
        _ => {
            let reason =
                format!("it does not say that it is of layout {LAYOUT} in the header {WRITTEN_BY:?}");
            (Vec::new(), vec![Unreadable { body: data, reason }])
        }
    };
    Incoming { events, attempt, not_before, unreadable, properties }
}

/// All at once; one by one where an event can't be read.
fn read_events<T: Payload>(body: Vec<u8>) -> (Vec<Event<T>>, Vec<Unreadable>) {
    let unreadable = |body: Vec<u8>, reason: &dyn Display| Unreadable { body, reason: reason.to_string() };
    match serde_json::from_slice::<Vec<Event<T>>>(&body) {
        Ok(events) if !events.is_empty() => return (events, Vec::new()),
        Ok(_) => return (Vec::new(), vec![unreadable(body, &"it holds no event")]),
        Err(_) => {}
    }
    let (mut events, mut others) = (Vec::new(), Vec::new());
    match serde_json::from_slice::<Vec<&RawValue>>(&body) {
        Ok(elements) => {
            for element in elements {
                match serde_json::from_str(element.get()) {
                    Ok(event) => events.push(event),
                    Err(error) => others.push(unreadable(format!("[{element}]").into(), &error)),
                }
            }
        }
        Err(error) => others.push(unreadable(body, &error)),
    }
    (events, others)
}

impl<T: Payload> Incoming<T> {
    /// Its unreadable parts, for the queue of parked messages, with its headers. Of other systems' properties, only those
    /// that identify it: a time to live would delete it.
    pub(crate) fn dead_letters(&mut self, from: &ShortString, parked: &ShortString) -> Vec<Outgoing> {
        let message = |Unreadable { body, reason }| {
            tracing::error!(queue = from.as_str(), reason, "an event can't be read; it is set aside");
            let mut headers = self.properties.headers().clone().unwrap_or_default();
            headers.insert(QUEUE.into(), AMQPValue::LongString(from.as_str().into()));
            headers.insert(REASON.into(), AMQPValue::LongString(reason.into()));
            let mut properties =
                BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
            if let Some(content_type) = self.properties.content_type() {
                properties = properties.with_content_type(content_type.clone());
            }
            if let Some(kind) = self.properties.kind() {
                properties = properties.with_type(kind.clone());
            }
            if let Some(message_id) = self.properties.message_id() {
                properties = properties.with_message_id(message_id.clone());
            }
            Outgoing { queue: parked.clone(), properties, body }
        };
        std::mem::take(&mut self.unreadable).into_iter().map(message).collect()
    }
}

/// A number as [`write`] writes it.
fn integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::LongInt(value) => Some((*value).into()),
        AMQPValue::LongLongInt(value) => Some(*value),
        _ => None,
    }
}
