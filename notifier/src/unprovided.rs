//! Pushes to devices whose platform has no provider in this process: they are parked, and go out once a notifier has one.
//!
//! | dies between | then |
//! |---|---|
//! | parked · offline event acknowledged | the event comes again and parks the same push |
//! | on its lane again · off the list | it goes on its lane once more, which recognises it by its event id |

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use naru_engines::store::{ParkedCursor, ParkedPush, Platform};
use naru_engines::{EngineResult, Engines};
use naru_model::hops::{Lane, PushJob};
use naru_model::{Event, GatewayId, Timestamp, Trace};
use naru_runtime::Health;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// How many are sent again at once.
const PAGE: usize = 256;

pub(crate) struct Unprovided {
    pub(crate) engines: Engines,
    /// The lanes that have a provider.
    pub(crate) lanes: BTreeSet<Lane>,
    /// How often parked pushes are looked for. A notifier with a provider sends those that one without it parks meanwhile.
    pub(crate) every: Duration,
    pub(crate) health: Health,
    pub(crate) telemetry: Telemetry,
    /// The lanes whose lack was reported. It lasts as long as the process: so does its configuration.
    pub(crate) reported: Mutex<BTreeSet<Lane>>,
}

/// The reason by which parked pushes are found again.
const fn reason(lane: Lane) -> &'static str {
    match lane {
        Lane::Fcm => "no provider: FCM is not configured",
        Lane::Apns => "no provider: APNs is not configured",
        Lane::Webhook => "no provider: the webhook is not configured",
    }
}

impl Unprovided {
    /// Parks pushes of lanes without a provider.
    pub(crate) async fn park(&self, jobs: Vec<Event<PushJob>>) -> EngineResult<()> {
        let parked_at = Timestamp::now();
        let parked = jobs.into_iter().map(|Event { event_id, payload: job, .. }| {
            self.report(job.lane);
            self.telemetry.count_no_provider(job.lane);
            let reason = reason(job.lane).to_owned();
            ParkedPush { event_id, job, reason, attempts: 0, parked_at }
        });
        self.engines.store.pushes.park(&Vec::from_iter(parked)).await
    }

    /// Tells the operator, once: in the log, and on `/readyz`, which stays ready, since messages are delivered.
    fn report(&self, lane: Lane) {
        if self.reported.lock().unwrap_or_else(PoisonError::into_inner).insert(lane) {
            let (lane, reason) = (lane.hop().name, reason(lane));
            tracing::error!(
                lane,
                reason,
                "devices are registered for it: their pushes are parked until it is"
            );
            let sentence = format!("{reason}; devices are registered for it, and their pushes are parked");
            self.health.register_degraded(lane, move || Some(sentence.clone()));
        }
    }

    /// Puts parked pushes whose lane has a provider here on that lane, at once and again and again until stopped. One notifier
    /// does it for a lane, by an advisory lease; two would only repeat it.
    ///
    /// # Errors
    /// None: the next run repeats what failed.
    pub(crate) async fn replay(&self, stop: CancellationToken) -> EngineResult<()> {
        let holder = GatewayId::generate();
        let mut looked_at = BTreeSet::new();
        let mut runs = tokio::time::interval(self.every);
        while stop.run_until_cancelled(runs.tick()).await.is_some() {
            for lane in [Platform::Fcm, Platform::Apns].map(Platform::lane) {
                let done = if self.lanes.contains(&lane) {
                    self.replay_lane(lane, holder.as_str()).await
                } else if looked_at.contains(&lane) {
                    Ok(())
                } else {
                    self.look_at(lane).await.map(|()| looked_at.extend([lane]))
                };
                self.telemetry.log_failure(done, "pushes parked without a provider wait for the next look");
            }
        }
        Ok(())
    }

    /// An earlier process may have parked some. Of those that come later, the process that parks them tells.
    async fn look_at(&self, lane: Lane) -> EngineResult<()> {
        if !self.engines.store.pushes.parked_because(reason(lane), 1).await?.is_empty() {
            self.report(lane);
        }
        Ok(())
    }

    /// A push keeps its time to live: one that is too old meanwhile is parked as expired by its lane.
    async fn replay_lane(&self, lane: Lane, holder: &str) -> EngineResult<()> {
        let pushes = &self.engines.store.pushes;
        let lease = format!("parked-{}", lane.as_str());
        // Where the lease can't be asked for, every notifier does it.
        if let Ok(false) = self.engines.leases.hold(&lease, holder, self.every + self.every / 2).await {
            return Ok(());
        }
        loop {
            let page = pushes.parked_because(reason(lane), PAGE).await?;
            if page.is_empty() {
                return Ok(());
            }
            let (places, jobs): (Vec<_>, Vec<_>) =
                page.into_iter().map(|push| (ParkedCursor::at(&push), push.job)).unzip();
            let count = jobs.len();
            let events = jobs.into_iter().map(|job| Event::new(job, Trace::start())).collect();
            self.engines.bus.push(lane).send(events).await?;
            try_join_all(places.iter().map(|place| pushes.drop_parked_at(place))).await?;
            tracing::info!(lane = lane.as_str(), count, "pushes parked without a provider go out now");
        }
    }
}
