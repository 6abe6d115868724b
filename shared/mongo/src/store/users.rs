//! Which sessions and tokens of users have ended, whom users block, and which users are being erased.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use bson::{Document, doc};
use naru_engines::store::{Erasure, UserRecord, Users};
use naru_engines::{Applied, EngineResult};
use naru_model::{Timestamp, UserId};
use serde::Deserialize;

use crate::database::{Database, Find, Update};
use crate::document::{ErasureDocument, UserDocument};
use crate::error::contended;
use crate::field::{Field, texts};
use crate::open::{ERASURES, USERS};

/// How often a user is blocked anew while other changes of the same list come first.
const TRIES: usize = 8;

#[async_trait]
impl Users for Database {
    /// One round trip.
    async fn get(&self, users: &[UserId]) -> EngineResult<Vec<UserRecord>> {
        let find = Find::all(doc! { "_id": { "$in": texts(users) } });
        let found = self.find::<UserDocument>(USERS, find).await?;
        let found: HashMap<UserId, UserRecord> =
            found.into_iter().map(|document| (document.id.clone(), document.into())).collect();
        Ok(users.iter().map(|user| found.get(user).cloned().unwrap_or_default()).collect())
    }

    /// One round trip.
    async fn blocked_by(&self, user: &UserId, others: &[UserId]) -> EngineResult<Vec<bool>> {
        #[derive(Deserialize)]
        struct Blocking {
            #[serde(rename = "_id")]
            id: UserId,
        }
        let blocking = doc! { "_id": { "$in": texts(others) }, "blocked": user.as_str() };
        let blocking = self.find::<Blocking>(USERS, Find::all(blocking).only(doc! { "_id": 1 })).await?;
        let blocking: HashSet<UserId> = blocking.into_iter().map(|found| found.id).collect();
        Ok(others.iter().map(|other| blocking.contains(other)).collect())
    }

    /// One round trip. What if the driver repeats it? The epoch counts once more than needed, which is harmless.
    async fn end_sessions(&self, user: &UserId, tokens_not_before: Option<Timestamp>) -> EngineResult<()> {
        let mut change = doc! { "$inc": { "sessionEpoch": 1_i64 } };
        if let Some(not_before) = tokens_not_before {
            change.insert("$max", doc! { "tokensNotBefore": not_before.to_bson() });
        }
        self.update_all(USERS, vec![Update::or_insert(this(user), change)]).await
    }

    /// One round trip; one more when the list is full, or when another change made the user's document first.
    async fn block(&self, user: &UserId, other: &UserId, max: usize) -> EngineResult<bool> {
        let Some(last) = max.checked_sub(1) else { return Ok(false) };
        let other = other.as_str();
        // The list has no element at its last place: it is not full.
        let last = format!("blocked.{last}");
        let mut may = this(user);
        may.insert("$or", [doc! { "blocked": other }, doc! { last.clone(): { "$exists": false } }].to_vec());
        let block = [Update::or_insert(may, doc! { "$addToSet": { "blocked": other } })];
        for _ in 0..TRIES {
            if self.try_updates(USERS, &block).await?.is_empty() {
                return Ok(true);
            }
            let mut full = this(user);
            full.insert(last.clone(), doc! { "$exists": true });
            if self.find_one::<UserDocument>(USERS, full).await?.is_some() {
                return Ok(false);
            }
        }
        Err(contended("a block list", Applied::No))
    }

    /// One round trip.
    async fn unblock(&self, user: &UserId, other: &UserId) -> EngineResult<()> {
        let unblock = Update::one(this(user), doc! { "$pull": { "blocked": other.as_str() } });
        self.update_all(USERS, vec![unblock]).await
    }

    /// One round trip.
    async fn unblock_all(&self, user: &UserId) -> EngineResult<()> {
        let unblock = Update::one(this(user), doc! { "$unset": { "blocked": "" } });
        self.update_all(USERS, vec![unblock]).await
    }

    /// One round trip. What if the driver repeats it? It is a round more than needed, which is harmless.
    async fn begin_erasure(&self, user: &UserId, at: Timestamp) -> EngineResult<()> {
        let begin = doc! {
            "$inc": { "round": 1_i64 }, "$set": { "requestedAt": at.to_bson(), "open": true },
            "$unset": { "completedAt": "" },
        };
        self.update_all(ERASURES, vec![Update::or_insert(this(user), begin)]).await
    }

    /// One round trip.
    async fn erasure(&self, user: &UserId) -> EngineResult<Option<Erasure>> {
        let found = self.find_one::<ErasureDocument>(ERASURES, this(user)).await?;
        Ok(found.map(Erasure::from))
    }

    /// One round trip. The index holds those under way only.
    async fn erasures(&self, after: Option<&UserId>, limit: usize) -> EngineResult<Vec<(UserId, Erasure)>> {
        let mut under_way = doc! { "open": true };
        under_way.extend(after.map(|after| ("_id".to_owned(), doc! { "$gt": after.as_str() }.into())));
        let find = Find::all(under_way).sorted(doc! { "_id": 1 }).at_most(limit);
        let found = self.find::<ErasureDocument>(ERASURES, find).await?;
        Ok(found.into_iter().map(|document| (document.user.clone(), document.into())).collect())
    }

    /// One round trip.
    async fn complete_erasure(&self, user: &UserId, round: u64, at: Timestamp) -> EngineResult<bool> {
        let this = doc! { "_id": user.as_str(), "round": round.cast_signed(), "open": true };
        let complete = doc! { "$set": { "completedAt": at.to_bson() }, "$unset": { "open": "" } };
        self.update_one(ERASURES, this, complete).await
    }
}

fn this(user: &UserId) -> Document {
    doc! { "_id": user.as_str() }
}
