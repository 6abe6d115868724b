//! The device registry.

use async_trait::async_trait;
use bson::{Document, doc};
use naru_engines::store::{Device, Devices, Platform};
use naru_engines::{Applied, EngineResult};
use naru_model::{DeviceId, Timestamp, UserId};

use crate::database::{Database, Find};
use crate::document::DeviceDocument;
use crate::error::contended;
use crate::field::{Field, texts};
use crate::open::DEVICES;

/// How often a claim is tried while other claims of the token come first.
const TRIES: usize = 64;

#[async_trait]
impl Devices for Database {
    /// One round trip for a device that is new or keeps its token: the usual call, at every start of an app. Three when the
    /// token is another device's or the device had another token: then the old document is removed before the insert.
    ///
    /// What if the process dies in between? No user has the token, and the app, which got no answer, claims it again.
    async fn claim(&self, device: Device) -> EngineResult<()> {
        let owner = doc! { "userId": device.user.as_str(), "deviceId": device.id.as_str() };
        let device = Device { token: device.platform.canonical(&device.token), ..device };
        let token = doc! { "platform": word(device.platform), "token": &*device.token };
        let this = owner.clone().into_iter().chain(token.clone()).collect::<Document>();
        let in_the_way = doc! { "$or": [owner, token] };
        let document = DeviceDocument::from(device);
        for _ in 0..TRIES {
            if self.replace(DEVICES, this.clone(), &document).await? {
                return Ok(());
            }
            Database::remove(self, DEVICES, in_the_way.clone()).await?;
        }
        Err(contended("a token", Applied::Unknown))
    }

    /// One round trip.
    async fn of_users(&self, users: &[UserId]) -> EngineResult<Vec<Device>> {
        let find = Find::all(doc! { "userId": { "$in": texts(users) } });
        let devices = self.find::<DeviceDocument>(DEVICES, find).await?;
        Ok(devices.into_iter().map(Device::from).collect())
    }

    /// One round trip.
    async fn remove(&self, user: &UserId, device: &DeviceId) -> EngineResult<bool> {
        let this = doc! { "userId": user.as_str(), "deviceId": device.as_str() };
        Ok(Database::remove(self, DEVICES, this).await? > 0)
    }

    /// One round trip.
    async fn remove_token(
        &self,
        platform: Platform,
        token: &str,
        registered_before: Timestamp,
    ) -> EngineResult<bool> {
        let before = doc! { "$lt": registered_before.to_bson() };
        let token = platform.canonical(token);
        let old = doc! { "platform": word(platform), "token": &*token, "registeredAt": before };
        Ok(Database::remove(self, DEVICES, old).await? > 0)
    }

    /// One round trip. What if the connection is lost here? The number of removed devices is unknown, and the next call
    /// removes the rest.
    async fn forget_unseen(&self, before: Timestamp) -> EngineResult<u64> {
        Database::remove(self, DEVICES, doc! { "registeredAt": { "$lt": before.to_bson() } }).await
    }
}

/// Its value in the document.
const fn word(platform: Platform) -> &'static str {
    platform.lane().as_str()
}
