//! The store in MongoDB. Each part has its own file; queries that several of them use are here.

mod devices;
mod epochs;
mod intake;
mod messages;
mod positions;
mod pushes;
mod rooms;
mod users;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use bson::{Document, doc};
use naru_engines::EngineResult;
use naru_engines::store::{Linger, Store};
use naru_model::{Message, RoomId, Seq, StoreTime, UserId};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::database::{Database, Find};
use crate::document::{MemberDocument, MessageDocument, RoomDocument, StoredRoom};
use crate::field::{self, Field, texts};
use crate::open::{CHAT_MESSAGES, CHAT_ROOMS, MEMBERS};

/// How many messages, beyond two for each range, `last_in` reads in one query.
const SPARE: usize = 64;

/// An append costs a round trip and a journaled write of the majority, then a message to the broker, another round trip of
/// the persister, and another of the fanout: about 2 ms of CPU in all processes, for one entry or for thirty. (Measured:
/// `docs/COSTS.md`.)
const LINGER: Linger = Linger { span: Duration::from_millis(10), from_per_second: 50 };

pub(crate) fn store(database: &Arc<Database>) -> Store {
    Store {
        intake: database.clone(),
        messages: database.clone(),
        rooms: database.clone(),
        positions: database.clone(),
        devices: database.clone(),
        users: database.clone(),
        pushes: database.clone(),
        epochs: database.clone(),
        linger: LINGER,
        clock: database.clock().clone(),
    }
}

