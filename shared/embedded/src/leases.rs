//! Leases, for work that only one holder should do: within one process a table in memory.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::live::Leases;
use tokio::time::Instant;

use crate::lock::lock;

/// The holder of each name, and until when.
#[derive(Default)]
pub(crate) struct MemoryLeases(Mutex<HashMap<String, (String, Instant)>>);

#[async_trait]
impl Leases for MemoryLeases {
    async fn hold(&self, name: &str, holder: &str, ttl: Duration) -> EngineResult<bool> {
        let now = Instant::now();
        let mut held = lock(&self.0);
        let free = held.get(name).is_none_or(|(other, until)| other == holder || *until <= now);
        if free {
            held.insert(name.to_owned(), (holder.to_owned(), now + ttl));
        }
        Ok(free)
    }
}
