//! The device registry.

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::store::{Device, Devices, Platform};
use naru_model::{DeviceId, Timestamp, UserId};
use rusqlite::{Result, Row, params};

use crate::column::{self, Columns};
use crate::database::Database;

#[async_trait]
impl Devices for Database {
    async fn claim(&self, device: Device) -> EngineResult<()> {
        self.write(move |transaction| {
            // Replaces both the device's earlier token and the device that had this token: both are unique.
            let sql = "INSERT OR REPLACE INTO devices
                (userId, deviceId, platform, token, environment, locale, hidesContent, registeredAt)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
            transaction.prepare_cached(sql)?.execute(params![
                device.user.as_str(),
                device.id.as_str(),
                column::word(&device.platform)?,
                device.platform.canonical(&device.token),
                column::word(&device.environment)?,
                device.locale,
                device.hides_content,
                device.registered_at.as_millis(),
            ])?;
            Ok(())
        })
        .await
    }

    async fn of_users(&self, users: &[UserId]) -> EngineResult<Vec<Device>> {
        let users = users.to_vec();
        self.read(move |transaction| {
            let sql =
                "SELECT userId, deviceId, platform, token, environment, locale, hidesContent, registeredAt
                FROM devices WHERE userId = ?1";
            let mut statement = transaction.prepare_cached(sql)?;
            let mut devices = Vec::new();
            for user in &users {
                for device in statement.query_map([user.as_str()], device)? {
                    devices.push(device?);
                }
            }
            Ok(devices)
        })
        .await
    }

    async fn remove(&self, user: &UserId, device: &DeviceId) -> EngineResult<bool> {
        let (user, device) = (user.clone(), device.clone());
        self.write(move |transaction| {
            let sql = "DELETE FROM devices WHERE userId = ?1 AND deviceId = ?2";
            Ok(transaction.prepare_cached(sql)?.execute([user.as_str(), device.as_str()])? > 0)
        })
        .await
    }

    async fn remove_token(
        &self,
        platform: Platform,
        token: &str,
        registered_before: Timestamp,
    ) -> EngineResult<bool> {
        let (token, before) = (platform.canonical(token), registered_before.as_millis());
        self.write(move |transaction| {
            let sql = "DELETE FROM devices WHERE platform = ?1 AND token = ?2 AND registeredAt < ?3";
            let removed =
                transaction.prepare_cached(sql)?.execute(params![column::word(&platform)?, token, before])?;
            Ok(removed > 0)
        })
        .await
    }

    async fn forget_unseen(&self, before: Timestamp) -> EngineResult<u64> {
        self.write(move |transaction| {
            let sql = "DELETE FROM devices WHERE registeredAt < ?1";
            let removed = transaction.prepare_cached(sql)?.execute([before.as_millis()])?;
            Ok(u64::try_from(removed).unwrap_or(u64::MAX))
        })
        .await
    }
}

fn device(row: &Row<'_>) -> Result<Device> {
    Ok(Device {
        user: row.text(0)?,
        id: row.text(1)?,
        platform: row.word(2)?,
        token: row.get(3)?,
        environment: row.word(4)?,
        locale: row.get(5)?,
        hides_content: row.get(6)?,
        registered_at: row.time(7)?,
    })
}
