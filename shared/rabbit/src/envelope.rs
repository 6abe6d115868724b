//! An event as an AMQP message: its JSON as the body, which event it is in the properties, and what only the queue knows of
//! it (which try, not before when) in the headers.

use std::sync::Arc;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use naru_engines::{EngineError, EngineResult};
use naru_model::hops::{Hop, Payload};
use naru_model::{Event, Timestamp};

use crate::ENGINE;

/// Which try it is, from 1. Absent: the first.
const ATTEMPT: &str = "attempt";
/// In milliseconds since 1970: it is not delivered before. Absent: at once.
const NOT_BEFORE: &str = "notBefore";
/// On parked messages: where it came from, and what is wrong with it.
const QUEUE: &str = "queue";
const REASON: &str = "reason";

/// AMQP's word for "survives the broker".
const PERSISTENT: u8 = 2;

/// A message to publish.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) queue: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Arc<[u8]>,
}

/// A message that was delivered.
#[derive(Clone, Debug)]
pub(crate) struct Incoming<T: Payload> {
    pub(crate) event: Event<T>,
    pub(crate) attempt: u32,
    pub(crate) not_before: Option<Timestamp>,
}

/// A message that was delivered and can't be read.
pub(crate) struct Unreadable {
    body: Vec<u8>,
    properties: BasicProperties,
    pub(crate) reason: String,
}

/// An event for a queue.
///
/// # Errors
/// `Permanent` when it has no JSON.
pub(crate) fn write<T: Payload>(
    hop: &Hop,
    queue: ShortString,
    event: &Event<T>,
    attempt: u32,
    not_before: Option<Timestamp>,
) -> EngineResult<Outgoing> {
    let body = serde_json::to_vec(event).map_err(|error| EngineError::permanent(ENGINE, error))?;
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_type(hop.name.into())
        .with_message_id(event.event_id.to_string().into())
        .with_timestamp(u64::try_from(Timestamp::now().as_millis() / 1_000).unwrap_or(0));
    let mut headers = FieldTable::default();
    if attempt > 1 {
        headers.insert(ATTEMPT.into(), AMQPValue::LongLongInt(attempt.into()));
    }
    if let Some(not_before) = not_before {
        headers.insert(NOT_BEFORE.into(), AMQPValue::LongLongInt(not_before.as_millis()));
    }
    if !headers.inner().is_empty() {
        properties = properties.with_headers(headers);
    }
    Ok(Outgoing { queue, properties, body: body.into() })
}

pub(crate) fn read<T: Payload>(delivery: Delivery) -> Result<Incoming<T>, Box<Unreadable>> {
    let Delivery { data, properties, .. } = delivery;
    let number = |name| integer(properties.headers().as_ref()?.inner().get(name)?);
    let attempt = number(ATTEMPT).and_then(|attempt| u32::try_from(attempt).ok()).unwrap_or(1);
    let not_before = number(NOT_BEFORE).map(Timestamp::from_millis);
    match serde_json::from_slice(&data) {
        Ok(event) => Ok(Incoming { event, attempt, not_before }),
        Err(error) => Err(Box::new(Unreadable { body: data, properties, reason: error.to_string() })),
    }
}

/// A message that can't be read, for the queue of those. Other systems' properties stay, but for a time to live.
pub(crate) fn park(unreadable: Box<Unreadable>, from: &ShortString, parked: ShortString) -> Outgoing {
    let Unreadable { body, properties, reason } = *unreadable;
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(QUEUE.into(), AMQPValue::LongString(from.as_str().into()));
    headers.insert(REASON.into(), AMQPValue::LongString(reason.into()));
    let mut kept = BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
    if let Some(content_type) = properties.content_type() {
        kept = kept.with_content_type(content_type.clone());
    }
    if let Some(kind) = properties.kind() {
        kept = kept.with_type(kind.clone());
    }
    if let Some(message_id) = properties.message_id() {
        kept = kept.with_message_id(message_id.clone());
    }
    Outgoing { queue: parked, properties: kept, body: body.into() }
}

/// Whatever width a header's number has.
fn integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(value) => Some((*value).into()),
        AMQPValue::ShortShortUInt(value) => Some((*value).into()),
        AMQPValue::ShortInt(value) => Some((*value).into()),
        AMQPValue::ShortUInt(value) => Some((*value).into()),
        AMQPValue::LongInt(value) => Some((*value).into()),
        AMQPValue::LongUInt(value) => Some((*value).into()),
        AMQPValue::LongLongInt(value) => Some(*value),
        _ => None,
    }
}
