//! Offline events in, one push per device and provider out.
//!
//! **Settled after the effect**: an offline event is done once its pushes lie on their lanes. When anything fails or dies
//! before that, it comes again and makes the same pushes, which their lanes recognise by their ids.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use futures_util::future::try_join_all;
use naru_engines::bus::{Delivery, Receipt, Verdict};
use naru_engines::store::{Device, MemberPosition};
use naru_engines::{EngineResult, Engines};
use naru_model::hops::{Lane, Offline, PushJob, PushTarget};
use naru_model::{Event, Message, RoomId, Stage, Timestamp, UserId};
use tokio_util::sync::CancellationToken;

use crate::decide::Ladder;
use crate::render;
use crate::telemetry::Telemetry;
use crate::trouble::{Trouble, settle};

/// Offline events per batch: with up to 100 recipients each, still one look-up that a store answers at once.
const MOST: usize = 64;

/// The worker.
pub(crate) struct Push {
    pub(crate) engines: Engines,
    /// The lanes that have a provider.
    pub(crate) lanes: BTreeSet<Lane>,
    pub(crate) ttl: Duration,
    pub(crate) ladder: Ladder,
    pub(crate) telemetry: Telemetry,
}

impl Push {
    /// Works until told to stop, and then finishes the batch it holds.
    ///
    /// # Errors
    /// When the queue can't be read.
    pub(crate) async fn run(&self, stop: CancellationToken) -> EngineResult<()> {
        let mut offline = self.engines.bus.offline.receiver().await?;
        let mut trouble = Trouble::new("push", self.telemetry.clone());
        while let Some(batch) = stop.run_until_cancelled(offline.receive(MOST)).await {
            self.handle(batch?, &mut trouble, &stop).await;
        }
        Ok(())
    }

    async fn handle(&self, batch: Vec<Delivery<Offline>>, trouble: &mut Trouble, stop: &CancellationToken) {
        let mut piles = vec![batch];
        while let Some(pile) = piles.pop() {
            match self.hand_on(pile.iter().map(|delivery| &delivery.event)).await {
                Ok(()) => {
                    self.telemetry.offline(pile.len());
                    settle(receipts(pile), Verdict::Done, &self.telemetry).await;
                    trouble.is_over();
                }
                Err(error) if error.is_transient() => {
                    trouble.give_back(receipts(pile), error, stop).await;
                }
                // One of them is at fault; by itself it holds up no other.
                Err(_) if pile.len() > 1 => piles.extend(pile.into_iter().map(|delivery| vec![delivery])),
                Err(error) => {
                    tracing::error!(%error, event_id = %pile[0].event.event_id, "an offline event can't be handled");
                    self.telemetry.engine_failed();
                    settle(receipts(pile), Verdict::RetryAfter(self.ladder.top()), &self.telemetry).await;
                }
            }
        }
    }

    /// Puts the pushes that these events ask for on their lanes.
    async fn hand_on<'a>(&self, events: impl Iterator<Item = &'a Event<Offline>>) -> EngineResult<()> {
        let events: Vec<_> = events.collect();
        let positions = self.positions(&events).await?;
        let now = Timestamp::now();
        let (mut due, mut spared) = (Vec::new(), Vec::new());
        for event in events {
            let message = &event.payload.message;
            for user in &event.payload.recipients {
                let member = positions.get(&(&message.chat_room_id, user)).copied().unwrap_or_default();
                match reason_to_spare(message, member, now) {
                    Some(reason) => spared.push(reason),
                    None => due.push((event, user)),
                }
            }
        }
        let users: BTreeSet<_> = due.iter().map(|(_, user)| (*user).clone()).collect();
        let devices = self.engines.store.devices.of_users(&Vec::from_iter(users)).await?;
        let (jobs, unprovided) = self.jobs(&due, &devices);
        try_join_all(jobs.into_iter().map(|(lane, jobs)| self.engines.bus.push(lane).send(jobs))).await?;

        spared.into_iter().for_each(|reason| self.telemetry.spared(reason));
        unprovided.into_iter().for_each(|lane| self.telemetry.no_provider(lane));
        Ok(())
    }

    /// How far the recipients are in their rooms; one look-up per room.
    async fn positions<'a>(
        &self,
        events: &[&'a Event<Offline>],
    ) -> EngineResult<HashMap<(&'a RoomId, &'a UserId), MemberPosition>> {
        let mut rooms: BTreeMap<&RoomId, BTreeSet<&UserId>> = BTreeMap::new();
        for Offline { message, recipients } in events.iter().map(|event| &event.payload) {
            rooms.entry(&message.chat_room_id).or_default().extend(recipients);
        }
        let look_ups = rooms.into_iter().map(|(room, users)| async move {
            let asked: Vec<_> = users.iter().map(|user| (*user).clone()).collect();
            let found = self.engines.store.positions.get(room, &asked).await?;
            Ok(users.into_iter().map(move |user| (room, user)).zip(found))
        });
        Ok(try_join_all(look_ups).await?.into_iter().flatten().collect())
    }

    /// The pushes per lane, each once, and the lane of every device that has no provider here.
    fn jobs(
        &self,
        due: &[(&Event<Offline>, &UserId)],
        devices: &[Device],
    ) -> (BTreeMap<Lane, Vec<Event<PushJob>>>, Vec<Lane>) {
        let mut devices_of: HashMap<&UserId, Vec<&Device>> = HashMap::new();
        for device in devices {
            devices_of.entry(&device.user).or_default().push(device);
        }
        let (mut jobs, mut unprovided) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
        let mut made = HashSet::new();
        for (offline, user) in due {
            let of_devices = devices_of.get(user).into_iter().flatten();
            let of_devices = of_devices.map(|device| (device.platform.lane(), Some(target(device))));
            let of_backend = self.lanes.get(&Lane::Webhook).map(|lane| (*lane, None));
            for (lane, target) in of_devices.chain(of_backend) {
                if !self.lanes.contains(&lane) {
                    unprovided.push(lane);
                    continue;
                }
                let job = render::push(&offline.payload.message, user, lane, target, self.ttl);
                let job = Event::new(job, offline.trace);
                if made.insert(job.event_id) {
                    jobs.entry(lane).or_default().push(job);
                }
            }
        }
        (jobs, unprovided)
    }
}

/// Why a recipient needs no push, if there is a reason by now.
fn reason_to_spare(message: &Message, member: MemberPosition, now: Timestamp) -> Option<&'static str> {
    if member.read >= message.seq {
        Some(Stage::Read.as_str())
    } else if member.received >= message.seq {
        Some(Stage::Received.as_str())
    } else if member.settings.mutes_at(now) {
        Some("muted")
    } else {
        None
    }
}

fn target(device: &Device) -> PushTarget {
    PushTarget { device_id: device.id.clone(), token: device.token.clone(), environment: device.environment }
}

fn receipts(pile: Vec<Delivery<Offline>>) -> Vec<Receipt> {
    pile.into_iter().map(|delivery| delivery.receipt).collect()
}
