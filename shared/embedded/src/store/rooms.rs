//! Rooms and their members.

use std::sync::Arc;

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::store::{
    Changed, Created, MemberChange, MemberSettings, NewRoom, RoomCursor, RoomSummary, Rooms,
};
use naru_model::{MemberVersion, Room, RoomId, RoomKind, Seq, StoreTime, Timestamp, UserId};
use rusqlite::{Connection, OptionalExtension, Result, Row, params};

use crate::column::{self, Columns, message_columns};
use crate::database::{Database, Sync};
use crate::store::is_member;
use crate::store::messages::latest_activity;

#[async_trait]
impl Rooms for Database {
    async fn create(&self, room: NewRoom) -> EngineResult<Created> {
        let (now, rooms, id) = (Timestamp::now(), self.rooms.clone(), room.id.clone());
        let then = move |outcome: &EngineResult<Created>| match outcome {
            Ok(Created::New(room)) => rooms.changed(&id, Some(room)),
            Ok(Created::Existing(_) | Created::Taken) => {}
            Err(_) => rooms.changed(&id, None),
        };
        self.write_then(Sync::Always, move |transaction| create(transaction, &room, now), then).await
    }

    async fn current(&self, ids: &[RoomId]) -> EngineResult<Vec<Option<Arc<Room>>>> {
        let (mut rooms, look) = self.rooms.look(ids);
        let unknown = ids.iter().zip(&rooms).filter(|(_, known)| known.is_none());
        let unknown: Vec<RoomId> = unknown.map(|(id, _)| id.clone()).collect();
        if unknown.is_empty() {
            return Ok(rooms);
        }
        let read = self.read(move |transaction| {
            unknown.iter().map(|id| current(transaction, id)).collect::<Result<Vec<_>>>()
        });
        let read = read.await?;
        self.rooms.fill(look, read.iter().flatten());
        let mut read = read.into_iter();
        rooms.iter_mut().filter(|room| room.is_none()).for_each(|room| *room = read.next().flatten());
        Ok(rooms)
    }

    /// There is no other server that could be ahead.
    async fn current_since(
        &self,
        ids: &[RoomId],
        _: Option<StoreTime>,
    ) -> EngineResult<Vec<Option<Arc<Room>>>> {
        self.current(ids).await
    }

    async fn members_at(&self, room: &RoomId, version: MemberVersion) -> EngineResult<Option<Arc<[UserId]>>> {
        let (known, _) = self.rooms.look(std::slice::from_ref(room));
        if let Some(room) = known.into_iter().flatten().find(|room| room.member_version == version) {
            return Ok(Some(room.member_ids.clone()));
        }
        let room = room.clone();
        self.read(move |transaction| {
            let newest = transaction
                .prepare_cached("SELECT memberVersion FROM chat_rooms WHERE _id = ?1")?
                .query_row([room.as_str()], |row| row.get(0).map(MemberVersion))
                .optional()?;
            if !newest.is_some_and(|newest| (MemberVersion::FIRST..=newest).contains(&version)) {
                return Ok(None);
            }
            members_at(transaction, &room, version).map(Some)
        })
        .await
    }

    async fn change(&self, room: &RoomId, change: MemberChange, max: usize) -> EngineResult<Changed> {
        let (room, rooms, id) = (room.clone(), self.rooms.clone(), room.clone());
        let then = move |outcome: &EngineResult<Changed>| match outcome {
            Ok(Changed::Now(room)) => rooms.changed(&id, Some(room)),
            Ok(Changed::NoRoom | Changed::Direct | Changed::Full) => {}
            Err(_) => rooms.changed(&id, None),
        };
        self.write_then(Sync::Always, move |transaction| apply(transaction, &room, &change, max), then).await
    }

    async fn of_user(
        &self,
        user: &UserId,
        cursor: Option<&RoomCursor>,
        limit: usize,
    ) -> EngineResult<(Vec<RoomSummary>, Option<RoomCursor>)> {
        let (user, cursor) = (user.clone(), cursor.cloned());
        self.read(move |transaction| of_user(transaction, &user, cursor.as_ref(), limit)).await
    }

    async fn summary(&self, room: &RoomId, user: &UserId) -> EngineResult<Option<RoomSummary>> {
        let (room, user) = (room.clone(), user.clone());
        self.read(move |transaction| summary(transaction, &room, &user)).await
    }

    async fn configure(&self, room: &RoomId, user: &UserId, settings: MemberSettings) -> EngineResult<bool> {
        let (room, user) = (room.clone(), user.clone());
        self.write(move |transaction| {
            if !is_member(transaction, &room, &user)? {
                return Ok(false);
            }
            let sql = "UPDATE members SET muted = ?3, mutedUntil = ?4 WHERE chatRoomId = ?1 AND userId = ?2";
            let until = settings.muted_until.map(Timestamp::as_millis);
            transaction.prepare_cached(sql)?.execute(params![
                room.as_str(),
                user.as_str(),
                settings.muted,
                until
            ])?;
            Ok(true)
        })
        .await
    }

