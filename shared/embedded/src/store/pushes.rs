//! Pushes that were sent, and pushes that could not be.

use std::time::Duration;

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::store::{ParkedCursor, ParkedPush, Pushes};
use naru_model::{EventId, Timestamp};
use rusqlite::{OptionalExtension, Result, Row, Transaction, params};

use crate::column::{self, Columns};
use crate::database::{Database, Sync};

/// U1 requires two days.
const KEPT: Duration = Duration::from_secs(3 * 24 * 60 * 60);

#[async_trait]
impl Pushes for Database {
    async fn done(&self, events: &[EventId]) -> EngineResult<Vec<bool>> {
        let events = events.to_vec();
        self.read(move |transaction| {
            let mut done = transaction.prepare_cached("SELECT 1 FROM pushes WHERE eventId = ?1")?;
            events.iter().map(|event| done.exists([event.0.as_bytes()])).collect()
        })
        .await
    }

    async fn record(&self, taken: &[(EventId, String)]) -> EngineResult<()> {
        let taken = taken.to_vec();
        let now = Timestamp::now();
        self.write(move |transaction| {
            let sql = "INSERT INTO pushes (eventId, providerId, recordedAt) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
            let mut record = transaction.prepare_cached(sql)?;
            for (event, provider_id) in &taken {
                record.execute(params![event.0.as_bytes(), provider_id, now.as_millis()])?;
            }
            // Each new row deletes up to two expired ones, so no big sweep is ever needed.
            let sql = "DELETE FROM pushes
                WHERE eventId IN (SELECT eventId FROM pushes WHERE recordedAt < ?1 ORDER BY recordedAt LIMIT ?2)";
            let old = params![now.before(KEPT).as_millis(), column::limit(2 * taken.len())];
            transaction.prepare_cached(sql)?.execute(old).map(drop)
        })
        .await
    }

    async fn park(&self, pushes: &[ParkedPush]) -> EngineResult<()> {
        let pushes = pushes.to_vec();
        self.write(move |transaction| {
            let sql = "INSERT OR REPLACE INTO parked (eventId, job, reason, attempts, parkedAt) VALUES (?1, ?2, ?3, ?4, ?5)";
            let mut park = transaction.prepare_cached(sql)?;
            for push in &pushes {
                let (event, job) = (push.event_id.0.as_bytes(), column::json(&push.job)?);
                let values = params![event, job, push.reason, push.attempts, push.parked_at.as_millis()];
                park.execute(values)?;
            }
            Ok(())
        })
        .await
    }

    async fn parked(&self, after: Option<&ParkedCursor>, limit: usize) -> EngineResult<Vec<ParkedPush>> {
        let after = after.copied();
        self.read(move |transaction| {
            let sql = "SELECT eventId, job, reason, attempts, parkedAt FROM parked
                WHERE (parkedAt, eventId) > (?1, ?2) ORDER BY parkedAt, eventId LIMIT ?3";
            let mut statement = transaction.prepare_cached(sql)?;
            let id = after.as_ref().map_or(&[][..], |after| after.event_id.0.as_bytes());
            let moment = after.as_ref().map_or(i64::MIN, |after| after.parked_at.as_millis());
            statement.query_map(params![moment, id, column::limit(limit)], parked)?.collect()
        })
        .await
    }

    async fn parked_because(&self, reason: &str, limit: usize) -> EngineResult<Vec<ParkedPush>> {
        let reason = reason.to_owned();
        self.read(move |transaction| {
            let sql = "SELECT eventId, job, reason, attempts, parkedAt FROM parked
                WHERE reason = ?1 ORDER BY parkedAt, eventId LIMIT ?2";
            let mut statement = transaction.prepare_cached(sql)?;
            statement.query_map(params![reason, column::limit(limit)], parked)?.collect()
        })
        .await
    }

    async fn find_parked(&self, event: EventId) -> EngineResult<Option<ParkedPush>> {
        self.read(move |transaction| {
            let sql = "SELECT eventId, job, reason, attempts, parkedAt FROM parked WHERE eventId = ?1";
            transaction.prepare_cached(sql)?.query_row([event.0.as_bytes()], parked).optional()
        })
        .await
    }

    async fn drop_parked(&self, event: EventId) -> EngineResult<bool> {
        self.write(move |transaction| {
            let mut statement = transaction.prepare_cached("DELETE FROM parked WHERE eventId = ?1")?;
            Ok(statement.execute([event.0.as_bytes()])? > 0)
        })
        .await
    }

    async fn drop_parked_at(&self, place: &ParkedCursor) -> EngineResult<bool> {
        let ParkedCursor { parked_at, event_id } = *place;
        self.write(move |transaction| {
            let sql = "DELETE FROM parked WHERE eventId = ?1 AND parkedAt = ?2";
            let place = params![event_id.0.as_bytes(), parked_at.as_millis()];
            Ok(transaction.prepare_cached(sql)?.execute(place)? > 0)
        })
        .await
    }

    /// Not synced: what a power cut brings back is removed by the next call.
    async fn forget_parked(&self, before: Timestamp, limit: usize) -> EngineResult<u64> {
        let forget = move |transaction: &Transaction<'_>| {
            let sql = "DELETE FROM parked
                WHERE eventId IN (SELECT eventId FROM parked WHERE parkedAt < ?1 ORDER BY parkedAt LIMIT ?2)";
            let old = params![before.as_millis(), column::limit(limit)];
            Ok(transaction.prepare_cached(sql)?.execute(old)? as u64)
        };
        self.write_then(Sync::Never, forget, |_| {}).await
    }

    async fn parked_count(&self) -> EngineResult<u64> {
        self.read(|transaction| {
            let count = |row: &Row<'_>| row.get::<_, i64>(0).map(i64::unsigned_abs);
            transaction.prepare_cached("SELECT count(*) FROM parked")?.query_row([], count)
        })
        .await
    }
}

fn parked(row: &Row<'_>) -> Result<ParkedPush> {
    Ok(ParkedPush {
        event_id: row.event_id(0)?,
        job: row.json(1)?,
        reason: row.get(2)?,
        attempts: row.get(3)?,
        parked_at: row.time(4)?,
    })
}
