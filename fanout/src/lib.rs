//! Decides per recipient between live delivery and a push, emits the offline events, then publishes.
//!
//! A saved message finds its people: `members` says who they are, [`route`] who of them is here and who is not,
//! `publish` tells both, in the one order that loses none of them: first the offline events, then the live layer. Who is
//! here has to prove in time that the message has arrived; `account` asks for the proofs, lets the others have their push,
//! and then closes the intake entry. So an entry is open until every recipient is accounted for.

mod account;
mod members;
mod publish;
pub mod route;
mod telemetry;

use naru_engines::Engines;
use naru_runtime::telemetry::Metrics;
use naru_runtime::{Policy, Span, Supervisor};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// The keys of the configuration that a fanout reads; `defaults.toml` says what they mean.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Config {
    pub delivery_grace: Span,
}

/// Starts a fanout's tasks. `no_more_proofs` is cancelled by a process whose gateway, the only one, has ended: then there is
/// nothing to wait for, and who has no proof gets their push at once.
pub fn run(
    config: &Config,
    engines: Engines,
    metrics: &Metrics,
    supervisor: &Supervisor,
    no_more_proofs: CancellationToken,
) {
    let telemetry = telemetry::Telemetry::new(metrics);
    let grace = Some(config.delivery_grace.0).filter(|grace| !grace.is_zero());
    let (accountant, published) =
        account::Accountant::new(engines.clone(), grace, no_more_proofs, telemetry.clone());
    let fanout = publish::Fanout::new(grace, engines, published, telemetry);
    supervisor.spawn("publish", Policy::Restart, move |stop| fanout.clone().run(stop));
    supervisor.spawn("account", Policy::Restart, move |stop| accountant.clone().run(stop));
}