    async fn share_a_room(&self, user: &UserId, others: &[UserId]) -> EngineResult<Vec<bool>> {
        let (user, others) = (user.clone(), others.to_vec());
        self.read(move |transaction| {
            let mut share = transaction.prepare_cached(
                "SELECT 1 FROM memberships mine JOIN memberships theirs USING (chatRoomId)
                 WHERE mine.userId = ?1 AND mine.until IS NULL AND theirs.userId = ?2 AND theirs.until IS NULL",
            )?;
            let shares = |other: &UserId| Ok(*other == user || share.exists([user.as_str(), other.as_str()])?);
            others.iter().map(shares).collect()
        })
        .await
    }

    async fn have_rooms(&self, users: &[UserId], at_least: usize) -> EngineResult<Vec<bool>> {
        let users = users.to_vec();
        self.read(move |transaction| {
            let mut room = transaction.prepare_cached(
                "SELECT 1 FROM memberships WHERE userId = ?1 AND until IS NULL LIMIT 1 OFFSET ?2",
            )?;
            let before = column::limit(at_least.saturating_sub(1));
            users.iter().map(|user| room.exists(params![user.as_str(), before])).collect()
        })
        .await
    }
}

fn create(connection: &Connection, room: &NewRoom, now: Timestamp) -> Result<Created> {
    if let Some(existing) = current(connection, &room.id)? {
        let same = existing.kind == room.kind && was_ever(connection, &existing, &room.member_ids)?;
        return Ok(if same { Created::Existing(existing) } else { Created::Taken });
    }
    // A room that is made now is listed before the others, also when a clock was set back.
    let now = now.max(latest_activity(connection)?);
    // A direct room's members are written by a trigger, from `user1Id` and `user2Id`.
    let (user1, user2) = match (room.kind, &*room.member_ids) {
        (RoomKind::Direct, [user1, user2]) => (Some(user1.as_str()), Some(user2.as_str())),
        (RoomKind::Direct, _) => return Err(rusqlite::Error::InvalidParameterName("two members".to_owned())),
        (RoomKind::Group, _) => (None, None),
    };
    let sql = "INSERT INTO chat_rooms (_id, user1Id, user2Id, name, makerId, createdAt) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let maker = room.maker_id.as_ref().map(UserId::as_str);
    connection.prepare_cached(sql)?.execute(params![
        room.id.as_str(),
        user1,
        user2,
        room.name,
        maker,
        now.as_millis()
    ])?;
    if room.kind == RoomKind::Group {
        room.member_ids.iter().try_for_each(|user| join(connection, &room.id, user, MemberVersion::FIRST))?;
    }
    Ok(Created::New(Arc::new(Room {
        id: room.id.clone(),
        kind: room.kind,
        name: room.name.clone(),
        member_ids: room.member_ids.clone(),
        member_version: MemberVersion::FIRST,
        maker_id: room.maker_id.clone(),
        created_at: now,
    })))
}

/// Whether a room has or had exactly these members at some version.
fn was_ever(connection: &Connection, room: &Room, members: &[UserId]) -> Result<bool> {
    if *room.member_ids == *members {
        return Ok(true);
    }
    for version in (MemberVersion::FIRST.0..room.member_version.0).rev() {
        if *members_at(connection, &room.id, MemberVersion(version))? == *members {
            return Ok(true);
        }
    }
    Ok(false)
}

fn current(connection: &Connection, id: &RoomId) -> Result<Option<Arc<Room>>> {
    let sql =
        "SELECT user1Id IS NOT NULL, name, makerId, createdAt, memberVersion FROM chat_rooms WHERE _id = ?1";
    let room = |row: &Row<'_>| {
        let member_version = MemberVersion(row.get(4)?);
        Ok(Arc::new(Room {
            id: id.clone(),
            kind: if row.get(0)? { RoomKind::Direct } else { RoomKind::Group },
            name: row.get(1)?,
            member_ids: members_at(connection, id, member_version)?,
            member_version,
            maker_id: row.get::<_, Option<Arc<str>>>(2)?.map(|_| row.text(2)).transpose()?,
            created_at: row.time(3)?,
        }))
    };
    connection.prepare_cached(sql)?.query_row([id.as_str()], room).optional()
}

/// Sorted, as the table is.
fn members_at(connection: &Connection, room: &RoomId, version: MemberVersion) -> Result<Arc<[UserId]>> {
    let sql = "SELECT userId FROM memberships
        WHERE chatRoomId = ?1 AND since <= ?2 AND (until IS NULL OR until > ?2) ORDER BY userId";
    let mut statement = connection.prepare_cached(sql)?;
    let members = statement.query_map(params![room.as_str(), version.0], |row| row.text(0))?;
    members.collect()
}

