//! All that is stored of one user, in pages: what `DELETE /api/users/{id}` takes away, and what it keeps.
//!
//! A page is bounded by its number of items, a walk by cursors may be resumed at any time and as often as needed. Messages come by
//! room, in the order of their `clientMessageId`s: that is the order in which each is found without reading the others.

use std::sync::Arc;

use http::StatusCode;
use naru_engines::store::Platform;
use naru_model::hops::PushEnvironment;
use naru_model::message::Outcome;
use naru_model::{ClientMessageId, DeviceId, Message, RoomId, Seq, Timestamp, UserId};
use serde::{Deserialize, Serialize};

use super::page::{of_digits, to_digits};
use super::{Answer, Call, json, unless_empty};
use crate::refusal::Refusal;

/// How many items one page holds: at most, and by default.
const PAGE: (usize, usize) = (200, 100);

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Item {
    User {
        user_id: UserId,
        tokens_not_before: Option<Timestamp>,
        last_seen_at: Option<Timestamp>,
        blocks: Vec<UserId>,
    },
    Device {
        device_id: DeviceId,
        platform: Platform,
        token: Arc<str>,
        environment: PushEnvironment,
        locale: Option<Arc<str>>,
        hide_content: bool,
        registered_at: Timestamp,
    },
    /// A room of now or of before; the messages that the user sent to it follow.
    Room {
        chat_room_id: RoomId,
        name: Option<Arc<str>>,
        is_member: bool,
        read_seq: Seq,
        received_seq: Seq,
        muted: bool,
        muted_until: Option<Timestamp>,
    },
    Message(Message),
    /// Accepted, and not saved: still under way, or refused because the sender was not a member.
    Unsaved {
        chat_room_id: RoomId,
        client_message_id: ClientMessageId,
        sender_name: Arc<str>,
        content: Arc<str>,
        timestamp: Timestamp,
    },
}

/// Where a page begins.
enum Place {
    Start,
    /// With the room after this one.
    After(RoomId),
    /// In this room, after this message.
    In(RoomId, Option<ClientMessageId>),
}

impl Place {
    fn read(cursor: &str) -> Option<Self> {
        let Some((room, name)) = cursor.split_once('.') else { return Some(Self::After(of_digits(cursor)?)) };
        let name = if name.is_empty() { None } else { Some(of_digits(name)?) };
        Some(Self::In(of_digits(room)?, name))
    }

    fn cursor(&self) -> String {
        match self {
            Self::Start => String::new(),
            Self::After(room) => to_digits(room),
            Self::In(room, name) => {
                format!("{}.{}", to_digits(room), name.as_ref().map(to_digits).unwrap_or_default())
            }
        }
    }
}

pub(super) async fn export(call: &Call<'_>, user: &UserId) -> Answer {
    #[derive(Deserialize)]
    struct Query {
        #[serde(default, deserialize_with = "unless_empty")]
        cursor: Option<String>,
        #[serde(default, deserialize_with = "unless_empty")]
        limit: Option<usize>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        items: Vec<Item>,
        next_cursor: Option<String>,
    }
    call.needs_service("an export needs scope service")?;
    let Query { cursor, limit } = call.query()?;
    let limit = limit.unwrap_or(PAGE.1).clamp(1, PAGE.0);
    let mut place = match cursor.as_deref().map(Place::read) {
        None => Place::Start,
        Some(Some(place)) => place,
        Some(None) => return Err(Refusal::Invalid("cursor must be a nextCursor of before".to_owned())),
    };
    let mut items = Vec::new();
    while items.len() < limit {
        let (more, next) = step(call, user, place, limit - items.len()).await?;
        items.extend(more);
        match next {
            Some(next) => place = next,
            None => return Ok(json(StatusCode::OK, &Body { items, next_cursor: None })),
        }
    }
    Ok(json(StatusCode::OK, &Body { items, next_cursor: Some(place.cursor()) }))
}

/// The items at a place, and the place after them; none at the end. At the start they are the user and the devices, however many
/// devices there may be.
async fn step(
    call: &Call<'_>,
    user: &UserId,
    place: Place,
    limit: usize,
) -> Result<(Vec<Item>, Option<Place>), Refusal> {
    let (room, after) = match place {
        Place::Start => {
            let mut items = start(call, user).await?;
            let (room, next) = next_room(call, user, None).await?;
            items.extend(room);
            return Ok((items, next));
        }
        Place::After(room) => return next_room(call, user, Some(&room)).await,
        Place::In(room, after) => (room, after),
    };
    let store = &call.gateway.engines.store;
    let records = store.intake.of_sender(&room, user, after.as_ref(), limit).await?;
    let is_last = records.len() < limit;
    let last = records.last().map(|record| record.accepted.client_message_id.clone());
    let ids: Vec<_> = records.iter().map(|record| record.accepted.id).collect();
    let saved = store.messages.find(&ids).await?;
    let items = records.into_iter().zip(saved).filter_map(|(record, saved)| match saved {
        Some(message) => Some(Item::Message(message)),
        // What has no content any more tells nothing.
        None if record.accepted.content.is_empty() => None,
        None => Some(match record.outcome {
            // It has expired (`message_ttl`).
            Some(Outcome::Saved { seq }) => Item::Message(record.accepted.at(seq)),
            _ => Item::Unsaved {
                chat_room_id: record.accepted.chat_room_id,
                client_message_id: record.accepted.client_message_id,
                sender_name: record.accepted.sender_name,
                content: record.accepted.content,
                timestamp: record.accepted.timestamp,
            },
        }),
    });
    let next = if is_last { Place::After(room) } else { Place::In(room, last) };
    Ok((items.collect(), Some(next)))
}

async fn start(call: &Call<'_>, user: &UserId) -> Result<Vec<Item>, Refusal> {
    let (engines, users) = (&call.gateway.engines, std::slice::from_ref(user));
    let record = engines.store.users.get(users).await?.pop().unwrap_or_default();
    let seen = engines.presence.seen(users).await?.pop().unwrap_or_default();
    let of_user = Item::User {
        user_id: user.clone(),
        tokens_not_before: record.tokens_not_before,
        last_seen_at: seen.last_seen_at,
        blocks: record.blocked,
    };
    let devices = engines.store.devices.of_users(users).await?.into_iter().map(|device| Item::Device {
        device_id: device.id,
        platform: device.platform,
        token: device.token,
        environment: device.environment,
        locale: device.locale,
        hide_content: device.hides_content,
        registered_at: device.registered_at,
    });
    Ok([of_user].into_iter().chain(devices).collect())
}

/// The user's next room.
async fn next_room(
    call: &Call<'_>,
    user: &UserId,
    after: Option<&RoomId>,
) -> Result<(Vec<Item>, Option<Place>), Refusal> {
    let store = &call.gateway.engines.store;
    let Some(id) = store.rooms.ever_of(user, after, 1).await?.pop() else { return Ok((Vec::new(), None)) };
    let room = store.rooms.current(std::slice::from_ref(&id)).await?.pop().flatten();
    let position =
        store.positions.get(&[(id.clone(), user.clone(), Seq(1))]).await?.pop().unwrap_or_default();
    let of_room = Item::Room {
        chat_room_id: id.clone(),
        is_member: room.as_ref().is_some_and(|room| room.has(user)),
        name: room.and_then(|room| room.name.clone()),
        read_seq: position.read,
        received_seq: position.received,
        muted: position.settings.muted,
        muted_until: position.settings.muted_until,
    };
    Ok((vec![of_room], Some(Place::In(id, None))))
}
