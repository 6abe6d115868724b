//! The interfaces through which workers use a store, a bus and a live layer.
//!
//! **The traits are the specification.** Each has a numbered contract in its doc comment; the conformance suite
//! has a case per number, and every engine and every decorator runs all of it. The workers rely on the contracts
//! and on nothing else, so the same workers run in one process on SQLite or in forty on MongoDB, RabbitMQ and Redis.
//!
//! - [`store`]: the durable data, and the only source of recovery.
//! - [`bus`]: the queues between workers.
//! - [`work`]: the loop of every worker on a queue.
//! - [`retention`]: removing what has been kept for long enough.
//! - [`live`]: delivery to the clients that are connected now. Nothing in it needs to last.

pub mod bus;
mod error;
pub mod live;
pub mod retention;
pub mod store;
pub mod work;

use std::sync::Arc;

pub use error::{Applied, BoxError, EngineError, EngineResult};

/// All engines that a worker uses, chosen by configuration.
#[derive(Clone)]
pub struct Engines {
    /// The durable data.
    pub store: store::Store,
    /// The queues between workers.
    pub bus: bus::Bus,
    /// Events for connected clients.
    pub live: Arc<dyn live::Live>,
    /// Which users are connected, and to which gateway.
    pub presence: Arc<dyn live::Presence>,
    /// The messages that were proven to have arrived.
    pub proofs: Arc<dyn live::Proofs>,
    /// Which process does the work that only one should do.
    pub leases: Arc<dyn live::Leases>,
}

impl From<Engines> for store::Store {
    fn from(engines: Engines) -> Self {
        engines.store
    }
}

impl From<Engines> for bus::Bus {
    fn from(engines: Engines) -> Self {
        engines.bus
    }
}
