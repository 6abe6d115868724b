//! Which sessions and tokens of users have ended, and whom users block.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use bson::{Document, doc};
use naru_engines::store::{UserRecord, Users};
use naru_engines::{Applied, EngineResult};
use naru_model::{Timestamp, UserId};
use serde::Deserialize;

use crate::database::{Database, Find, Update};
use crate::document::UserDocument;
use crate::error::contended;
use crate::field::{Field, texts};
use crate::open::USERS;

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
}

fn this(user: &UserId) -> Document {
    doc! { "_id": user.as_str() }
}
