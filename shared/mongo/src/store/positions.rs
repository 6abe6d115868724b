//! Members' positions.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use bson::{Document, doc};
use futures_util::future::{try_join, try_join3};
use naru_engines::store::{Advance, DevicePosition, MemberPosition, Moved, Positions};
use naru_engines::{Applied, EngineResult};
use naru_model::{DeviceId, RoomId, Seq, Timestamp, UserId};
use serde::Deserialize;

use crate::database::{Database, Find, Update};
use crate::document::{MemberDocument, if_field};
use crate::error::{after_effect, contended};
use crate::field::{Field, texts};
use crate::open::{CHAT_MESSAGES, CHAT_ROOMS, MEMBERS};
use crate::store::{Member, member, members_now, rooms_of};

/// How often a move is tried while others come first: of moves tried at the same time, one always succeeds.
const TRIES: usize = 64;

#[async_trait]
impl Positions for Database {
    /// Two round trips: the rooms and members, then one command that moves all of them. One more where a step reads further
    /// than before, for the member's own messages; one where a step goes beyond the room's head; two for members that
    /// another call moved in between.
    ///
    /// All steps of one member in one room are merged into one change, which is made only if the member's position is still
    /// the one that was read. So that is the position before the change, and from it follows, step by step, what each step
    /// moved: of two gateways that move a member to the same place, one finds the member already there.
    async fn advance(&self, steps: &[Advance]) -> EngineResult<Vec<Moved>> {
        let mut furthest: HashMap<&RoomId, Seq> = HashMap::new();
        for step in steps {
            let furthest = furthest.entry(&step.room).or_default();
            *furthest = step.received.max(step.read).max(*furthest);
        }
        let keys: HashSet<MemberKey<'_>> = steps.iter().map(|step| (&step.room, &step.user)).collect();
        let (reached, rooms, mut seen) = try_join3(
            self.reached(&furthest),
            self.rooms(furthest.keys().copied()),
            self.places(keys.into_iter().collect()),
        )
        .await?;
        let beyond = rooms.values().filter(|stored| !reached.contains(&stored.room.id));
        let heads =
            self.heads_of(beyond.map(|stored| (stored.room.id.clone(), stored.bumped)).collect()).await?;
        let cut = |step: &Advance| {
            let is_member = rooms.get(&step.room).is_some_and(|stored| stored.room.has(&step.user));
            let head = match reached.contains(&step.room) {
                true => furthest.get(&step.room),
                false => heads.get(&step.room),
            };
            let head = head.copied().filter(|_| is_member).unwrap_or_default();
            let read = step.read.min(head);
            // READ implies RECEIVED.
            Progress { received: step.received.min(head).max(read), read }
        };
        let places: Vec<Progress> = steps.iter().map(cut).collect();

        let reported = |key: MemberKey<'_>| seen.get(&key).map(|place| place.read).unwrap_or_default();
        let keys = steps.iter().map(|step| (&step.room, &step.user)).zip(&places);
        let reading = keys.filter(|(key, place)| place.read > reported(*key));
        let reading = reading.map(|(key, _)| ((key.0.clone(), key.1.clone()), reported(key)));
        let read = self.read_by(reading.collect()).await?;

        let mut merged: HashMap<MemberKey<'_>, Forward<'_>> = HashMap::new();
        for (step, place) in steps.iter().zip(&places).filter(|(_, place)| place.received > Seq::ZERO) {
            merged.entry((&step.room, &step.user)).or_default().add(step.device.as_ref(), *place);
        }
        let mut left: Vec<(MemberKey<'_>, Forward<'_>)> = merged.into_iter().collect();
        for attempt in 0..TRIES {
            if left.is_empty() {
                break;
            }
            if attempt > 0 {
                let keys = left.iter().map(|(key, _)| *key).collect();
                seen.extend(self.places(keys).await.map_err(after_effect)?);
            }
            let at = |key| seen.get(key).copied().unwrap_or_default();
            let updates: Vec<Update> =
                left.iter().map(|(key, forward)| forward.from(*key, at(key))).collect();
            let beaten = self.try_updates(MEMBERS, &updates).await.map_err(after_effect)?;
            let beaten: HashSet<usize> = beaten.into_iter().collect();
            let mut place = 0..;
            left.retain(|_| place.next().is_some_and(|place: usize| beaten.contains(&place)));
        }
        if !left.is_empty() {
            return Err(contended("members", Applied::Unknown));
        }

        for ((room, user), read) in &read {
            let at = seen.entry((room, user)).or_default();
            at.read = at.read.max(*read);
        }
        let told = steps.iter().zip(places).map(|(step, place)| match place.received {
            Seq::ZERO => Moved::default(),
            _ => seen.entry((&step.room, &step.user)).or_default().advance(place),
        });
        Ok(told.collect())
    }

