//! Gives every accepted message its place in the room, saves it and confirms the saved id.
//!
//! [`persist`](Persister) takes accepted messages from the bus; [`sweep`](recover) finds those that were accepted and then
//! lost by a worker that died; `retention` removes what is kept no longer. Any number of persisters may run: the bus distributes the rooms, and where two write to one
//! room the store's unique `(room, seq)` decides, not a lock.

mod order;
mod persist;
mod retention;
mod sweep;
mod telemetry;

use naru_engines::Engines;
use naru_runtime::config::optional;
use naru_runtime::telemetry::Metrics;
use naru_runtime::{Policy, Span, Supervisor};
use serde::Deserialize;

pub use crate::persist::Persister;
pub use crate::sweep::recover;

/// The keys of the configuration that a persister reads; `defaults.toml` explains them.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Config {
    pub delivery_grace: Span,
    /// How long messages are kept in `chat_messages`; none: for ever.
    #[serde(deserialize_with = "optional")]
    pub message_ttl: Option<Span>,
    /// How long the intake keeps contents; none: for ever.
    #[serde(deserialize_with = "optional")]
    pub intake_keep: Option<Span>,
    /// How long the notifier keeps parked pushes; none: for ever.
    #[serde(deserialize_with = "optional")]
    pub parked_keep: Option<Span>,
}

/// Starts a persister's tasks.
pub fn run(config: &Config, engines: Engines, metrics: &Metrics, supervisor: &Supervisor) {
    let (config, grace) = (*config, config.delivery_grace.0);
    let telemetry = telemetry::Telemetry::new(metrics);
    retention::warn(&config);
    let persister = Persister::new(&config, engines.clone(), telemetry.clone());
    let (swept, removing) = (engines.clone(), telemetry.clone());
    supervisor.spawn("persist", Policy::Restart, move |stop| persister.clone().run(stop));
    supervisor.spawn("sweep", Policy::Restart, move |stop| {
        sweep::run(swept.clone(), grace, telemetry.clone(), stop)
    });
    supervisor.spawn("retention", Policy::Restart, move |stop| {
        retention::Retention::new(&config, engines.clone(), removing.clone()).run(stop)
    });
}
