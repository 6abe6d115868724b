//! Restores of the data from a backup.

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::store::Epochs;
use naru_model::{StoreEpoch, Timestamp};
use rusqlite::{Connection, Result};

use crate::database::Database;

#[async_trait]
impl Epochs for Database {
    async fn get(&self) -> EngineResult<StoreEpoch> {
        self.read(|transaction| epoch(transaction)).await
    }

    /// In one transaction.
    async fn restored(&self) -> EngineResult<StoreEpoch> {
        self.write(|transaction| {
            let head = |table: &str| {
                format!(
                    "(SELECT coalesce(max(seq), 0) FROM chat_messages WHERE chatRoomId = {table}.chatRoomId)"
                )
            };
            for (table, place) in [("members", "read"), ("received", "seq")] {
                let head = head(table);
                let cut = format!("UPDATE {table} SET {place} = {head} WHERE {place} > {head}");
                transaction.execute(&cut, [])?;
            }
            let next = epoch(transaction)?.next(Timestamp::now());
            transaction.execute("UPDATE meta SET epoch = ?1", [i64::try_from(next.0).unwrap_or(i64::MAX)])?;
            Ok(next)
        })
        .await
    }
}

fn epoch(connection: &Connection) -> Result<StoreEpoch> {
    connection
        .query_row("SELECT epoch FROM meta", [], |row| Ok(StoreEpoch(row.get::<_, i64>(0)?.unsigned_abs())))
}
