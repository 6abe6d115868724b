//! Rooms and their members.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use futures_util::future::{try_join, try_join_all};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use naru_engines::store::{
    Changed, Created, MemberChange, MemberSettings, NewRoom, RoomCursor, RoomSummary, Rooms,
};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::room::sorted_members;
use naru_model::{MemberVersion, Message, Room, RoomId, RoomKind, StoreTime, Timestamp, UserId};
use serde::Deserialize;

use crate::database::{Database, Find, Update};
use crate::document::{MemberDocument, RoomDocument, StoredRoom, VersionDocument};
use crate::error::{ENGINE, contended};
use crate::field::{Field, texts};
use crate::open::{CHAT_ROOMS, MEMBERS, ROOM_VERSIONS};
use crate::store::{member, members_now, rooms_of};

/// How often a change is tried while others come first: of changes tried at the same time, one always succeeds.
const TRIES: usize = 64;
/// Of a user who is in more rooms, only so many are searched for one that is shared with another user …
const MAX_SEARCHED: i64 = 1_000;
/// … and the rooms of so many others at a time.
const SEARCHES_AT_ONCE: usize = 4;
/// How many users' rooms are counted at the same time.
const COUNTED_AT_ONCE: usize = 16;

#[async_trait]
impl Rooms for Database {
    /// One round trip when there was no such room, else two or three. The call that inserts the document has made the room.
    async fn create(&self, new: NewRoom) -> EngineResult<Created> {
        let document = first_document(&new, self.activity_now());
        if let Some(document) = &document
            && self.insert_one(CHAT_ROOMS, document).await?
        {
            let made = StoredRoom::try_from(document.clone());
            return made.map(|made| Created::New(made.room)).map_err(|why| EngineError::poison(ENGINE, why));
        }
        match self.current_one(&new.id).await? {
            Some(room) if room.kind == new.kind && self.was_ever(&room, &new.member_ids).await? => {
                Ok(Created::Existing(room))
            }
            Some(_) => Ok(Created::Taken),
            None if document.is_none() => Err(EngineError::permanent(ENGINE, "a direct room is of two")),
            // Refused because of a document that the majority does not have yet, and may never have.
            None => Err(contended("chat_rooms", Applied::Unknown)),
        }
    }

    /// One round trip.
    ///
    /// A primary that was cut off from its majority may answer from the majority's last known state until it detects that:
    /// the ten seconds that MongoDB takes for an election. No request that needs a majority succeeds there meanwhile.
    async fn current(&self, ids: &[RoomId]) -> EngineResult<Vec<Option<Arc<Room>>>> {
        self.current_since(ids, None).await
    }

    /// One round trip, causally consistent with the requests until that time: `afterClusterTime` with `majority`. That time is
    /// an append's, which a majority has. A primary that was cut off before has no majority for a state of that time, and refuses, or
    /// waits until the request's time is over. `docs/decisions/0016-a-removal-holds-on-a-cut-off-primary.md`
    async fn current_since(
        &self,
        ids: &[RoomId],
        not_before: Option<StoreTime>,
    ) -> EngineResult<Vec<Option<Arc<Room>>>> {
        let rooms = self.rooms_since(ids, not_before).await?;
        Ok(ids.iter().map(|id| rooms.get(id).map(|stored| stored.room.clone())).collect())
    }

    /// One round trip for the newest version, which is the usual case, else two.
    async fn members_at(&self, room: &RoomId, version: MemberVersion) -> EngineResult<Option<Arc<[UserId]>>> {
        let Some(room) = self.current_one(room).await? else { return Ok(None) };
        if version == room.member_version {
            return Ok(Some(room.member_ids.clone()));
        }
        if !(MemberVersion::FIRST..room.member_version).contains(&version) {
            return Ok(None);
        }
        let filter = doc! { "chatRoomId": room.id.as_str(), "version": version.0 };
        let document = self.find_one::<VersionDocument>(ROOM_VERSIONS, filter).await?;
        Ok(document.map(|document| document.member_ids))
    }

