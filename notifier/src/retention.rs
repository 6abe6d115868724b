//! Removes, once an hour, what the notifier has kept for long enough:
//!
//! - devices that have not been seen for a long time: their apps were removed, and providers report it only when
//!   a push is tried (Google advises this, and calls a token stale after 270 days:
//!   <https://firebase.google.com/docs/cloud-messaging/manage-tokens>);
//! - parked pushes, if so configured.
//!
//! It also tells how many pushes are parked, since by default they are kept for ever.

use std::time::Duration;

use naru_engines::retention::{BATCH, in_batches};
use naru_engines::{EngineResult, Engines};
use naru_model::{HolderId, Timestamp};
use tokio::time::{Instant, interval, interval_at};
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// How often it is done. One notifier does it, by an advisory lease; two would only repeat it.
const INTERVAL: Duration = Duration::from_secs(3600);
/// How long after the start parked pushes are counted first.
const FIRST_COUNT: Duration = Duration::from_secs(60);
const LEASE: &str = "notifier-retention";
/// This many parked pushes are worth a warning: most of them are of no use any more, and no one looks at them.
const MANY_PARKED: u64 = 10_000;

/// For how long things are kept.
#[derive(Clone, Copy)]
pub(crate) struct Keep {
    /// Devices, from their last registration.
    pub(crate) devices: Duration,
    /// Parked pushes; none: for ever.
    pub(crate) parked: Option<Duration>,
}

/// Runs until stopped.
///
/// # Errors
/// None: a failed pass is repeated in an hour.
pub(crate) async fn run(
    engines: Engines,
    keep: Keep,
    telemetry: Telemetry,
    stop: CancellationToken,
) -> EngineResult<()> {
    let holder = HolderId::generate();
    let (mut passes, mut counts) = (interval(INTERVAL), interval_at(Instant::now() + FIRST_COUNT, INTERVAL));
    loop {
        let is_pass = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = passes.tick() => true,
            _ = counts.tick() => false,
        };
        // Where the lease can't be asked for, every notifier does it.
        if let Ok(false) = engines.leases.hold(LEASE, holder.as_str(), INTERVAL + INTERVAL / 2).await {
            continue;
        }
        if is_pass {
            stop.run_until_cancelled(pass(&engines, keep, &telemetry)).await;
        } else {
            count(&engines, &telemetry).await;
        }
    }
}

async fn pass(engines: &Engines, keep: Keep, telemetry: &Telemetry) {
    let store = &engines.store;
    let forgotten = store.devices.forget_unseen(Timestamp::now().before(keep.devices)).await;
    if let Ok(devices @ 1..) = forgotten {
        tracing::info!(devices, "devices that have not been seen for long are forgotten");
        telemetry.count_devices_forgotten(devices);
    }
    telemetry.log_failure(forgotten.map(drop), "devices unseen for long stay for another hour");
    if let Some(parked) = keep.parked {
        let before = Timestamp::now().before(parked);
        let forgotten = in_batches(|| store.pushes.forget_parked(before, BATCH)).await;
        if let Ok(pushes @ 1..) = forgotten {
            tracing::info!(pushes, "pushes that were parked for long are forgotten");
            telemetry.count_parked_forgotten(pushes);
        }
        telemetry.log_failure(forgotten.map(drop), "pushes parked for long stay for another hour");
    }
}

async fn count(engines: &Engines, telemetry: &Telemetry) {
    match engines.store.pushes.parked_count().await {
        Ok(count) => {
            telemetry.parked(count);
            if count >= MANY_PARKED {
                tracing::warn!(
                    count,
                    "many pushes are parked: `naru parked list` shows why, `parked_keep` ends it"
                );
            }
        }
        Err(error) => telemetry.log_failure(Err(error), "parked pushes were not counted"),
    }
}

#[cfg(test)]
mod tests {
    use naru_embedded::{Embedded, Options};
    use naru_engines::store::ParkedPush;
    use naru_model::MessageId;
    use naru_model::hops::{Payload, PushJob};

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[tokio::test]
    async fn parked_pushes_are_kept_for_ever_unless_it_is_said_how_long() {
        let directory = tempfile::tempdir().unwrap();
        let engines = Embedded::open(directory.path(), Options::default()).unwrap().engines();
        let parked = |days: u32| {
            let job = PushJob { message_id: MessageId::generate(), ..crate::payloads::job() };
            let parked_at = Timestamp::now().before(DAY * days);
            ParkedPush { event_id: job.event_id(), job, reason: "expired".to_owned(), attempts: 1, parked_at }
        };
        let pushes: Vec<ParkedPush> = (0..500).map(parked).collect();
        engines.store.pushes.park(&pushes).await.unwrap();
        let telemetry = Telemetry::new(&naru_runtime::Metrics::new());
        let after = async |parked| {
            pass(&engines, Keep { devices: DAY, parked }, &telemetry).await;
            count(&engines, &telemetry).await;
            (engines.store.pushes.parked_count().await.unwrap(), telemetry.parked.get())
        };
        assert_eq!(after(None).await, (500, 500));
        assert_eq!(after(Some(DAY * 30 + DAY / 2)).await, (31, 31));
        assert_eq!(after(Some(DAY * 30 + DAY / 2)).await, (31, 31), "and that is that");
        assert_eq!(telemetry.parked_forgotten.get(), 469);
    }
}
