//! Rooms, their members, and a member's own settings.

use std::sync::Arc;

use http::StatusCode;
use naru_engines::store::{
    Changed, Created, MemberChange, MemberSettings, NewRoom, RoomCursor, RoomSummary, Store, Window,
};
use naru_model::room::sorted_members;
use naru_model::{Message, Room, RoomId, RoomKind, Seq, Timestamp, UserId};
use serde::{Deserialize, Serialize};

use super::page::{Page, cursor};
use super::{Answer, Call, json, no_content};
use crate::config::RoomCreation;
use crate::refusal::Refusal;

/// The longest name of a room, in bytes.
const LONGEST_NAME: usize = 256;
/// What each member of a new room costs: as much as so many calls, for a row in each of seven indexes, which the messages of
/// all others wait for (50 ms for a room of 1,000).
const COST_PER_MEMBER: f64 = 5.0;
/// How many rooms one page of the list holds: at most, and by default.
const PAGE: (usize, usize) = (100, 50);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RoomBody<'a> {
    id: &'a RoomId,
    member_ids: &'a [UserId],
    name: Option<&'a str>,
    last_message: Option<&'a Message>,
    last_seq: Seq,
    unread_count: u64,
    muted: bool,
    muted_until: Option<Timestamp>,
}

impl<'a> From<&'a RoomSummary> for RoomBody<'a> {
    fn from(summary: &'a RoomSummary) -> Self {
        Self {
            id: &summary.room.id,
            member_ids: &summary.room.member_ids,
            name: summary.room.name.as_deref(),
            last_message: summary.last_message.as_ref(),
            last_seq: summary.last_seq,
            unread_count: summary.unread_count,
            muted: summary.settings.mutes_at(Timestamp::now()),
            muted_until: summary.settings.muted_until,
        }
    }
}

pub(super) async fn create(call: &Call<'_>) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        member_ids: Vec<UserId>,
        name: Option<Arc<str>>,
        id: Option<RoomId>,
    }
    let Body { member_ids, name, id } = call.json()?;
    let (caller, max) = (&call.caller, call.gateway.config.max_room_members);
    if id.is_some() && !caller.is_service {
        return Err(Refusal::Forbidden("giving an id needs scope service"));
    }
    if name.as_ref().is_some_and(|name| name.is_empty() || name.len() > LONGEST_NAME) {
        return Err(Refusal::Invalid(format!("name must be 1 to {LONGEST_NAME} bytes")));
    }
    let members = sorted_members(member_ids);
    if !caller.is_service && members.binary_search(&caller.user).is_err() {
        return Err(Refusal::Forbidden("you must be a member of a room you make"));
    }
    let (kind, id) = match &*members {
        [] | [_] => {
            return Err(Refusal::Invalid("memberIds must name at least two users".to_owned()));
        }
        [one, other] => (RoomKind::Direct, id.unwrap_or_else(|| RoomId::direct(one, other))),
        more if more.len() > max => {
            return Err(Refusal::Invalid(format!("memberIds must name at most {max} users")));
        }
        _ => (RoomKind::Group, id.unwrap_or_else(RoomId::generate)),
    };
    call.gateway.limits.call(caller, members.len() as f64 * COST_PER_MEMBER)?;
    match may_bring(call, &members).await {
        // A direct room that is there is answered, and no room is made.
        Err(refused) if kind == RoomKind::Direct && refused != Refusal::Unavailable => {
            let there = current(call, &id).await;
            there.map_err(|refusal| if refusal == Refusal::RoomNotFound { refused } else { refusal })?;
        }
        may => may?,
    }
    let is_member = members.binary_search(&caller.user).is_ok();
    let room = NewRoom {
        id,
        kind,
        // Each member's client names a direct room after the other member.
        name: name.filter(|_| kind == RoomKind::Group),
        member_ids: members,
        maker_id: is_member.then(|| caller.user.clone()),
    };
    let (status, room) = match call.gateway.engines.store.rooms.create(room).await? {
        Created::New(room) => (StatusCode::CREATED, room),
        Created::Existing(room) => (StatusCode::OK, room),
        Created::Taken => return Err(Refusal::Conflict("this id belongs to another room")),
    };
    call.gateway.rooms.changed(&room);
    Ok(json(status, &RoomBody::from(&summary(call, &room.id).await?)))
}

pub(super) async fn list(call: &Call<'_>) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        rooms: Vec<RoomBody<'a>>,
        next_cursor: Option<String>,
    }
    let Page { after, limit } = Page::asked(call, PAGE)?;
    let after = after.map(|(activity, room)| RoomCursor { activity, room });
    let rooms = &call.gateway.engines.store.rooms;
    let (rooms, next) = rooms.of_user(&call.caller.user, after.as_ref(), limit).await?;
    let next_cursor = next.map(|next| cursor(next.activity, next.room));
    Ok(json(StatusCode::OK, &Body { rooms: rooms.iter().map(RoomBody::from).collect(), next_cursor }))
}