    /// Three round trips, and three more whenever another change came first; when a member leaves, one more each time. There is
    /// no lock that a dead process could hold.
    ///
    /// What if the process dies here? The list of version *n* is stored before the room leaves version *n*: in between, the
    /// room is unchanged and the list is in `room_versions` early, the same one that any other call would store (and may be
    /// forgotten there while the room is at *n*). Then the room goes from *n* to *n* + 1 in one step, if it is still at *n*.
    async fn change(&self, id: &RoomId, change: MemberChange, max: usize) -> EngineResult<Changed> {
        for _ in 0..TRIES {
            let Some(room) = self.current_one(id).await? else { return Ok(Changed::NoRoom) };
            let next = match changed(&room, &change, max) {
                Ok(next) => next,
                Err(answer) => return Ok(answer),
            };
            if let MemberChange::Remove(user) = &change {
                // From then on only this tells quickly that the user was here.
                let was_here = doc! { "$setOnInsert": { "muted": false } };
                self.update_all(MEMBERS, vec![Update::or_insert(member(id, user), was_here)]).await?;
            }
            self.update_all(ROOM_VERSIONS, vec![leaving(&room)]).await?;
            let at_version = doc! { "_id": id.as_str(), "memberVersion": room.member_version.0 };
            let step = doc! { "$set": {
                "memberIds": texts(&*next.member_ids),
                "memberVersion": next.member_version.0,
            } };
            if self.update_one(CHAT_ROOMS, at_version, step).await? {
                return Ok(Changed::Now(Arc::new(next)));
            }
        }
        Err(contended("the room's members", Applied::No))
    }

    /// Two round trips, whatever the page holds, and one more when something on it is unread; three more when there are
    /// rooms of another system that were never listed.
    ///
    /// The index has the activity that [`bump`](naru_engines::store::Messages::bump) set. It decides the rooms of a page and
    /// the start of the next one, so a walk meets every room that was not bumped meanwhile; within the page, a room
    /// that was not bumped yet is where its newest message's timestamp puts it.
    async fn of_user(
        &self,
        user: &UserId,
        cursor: Option<&RoomCursor>,
        limit: usize,
    ) -> EngineResult<(Vec<RoomSummary>, Option<RoomCursor>)> {
        let (mut page, strays) = try_join(self.listed(user, cursor, limit), self.not_adopted(user)).await?;
        if !strays.is_empty() {
            self.adopt(&strays).await?;
            page = self.listed(user, cursor, limit).await?;
        }
        let more = page.len() > limit;
        page.truncate(limit);
        let last = page.last().map(|last| RoomCursor { activity: last.activity, room: last.room.id.clone() });

        page.retain(|stored| stored.room.has(user));
        let own = doc! { "userId": user.as_str(), "chatRoomId": { "$in": texts(page.iter().map(|stored| &stored.room.id)) } };
        let (newest, members) = try_join(self.newest_messages(&page), self.members(own, page.len())).await?;
        page.sort_by_cached_key(|StoredRoom { room, activity, .. }| {
            // A room that was not bumped yet has a newer message than its activity says.
            let activity = newest.get(&room.id).map_or(*activity, |message| message.timestamp.max(*activity));
            Reverse((activity, room.id.clone()))
        });
        Ok((self.summaries(user, page, newest, members).await?, last.filter(|_| more)))
    }

    /// Two round trips, and one more when something is unread.
    async fn summary(&self, id: &RoomId, user: &UserId) -> EngineResult<Option<RoomSummary>> {
        let (room, members) = try_join(self.stored(id), self.members(member(id, user), 1)).await?;
        let Some(stored) = room.filter(|stored| stored.room.has(user)) else { return Ok(None) };
        let newest = self.newest_messages([&stored]).await?;
        Ok(self.summaries(user, vec![stored], newest, members).await?.pop())
    }

    /// Two round trips.
    async fn configure(&self, room: &RoomId, user: &UserId, settings: MemberSettings) -> EngineResult<bool> {
        if !self.current_one(room).await?.is_some_and(|room| room.has(user)) {
            return Ok(false);
        }
        let set = doc! { "muted": settings.muted, "mutedUntil": settings.muted_until.to_bson() };
        let update = Update::or_insert(member(room, user), doc! { "$set": set });
        self.update_all(MEMBERS, vec![update]).await.map(|()| true)
    }