fn join(connection: &Connection, room: &RoomId, user: &UserId, since: MemberVersion) -> Result<()> {
    let sql = "INSERT INTO memberships (chatRoomId, userId, since) VALUES (?1, ?2, ?3)";
    connection.prepare_cached(sql)?.execute(params![room.as_str(), user.as_str(), since.0]).map(drop)
}

fn leave(connection: &Connection, room: &RoomId, user: &UserId, until: MemberVersion) -> Result<()> {
    let sql = "UPDATE memberships SET until = ?3 WHERE chatRoomId = ?1 AND userId = ?2 AND until IS NULL";
    connection.prepare_cached(sql)?.execute(params![room.as_str(), user.as_str(), until.0]).map(drop)
}

fn apply(connection: &Connection, id: &RoomId, change: &MemberChange, max: usize) -> Result<Changed> {
    let Some(room) = current(connection, id)? else { return Ok(Changed::NoRoom) };
    if room.kind == RoomKind::Direct {
        return Ok(Changed::Direct);
    }
    let next = room.member_version.next();
    match change {
        MemberChange::Add(user) if room.has(user) => return Ok(Changed::Now(room)),
        MemberChange::Add(_) if room.member_ids.len() >= max => return Ok(Changed::Full),
        MemberChange::Add(user) => join(connection, id, user, next)?,
        MemberChange::Remove(user) if !room.has(user) => return Ok(Changed::Now(room)),
        MemberChange::Remove(user) => leave(connection, id, user, next)?,
    }
    let sql = "UPDATE chat_rooms SET memberVersion = ?2 WHERE _id = ?1";
    connection.prepare_cached(sql)?.execute(params![id.as_str(), next.0])?;
    let member_ids = members_at(connection, id, next)?;
    Ok(Changed::Now(Arc::new(Room { member_ids, member_version: next, ..Room::clone(&room) })))
}

/// Finds the user's rooms and their activity first (one step in an index for each), and reads in full only those of
/// the page.
fn of_user(
    connection: &Connection,
    user: &UserId,
    cursor: Option<&RoomCursor>,
    limit: usize,
) -> Result<(Vec<RoomSummary>, Option<RoomCursor>)> {
    let mut statement = connection.prepare_cached(
        "SELECT room._id, coalesce(
             (SELECT activity FROM chat_messages WHERE chatRoomId = room._id ORDER BY seq DESC LIMIT 1),
             room.createdAt) AS activity
         FROM memberships JOIN chat_rooms room ON room._id = memberships.chatRoomId
         WHERE memberships.userId = ?1 AND memberships.until IS NULL AND (activity, room._id) < (?2, ?3)
         ORDER BY activity DESC, room._id DESC LIMIT ?4",
    )?;
    let (activity, after) = cursor.map_or((i64::MAX, ""), |at| (at.activity.as_millis(), at.room.as_str()));
    let max = column::limit(limit.saturating_add(1));
    let place = |row: &Row<'_>| Ok(RoomCursor { room: row.text(0)?, activity: row.time(1)? });
    let places = statement.query_map(params![user.as_str(), activity, after, max], place)?;
    let mut places = places.collect::<Result<Vec<_>>>()?;
    let more = places.len() > limit;
    places.truncate(limit);
    let summaries = places.iter().filter_map(|place| summary(connection, &place.room, user).transpose());
    let summaries = summaries.collect::<Result<_>>()?;
    Ok((summaries, places.pop().filter(|_| more)))
}

fn summary(connection: &Connection, id: &RoomId, user: &UserId) -> Result<Option<RoomSummary>> {
    let Some(room) = current(connection, id)?.filter(|room| room.has(user)) else { return Ok(None) };
    let newest = concat!(
        "SELECT ",
        message_columns!(),
        " FROM chat_messages WHERE chatRoomId = ?1 ORDER BY seq DESC LIMIT 1"
    );
    let last_message =
        connection.prepare_cached(newest)?.query_row([id.as_str()], column::message).optional()?;
    let last_seq = last_message.as_ref().map_or(Seq::ZERO, |message| message.seq);
    let (read, settings) = member(connection, id, user)?;
    let unread_count = last_seq.0.saturating_sub(read.0);
    Ok(Some(RoomSummary { room, last_message, last_seq, unread_count, settings }))
}

/// A member's read position and settings.
pub(super) fn member(connection: &Connection, room: &RoomId, user: &UserId) -> Result<(Seq, MemberSettings)> {
    let sql = "SELECT read, muted, mutedUntil FROM members WHERE chatRoomId = ?1 AND userId = ?2";
    let member = |row: &Row<'_>| {
        Ok((row.seq(0)?, MemberSettings { muted: row.get(1)?, muted_until: row.maybe_time(2)? }))
    };
    let found =
        connection.prepare_cached(sql)?.query_row([room.as_str(), user.as_str()], member).optional()?;
    Ok(found.unwrap_or_default())
}
