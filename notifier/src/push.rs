//! Turns offline events into one push per device and provider.
//!
//! **Acknowledged after the effect**: an event is acknowledged once its pushes are on their lanes. If a call fails or the
//! process dies before that, it comes again and makes the same pushes, which their lanes recognise by their event ids:
//!
//! | dies or is lost between | then | the phone |
//! |---|---|---|
//! | offline event received · its pushes on their lanes | the event comes again | buzzes once, later |
//! | pushes on some lanes · on the others | the event comes again and makes the same pushes | buzzes once |
//! | pushes on their lanes · event acknowledged | the same | buzzes once |
//! | pushes of a lane without a provider parked · event acknowledged | the event comes again and parks the same pushes | as `unprovided.rs` says |
//! | two offline events for one message (the fanout's own repetition) | both make the same push | buzzes once |

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{try_join, try_join_all};
use naru_engines::store::{Device, MemberPosition, Store};
use naru_engines::work::{Work, work_on};
use naru_engines::{EngineResult, Engines};
use naru_model::hops::{Lane, Offline, PushJob};
use naru_model::{Event, Message, PushStage, RoomId, Seq, Timestamp, UserId};
use naru_runtime::backoff::full_jitter;
use tokio_util::sync::CancellationToken;

use crate::deleted::{self, deleted, may_be_deleted};
use crate::render;
use crate::telemetry::Telemetry;
use crate::unprovided::Unprovided;

/// The longest wait after the first failure of an engine; it doubles with each further one.
pub(crate) const BACKOFF_BASE: Duration = Duration::from_millis(100);
/// The longest wait at all: pushes are at most so late when the engine is back.
pub(crate) const BACKOFF_CAP: Duration = Duration::from_secs(5);

pub(crate) struct Push {
    pub(crate) engines: Engines,
    /// The lanes that have a provider.
    pub(crate) lanes: BTreeSet<Lane>,
    pub(crate) unprovided: Arc<Unprovided>,
    pub(crate) ttl: Duration,
    /// No phone shows the content, whatever it asked for.
    pub(crate) hides_content: bool,
    pub(crate) telemetry: Telemetry,
}