    /// One round trip for the rooms of now, one for those with a document of the member's.
    async fn ever_of(
        &self,
        user: &UserId,
        after: Option<&RoomId>,
        limit: usize,
    ) -> EngineResult<Vec<RoomId>> {
        #[derive(Deserialize)]
        struct Now {
            #[serde(rename = "_id")]
            room: RoomId,
        }
        let (mut now, mut before) = (rooms_of(user), doc! { "userId": user.as_str() });
        if let Some(after) = after {
            now.insert("_id", doc! { "$gt": after.as_str() });
            before.insert("chatRoomId", doc! { "$gt": after.as_str() });
        }
        let now = Find::all(now).sorted(doc! { "_id": 1 }).only(doc! { "_id": 1 }).at_most(limit);
        let before = Find::all(before).sorted(doc! { "chatRoomId": 1 }).at_most(limit);
        let (now, before) = try_join(
            self.find::<Now>(CHAT_ROOMS, now),
            self.find::<MemberDocument>(MEMBERS, before.only(doc! { "userId": 1, "chatRoomId": 1 })),
        )
        .await?;
        // In the order of bytes, as both are.
        let rooms = now.into_iter().map(|Now { room }| room);
        let rooms: BTreeSet<RoomId> =
            rooms.chain(before.into_iter().map(|member| member.chat_room_id)).collect();
        Ok(rooms.into_iter().take(limit).collect())
    }

    /// One round trip: two queries at the same time. The caller's rooms are searched for all of `others`; where those searched are
    /// not all, the latest rooms of each of the others not found among them, too.
    async fn share_a_room(&self, user: &UserId, others: &[UserId]) -> EngineResult<Vec<bool>> {
        #[derive(Deserialize)]
        struct Shared {
            #[serde(rename = "_id")]
            user: UserId,
            rooms: u64,
        }
        if others.is_empty() {
            return Ok(Vec::new());
        }
        // With the user themself, whose rooms are all that are searched.
        let asked = texts(others.iter().chain([user]));
        let mut search = latest_rooms_of(user);
        search.extend([
            doc! { "$project": { "shared": { "$setIntersection": [members_now(), { "$literal": &asked }] } } },
            doc! { "$unwind": "$shared" },
            doc! { "$group": { "_id": "$shared", "rooms": { "$sum": 1 } } },
        ]);
        let (shared, strays) =
            try_join(self.aggregate::<Shared>(Some(CHAT_ROOMS), search), self.not_adopted(user)).await?;
        let searched = shared.iter().find(|shared| shared.user == *user).map_or(0, |own| own.rooms);
        let mut found: HashSet<UserId> = shared.into_iter().map(|shared| shared.user).collect();
        found.extend(strays.iter().flat_map(|stray| stray.room.member_ids.iter().cloned()));
        found.insert(user.clone());
        let left: Vec<&UserId> = others.iter().filter(|other| !found.contains(*other)).collect();
        if searched >= MAX_SEARCHED.unsigned_abs() {
            for some in left.chunks(SEARCHES_AT_ONCE) {
                let are_shared = try_join_all(some.iter().map(|other| self.is_in_a_room_of(user, other)));
                let are_shared = some.iter().zip(are_shared.await?).filter(|(_, is_shared)| *is_shared);
                found.extend(are_shared.map(|(other, _)| UserId::clone(other)));
            }
        }
        Ok(others.iter().map(|other| found.contains(other)).collect())
    }

    /// Two round trips. What if the process dies here? The next call removes the rest.
    async fn forget_versions(&self, left_before: Timestamp, limit: usize) -> EngineResult<u64> {
        #[derive(Deserialize)]
        struct Left {
            #[serde(rename = "_id")]
            id: Bson,
        }
        let left_before = doc! { "leftAt": { "$lt": left_before.to_bson() } };
        let find = Find::all(left_before.clone()).sorted(doc! { "leftAt": 1 }).at_most(limit);
        let old = self.find::<Left>(ROOM_VERSIONS, find.only(doc! { "_id": 1 })).await?;
        if old.is_empty() {
            return Ok(0);
        }
        let ids: Vec<Bson> = old.into_iter().map(|old| old.id).collect();
        // The room may be leaving it only now, after a try that was cut off.
        let mut still = left_before;
        still.insert("_id", doc! { "$in": ids });
        self.remove(ROOM_VERSIONS, still).await
    }

    /// One round trip for each user, so many at a time. Each is a walk in an index.
    async fn have_rooms(&self, users: &[UserId], at_least: usize) -> EngineResult<Vec<bool>> {
        #[derive(Deserialize)]
        struct Counted {
            rooms: i64,
        }
        let at_least = i64::try_from(at_least).unwrap_or(i64::MAX);
        let has_rooms = |user: &UserId| {
            let count = vec![
                doc! { "$match": { "memberIds": user.as_str() } },
                doc! { "$limit": at_least },
                doc! { "$group": { "_id": null, "rooms": { "$sum": 1_i64 } } },
            ];
            async move {
                let counted = self.aggregate::<Counted>(Some(CHAT_ROOMS), count).await?;
                Ok(counted.first().is_some_and(|counted| counted.rooms >= at_least))
            }
        };
        stream::iter(users.iter().map(has_rooms).collect::<Vec<_>>())
            .buffered(COUNTED_AT_ONCE)
            .try_collect()
            .await
    }
}

