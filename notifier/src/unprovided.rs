//! Pushes whose provider is missing in this process: they are parked, and go out once a notifier has it.
//!
//! That a provider is wanted, a registered device shows. That the webhook is wanted, the notifiers tell each other: each that
//! has it holds a lease, all in the same name. One that asks for the lease and gets it is in a deployment without webhook.
//! The lease outlasts them by an hour, so that a notifier without it loses nothing while the others restart.
//!
//! | dies between | then |
//! |---|---|
//! | parked · offline event acknowledged | the event comes again and parks the same push |
//! | on its lane again · off the list | it goes on its lane once more, which recognises it by its event id |

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use naru_engines::store::{ParkedCursor, ParkedPush};
use naru_engines::{EngineResult, Engines};
use naru_model::hops::{Lane, PushJob};
use naru_model::{Event, HolderId, Timestamp, Trace};
use naru_runtime::Health;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// How many are sent again at once.
const PAGE: usize = 256;
/// The lease of those that have the webhook, and how long it outlasts them.
const WEBHOOK: (&str, Duration) = ("push.webhook", Duration::from_secs(3600));
/// An asker is to have the lease for no longer than it takes to get it.
const ASKER: (&str, Duration) = ("without", Duration::from_millis(1));
/// How often those that don't have it ask.
const ASK_INTERVAL: Duration = Duration::from_secs(10);

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
    /// Whether another notifier has the webhook.
    pub(crate) webhook: Mutex<WebhookElsewhere>,
}

/// What is known of a webhook that another notifier may have.
#[derive(Default)]
pub(crate) struct WebhookElsewhere {
    /// When it was asked last.
    asked: Option<Instant>,
    seen: Seen,
}

#[derive(Clone, Copy, Default)]
enum Seen {
    /// There was no answer yet.
    #[default]
    Unknown,
    Never,
    At(Instant),
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
    /// Whether the app's backend wants pushes: here or in another notifier the webhook is configured, or was within the hour that
    /// the lease lasts, so that a live layer that loses its data loses no push. While it can't be asked, what was known
    /// last counts; at first, that it is wanted: then a push is parked, not lost, and those to devices go on.
    pub(crate) async fn wants_webhook(&self) -> bool {
        if self.lanes.contains(&Lane::Webhook) {
            return true;
        }
        let now = Instant::now();
        let is_due = {
            let mut known = self.webhook_elsewhere();
            let is_due = known.asked.is_none_or(|asked| now - asked >= ASK_INTERVAL);
            if is_due {
                known.asked = Some(now);
            }
            is_due
        };
        if is_due {
            let is_free = self.engines.leases.hold(WEBHOOK.0, ASKER.0, ASKER.1).await;
            let mut known = self.webhook_elsewhere();
            known.seen = match (is_free, known.seen) {
                (Ok(false), _) => Seen::At(now),
                (Ok(true), Seen::Unknown) => Seen::Never,
                (_, seen) => seen,
            };
        }
        match self.webhook_elsewhere().seen {
            Seen::Unknown => true,
            Seen::Never => false,
            Seen::At(moment) => moment.elapsed() < WEBHOOK.1,
        }
    }