pub(super) async fn show(call: &Call<'_>, room: &RoomId) -> Answer {
    Ok(json(StatusCode::OK, &RoomBody::from(&summary(call, room).await?)))
}

pub(super) async fn add_member(call: &Call<'_>, room: &RoomId) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        user_id: UserId,
    }
    let Body { user_id } = call.json()?;
    current(call, room).await?;
    may_bring(call, std::slice::from_ref(&user_id)).await?;
    change(call, room, MemberChange::Add(user_id)).await?;
    show(call, room).await
}

pub(super) async fn remove_member(call: &Call<'_>, room: &RoomId, user: &UserId) -> Answer {
    let now = current(call, room).await?;
    let caller = &call.caller;
    let may = caller.is_service || *user == caller.user || now.maker_id.as_ref() == Some(&caller.user);
    if !may {
        return Err(Refusal::Forbidden("only the room's maker or a service removes others"));
    }
    change(call, room, MemberChange::Remove(user.clone())).await?;
    Ok(no_content())
}

pub(super) async fn configure(call: &Call<'_>, room: &RoomId) -> Answer {
    #[derive(Deserialize, Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Settings {
        muted: bool,
        muted_until: Option<Timestamp>,
    }
    let settings: Settings = call.json()?;
    let wanted = MemberSettings { muted: settings.muted, muted_until: settings.muted_until };
    if !call.gateway.engines.store.rooms.configure(room, &call.caller.user, wanted).await? {
        return Err(Refusal::RoomNotFound);
    }
    Ok(json(StatusCode::OK, &settings))
}

/// Whether the caller may bring these users into a room, themself included.
async fn may_bring(call: &Call<'_>, users: &[UserId]) -> Result<(), Refusal> {
    let Call { gateway, caller, .. } = call;
    if caller.is_service {
        return Ok(());
    }
    if gateway.config.room_creation == RoomCreation::Service {
        return Err(Refusal::Forbidden("here, rooms are made and joined by scope service only"));
    }
    if gateway.engines.store.users.blocked_by(&caller.user, users).await?.contains(&true) {
        return Err(Refusal::Forbidden("one of these users has blocked you"));
    }
    let max = gateway.config.max_rooms_per_user;
    if max == 0 {
        return Ok(());
    }
    // Others' rooms don't count against those who are brought in: who has filled them would keep them from every new one. Of
    // several calls at the same time each may find space: a few rooms too many harm nobody.
    let is_full = gateway.engines.store.rooms.have_rooms(std::slice::from_ref(&caller.user), max).await?;
    if is_full == [true] { Err(Refusal::TooMany { what: "rooms", max }) } else { Ok(()) }
}

/// The room as it is now, and not before what this gateway has read, if the caller may see it.
pub(super) async fn current(call: &Call<'_>, id: &RoomId) -> Result<Arc<Room>, Refusal> {
    let Store { rooms, clock, .. } = &call.gateway.engines.store;
    let room = rooms.current_since(std::slice::from_ref(id), clock.latest()).await?.pop().flatten();
    let room = room.filter(|room| call.caller.is_service || room.has(&call.caller.user));
    room.ok_or(Refusal::RoomNotFound)
}

async fn change(call: &Call<'_>, room: &RoomId, change: MemberChange) -> Result<(), Refusal> {
    let max = call.gateway.config.max_room_members;
    match call.gateway.engines.store.rooms.change(room, change, max).await? {
        Changed::Now(room) => {
            call.gateway.rooms.changed(&room);
            Ok(())
        }
        Changed::NoRoom => Err(Refusal::RoomNotFound),
        Changed::Direct => Err(Refusal::Conflict("a direct room's members are for ever")),
        Changed::Full => Err(Refusal::Conflict("the room is full")),
    }
}

/// A room as the caller sees it. A service that is not a member sees it without a position of its own.
async fn summary(call: &Call<'_>, id: &RoomId) -> Result<RoomSummary, Refusal> {
    let store = &call.gateway.engines.store;
    if let Some(summary) = store.rooms.summary(id, &call.caller.user).await? {
        return Ok(summary);
    }
    let room = current(call, id).await?;
    let last_message = store.messages.range(id, Window::Latest, 1).await?.0.pop();
    Ok(RoomSummary {
        room,
        last_seq: last_message.as_ref().map_or(Seq::ZERO, |message| message.seq),
        last_message,
        unread_count: 0,
        settings: MemberSettings::default(),
    })
}
