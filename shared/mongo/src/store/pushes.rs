//! Accepted and parked pushes.

use std::collections::HashSet;

use async_trait::async_trait;
use bson::{Document, doc};
use naru_engines::store::{ParkedCursor, ParkedPush, Pushes};
use naru_engines::{EngineError, EngineResult};
use naru_model::{EventId, Timestamp};
use serde::Deserialize;

use crate::database::{Database, Find, Update};
use crate::document::{ParkedDocument, PushDocument};
use crate::error::ENGINE;
use crate::field::{self, Field};
use crate::open::{PARKED, PUSHES};

/// Only the id of an event.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "_id", with = "field")]
    id: EventId,
}

#[async_trait]
impl Pushes for Database {
    /// One round trip.
    async fn done(&self, events: &[EventId]) -> EngineResult<Vec<bool>> {
        let find = Find::all(doc! { "_id": { "$in": field::all(events) } });
        let done = self.find::<Event>(PUSHES, find.only(doc! { "_id": 1 }).at_most(events.len())).await?;
        let done: HashSet<EventId> = done.into_iter().map(|event| event.id).collect();
        Ok(events.iter().map(|event| done.contains(event)).collect())
    }

    /// One round trip. The index on `recordedAt` lets the server delete old records.
    async fn record(&self, taken: &[(EventId, String)]) -> EngineResult<()> {
        if taken.is_empty() {
            return Ok(());
        }
        let recorded_at = Timestamp::now();
        let document = |(event_id, provider_id): &(EventId, String)| PushDocument {
            event_id: *event_id,
            provider_id: provider_id.clone(),
            recorded_at,
        };
        // An earlier record stays as it is.
        let _there_before = self.insert(PUSHES, taken.iter().map(document).collect(), false).await?;
        Ok(())
    }

    /// One round trip; one more if two callers park the same push for the first time at once.
    async fn park(&self, pushes: &[ParkedPush]) -> EngineResult<()> {
        let unwritable = |_| EngineError::permanent(ENGINE, "a parked push: not to be written as BSON");
        let update = |push: &ParkedPush| {
            let this = doc! { "_id": push.event_id.to_bson() };
            let document = bson::serialize_to_document(&ParkedDocument::from(push.clone()));
            document.map(|document| Update::or_insert(this, document)).map_err(unwritable)
        };
        let updates = pushes.iter().map(update).collect::<EngineResult<_>>()?;
        self.update_all(PARKED, updates).await
    }

    /// One round trip for each 16 MB.
    async fn parked(&self, after: Option<&ParkedCursor>, limit: usize) -> EngineResult<Vec<ParkedPush>> {
        let find = Find::all(after.map(later).unwrap_or_default())
            .sorted(doc! { "parkedAt": 1, "_id": 1 })
            .at_most(limit);
        let parked = self.find::<ParkedDocument>(PARKED, find).await?;
        Ok(parked.into_iter().map(ParkedPush::from).collect())
    }

    /// One round trip for each 16 MB.
    async fn parked_because(&self, reason: &str, limit: usize) -> EngineResult<Vec<ParkedPush>> {
        let find = Find::all(doc! { "reason": reason }).sorted(doc! { "parkedAt": 1, "_id": 1 });
        let parked = self.find::<ParkedDocument>(PARKED, find.at_most(limit)).await?;
        Ok(parked.into_iter().map(ParkedPush::from).collect())
    }

    /// One round trip.
    async fn find_parked(&self, event: EventId) -> EngineResult<Option<ParkedPush>> {
        let parked = self.find_one::<ParkedDocument>(PARKED, doc! { "_id": event.to_bson() }).await?;
        Ok(parked.map(ParkedPush::from))
    }

    /// One round trip.
    async fn drop_parked(&self, event: EventId) -> EngineResult<bool> {
        Ok(self.remove(PARKED, doc! { "_id": event.to_bson() }).await? > 0)
    }

    /// One round trip.
    async fn drop_parked_at(
        &self,
        ParkedCursor { parked_at, event_id }: &ParkedCursor,
    ) -> EngineResult<bool> {
        let this = doc! { "_id": event_id.to_bson(), "parkedAt": parked_at.to_bson() };
        Ok(self.remove(PARKED, this).await? > 0)
    }

    /// Two round trips. What if the process dies here? The next call removes the rest.
    async fn forget_parked(&self, before: Timestamp, limit: usize) -> EngineResult<u64> {
        let before = doc! { "parkedAt": { "$lt": before.to_bson() } };
        let find = Find::all(before.clone()).sorted(doc! { "parkedAt": 1, "_id": 1 }).at_most(limit);
        let old = self.find::<Event>(PARKED, find.only(doc! { "_id": 1 })).await?;
        if old.is_empty() {
            return Ok(0);
        }
        let ids: Vec<_> = old.iter().map(|event| event.id.to_bson()).collect();
        // One may have been parked again meanwhile.
        let mut still = before;
        still.insert("_id", doc! { "$in": ids });
        self.remove(PARKED, still).await
    }

    /// One round trip.
    async fn parked_count(&self) -> EngineResult<u64> {
        #[derive(Deserialize)]
        struct Count {
            count: i64,
        }
        let counted = self.aggregate::<Count>(Some(PARKED), vec![doc! { "$count": "count" }]).await?;
        Ok(counted.first().map_or(0, |counted| counted.count.unsigned_abs()))
    }
}

/// The pushes after a cursor. The first condition bounds the walk in the index, the second one orders equal moments; the
/// server compares ids by their bytes.
fn later(ParkedCursor { parked_at, event_id }: &ParkedCursor) -> Document {
    let (moment, id) = (parked_at.to_bson(), event_id.to_bson());
    doc! {
        "parkedAt": { "$gte": moment },
        "$or": [{ "parkedAt": { "$gt": moment } }, { "_id": { "$gt": id } }],
    }
}