impl Push {
    /// Works until stopped, and then finishes the batches in flight.
    ///
    /// # Errors
    /// When the queue can't be read.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) -> EngineResult<()> {
        let options = Work {
            name: "push",
            // With up to 100 recipients each, they need one look-up that a store answers at once.
            max_batch: 32,
            // A message to a large room, which makes a push for each of its members' devices, does not hold up other events.
            max_in_flight: 4,
            backoff: |attempt| {
                full_jitter(BACKOFF_BASE, BACKOFF_CAP, attempt.saturating_sub(1), &mut rand::rng())
            },
            is_rederivable: false,
        };
        // Asked before the first events: those that come while it is asked would take it as wanted.
        self.unprovided.wants_webhook().await;
        let offline = self.engines.bus.offline.clone();
        work_on(&*offline, options, stop.cancelled(), move |events| {
            let push = self.clone();
            async move {
                let enqueued = push.enqueue_jobs(&events).await;
                match &enqueued {
                    Ok(()) => push.telemetry.offline(events.len()),
                    Err(_) => push.telemetry.engine_failed(),
                }
                enqueued
            }
        })
        .await
    }

    /// Puts the pushes that these events ask for on their lanes. Recipients with nothing to push to cost no further look-up.
    async fn enqueue_jobs(&self, events: &[Event<Offline>]) -> EngineResult<()> {
        let users: BTreeSet<_> = events.iter().flat_map(|event| &event.payload.recipients).cloned().collect();
        let devices = self.engines.store.devices.of_users(&Vec::from_iter(users)).await?;
        let mut devices_of: HashMap<&UserId, Vec<&Device>> = HashMap::new();
        for device in &devices {
            devices_of.entry(&device.user).or_default().push(device);
        }
        let wants_webhook = self.unprovided.wants_webhook().await;
        let is_reachable = |user: &UserId| wants_webhook || devices_of.contains_key(user);
        let missed =
            events.iter().flat_map(|event| event.payload.recipients.iter().map(move |user| (event, user)));
        let missed: Vec<_> = missed.filter(|(_, user)| is_reachable(user)).collect();
        if missed.is_empty() {
            return Ok(());
        }
        let asked = missed.iter().map(|(Event { payload: Offline { message, .. }, .. }, user)| {
            (&message.chat_room_id, *user, message.seq)
        });
        let now = Timestamp::now();
        let messages = missed.iter().map(|(event, _)| &event.payload.message);
        let may_be_deleted = messages.filter(|message| may_be_deleted(message.timestamp, 1, now));
        let may_be_deleted = may_be_deleted.map(|message| message.id).collect();
        let store = &self.engines.store;
        let (positions, deleted) = try_join(positions(store, asked), deleted(store, may_be_deleted)).await?;
        let (mut due, mut spared) = (Vec::new(), Vec::new());
        for (event, user) in missed {
            let Message { id, chat_room_id: room, seq, deleted_at, .. } = &event.payload.message;
            if deleted_at.is_some() || deleted.contains(id) {
                spared.push(deleted::REASON);
                continue;
            }
            match reason_to_spare(*seq, positions[&(room, user)], now) {
                Some(reason) => spared.push(reason),
                None => due.push((event, user)),
            }
        }
        let jobs = self.jobs(due, &devices_of, wants_webhook);
        try_join_all(jobs.into_iter().map(|(lane, jobs)| async move {
            match self.lanes.contains(&lane) {
                true => self.engines.bus.push(lane).send(jobs).await,
                false => self.unprovided.park(jobs).await,
            }
        }))
        .await?;
        spared.into_iter().for_each(|reason| self.telemetry.count_spared(reason));
        Ok(())
    }

    /// The pushes per lane, each once.
    fn jobs(
        &self,
        due: Vec<(&Event<Offline>, &UserId)>,
        devices_of: &HashMap<&UserId, Vec<&Device>>,
        wants_webhook: bool,
    ) -> BTreeMap<Lane, Vec<Event<PushJob>>> {
        let mut jobs = BTreeMap::<_, Vec<_>>::new();
        let mut made = HashSet::new();
        for (Event { payload, trace, .. }, user) in due {
            let of_devices = devices_of.get(user).into_iter().flatten();
            let hides = |device: &Device| self.hides_content || device.hides_content;
            let of_devices = of_devices
                .map(|device| (device.platform.lane(), Some(render::target(device)), hides(device)));
            // The backend is the deployment's own, and gets the content.
            let of_backend = wants_webhook.then_some((Lane::Webhook, None, false));
            for (lane, target, hides_content) in of_devices.chain(of_backend) {
                let mut job = render::push(&payload.message, user, lane, target, self.ttl);
                if hides_content {
                    render::hide(&mut job);
                }
                let job = Event::new(job, *trace);
                if made.insert(job.event_id) {
                    jobs.entry(lane).or_default().push(job);
                }
            }
        }
        jobs
    }
}

/// The positions of these members of rooms. Each member is asked for once, from the first of its messages on: that shows for
/// all of them whether they are read.
pub(crate) async fn positions<'a>(
    store: &Store,
    asked: impl Iterator<Item = (&'a RoomId, &'a UserId, Seq)>,
) -> EngineResult<HashMap<(&'a RoomId, &'a UserId), MemberPosition>> {
    let mut from: HashMap<(&RoomId, &UserId), Seq> = HashMap::new();
    for (room, user, seq) in asked {
        from.entry((room, user)).and_modify(|from| *from = seq.min(*from)).or_insert(seq);
    }
    let asked: Vec<_> =
        from.iter().map(|((room, user), from)| ((*room).clone(), (*user).clone(), *from)).collect();
    let positions = store.positions.get(&asked).await?;
    Ok(from.into_keys().zip(positions).collect())
}

/// Why a recipient needs no push, if there is a reason by now.
pub(crate) fn reason_to_spare(seq: Seq, member: MemberPosition, now: Timestamp) -> Option<&'static str> {
    if member.read >= seq {
        Some(PushStage::Read.as_str())
    } else if member.received >= seq {
        Some(PushStage::Received.as_str())
    } else if member.settings.mutes_at(now) {
        Some("muted")
    } else {
        None
    }
}
