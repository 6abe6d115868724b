//! What must last, in MongoDB. Each part of the store in its own file; what several of them ask is here.

mod devices;
mod intake;
mod messages;
mod positions;
mod pushes;
mod rooms;

use std::collections::HashMap;
use std::sync::Arc;

use bson::{Document, doc};
use naru_engines::EngineResult;
use naru_engines::store::Store;
use naru_model::{Message, RoomId, Seq, UserId};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::database::{Database, Find};
use crate::document::{MemberDocument, MessageDocument, StoredRoom};
use crate::field::{self, texts};
use crate::open::{CHAT_MESSAGES, CHAT_ROOMS, MEMBERS};

pub(crate) fn store(database: &Arc<Database>, partitions: u32) -> Store {
    Store {
        intake: database.clone(),
        messages: database.clone(),
        rooms: database.clone(),
        positions: database.clone(),
        devices: database.clone(),
        pushes: database.clone(),
        partitions,
    }
}

impl Database {
    /// These rooms, as they are now.
    async fn rooms<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a RoomId>,
    ) -> EngineResult<HashMap<RoomId, StoredRoom>> {
        let ids = texts(ids);
        let find = Find::all(doc! { "_id": { "$in": &ids } }).at_most(ids.len());
        let rooms = self.find::<StoredRoom>(CHAT_ROOMS, find).await?;
        Ok(rooms.into_iter().map(|stored| (stored.room.id.clone(), stored)).collect())
    }

    /// The places of these rooms' newest messages; nothing where there is no message.
    async fn heads_of<'a>(
        &self,
        rooms: impl IntoIterator<Item = &'a RoomId>,
    ) -> EngineResult<HashMap<RoomId, Seq>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            chat_room_id: RoomId,
            #[serde(with = "field")]
            seq: Seq,
        }
        let only = Some(doc! { "_id": 0, "chatRoomId": 1, "seq": 1 });
        let heads = self.newest::<Head>(rooms, only).await?;
        Ok(heads.into_iter().map(|head| (head.chat_room_id, head.seq)).collect())
    }

    /// These rooms' newest messages.
    async fn newest_messages<'a>(
        &self,
        rooms: impl IntoIterator<Item = &'a RoomId>,
    ) -> EngineResult<HashMap<RoomId, Message>> {
        let messages = self.newest::<MessageDocument>(rooms, None).await?;
        let messages = messages.into_iter().map(Message::from);
        Ok(messages.map(|message| (message.chat_room_id.clone(), message)).collect())
    }

    /// One step in the index of `(chatRoomId, seq)` for each room, all in one round trip. A `$group` over these rooms
    /// would read all their messages, and nothing but the messages themselves is sure to be right.
    async fn newest<'a, T: DeserializeOwned>(
        &self,
        rooms: impl IntoIterator<Item = &'a RoomId>,
        only: Option<Document>,
    ) -> EngineResult<Vec<T>> {
        let rooms: Vec<_> =
            texts(rooms).into_iter().map(|room| doc! { "room": { "$literal": room } }).collect();
        if rooms.is_empty() {
            return Ok(Vec::new());
        }
        let mut newest = vec![doc! { "$sort": { "seq": -1 } }, doc! { "$limit": 1 }];
        newest.extend(only.map(|only| doc! { "$project": only }));
        let pipeline = vec![
            doc! { "$documents": rooms },
            doc! { "$lookup": {
                "from": CHAT_MESSAGES,
                "localField": "room",
                "foreignField": "chatRoomId",
                "pipeline": newest,
                "as": "newest",
            } },
            doc! { "$unwind": "$newest" },
            doc! { "$replaceRoot": { "newRoot": "$newest" } },
        ];
        self.aggregate(None, pipeline).await
    }

    /// What these members of a room, or this member of these rooms, have seen and set. Their devices are left out.
    async fn members(&self, filter: Document, at_most: usize) -> EngineResult<Vec<MemberDocument>> {
        self.find(MEMBERS, Find::all(filter).only(doc! { "devices": 0 }).at_most(at_most)).await
    }
}

/// Picks one member's document.
fn member(room: &RoomId, user: &UserId) -> Document {
    doc! { "userId": user.as_str(), "chatRoomId": room.as_str() }
}

/// Fits every room that a user is in, those included that another system wrote and nobody has adopted yet.
fn rooms_of(user: &UserId) -> Document {
    let user = user.as_str();
    doc! { "$or": [{ "memberIds": user }, { "user1Id": user }, { "user2Id": user }] }
}

/// Who is in a room, as an expression on its document. What a direct room's two fields say holds, as everywhere.
fn members_now() -> Document {
    doc! { "$cond": [{ "$gt": ["$user1Id", null] }, ["$user1Id", "$user2Id"], "$memberIds"] }
}
