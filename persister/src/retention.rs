//! Removes what has been kept for long enough, every ten minutes, in small batches with pauses.
//!
//! One persister does it, by an advisory lease; two at once would only cost work. A pass that is cut off, by a failure or because the
//! process dies, leaves what it has not removed to the next one.

use std::time::Duration;

use naru_engines::retention::{BATCH, in_batches};
use naru_engines::{EngineResult, Engines};
use naru_model::{GatewayId, Timestamp};
use tokio::time::{Instant, interval_at};
use tokio_util::sync::CancellationToken;

use crate::telemetry::{Removed, Telemetry};

/// How often a pass begins, and how long after the start the first one does.
const EVERY: Duration = Duration::from_secs(600);
const FIRST: Duration = Duration::from_secs(60);
/// The lease and its duration.
const LEASE: (&str, Duration) = ("retention", Duration::from_secs(900));
/// How long the members at a version are kept after their room has left it. Events on their way to the fanout name versions. One that
/// takes longer than this finds no members, and its entry stays open: the sweep has it saved and routed again, by the version of
/// then (`what_comes_again_is_routed_by_the_version_of_now`).
const VERSIONS_KEPT: Duration = Duration::from_secs(3600);

pub(crate) async fn run(engines: Engines, telemetry: Telemetry, stop: CancellationToken) -> EngineResult<()> {
    let holder = GatewayId::generate();
    let mut passes = interval_at(Instant::now() + FIRST, EVERY);
    while stop.run_until_cancelled(passes.tick()).await.is_some() {
        // Where the lease can't be asked for, every persister does it.
        if let Ok(false) = engines.leases.hold(LEASE.0, holder.as_str(), LEASE.1).await {
            continue;
        }
        match stop.run_until_cancelled(pass(&engines, &telemetry)).await {
            Some(Err(error)) => {
                tracing::warn!(%error, "not all was removed that is kept no longer; the next pass goes on")
            }
            Some(Ok(())) | None => {}
        }
    }
    Ok(())
}

/// One pass.
async fn pass(engines: &Engines, telemetry: &Telemetry) -> EngineResult<()> {
    let (rooms, left_before) = (&engines.store.rooms, Timestamp::now().before(VERSIONS_KEPT));
    let removed = in_batches(|| async {
        let removed = rooms.forget_versions(left_before, BATCH).await?;
        telemetry.removed(Removed::ROOM_VERSIONS, removed);
        Ok(removed)
    });
    let versions = removed.await?;
    if versions > 0 {
        tracing::info!(versions, "removed what is kept no longer");
    }
    Ok(())
}
