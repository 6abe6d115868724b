//! Decides per recipient between live delivery and a push, emits the offline events, then publishes.
//!
//! A saved message finds its people: `members` says who they are, [`route`] who of them is here and who is not,
//! `publish` tells both, in the one order that loses nobody: first the offline events, then the live layer.

mod members;
mod publish;
pub mod route;
mod telemetry;

use naru_engines::Engines;
use naru_runtime::telemetry::Metrics;
use naru_runtime::{Policy, Supervisor};

/// Starts a fanout's tasks.
pub fn run(engines: Engines, metrics: &Metrics, supervisor: &Supervisor) {
    let (fanout, settler) = publish::Fanout::new(engines, telemetry::Telemetry::new(metrics));
    supervisor.spawn("publish", Policy::Restart, move |stop| fanout.clone().run(stop));
    supervisor.spawn("settle", Policy::Restart, move |_| settler.clone().run());
}
