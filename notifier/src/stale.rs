//! Devices that have not been seen for a long time are forgotten: their apps were removed, and providers report it only when
//! a push is tried (Google advises this, and calls a token stale after 270 days:
//! <https://firebase.google.com/docs/cloud-messaging/manage-tokens>).

use std::time::Duration;

use naru_engines::{EngineResult, Engines};
use naru_model::{GatewayId, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// How often stale devices are looked for. One notifier does it, by an advisory lease; two would only repeat it.
const EVERY: Duration = Duration::from_secs(3600);
const LEASE: &str = "stale-devices";

/// Forgets, once an hour, the devices not seen for `unseen`, until stopped.
///
/// # Errors
/// None: a failed run is repeated in an hour.
pub(crate) async fn run(
    engines: Engines,
    unseen: Duration,
    telemetry: Telemetry,
    stop: CancellationToken,
) -> EngineResult<()> {
    let holder = GatewayId::generate();
    let mut hours = tokio::time::interval(EVERY);
    while stop.run_until_cancelled(hours.tick()).await.is_some() {
        // Where the lease can't be asked for, every notifier does it.
        if let Ok(false) = engines.leases.hold(LEASE, holder.as_str(), EVERY + EVERY / 2).await {
            continue;
        }
        let forgotten = engines.store.devices.forget_unseen(Timestamp::now().before(unseen)).await;
        if let Ok(devices @ 1..) = forgotten {
            tracing::info!(devices, "devices that have not been seen for long are forgotten");
            telemetry.count_devices_forgotten(devices);
        }
        telemetry.log_failure(forgotten.map(drop), "devices unseen for long stay for another hour");
    }
    Ok(())
}
