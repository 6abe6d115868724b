//! Decides per recipient between live delivery and a push, emits the offline events, then publishes.
//!
//! A saved message finds its people: `members` says who they are, [`route`] who of them is here and who is not,
//! `publish` tells both, in the one order that loses nobody: first the offline events, then the live layer. Whoever is
//! here is owed a push as well, in case they can't prove in time that the message has arrived.

mod members;
mod publish;
pub mod route;
mod telemetry;

use naru_engines::Engines;
use naru_runtime::telemetry::Metrics;
use naru_runtime::{Policy, Span, Supervisor};
use serde::Deserialize;

/// The keys of the configuration that a fanout reads; `defaults.toml` says what they mean.
#[derive(Clone, Copy, Debug, Deserialize)]
#[expect(missing_docs, reason = "each field is the key of the same name, documented in defaults.toml")]
pub struct Config {
    pub delivery_grace: Span,
}

/// Starts a fanout's tasks.
pub fn run(config: &Config, engines: Engines, metrics: &Metrics, supervisor: &Supervisor) {
    let telemetry = telemetry::Telemetry::new(metrics);
    let (fanout, settler) = publish::Fanout::new(config.delivery_grace.0, engines, telemetry);
    supervisor.spawn("publish", Policy::Restart, move |stop| fanout.clone().run(stop));
    supervisor.spawn("settle", Policy::Restart, move |stop| settler.clone().run(stop));
}