impl Database {
    async fn current_one(&self, id: &RoomId) -> EngineResult<Option<Arc<Room>>> {
        Ok(self.stored(id).await?.map(|stored| stored.room))
    }

    /// Whether the user is in one of the other's latest rooms.
    async fn is_in_a_room_of(&self, user: &UserId, other: &UserId) -> EngineResult<bool> {
        let mut search = latest_rooms_of(other);
        search.extend([
            doc! { "$match": { "memberIds": user.as_str() } },
            doc! { "$limit": 1 },
            doc! { "$project": { "_id": 1 } },
        ]);
        Ok(!self.aggregate::<Document>(Some(CHAT_ROOMS), search).await?.is_empty())
    }

    async fn stored(&self, id: &RoomId) -> EngineResult<Option<StoredRoom>> {
        Ok(self.rooms([id]).await?.remove(id))
    }

    /// Rooms as one member sees them.
    async fn summaries(
        &self,
        user: &UserId,
        rooms: Vec<StoredRoom>,
        mut newest: HashMap<RoomId, Message>,
        members: Vec<MemberDocument>,
    ) -> EngineResult<Vec<RoomSummary>> {
        let members: HashMap<_, _> =
            members.into_iter().map(|member| (member.chat_room_id.clone(), member)).collect();
        let said = |room: &RoomId| members.get(room).map(|member| member.read).unwrap_or_default();
        // The member's own messages matter only where there are unread ones.
        let unread = newest.values().map(|last| (&last.chat_room_id, last.seq, said(&last.chat_room_id)));
        let unread = unread.filter(|(_, last, said)| last > said);
        let read = self
            .read_by(unread.map(|(room, _, said)| ((room.clone(), user.clone()), said)).collect())
            .await?;
        let summary = |StoredRoom { room, expired, .. }| {
            let last_message = newest.remove(&room.id);
            let last_seq = last_message.as_ref().map(|last| last.seq).unwrap_or_default();
            let read = read.get(&(room.id.clone(), user.clone())).copied().unwrap_or(last_seq);
            let settings = members.get(&room.id).map(MemberDocument::settings).unwrap_or_default();
            RoomSummary {
                room,
                last_message,
                last_seq,
                unread_count: last_seq.0.saturating_sub(read.max(expired).0),
                settings,
            }
        };
        Ok(rooms.into_iter().map(summary).collect())
    }

    /// Whether a room has or had exactly these members at some version.
    async fn was_ever(&self, room: &Room, members: &[UserId]) -> EngineResult<bool> {
        if *room.member_ids == *members {
            return Ok(true);
        }
        if room.member_version == MemberVersion::FIRST {
            return Ok(false);
        }
        // Lists are sorted, so equal lists are equal arrays. A list that was stored early is the current one.
        let filter = doc! { "chatRoomId": room.id.as_str(), "memberIds": texts(members) };
        let version = self.find_one::<VersionDocument>(ROOM_VERSIONS, filter).await?;
        Ok(version.is_some())
    }

    /// A page of a user's rooms and one room more: a walk in the index of `(memberIds, activity, _id)`.
    async fn listed(
        &self,
        user: &UserId,
        cursor: Option<&RoomCursor>,
        limit: usize,
    ) -> EngineResult<Vec<StoredRoom>> {
        let mut filter = doc! { "memberIds": user.as_str() };
        if let Some(RoomCursor { activity, room }) = cursor {
            let activity = activity.to_bson();
            // The first condition bounds the walk, the second one orders equal moments.
            filter.insert("activity", doc! { "$lte": activity });
            filter.insert(
                "$or",
                [doc! { "activity": { "$lt": activity } }, doc! { "_id": { "$lt": room.as_str() } }].to_vec(),
            );
        }
        let order = doc! { "activity": -1, "_id": -1 };
        let page =
            Find::all(filter).sorted(order).only(RoomDocument::fields()).at_most(limit.saturating_add(1));
        self.find(CHAT_ROOMS, page).await
    }