    /// Two round trips: the members' documents, with one clause for each room and one index step for each member; then their
    /// own messages after their read positions and after the place that is asked from.
    async fn get(&self, asked: &[(RoomId, UserId, Seq)]) -> EngineResult<Vec<MemberPosition>> {
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let mut rooms: BTreeMap<&RoomId, BTreeSet<&UserId>> = BTreeMap::new();
        let mut before: HashMap<MemberKey<'_>, Seq> = HashMap::new();
        for (room, user, from) in asked {
            rooms.entry(room).or_default().insert(user);
            let last = Seq(from.0.saturating_sub(1));
            before.entry((room, user)).and_modify(|before| *before = last.min(*before)).or_insert(last);
        }
        let of_room = |(room, users): (&RoomId, BTreeSet<&UserId>)| {
            doc! { "userId": { "$in": texts(users) }, "chatRoomId": room.as_str() }
        };
        let either: Vec<Document> = rooms.into_iter().map(of_room).collect();
        let members = self.members(doc! { "$or": either }, before.len()).await?;
        let members: HashMap<MemberKey<'_>, _> =
            members.iter().map(|member| ((&member.chat_room_id, &member.user_id), member)).collect();
        let reported = |key: MemberKey<'_>| members.get(&key).map(|member| member.read).unwrap_or_default();
        let after = |(key, before): (&MemberKey<'_>, &Seq)| {
            ((key.0.clone(), key.1.clone()), reported(*key).max(*before))
        };
        let sent = self.sent_after(before.iter().map(after).collect()).await?;
        let position = |(room, user, _): &(RoomId, UserId, Seq)| {
            let member = members.get(&(room, user));
            let sent = sent.get(&(room.clone(), user.clone())).copied();
            MemberPosition {
                read: sent.unwrap_or_else(|| reported((room, user))),
                received: member.map(|member| member.received).unwrap_or_default(),
                settings: member.map(|member| member.settings()).unwrap_or_default(),
            }
        };
        Ok(asked.iter().map(position).collect())
    }