impl Database {
    /// These rooms, as they are now.
    async fn rooms<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a RoomId>,
    ) -> EngineResult<HashMap<RoomId, StoredRoom>> {
        self.rooms_since(ids, None).await
    }

    /// The same, not from before a time.
    async fn rooms_since<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a RoomId>,
        not_before: Option<StoreTime>,
    ) -> EngineResult<HashMap<RoomId, StoredRoom>> {
        let ids = texts(ids);
        let find = Find::all(doc! { "_id": { "$in": &ids } }).only(RoomDocument::fields()).at_most(ids.len());
        let rooms = self.find::<StoredRoom>(CHAT_ROOMS, find.since(not_before)).await?;
        Ok(rooms.into_iter().map(|stored| (stored.room.id.clone(), stored)).collect())
    }

    /// The places of these rooms' newest messages; none for a room without one. See [`newest`](Self::newest).
    async fn heads_of(&self, bumped: HashMap<RoomId, Seq>) -> EngineResult<HashMap<RoomId, Seq>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            chat_room_id: RoomId,
            #[serde(with = "field")]
            seq: Seq,
        }
        let only = Some(doc! { "_id": 0, "chatRoomId": 1, "seq": 1 });
        let heads = self.newest(bumped, only, |head: &Head| head.chat_room_id.clone()).await?;
        Ok(heads.into_iter().map(|(room, head)| (room, head.seq)).collect())
    }

    /// These rooms' newest messages. See [`newest`](Self::newest).
    async fn newest_messages<'a>(
        &self,
        rooms: impl IntoIterator<Item = &'a StoredRoom>,
    ) -> EngineResult<HashMap<RoomId, Message>> {
        let bumped = rooms.into_iter().map(|stored| (stored.room.id.clone(), stored.bumped)).collect();
        let room = |message: &MessageDocument| message.chat_room_id.clone();
        let newest = self.newest(bumped, None, room).await?;
        Ok(newest.into_iter().map(|(room, message)| (room, message.into())).collect())
    }

    /// The newest message of each of these rooms, searched from the place that the room's document names: it is there, or
    /// later when the room was not bumped yet.
    ///
    /// One round trip. Only the messages themselves are certain: a room without any from the named place on is searched once
    /// more from the beginning.
    async fn newest<T: DeserializeOwned>(
        &self,
        bumped: HashMap<RoomId, Seq>,
        only: Option<Document>,
        room_of: impl Fn(&T) -> RoomId + Copy,
    ) -> EngineResult<HashMap<RoomId, T>> {
        let range = |room: &RoomId, from: Seq| {
            doc! { "chatRoomId": room.as_str(), "seq": { "$gte": from.to_bson() } }
        };
        let ranges = bumped.iter().map(|(room, from)| (room.clone(), range(room, *from)));
        let mut newest = self.last_in(ranges.collect(), only.clone(), room_of).await?;
        let is_wrong = |(room, from): &(&RoomId, &Seq)| **from > Seq::ZERO && !newest.contains_key(*room);
        let wrong = bumped.iter().filter(is_wrong).map(|(room, _)| (room.clone(), range(room, Seq::ZERO)));
        let wrong = self.last_in(wrong.collect(), only, room_of).await?;
        newest.extend(wrong);
        Ok(newest)
    }

    /// These members' read positions, from the reported ones: sending reads up to the sender's own message.
    async fn read_by(&self, reported: HashMap<Member, Seq>) -> EngineResult<HashMap<Member, Seq>> {
        let sent = self.sent_after(reported.clone()).await?;
        Ok(reported.into_iter().chain(sent).collect())
    }

    /// The place of each member's own last message after this one, if there is any.
    ///
    /// One round trip. The index of `(chatRoomId, senderId, seq)` covers the query.
    async fn sent_after(&self, after: HashMap<Member, Seq>) -> EngineResult<HashMap<Member, Seq>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Own {
            chat_room_id: RoomId,
            sender_id: UserId,
            #[serde(with = "field")]
            seq: Seq,
        }
        let ranges = after.into_iter().map(|((room, user), seq)| {
            let after = doc! { "$gt": seq.to_bson() };
            let range = doc! { "chatRoomId": room.as_str(), "senderId": user.as_str(), "seq": after };
            ((room, user), range)
        });
        let only = doc! { "_id": 0, "chatRoomId": 1, "senderId": 1, "seq": 1 };
        let member = |own: &Own| (own.chat_room_id.clone(), own.sender_id.clone());
        let own = self.last_in(ranges.collect(), Some(only), member).await?;
        Ok(own.into_iter().map(|(member, own)| (member, own.seq)).collect())
    }

    /// The last message of each range of places that has one.
    ///
    /// One round trip as a rule. The answer's size depends on the number of ranges, not on their length: highest places
    /// first, each range a walk backwards in an index, and ranges that are not in the answer are queried again.
    /// (A `$lookup` for each range would do the same in one round trip, but some servers other than MongoDB read the whole
    /// collection for it.)
    async fn last_in<K: Eq + Hash, T: DeserializeOwned>(
        &self,
        mut ranges: HashMap<K, Document>,
        only: Option<Document>,
        key: impl Fn(&T) -> K,
    ) -> EngineResult<HashMap<K, T>> {
        let mut last = HashMap::new();
        while !ranges.is_empty() {
            let limit = 2 * ranges.len() + SPARE;
            let either: Vec<_> = ranges.values().cloned().collect();
            let find = Find::all(doc! { "$or": either }).sorted(doc! { "seq": -1 }).at_most(limit);
            let find = only.iter().cloned().fold(find, Find::only);
            let found = self.find::<T>(CHAT_MESSAGES, find).await?;
            let is_all = found.len() < limit;
            for message in found {
                let key = key(&message);
                if ranges.remove(&key).is_some() {
                    last.insert(key, message);
                }
            }
            if is_all {
                break;
            }
        }
        Ok(last)
    }

    /// The documents of these members of a room, or of this member of these rooms, without devices.
    async fn members(&self, filter: Document, at_most: usize) -> EngineResult<Vec<MemberDocument>> {
        self.find(MEMBERS, Find::all(filter).only(doc! { "devices": 0 }).at_most(at_most)).await
    }
}

/// A room and a user in it.
type Member = (RoomId, UserId);

/// Matches one member's document.
fn member(room: &RoomId, user: &UserId) -> Document {
    doc! { "userId": user.as_str(), "chatRoomId": room.as_str() }
}

/// Matches every room that a user is in, including another system's rooms that were not adopted yet.
fn rooms_of(user: &UserId) -> Document {
    let user = user.as_str();
    doc! { "$or": [{ "memberIds": user }, { "user1Id": user }, { "user2Id": user }] }
}

/// A room's members, as an expression on its document. A direct room's two fields take precedence, as everywhere.
fn members_now() -> Document {
    doc! { "$cond": [{ "$gt": ["$user1Id", null] }, ["$user1Id", "$user2Id"], "$memberIds"] }
}
