//! The bus: hops that the intake's open entries refill are in memory, the others in a table.

mod memory;
mod table;

use std::sync::Arc;

use naru_engines::bus::{Bus, Queue};
use naru_model::hops::{self, Hop, HopKind, Payload};

use crate::Options;
use crate::bus::memory::MemoryQueue;
pub(crate) use crate::bus::table::UNREADABLE;
use crate::bus::table::{Clock, TableQueue};
use crate::database::Database;

pub(crate) fn bus(database: &Arc<Database>, options: &Options) -> Bus {
    let carrier = Carrier { database, options, clock: Clock::start(database.newest_row) };
    Bus {
        accepted: carrier.queue(hops::ACCEPTED),
        saved: carrier.queue(hops::SAVED),
        offline: carrier.queue(hops::OFFLINE),
        push_fcm: carrier.queue(hops::PUSH_FCM),
        push_apns: carrier.queue(hops::PUSH_APNS),
        push_webhook: carrier.queue(hops::PUSH_WEBHOOK),
    }
}

struct Carrier<'a> {
    database: &'a Arc<Database>,
    options: &'a Options,
    clock: Clock,
}

impl Carrier<'_> {
    fn queue<T: Payload>(&self, hop: Hop) -> Arc<dyn Queue<T>> {
        match hop.kind {
            HopKind::Ordered => Arc::new(MemoryQueue::new(self.options.buffered_events)),
            HopKind::Durable => Arc::new(TableQueue::new(hop.name, self.database.clone(), self.clock)),
        }
    }
}