    /// Two round trips: the users' rooms, settings and reported read positions, then the rooms' heads and the users' own last messages,
    /// for which only the messages themselves are certain.
    async fn unread(&self, users: &[UserId]) -> EngineResult<Vec<u64>> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let own = Find::all(doc! { "userId": { "$in": texts(users) } });
        let read = own.only(doc! { "userId": 1, "chatRoomId": 1, "read": 1, "muted": 1, "mutedUntil": 1 });
        let (rooms, read) =
            try_join(self.shared_rooms(users), self.find::<MemberDocument>(MEMBERS, read)).await?;
        let mut reported: HashMap<Member, Seq> = HashMap::new();
        for RoomOf { id, members, .. } in &rooms {
            reported.extend(members.iter().map(|user| ((id.clone(), user.clone()), Seq::ZERO)));
        }
        let now = Timestamp::now();
        for member in read {
            let is_muted = member.settings().mutes_at(now);
            let who = (member.chat_room_id, member.user_id);
            // Neither does a room that the user left count.
            if is_muted {
                reported.remove(&who);
            } else if let Some(reported) = reported.get_mut(&who) {
                *reported = member.read;
            }
        }
        let expired: HashMap<RoomId, Seq> =
            rooms.iter().filter_map(|room| Some((room.id.clone(), room.expired_to?))).collect();
        let bumped = rooms.into_iter().map(|room| (room.id, room.last_seq.unwrap_or_default())).collect();
        let (heads, read) = try_join(self.heads_of(bumped), self.read_by(reported)).await?;
        let mut unread: HashMap<UserId, u64> = HashMap::new();
        for ((room, user), read) in read {
            let head = heads.get(&room).copied().unwrap_or_default();
            let expired = expired.get(&room).copied().unwrap_or_default();
            *unread.entry(user).or_default() += head.0.saturating_sub(read.max(expired).0);
        }
        Ok(users.iter().map(|user| unread.get(user).copied().unwrap_or(0)).collect())
    }

    /// One round trip.
    async fn forget(&self, user: &UserId, rooms: &[RoomId]) -> EngineResult<()> {
        let members = doc! { "userId": user.as_str(), "chatRoomId": { "$in": texts(rooms) } };
        let fields = doc! { "read": "", "received": "", "devices": "", "muted": "", "mutedUntil": "" };
        self.update_all(MEMBERS, vec![Update::all(members, doc! { "$unset": fields })]).await
    }

    /// One round trip: two queries at the same time.
    async fn of_device(&self, user: &UserId, device: &DeviceId) -> EngineResult<Vec<DevicePosition>> {
        #[derive(Deserialize)]
        struct Id {
            #[serde(rename = "_id")]
            id: RoomId,
        }
        let this_device = doc! { "$elemMatch": { "deviceId": device.as_str() } };
        let own = Find::all(doc! { "userId": user.as_str() });
        let (rooms, members) = try_join(
            self.find::<Id>(CHAT_ROOMS, Find::all(rooms_of(user)).only(doc! { "_id": 1 })),
            self.find::<MemberDocument>(
                MEMBERS,
                own.only(doc! { "userId": 1, "chatRoomId": 1, "devices": this_device }),
            ),
        )
        .await?;
        let received = |member: MemberDocument| {
            let place = member.devices.first().map(|place| place.received)?;
            Some((member.chat_room_id, place))
        };
        let received: HashMap<RoomId, Seq> = members.into_iter().filter_map(received).collect();
        let position = |Id { id }| {
            let received = received.get(&id).copied().unwrap_or_default();
            DevicePosition { room: id, received }
        };
        Ok(rooms.into_iter().map(position).collect())
    }
}

type MemberKey<'a> = (&'a RoomId, &'a UserId);

/// A room, and its members among the users asked for.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RoomOf {
    #[serde(rename = "_id")]
    id: RoomId,
    members: Vec<UserId>,
    #[serde(default, deserialize_with = "if_field")]
    last_seq: Option<Seq>,
    #[serde(default, deserialize_with = "if_field")]
    expired_to: Option<Seq>,
}

impl Database {
    /// The rooms that any of these users is in. The answer names no other user, however large the rooms are.
    async fn shared_rooms(&self, users: &[UserId]) -> EngineResult<Vec<RoomOf>> {
        let asked = texts(users);
        let pipeline = vec![
            doc! { "$match": { "$or": [
                { "memberIds": { "$in": &asked } },
                { "user1Id": { "$in": &asked } },
                { "user2Id": { "$in": &asked } },
            ] } },
            doc! { "$project": {
                "members": { "$setIntersection": [members_now(), { "$literal": &asked }] },
                "lastSeq": 1,
                "expiredTo": 1,
            } },
        ];
        self.aggregate(Some(CHAT_ROOMS), pipeline).await
    }

    /// Which of these rooms have a message at this place: they reach that far, since places have no gaps.
    async fn reached(&self, furthest: &HashMap<&RoomId, Seq>) -> EngineResult<HashSet<RoomId>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Reached {
            chat_room_id: RoomId,
        }
        let places = furthest.iter().filter(|(_, seq)| **seq > Seq::ZERO);
        let places = places.map(|(room, seq)| doc! { "chatRoomId": room.as_str(), "seq": seq.to_bson() });
        let places: Vec<Document> = places.collect();
        if places.is_empty() {
            return Ok(HashSet::new());
        }
        let limit = places.len();
        let find = Find::all(doc! { "$or": places }).only(doc! { "_id": 0, "chatRoomId": 1 }).at_most(limit);
        let reached = self.find::<Reached>(CHAT_MESSAGES, find).await?;
        Ok(reached.into_iter().map(|reached| reached.chat_room_id).collect())
    }

    /// These members' positions; none for a member without a document.
    async fn places<'a>(&self, keys: Vec<MemberKey<'a>>) -> EngineResult<HashMap<MemberKey<'a>, Progress>> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let either: Vec<Document> = keys.iter().map(|(room, user)| member(room, user)).collect();
        let members = self.members(doc! { "$or": either }, keys.len()).await?;
        let places: HashMap<_, _> = members
            .iter()
            .map(|member| {
                let place = Progress { received: member.received, read: member.read };
                ((&member.chat_room_id, &member.user_id), place)
            })
            .collect();
        Ok(keys.into_iter().filter_map(|key| places.get(&key).map(|place| (key, *place))).collect())
    }
}

