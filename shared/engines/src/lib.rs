//! What the workers ask of a store, a bus and a live layer.
//!
//! **The traits are the specification.** Each has a numbered contract in its doc comment; the conformance suite
//! has a case per number, and every engine and every decorator runs all of it. The workers rely on the contracts
//! and on nothing else, so they can't tell one process on SQLite from forty on MongoDB, RabbitMQ and Redis.
//!
//! - [`store`]: what must last. The only source of recovery.
//! - [`bus`]: what carries work from worker to worker.
//! - [`live`]: what reaches those who are connected now. Nothing in it needs to last.

pub mod bus;
mod error;
pub mod live;
pub mod store;

use std::sync::Arc;

pub use error::{Applied, BoxError, EngineError, EngineResult};

/// Everything a worker stands on, chosen by configuration.
#[derive(Clone)]
pub struct Engines {
    /// What must last.
    pub store: store::Store,
    /// What carries work.
    pub bus: bus::Bus,
    /// What reaches the connected.
    pub live: Arc<dyn live::Live>,
    /// Who is connected, and where.
    pub presence: Arc<dyn live::Presence>,
    /// What was proven to have arrived.
    pub proofs: Arc<dyn live::Proofs>,
    /// Who does what only one should do.
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
