//! The bus: what can be derived again is carried in memory, what can't in a table.

mod memory;
mod table;

use std::sync::Arc;

use naru_engines::bus::{Bus, Queue};
use naru_engines::{Applied, EngineError};
use naru_model::hops::{self, Hop, Keep, Payload};

use crate::Options;
use crate::bus::memory::MemoryQueue;
use crate::bus::table::{Clock, DURABLE, TableQueue, newest};
use crate::database::{Database, ENGINE};

pub(crate) fn bus(database: &Arc<Database>, options: &Options) -> Bus {
    let carrier = Carrier { database, options, clock: Clock::start() };
    Bus {
        accepted: carrier.queue(hops::ACCEPTED),
        saved: carrier.queue(hops::SAVED),
        offline: carrier.queue(hops::OFFLINE),
        owed: carrier.queue(hops::OWED),
        push_fcm: carrier.queue(hops::PUSH_FCM),
        push_apns: carrier.queue(hops::PUSH_APNS),
        push_webhook: carrier.queue(hops::PUSH_WEBHOOK),
        outcome: carrier.queue(hops::OUTCOME),
    }
}

struct Carrier<'a> {
    database: &'a Arc<Database>,
    options: &'a Options,
    clock: Clock,
}

impl Carrier<'_> {
    fn queue<T: Payload>(&self, hop: Hop) -> Arc<dyn Queue<T>> {
        match hop.keep {
            Keep::Rederivable => {
                Arc::new(MemoryQueue::new(self.options.partitions, self.options.buffered_events))
            }
            Keep::Durable => Arc::new(TableQueue::new(hop.name, DURABLE, self.database.clone(), self.clock)),
            Keep::Newest => {
                let table = newest(self.options.newest_events);
                Arc::new(TableQueue::new(hop.name, table, self.database.clone(), self.clock))
            }
        }
    }
}

/// The answer to `send_later` where nothing can wait.
fn not_for_later() -> EngineError {
    EngineError::permanent(ENGINE, "only a durable hop can keep an event for later")
}

/// The answer to a verdict on what its receiver no longer holds.
fn given_back() -> EngineError {
    EngineError::unavailable(
        ENGINE,
        Applied::No,
        "its receiver is gone, so it was given back and comes again",
    )
}
