//! Which sessions and tokens of users have ended, whom users block, and which users are being erased.

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::store::{Erasure, UserRecord, Users};
use naru_model::{Timestamp, UserId};
use rusqlite::{OptionalExtension, Result, Row, Transaction, params};

use crate::column::{self, Columns};
use crate::database::Database;

#[async_trait]
impl Users for Database {
    async fn get(&self, users: &[UserId]) -> EngineResult<Vec<UserRecord>> {
        let users = users.to_vec();
        self.read(move |transaction| users.iter().map(|user| record(transaction, user)).collect()).await
    }

    async fn blocked_by(&self, user: &UserId, others: &[UserId]) -> EngineResult<Vec<bool>> {
        let (user, others) = (user.clone(), others.to_vec());
        self.read(move |transaction| {
            others.iter().map(|other| is_blocked(transaction, other, &user)).collect()
        })
        .await
    }

    async fn end_sessions(&self, user: &UserId, tokens_not_before: Option<Timestamp>) -> EngineResult<()> {
        let (user, not_before) = (user.clone(), tokens_not_before.map(Timestamp::as_millis));
        self.write(move |transaction| {
            let sql = "INSERT INTO users (userId, sessionEpoch, tokensNotBefore) VALUES (?1, 1, ?2)
                ON CONFLICT DO UPDATE SET sessionEpoch = sessionEpoch + 1,
                    tokensNotBefore = max(coalesce(tokensNotBefore, ?2), coalesce(?2, tokensNotBefore))";
            transaction.prepare_cached(sql)?.execute(params![user.as_str(), not_before])?;
            Ok(())
        })
        .await
    }

    async fn block(&self, user: &UserId, other: &UserId, max: usize) -> EngineResult<bool> {
        let (user, other, max) = (user.clone(), other.clone(), column::limit(max));
        self.write(move |transaction| {
            let sql = "INSERT OR IGNORE INTO blocks (userId, blockedId)
                SELECT ?1, ?2 WHERE (SELECT count(*) FROM blocks WHERE userId = ?1) < ?3";
            transaction.prepare_cached(sql)?.execute(params![user.as_str(), other.as_str(), max])?;
            is_blocked(transaction, &user, &other)
        })
        .await
    }

    async fn unblock(&self, user: &UserId, other: &UserId) -> EngineResult<()> {
        let (user, other) = (user.clone(), other.clone());
        self.write(move |transaction| {
            let sql = "DELETE FROM blocks WHERE userId = ?1 AND blockedId = ?2";
            transaction.prepare_cached(sql)?.execute([user.as_str(), other.as_str()])?;
            Ok(())
        })
        .await
    }

    async fn unblock_all(&self, user: &UserId) -> EngineResult<()> {
        let user = user.clone();
        self.write(move |transaction| {
            let mut unblock = transaction.prepare_cached("DELETE FROM blocks WHERE userId = ?1")?;
            unblock.execute([user.as_str()]).map(drop)
        })
        .await
    }

    async fn begin_erasure(&self, user: &UserId, at: Timestamp) -> EngineResult<()> {
        let user = user.clone();
        self.write(move |transaction| {
            let sql = "INSERT INTO erasures (userId, round, requestedAt) VALUES (?1, 1, ?2)
                ON CONFLICT DO UPDATE SET round = round + 1, requestedAt = excluded.requestedAt, completedAt = NULL";
            transaction.prepare_cached(sql)?.execute(params![user.as_str(), at.as_millis()]).map(drop)
        })
        .await
    }

    async fn erasure(&self, user: &UserId) -> EngineResult<Option<Erasure>> {
        let user = user.clone();
        self.read(move |transaction| {
            let sql = "SELECT userId, round, requestedAt, completedAt FROM erasures WHERE userId = ?1";
            let found = transaction.prepare_cached(sql)?.query_row([user.as_str()], erasure).optional()?;
            Ok(found.map(|(_, erasure)| erasure))
        })
        .await
    }

    async fn erasures(&self, after: Option<&UserId>, limit: usize) -> EngineResult<Vec<(UserId, Erasure)>> {
        let after = after.cloned();
        self.read(move |transaction| {
            let sql = "SELECT userId, round, requestedAt, completedAt FROM erasures
                WHERE completedAt IS NULL AND userId > ?1 ORDER BY userId LIMIT ?2";
            let after = after.as_ref().map_or("", |after| after.as_str());
            let range = params![after, column::limit(limit)];
            transaction.prepare_cached(sql)?.query_map(range, erasure)?.collect()
        })
        .await
    }

    /// The log may hold copies of what was overwritten in the database: it is emptied first.
    async fn complete_erasure(&self, user: &UserId, round: u64, at: Timestamp) -> EngineResult<bool> {
        self.empty_log().await?;
        let (user, round) = (user.clone(), round.cast_signed());
        self.write(move |transaction| {
            let sql = "UPDATE erasures SET completedAt = ?3 WHERE userId = ?1 AND round = ?2 AND completedAt IS NULL";
            let this = params![user.as_str(), round, at.as_millis()];
            Ok(transaction.prepare_cached(sql)?.execute(this)? > 0)
        })
        .await
    }
}

fn erasure(row: &Row<'_>) -> Result<(UserId, Erasure)> {
    let round = row.get::<_, i64>(1)?.cast_unsigned();
    Ok((row.text(0)?, Erasure { round, requested_at: row.time(2)?, completed_at: row.maybe_time(3)? }))
}

fn record(transaction: &Transaction<'_>, user: &UserId) -> Result<UserRecord> {
    let sql = "SELECT sessionEpoch, tokensNotBefore FROM users WHERE userId = ?1";
    let of_sessions = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.maybe_time(1)?));
    let (session_epoch, tokens_not_before) = transaction
        .prepare_cached(sql)?
        .query_row([user.as_str()], of_sessions)
        .optional()?
        .unwrap_or_default();
    let sql = "SELECT blockedId FROM blocks WHERE userId = ?1 ORDER BY blockedId";
    let mut blocked = transaction.prepare_cached(sql)?;
    let blocked = blocked.query_map([user.as_str()], |row| row.text(0))?.collect::<Result<_>>()?;
    Ok(UserRecord { session_epoch, tokens_not_before, blocked })
}

fn is_blocked(transaction: &Transaction<'_>, user: &UserId, other: &UserId) -> Result<bool> {
    transaction
        .prepare_cached("SELECT 1 FROM blocks WHERE userId = ?1 AND blockedId = ?2")?
        .exists([user.as_str(), other.as_str()])
}