/// A member's position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Of the furthest device.
    received: Seq,
    read: Seq,
}

impl Progress {
    /// Goes forward; answers what moved.
    fn advance(&mut self, to: Progress) -> Moved {
        let step = |at: &mut Seq, to: Seq| {
            let moved = to > *at;
            *at = to.max(*at);
            moved.then_some(to)
        };
        Moved { received: step(&mut self.received, to.received), read: step(&mut self.read, to.read) }
    }
}

/// All steps of one member in one room, merged.
#[derive(Default)]
struct Forward<'a> {
    to: Progress,
    devices: BTreeMap<&'a DeviceId, Seq>,
}

impl<'a> Forward<'a> {
    fn add(&mut self, device: Option<&'a DeviceId>, place: Progress) {
        self.to.advance(place);
        if let Some(device) = device {
            let received = self.devices.entry(device).or_default();
            *received = place.received.max(*received);
        }
    }

    /// The move of a member whose position is still the one that was read. At any other it would make a second document,
    /// which the unique index refuses: so the server reports which of many moves it did not make.
    fn from(&self, (room, user): MemberKey<'_>, seen: Progress) -> Update {
        // A missing field counts as 0.
        let still = |seq: Seq| match seq {
            Seq::ZERO => doc! { "$in": [0_i64, null] },
            _ => doc! { "$eq": seq.to_bson() },
        };
        let mut filter = member(room, user);
        filter.insert("read", still(seen.read));
        filter.insert("received", still(seen.received));
        Update::or_insert(filter, vec![doc! { "$set": self.fields() }])
    }

    /// The member's fields after the move, as expressions on those before it: other devices may have moved meanwhile.
    fn fields(&self) -> Document {
        let mut fields = doc! {
            "read": { "$max": ["$read", self.to.read.to_bson()] },
            "received": { "$max": ["$received", self.to.received.to_bson()] },
        };
        if self.devices.is_empty() {
            return fields;
        }
        let ids = texts(self.devices.keys().copied());
        let moving = self.devices.iter().map(|(device, received)| {
            doc! { "deviceId": device.as_str(), "received": received.to_bson() }
        });
        let moving = doc! { "$literal": moving.collect::<Vec<_>>() };
        let known = doc! { "$ifNull": ["$devices", []] };
        let others = doc! { "$filter": {
            "input": known.clone(), "as": "known",
            "cond": { "$not": [{ "$in": ["$$known.deviceId", { "$literal": ids }] }] },
        } };
        let same = doc! { "$filter": {
            "input": known, "as": "known", "cond": { "$eq": ["$$known.deviceId", "$$moving.deviceId"] },
        } };
        let before = doc! { "$map": { "input": same, "as": "same", "in": "$$same.received" } };
        let moved = doc! { "$map": { "input": moving, "as": "moving", "in": {
            "deviceId": "$$moving.deviceId",
            "received": { "$max": { "$concatArrays": [["$$moving.received"], before] } },
        } } };
        fields.insert("devices", doc! { "$concatArrays": [others, moved] });
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_tells_only_what_went_forward() {
        let mut at = Progress { received: Seq(5), read: Seq(2) };
        let step = |received, read| Progress { received: Seq(received), read: Seq(read) };
        assert_eq!(at.advance(step(4, 2)), Moved::default());
        assert_eq!(at.advance(step(4, 3)), Moved { received: None, read: Some(Seq(3)) });
        assert_eq!(at.advance(step(6, 1)), Moved { received: Some(Seq(6)), read: None });
        assert_eq!(at, step(6, 3));
    }
}
