//! Rooms and their members.

use std::sync::Arc;

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::store::{
    Changed, Created, MemberChange, MemberSettings, NewRoom, RoomCursor, RoomSummary, Rooms,
};
use naru_model::{MemberVersion, Room, RoomId, RoomKind, Seq, StoreTime, Timestamp, UserId};
use rusqlite::{Connection, OptionalExtension, Result, Row, Transaction, params};

use crate::column::{self, Columns, message_columns};
use crate::database::{Database, Sync};
use crate::store::is_member;
use crate::store::messages::latest_activity;

/// Of two users who are both in as many rooms or more, only so many of each are searched for one that they share.
const MAX_SEARCHED: i64 = 1_000;
/// How many pairs of users one read looks at.
const PAIRS_AT_ONCE: usize = 4;

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
            let is_known = versions(transaction, &room)?.is_some_and(|known| known.contains(&version));
            if is_known { members_at(transaction, &room, version).map(Some) } else { Ok(None) }
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
        self.list(user, cursor, limit).await
    }

    async fn summary(&self, room: &RoomId, user: &UserId) -> EngineResult<Option<RoomSummary>> {
        let room = self.current(std::slice::from_ref(room)).await?.pop().flatten();
        let Some(room) = room.filter(|room| room.has(user)) else { return Ok(None) };
        let user = user.clone();
        self.read(move |transaction| summary(transaction, room, &user).map(Some)).await
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

    async fn ever_of(
        &self,
        user: &UserId,
        after: Option<&RoomId>,
        limit: usize,
    ) -> EngineResult<Vec<RoomId>> {
        let (user, after) = (user.clone(), after.cloned());
        self.read(move |transaction| {
            let sql = "SELECT chatRoomId FROM members WHERE userId = ?1 AND chatRoomId > ?2
                ORDER BY chatRoomId LIMIT ?3";
            let after = after.as_ref().map_or("", |after| after.as_str());
            let range = params![user.as_str(), after, column::limit(limit)];
            transaction.prepare_cached(sql)?.query_map(range, |row| row.text(0))?.collect()
        })
        .await
    }

    /// A few pairs at a time: other reads come in between.
    async fn share_a_room(&self, user: &UserId, others: &[UserId]) -> EngineResult<Vec<bool>> {
        let mut share = Vec::with_capacity(others.len());
        for some in others.chunks(PAIRS_AT_ONCE) {
            let (user, some) = (user.clone(), some.to_vec());
            let read = self.read(move |transaction| {
                let number = number_of_rooms(transaction, &user)?;
                some.iter()
                    .map(|other| shares(transaction, (&user, number), other))
                    .collect::<Result<Vec<_>>>()
            });
            share.extend(read.await?);
        }
        Ok(share)
    }

    /// Not synced: what a power cut brings back is removed by the next call.
    async fn forget_versions(&self, left_before: Timestamp, limit: usize) -> EngineResult<u64> {
        let forget = move |transaction: &Transaction<'_>| forget_versions(transaction, left_before, limit);
        self.write_then(Sync::Never, forget, |_| {}).await
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
    for version in versions(connection, &room.id)?.into_iter().flatten().rev() {
        if *members_at(connection, &room.id, version)? == *members {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The versions whose members can be told, in their order; none where there is no room.
fn versions(connection: &Connection, room: &RoomId) -> Result<Option<Vec<MemberVersion>>> {
    let sql = "SELECT versionsFrom, memberVersion FROM chat_rooms WHERE _id = ?1";
    let versions = |row: &Row<'_>| {
        let first = MemberVersion::FIRST.0;
        let later = row.get::<_, u32>(0)?.max(first + 1)..=row.get(1)?;
        Ok(std::iter::once(first).chain(later).map(MemberVersion).collect())
    };
    connection.prepare_cached(sql)?.query_row([room.as_str()], versions).optional()
}

/// Removes those who left long ago, but no one of a first version: as many as any room has members when it is made.
fn forget_versions(connection: &Connection, left_before: Timestamp, limit: usize) -> Result<u64> {
    let sql = "SELECT chatRoomId, userId, since, until FROM memberships INDEXED BY memberships_by_age
        WHERE until IS NOT NULL AND since > 1 AND leftAt < ?1 ORDER BY leftAt LIMIT ?2";
    let mut old = connection.prepare_cached(sql)?;
    let record = |row: &Row<'_>| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, u32>(2)?, row.get::<_, u32>(3)?))
    };
    let old = old.query_map(params![left_before.as_millis(), column::limit(limit)], record)?;
    let old = old.collect::<Result<Vec<_>>>()?;
    let sql = "DELETE FROM memberships WHERE chatRoomId = ?1 AND userId = ?2 AND since = ?3";
    let mut remove = connection.prepare_cached(sql)?;
    // All versions before were left no later than this user left.
    let sql = "UPDATE chat_rooms SET versionsFrom = ?2 WHERE _id = ?1 AND versionsFrom < ?2";
    let mut forget = connection.prepare_cached(sql)?;
    for (room, user, since, until) in &old {
        remove.execute(params![room, user, since])?;
        forget.execute(params![room, until])?;
    }
    Ok(old.len() as u64)
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
            member_ids: members_now(connection, id)?,
            member_version,
            maker_id: row.get::<_, Option<Arc<str>>>(2)?.map(|_| row.text(2)).transpose()?,
            created_at: row.time(3)?,
        }))
    };
    connection.prepare_cached(sql)?.query_row([id.as_str()], room).optional()
}