    fn webhook_elsewhere(&self) -> MutexGuard<'_, WebhookElsewhere> {
        self.webhook.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the other notifiers that the webhook is configured here.
    async fn hold_webhook(&self) -> EngineResult<()> {
        // An asker may just have it.
        while !self.engines.leases.hold(WEBHOOK.0, "with", WEBHOOK.1).await? {
            sleep(ASKER.1).await;
        }
        Ok(())
    }

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
            let wanted_by = match lane {
                Lane::Fcm | Lane::Apns => "devices are registered for it, and their pushes are parked",
                Lane::Webhook => "another notifier has it, and the pushes that this one takes are parked",
            };
            let (lane, reason) = (lane.hop().name, reason(lane));
            tracing::error!(lane, reason, "{wanted_by}");
            let sentence = format!("{reason}; {wanted_by}");
            self.health.register_degraded(lane, move || Some(sentence.clone()));
        }
    }

    /// Puts parked pushes whose lane has a provider here on that lane, at once and again and again until stopped. One notifier
    /// does it for a lane, by an advisory lease; two would only repeat it.
    ///
    /// # Errors
    /// None: the next run repeats what failed.
    pub(crate) async fn replay(&self, stop: CancellationToken) -> EngineResult<()> {
        let holder = HolderId::generate();
        let mut looked_at = BTreeSet::new();
        let mut runs = tokio::time::interval(self.every);
        while stop.run_until_cancelled(runs.tick()).await.is_some() {
            if self.lanes.contains(&Lane::Webhook) {
                let told = self.hold_webhook().await;
                self.telemetry
                    .log_failure(told, "other notifiers are not told that the webhook is configured here");
            }
            for lane in [Lane::Fcm, Lane::Apns, Lane::Webhook] {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use naru_embedded::{Embedded, Options};
    use naru_engines::live::Leases;
    use naru_engines::{Applied, EngineError};
    use naru_runtime::Metrics;
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Another notifier has the webhook's lease, nobody has it, or it can't be asked for.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Lease {
        Taken,
        Free,
        Unknown,
    }

    struct Told(Mutex<Lease>);

    impl Told {
        fn set(&self, lease: Lease) {
            *self.0.lock().unwrap() = lease;
        }
    }

    #[async_trait]
    impl Leases for Told {
        async fn hold(&self, name: &str, _: &str, _: Duration) -> EngineResult<bool> {
            assert_eq!(name, WEBHOOK.0);
            match *self.0.lock().unwrap() {
                Lease::Taken => Ok(false),
                Lease::Free => Ok(true),
                Lease::Unknown => Err(EngineError::unavailable("leases", Applied::No, "cut off")),
            }
        }
    }

    /// A notifier without the webhook.
    fn without_webhook(lease: Lease) -> (Unprovided, Arc<Told>, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let leases = Arc::new(Told(Mutex::new(lease)));
        let engines = Embedded::open(directory.path(), Options::default()).unwrap().engines();
        let unprovided = Unprovided {
            engines: Engines { leases: leases.clone(), ..engines },
            lanes: BTreeSet::new(),
            every: Duration::from_secs(120),
            health: Health::new(CancellationToken::new()),
            telemetry: Telemetry::new(&Metrics::new()),
            reported: Mutex::default(),
            webhook: Mutex::default(),
        };
        (unprovided, leases, directory)
    }

    /// The one that has it takes the lease again two minutes later, or is away with the live layer.
    #[tokio::test(start_paused = true)]
    async fn a_webhook_is_wanted_for_an_hour_whatever_the_live_layer_forgets() {
        let (unprovided, leases, _directory) = without_webhook(Lease::Taken);
        assert!(unprovided.wants_webhook().await);
        for forgotten in [Lease::Free, Lease::Unknown, Lease::Free] {
            leases.set(forgotten);
            advance(ASK_INTERVAL).await;
            assert!(unprovided.wants_webhook().await, "{forgotten:?}");
        }
        leases.set(Lease::Taken);
        advance(ASK_INTERVAL).await;
        assert!(unprovided.wants_webhook().await);
        leases.set(Lease::Free);
        advance(WEBHOOK.1 - SECOND).await;
        assert!(unprovided.wants_webhook().await, "it was seen within the hour");
        advance(SECOND).await;
        assert!(!unprovided.wants_webhook().await, "nobody has had it for an hour");
    }

    #[tokio::test(start_paused = true)]
    async fn while_it_is_unknown_whether_the_webhook_is_wanted_it_is() {
        let (unprovided, leases, _directory) = without_webhook(Lease::Unknown);
        assert!(unprovided.wants_webhook().await);
        leases.set(Lease::Free);
        assert!(unprovided.wants_webhook().await, "it was just asked");
        advance(ASK_INTERVAL).await;
        assert!(!unprovided.wants_webhook().await);
        leases.set(Lease::Unknown);
        advance(ASK_INTERVAL).await;
        assert!(!unprovided.wants_webhook().await, "it was free before");
    }
}
