//! Leases for work of one process: each is a key with the holder's name, which expires.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::live::Leases;

use crate::keys::{Keys, Lua, Request, millis};
use crate::names::lease_key;

static HOLD: Lua = Lua::new(include_str!("scripts/hold.lua"));

pub(crate) struct RedisLeases(pub(crate) Arc<Keys>);

#[async_trait]
impl Leases for RedisLeases {
    async fn hold(&self, name: &str, holder: &str, ttl: Duration) -> EngineResult<bool> {
        self.0.one(Request::script(&HOLD, lease_key(name)).arg(holder).arg(millis(ttl))).await
    }
}