/// Sorted, as the index is.
fn members_now(connection: &Connection, room: &RoomId) -> Result<Arc<[UserId]>> {
    let sql = "SELECT userId FROM memberships INDEXED BY memberships_now
        WHERE chatRoomId = ?1 AND until IS NULL ORDER BY userId";
    let mut statement = connection.prepare_cached(sql)?;
    let members = statement.query_map([room.as_str()], |row| row.text(0))?;
    members.collect()
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
    let sql = "UPDATE memberships SET until = ?3, leftAt = ?4
        WHERE chatRoomId = ?1 AND userId = ?2 AND until IS NULL";
    let now = Timestamp::now().as_millis();
    connection.prepare_cached(sql)?.execute(params![room.as_str(), user.as_str(), until.0, now]).map(drop)
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
    let member_ids = members_now(connection, id)?;
    Ok(Changed::Now(Arc::new(Room { member_ids, member_version: next, ..Room::clone(&room) })))
}

/// How many rooms a user is in, [`MAX_SEARCHED`] at most.
fn number_of_rooms(connection: &Connection, user: &UserId) -> Result<i64> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM memberships WHERE userId = ?1 AND until IS NULL LIMIT ?2)";
    let mut count = connection.prepare_cached(sql)?;
    count.query_row(params![user.as_str(), MAX_SEARCHED], |row| row.get(0))
}

/// Searches the rooms of the one who is in fewer for those of the other; of two who are in very many, the latest ones of both.
fn shares(connection: &Connection, (user, number): (&UserId, i64), other: &UserId) -> Result<bool> {
    if user == other {
        return Ok(true);
    }
    // Those without a place in the list come first: they may be the latest.
    let sql = "SELECT 1 FROM (SELECT * FROM (SELECT chatRoomId FROM memberships INDEXED BY memberships_of_user
             WHERE userId = ?1 AND until IS NULL AND activity IS NULL LIMIT ?3)
             UNION ALL SELECT * FROM (SELECT chatRoomId FROM memberships INDEXED BY memberships_of_user
             WHERE userId = ?1 AND until IS NULL AND activity IS NOT NULL ORDER BY activity DESC LIMIT ?3)) searched
         CROSS JOIN memberships found
             ON found.chatRoomId = searched.chatRoomId AND found.userId = ?2 AND found.until IS NULL";
    let mut search = connection.prepare_cached(sql)?;
    let mut is_among = |rooms_of: &UserId, user: &UserId| {
        search.exists(params![rooms_of.as_str(), user.as_str(), MAX_SEARCHED])
    };
    let others = number_of_rooms(connection, other)?;
    let (fewer, more) = if others < number { (other, user) } else { (user, other) };
    Ok(is_among(fewer, more)? || others.min(number) == MAX_SEARCHED && is_among(more, fewer)?)
}

/// The room as this member of it sees it.
pub(super) fn summary(connection: &Connection, room: Arc<Room>, user: &UserId) -> Result<RoomSummary> {
    let newest = concat!(
        "SELECT ",
        message_columns!(),
        " FROM chat_messages WHERE chatRoomId = ?1 ORDER BY seq DESC LIMIT 1"
    );
    let last_message =
        connection.prepare_cached(newest)?.query_row([room.id.as_str()], column::message).optional()?;
    let last_seq = last_message.as_ref().map_or(Seq::ZERO, |message| message.seq);
    let (read, settings) = member(connection, &room.id, user)?;
    let expired = "SELECT expiredTo FROM chat_rooms WHERE _id = ?1";
    let expired = connection.prepare_cached(expired)?.query_row([room.id.as_str()], |row| row.seq(0))?;
    let unread_count = last_seq.0.saturating_sub(read.max(expired).0);
    Ok(RoomSummary { room, last_message, last_seq, unread_count, settings })
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
