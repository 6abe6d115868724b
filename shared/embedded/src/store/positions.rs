//! The read and received positions of members.

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::store::{Advance, DevicePosition, MemberPosition, Moved, Positions};
use naru_model::{DeviceId, RoomId, Seq, Timestamp, UserId};
use rusqlite::{Connection, Result, params};

use crate::column::{self, Columns};
use crate::database::Database;
use crate::store::rooms::member;
use crate::store::{head, is_member};

#[async_trait]
impl Positions for Database {
    async fn advance(&self, steps: &[Advance]) -> EngineResult<Vec<Moved>> {
        let steps = steps.to_vec();
        self.write(move |transaction| steps.iter().map(|step| advance(transaction, step)).collect()).await
    }

    async fn get(&self, members: &[(RoomId, UserId, Seq)]) -> EngineResult<Vec<MemberPosition>> {
        let members = members.to_vec();
        self.read(move |transaction| {
            let position = |(room, user, _): &(RoomId, UserId, Seq)| {
                let (read, settings) = member(transaction, room, user)?;
                Ok(MemberPosition { read, received: received(transaction, room, user)?, settings })
            };
            members.iter().map(position).collect()
        })
        .await
    }

    async fn unread(&self, users: &[UserId]) -> EngineResult<Vec<u64>> {
        let (users, now) = (users.to_vec(), Timestamp::now());
        self.read(move |transaction| {
            // For each of a user's rooms one step to its head, one to what has expired, and one to the user's read position.
            let mut unread = transaction.prepare_cached(
                "SELECT coalesce(sum(max(0,
                     (SELECT coalesce(max(seq), 0) FROM chat_messages WHERE chatRoomId = memberships.chatRoomId)
                     - max(coalesce(members.read, 0), chat_rooms.expiredTo))), 0)
                 FROM memberships JOIN chat_rooms ON chat_rooms._id = memberships.chatRoomId
                     LEFT JOIN members USING (chatRoomId, userId)
                 WHERE memberships.userId = ?1 AND memberships.until IS NULL
                     AND NOT (coalesce(members.muted, 0) AND coalesce(members.mutedUntil > ?2, 1))",
            )?;
            let unread =
                |user: &UserId| unread.query_row(params![user.as_str(), now.as_millis()], |row| row.seq(0));
            users.iter().map(unread).map(|sum| sum.map(|Seq(sum)| sum)).collect()
        })
        .await
    }

    async fn forget(&self, user: &UserId, rooms: &[RoomId]) -> EngineResult<()> {
        let (user, rooms) = (user.clone(), rooms.to_vec());
        self.write(move |transaction| {
            // The row stays: each member has one.
            let sql = "UPDATE members SET read = 0, muted = 0, mutedUntil = NULL WHERE chatRoomId = ?1 AND userId = ?2";
            let mut reset = transaction.prepare_cached(sql)?;
            let sql = "DELETE FROM received WHERE chatRoomId = ?1 AND userId = ?2";
            let mut forget = transaction.prepare_cached(sql)?;
            rooms.iter().try_for_each(|room| {
                let member = [room.as_str(), user.as_str()];
                reset.execute(member).and(forget.execute(member)).map(drop)
            })
        })
        .await
    }

    async fn of_device(&self, user: &UserId, device: &DeviceId) -> EngineResult<Vec<DevicePosition>> {
        let (user, device) = (user.clone(), device.clone());
        self.read(move |transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT chatRoomId, (SELECT seq FROM received
                     WHERE chatRoomId = memberships.chatRoomId AND userId = ?1 AND deviceId = ?2)
                 FROM memberships WHERE userId = ?1 AND until IS NULL",
            )?;
            let rows = statement.query_map([user.as_str(), device.as_str()], |row| {
                Ok(DevicePosition { room: row.text(0)?, received: row.seq(1)? })
            })?;
            rows.collect()
        })
        .await
    }
}

/// The position of this user's furthest device.
fn received(connection: &Connection, room: &RoomId, user: &UserId) -> Result<Seq> {
    connection
        .prepare_cached("SELECT max(seq) FROM received WHERE chatRoomId = ?1 AND userId = ?2")?
        .query_row([room.as_str(), user.as_str()], |row| row.seq(0))
}

fn advance(connection: &Connection, step: &Advance) -> Result<Moved> {
    if !is_member(connection, &step.room, &step.user)? {
        return Ok(Moved::default());
    }
    let (room, user) = (step.room.as_str(), step.user.as_str());
    let head = head(connection, &step.room)?;
    let read = column::place(step.read).min(head);
    let received = column::place(step.received).min(head).max(read);
    let moved = |place: i64, is_moved: bool| is_moved.then(|| Seq(place.unsigned_abs()));
    let furthest = column::place(self::received(connection, &step.room, &step.user)?);

    let device = step.device.as_ref().map_or("", DeviceId::as_str);
    let sql = "INSERT INTO received (chatRoomId, userId, deviceId, seq) SELECT ?1, ?2, ?3, ?4 WHERE ?4 > 0
        ON CONFLICT DO UPDATE SET seq = excluded.seq WHERE seq < excluded.seq";
    let mut receive = connection.prepare_cached(sql)?;
    receive.execute(params![room, user, device, received])?;

    let sql = "UPDATE members SET read = ?3 WHERE chatRoomId = ?1 AND userId = ?2 AND read < ?3";
    let is_read = read > 0 && connection.prepare_cached(sql)?.execute(params![room, user, read])? > 0;
    Ok(Moved { received: moved(received, received > furthest), read: moved(read, is_read) })
}
