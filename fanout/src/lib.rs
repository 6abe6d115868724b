//! Decides per recipient between live delivery and a push, emits the offline events, then publishes.
//!
//! `members` finds a saved message's recipients, [`route`] splits them into online and offline, `publish` serves both, in the
//! one order that loses none of them: first a room's offline events, then the live layer. An online recipient has to prove in
//! time that the message has arrived; `delivery_tracker` asks for the proofs, emits offline events where one is missing, and
//! then closes the intake entry. So an entry is open until every recipient is accounted for.

mod delivery_tracker;
mod members;
mod pending_proofs;
mod publish;
pub mod route;
mod telemetry;

use naru_engines::Engines;
use naru_runtime::telemetry::Metrics;
use naru_runtime::{Policy, Span, Supervisor};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// The keys of the configuration that a fanout reads; `defaults.toml` explains them.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Config {
    pub delivery_grace: Span,
}

/// Starts a fanout's tasks. `no_more_proofs` is cancelled by a process whose gateway, the only one, has ended: then no proof
/// can come, and a recipient without one gets a push at once.
pub fn run(
    config: &Config,
    engines: Engines,
    metrics: &Metrics,
    supervisor: &Supervisor,
    no_more_proofs: CancellationToken,
) {
    let telemetry = telemetry::Telemetry::new(metrics);
    let grace = Some(config.delivery_grace.0).filter(|grace| !grace.is_zero());
    let (tracker, published) =
        delivery_tracker::DeliveryTracker::new(engines.clone(), grace, no_more_proofs, telemetry.clone());
    let fanout = publish::Fanout::new(grace, engines, published, tracker.tracked.clone(), telemetry);
    supervisor.spawn("publish", Policy::Restart, move |stop| fanout.clone().run(stop));
    supervisor.spawn("delivery-tracker", Policy::Restart, move |stop| tracker.clone().run(stop));
}
