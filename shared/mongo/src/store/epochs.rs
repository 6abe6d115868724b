//! Restores of the data from a backup.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use naru_engines::store::{Epochs, Messages};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::{RoomId, Seq, StoreEpoch, Timestamp};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::database::{Database, Find, Update};
use crate::document::{DevicePlace, MetaDocument, if_field};
use crate::error::{ENGINE, contended};
use crate::field::{self, Field};
use crate::open::{CHAT_ROOMS, CONTENTS, MEMBERS, META, STORE};

/// How many documents are looked at in one step.
const PAGE: usize = 1_000;
/// How often the next epoch is tried while others come first: of those tried at the same time, one always succeeds.
const TRIES: usize = 64;

#[async_trait]
impl Epochs for Database {
    /// One round trip.
    async fn get(&self) -> EngineResult<StoreEpoch> {
        let meta = self.find_one::<MetaDocument>(META, doc! { "_id": STORE }).await?;
        meta.map(|meta| meta.epoch).ok_or_else(|| EngineError::permanent(ENGINE, "the data has no `meta`"))
    }

    /// Reads every member's and every room's document once.
    ///
    /// What if the process dies here? Each step only lowers what is beyond a head, and the epoch comes last: the command is
    /// given again.
    async fn restored(&self) -> EngineResult<StoreEpoch> {
        self.cut_positions().await?;
        self.cut_rooms().await?;
        // The intake may be from before what is noted of it: the next walk begins at its beginning.
        self.remove(META, doc! { "_id": CONTENTS }).await?;
        for _ in 0..TRIES {
            let epoch = Epochs::get(self).await?;
            let next = epoch.next(Timestamp::now());
            let mut still = doc! { "_id": STORE, "epoch": epoch.to_bson() };
            if epoch == StoreEpoch::FIRST {
                // A store of before there were epochs has none.
                still.insert("epoch", doc! { "$in": [epoch.to_bson(), null] });
            }
            if self.update_one(META, still, doc! { "$set": { "epoch": next.to_bson() } }).await? {
                return Ok(next);
            }
        }
        Err(contended(META, Applied::No))
    }
}

/// A member's places, or a room's.
trait Placed: DeserializeOwned {
    const COLLECTION: &'static str;
    /// Matches the documents that have a place, of which these fields are read.
    fn wanted() -> (Document, Document);
    fn id(&self) -> Bson;
    fn room(&self) -> RoomId;
    fn furthest(&self) -> Seq;
    /// A change that lowers the places to the room's head.
    fn cut(&self, head: Seq) -> Document;
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MemberPlaces {
    #[serde(rename = "_id")]
    id: Bson,
    chat_room_id: RoomId,
    #[serde(default, with = "field")]
    read: Seq,
    #[serde(default, with = "field")]
    received: Seq,
    #[serde(default)]
    devices: Vec<DevicePlace>,
}

impl Placed for MemberPlaces {
    const COLLECTION: &'static str = MEMBERS;

    fn wanted() -> (Document, Document) {
        let has_a_place = [doc! { "read": { "$gt": 0_i64 } }, doc! { "received": { "$gt": 0_i64 } }].to_vec();
        (doc! { "$or": has_a_place }, doc! { "chatRoomId": 1, "read": 1, "received": 1, "devices": 1 })
    }

    fn id(&self) -> Bson {
        self.id.clone()
    }

    fn room(&self) -> RoomId {
        self.chat_room_id.clone()
    }

    fn furthest(&self) -> Seq {
        let devices = self.devices.iter().map(|device| device.received);
        devices.fold(self.read.max(self.received), Seq::max)
    }

    fn cut(&self, head: Seq) -> Document {
        let head = head.to_bson();
        let mut lower =
            doc! { "read": { "$min": ["$read", head] }, "received": { "$min": ["$received", head] } };
        if !self.devices.is_empty() {
            let device =
                doc! { "deviceId": "$$device.deviceId", "received": { "$min": ["$$device.received", head] } };
            lower.insert("devices", doc! { "$map": { "input": "$devices", "as": "device", "in": device } });
        }
        lower
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RoomPlace {
    #[serde(rename = "_id")]
    id: RoomId,
    #[serde(default, deserialize_with = "if_field")]
    last_seq: Option<Seq>,
    #[serde(default, deserialize_with = "if_field")]
    expired_to: Option<Seq>,
}

impl Placed for RoomPlace {
    const COLLECTION: &'static str = CHAT_ROOMS;

    fn wanted() -> (Document, Document) {
        (doc! { "lastSeq": { "$gt": 0_i64 } }, doc! { "lastSeq": 1, "expiredTo": 1 })
    }

    fn id(&self) -> Bson {
        self.id.as_str().into()
    }

    fn room(&self) -> RoomId {
        self.id.clone()
    }

    fn furthest(&self) -> Seq {
        self.last_seq.max(self.expired_to).unwrap_or_default()
    }

    fn cut(&self, head: Seq) -> Document {
        let mut lower = doc! { "lastSeq": { "$min": ["$lastSeq", head.to_bson()] } };
        if self.expired_to.is_some() {
            lower.insert("expiredTo", doc! { "$min": ["$expiredTo", head.to_bson()] });
        }
        lower
    }
}

impl Database {
    /// Members' positions: one beyond the head would hide the next messages from its member.
    async fn cut_positions(&self) -> EngineResult<()> {
        self.cut::<MemberPlaces>().await
    }

    /// The places that rooms were bumped for, and up to which messages have expired: one beyond the head would keep the room from moving
    /// up in lists, and the next messages from being unread.
    async fn cut_rooms(&self) -> EngineResult<()> {
        self.cut::<RoomPlace>().await
    }

    async fn cut<T: Placed>(&self) -> EngineResult<()> {
        let mut after = Bson::MinKey;
        loop {
            let (mut wanted, fields) = T::wanted();
            wanted.insert("_id", doc! { "$gt": after });
            let find = Find::all(wanted).sorted(doc! { "_id": 1 }).only(fields).at_most(PAGE);
            let page = self.find::<T>(T::COLLECTION, find).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id();
            let rooms: HashSet<RoomId> = page.iter().map(Placed::room).collect();
            let rooms: Vec<RoomId> = rooms.into_iter().collect();
            let heads = Messages::heads(self, &rooms).await?;
            let heads: HashMap<RoomId, Seq> = rooms.into_iter().zip(heads).collect();
            let cut = |placed: &T| {
                let head = heads.get(&placed.room()).copied().unwrap_or_default();
                let cut =
                    || Update::one(doc! { "_id": placed.id() }, vec![doc! { "$set": placed.cut(head) }]);
                (placed.furthest() > head).then(cut)
            };
            self.update_all(T::COLLECTION, page.iter().filter_map(cut).collect()).await?;
        }
    }
}