    /// Rooms of a user that another system wrote or replaced, and that are not in lists yet.
    async fn not_adopted(&self, user: &UserId) -> EngineResult<Vec<StoredRoom>> {
        let user = user.as_str();
        let not_adopted = doc! { "$or": [
            { "user1Id": user, "memberVersion": null },
            { "user2Id": user, "memberVersion": null },
        ] };
        self.find(CHAT_ROOMS, Find::all(not_adopted).only(RoomDocument::fields())).await
    }

    /// Fills in the fields that lists need: the members in one field, and the room's activity, which is its newest message's
    /// timestamp or, without one, now. Concurrent adoptions write the same, except the latter, where the first one's stays.
    /// A room that its system replaces loses these fields and is adopted again.
    async fn adopt(&self, strays: &[StoredRoom]) -> EngineResult<()> {
        let newest = self.newest_messages(strays).await?;
        let now = Timestamp::now();
        let adopt = |StoredRoom { room, .. }: &StoredRoom| {
            let activity = newest.get(&room.id).map_or(now, |message| message.timestamp);
            // The members come from these two fields: a document with another pair needs another adoption.
            let [user1, user2] = [room.member_ids.first(), room.member_ids.last()]
                .map(|user| user.map(UserId::as_str).unwrap_or_default());
            let pair = doc! { "$in": [user1, user2] };
            Update::one(
                doc! { "_id": room.id.as_str(), "user1Id": pair.clone(), "user2Id": pair, "memberVersion": null },
                vec![doc! { "$set": {
                    "memberIds": { "$literal": texts(&*room.member_ids) },
                    "memberVersion": { "$literal": room.member_version.0 },
                    "activity": { "$ifNull": ["$activity", activity.to_bson()] },
                } }],
            )
        };
        self.update_all(CHAT_ROOMS, strays.iter().map(adopt).collect()).await
    }
}

/// Stores the members at a version that a group is about to leave; another call may have stored the same list. The first version is
/// never forgotten (R8), so it has no time.
fn leaving(room: &Room) -> Update {
    let this = doc! { "chatRoomId": room.id.as_str(), "version": room.member_version.0 };
    let mut store = doc! { "$setOnInsert": { "memberIds": texts(&*room.member_ids) } };
    if room.member_version != MemberVersion::FIRST {
        store.insert("$max", doc! { "leftAt": Timestamp::now().to_bson() });
    }
    Update::or_insert(this, store)
}

/// A pipeline of a user's rooms, the latest ones of very many: a walk in the index of `(memberIds, activity, _id)`.
fn latest_rooms_of(user: &UserId) -> Vec<Document> {
    vec![
        doc! { "$match": { "memberIds": user.as_str() } },
        doc! { "$sort": { "activity": -1, "_id": -1 } },
        doc! { "$limit": MAX_SEARCHED },
    ]
}

/// A new room's document; none for a direct room of other than two users, which can't be made.
fn first_document(new: &NewRoom, now: Timestamp) -> Option<RoomDocument> {
    let (user1_id, user2_id) = match (new.kind, &*new.member_ids) {
        (RoomKind::Direct, [user1, user2]) => (Some(user1.clone()), Some(user2.clone())),
        (RoomKind::Direct, _) => return None,
        (RoomKind::Group, _) => (None, None),
    };
    Some(RoomDocument {
        id: new.id.clone(),
        user1_id,
        user2_id,
        name: new.name.clone(),
        member_ids: Some(new.member_ids.clone()),
        member_version: Some(MemberVersion::FIRST),
        maker_id: new.maker_id.clone(),
        created_at: Some(now),
        activity: Some(now),
        last_seq: None,
        expired_to: None,
    })
}

/// The room after a change, or the answer where nothing changes.
fn changed(room: &Arc<Room>, change: &MemberChange, max: usize) -> Result<Room, Changed> {
    if room.kind == RoomKind::Direct {
        return Err(Changed::Direct);
    }
    let members = room.member_ids.iter().cloned();
    let member_ids = match change {
        MemberChange::Add(user) if room.has(user) => return Err(Changed::Now(room.clone())),
        MemberChange::Add(_) if room.member_ids.len() >= max => return Err(Changed::Full),
        MemberChange::Add(user) => sorted_members(members.chain([user.clone()])),
        MemberChange::Remove(user) if !room.has(user) => return Err(Changed::Now(room.clone())),
        MemberChange::Remove(user) => members.filter(|member| member != user).collect(),
    };
    Ok(Room { member_ids, member_version: room.member_version.next(), ..Room::clone(room) })
}
