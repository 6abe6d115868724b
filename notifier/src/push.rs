//! Offline and owed events in, one push per device and provider out.
//!
//! **Settled after the effect**: an event is done once its pushes lie on their lanes. When anything fails or dies before
//! that, it comes again and makes the same pushes, which their lanes recognise by their ids.
//!
//! Of an *owed* event's recipients those are left out who have proven to have the message: by a pong (the engine's
//! proofs), or by what they said to have received or read (their positions, which are looked at for every push). What
//! can't be asked is no proof. So each way in which a message may not arrive ends in a push, and needs no repair of its own:
//!
//! | dies or is lost between | then | seen |
//! |---|---|---|
//! | publish · owed event confirmed | the fanout's batch is not settled, and comes again | the same `CHAT` twice, one push at most |
//! | owed event · batch settled | the batch comes again: two owed events of one message | one push at most |
//! | publish · socket (gateway or session dies, live layer forgets) | no proof: due at the grace | a push, and `SYNC` on return |
//! | socket · phone (tunnel, frozen app) | no pong: due at the grace | a push, and the message when it wakes |
//! | pong · proof recorded, or the proofs are lost | no proof | a push too many, unless it was `RECEIVED` |
//! | owed event due · pushes on their lanes | the owed event is not settled, and comes again | a late push |
//! | pushes on their lanes · owed event settled | it comes again and makes the same pushes | one push |
//! | offline event and owed event of one message (the publish failed, or presence changed between two tries) | both make the same push | one push |

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join_all, try_join_all};
use naru_engines::bus::{Bus, Delivery, Queue, Receipt, Verdict};
use naru_engines::store::{Device, MemberPosition};
use naru_engines::{EngineResult, Engines};
use naru_model::hops::{Lane, Offline, Owed, Payload, PushJob, PushTarget};
use naru_model::{Event, Message, RoomId, Seq, Stage, Timestamp, Trace, UserId};
use tokio_util::sync::CancellationToken;

use crate::decide::Ladder;
use crate::render;
use crate::telemetry::Telemetry;
use crate::trouble::{Trouble, settle};

/// A message and those who may need a push for it.
struct Missed<'a> {
    message: &'a Message,
    recipients: Cow<'a, [UserId]>,
    trace: Trace,
}

/// An event that says who may need a push.
#[async_trait]
pub(crate) trait Asking: Payload {
    /// Its worker, in words.
    const WORKER: &'static str;
    /// How many are handled at a time.
    const MOST: usize;

    /// Its hop.
    fn queue(bus: &Bus) -> &Arc<dyn Queue<Self>>;

    /// What it tells of.
    fn message(&self) -> &Message;

    /// Who of its recipients may need a push.
    async fn missed_by(&self, push: &Push) -> Cow<'_, [UserId]>;

    /// So many were handled.
    fn count(telemetry: &Telemetry, events: usize);
}

#[async_trait]
impl Asking for Offline {
    const WORKER: &'static str = "push";
    /// With up to 100 recipients each, one look-up that a store answers at once, and no more pushes than others can wait for.
    const MOST: usize = 32;

    fn queue(bus: &Bus) -> &Arc<dyn Queue<Self>> {
        &bus.offline
    }

    fn message(&self) -> &Message {
        &self.message
    }

    async fn missed_by(&self, _: &Push) -> Cow<'_, [UserId]> {
        Cow::Borrowed(&self.recipients)
    }

    fn count(telemetry: &Telemetry, events: usize) {
        telemetry.offline(events);
    }
}

#[async_trait]
impl Asking for Owed {
    const WORKER: &'static str = "owed";
    /// Most of them are proven, and then all they need is to be settled.
    const MOST: usize = 256;

    fn queue(bus: &Bus) -> &Arc<dyn Queue<Self>> {
        &bus.owed
    }

    fn message(&self) -> &Message {
        &self.message
    }

    async fn missed_by(&self, push: &Push) -> Cow<'_, [UserId]> {
        let Message { id, chat_room_id, seq, .. } = &self.message;
        match push.engines.proofs.proven(*id, chat_room_id, *seq, &self.recipients).await {
            Ok(proven) => {
                let missed = self.recipients.iter().zip(proven).filter(|(_, proven)| {
                    if *proven {
                        push.telemetry.spared("proven");
                    }
                    !proven
                });
                Cow::Owned(missed.map(|(user, _)| user.clone()).collect())
            }
            Err(error) => {
                tracing::warn!(%error, message_id = %id, "proofs can't be asked, which proves nothing");
                push.telemetry.engine_failed();
                Cow::Borrowed(&self.recipients)
            }
        }
    }

    fn count(telemetry: &Telemetry, events: usize) {
        telemetry.owed(events);
    }
}

/// The worker.
pub(crate) struct Push {
    pub(crate) engines: Engines,
    /// The lanes that have a provider.
    pub(crate) lanes: BTreeSet<Lane>,
    pub(crate) ttl: Duration,
    /// No phone shows what was said, whatever it asked for.
    pub(crate) hides_content: bool,
    pub(crate) ladder: Ladder,
    pub(crate) telemetry: Telemetry,
}

impl Push {
    /// Works until told to stop, and then finishes the batch it holds.
    ///
    /// # Errors
    /// When the queue can't be read.
    pub(crate) async fn run<T: Asking>(&self, stop: CancellationToken) -> EngineResult<()> {
        let mut events = T::queue(&self.engines.bus).receiver().await?;
        let mut trouble = Trouble::new(T::WORKER, self.telemetry.clone());
        while let Some(batch) = stop.run_until_cancelled(events.receive(T::MOST)).await {
            self.handle(batch?, &mut trouble, &stop).await;
        }
        Ok(())
    }

    async fn handle<T: Asking>(
        &self,
        batch: Vec<Delivery<T>>,
        trouble: &mut Trouble,
        stop: &CancellationToken,
    ) {
        let mut piles = vec![batch];
        while let Some(pile) = piles.pop() {
            match self.hand_on(pile.iter().map(|delivery| &delivery.event)).await {
                Ok(()) => {
                    T::count(&self.telemetry, pile.len());
                    settle(receipts(pile), Verdict::Done, &self.telemetry).await;
                    trouble.is_over();
                }
                Err(error) if error.is_transient() => {
                    trouble.give_back(receipts(pile), error, stop).await;
                }
                // One of them is at fault; by itself it holds up no other.
                Err(_) if pile.len() > 1 => piles.extend(pile.into_iter().map(|delivery| vec![delivery])),
                Err(error) => {
                    tracing::error!(%error, event_id = %pile[0].event.event_id, "an event that asks for a push can't be handled");
                    self.telemetry.engine_failed();
                    settle(receipts(pile), Verdict::RetryAfter(self.ladder.top()), &self.telemetry).await;
                }
            }
        }
    }

    /// Puts the pushes that these events ask for on their lanes.
    async fn hand_on<'a, T: Asking>(&self, events: impl Iterator<Item = &'a Event<T>>) -> EngineResult<()> {
        let missed = events.map(|Event { payload, trace, .. }| async move {
            let recipients = payload.missed_by(self).await;
            Missed { message: payload.message(), recipients, trace: *trace }
        });
        let mut missed: Vec<Missed<'_>> = join_all(missed).await;
        missed.retain(|missed| !missed.recipients.is_empty());
        let positions = self.positions(&missed).await?;
        let now = Timestamp::now();
        let (mut due, mut spared) = (Vec::new(), Vec::new());
        for missed in &missed {
            let message = missed.message;
            for user in missed.recipients.iter() {
                let member = positions.get(&(&message.chat_room_id, user)).copied().unwrap_or_default();
                match reason_to_spare(message.seq, member, now) {
                    Some(reason) => spared.push(reason),
                    None => due.push((missed, user)),
                }
            }
        }
        if !due.is_empty() {
            self.put_on_lanes(&due).await?;
        }
        spared.into_iter().for_each(|reason| self.telemetry.spared(reason));
        Ok(())
    }

    async fn put_on_lanes(&self, due: &[(&Missed<'_>, &UserId)]) -> EngineResult<()> {
        let users: BTreeSet<_> = due.iter().map(|(_, user)| (*user).clone()).collect();
        let devices = self.engines.store.devices.of_users(&Vec::from_iter(users)).await?;
        let (jobs, unprovided) = self.jobs(due, &devices);
        try_join_all(jobs.into_iter().map(|(lane, jobs)| self.engines.bus.push(lane).send(jobs))).await?;
        unprovided.into_iter().for_each(|lane| self.telemetry.no_provider(lane));
        Ok(())
    }

    /// How far the recipients are in their rooms: one look-up for all.
    async fn positions<'a>(
        &self,
        missed: &'a [Missed<'_>],
    ) -> EngineResult<HashMap<(&'a RoomId, &'a UserId), MemberPosition>> {
        let members = missed.iter().flat_map(|Missed { message, recipients, .. }| {
            recipients.iter().map(move |user| (&message.chat_room_id, user))
        });
        let members: BTreeSet<(&RoomId, &UserId)> = members.collect();
        let asked: Vec<_> = members.iter().map(|(room, user)| ((*room).clone(), (*user).clone())).collect();
        if asked.is_empty() {
            return Ok(HashMap::new());
        }
        let found = self.engines.store.positions.get(&asked).await?;
        Ok(members.into_iter().zip(found).collect())
    }

    /// The pushes per lane, each once, and the lane of every device that has no provider here.
    fn jobs(
        &self,
        due: &[(&Missed<'_>, &UserId)],
        devices: &[Device],
    ) -> (BTreeMap<Lane, Vec<Event<PushJob>>>, Vec<Lane>) {
        let mut devices_of: HashMap<&UserId, Vec<&Device>> = HashMap::new();
        for device in devices {
            devices_of.entry(&device.user).or_default().push(device);
        }
        let (mut jobs, mut unprovided) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
        let mut made = HashSet::new();
        for (missed, user) in due {
            let of_devices = devices_of.get(user).into_iter().flatten();
            let hides = |device: &Device| self.hides_content || device.hides_content;
            let of_devices =
                of_devices.map(|device| (device.platform.lane(), Some(target(device)), hides(device)));
            // The backend is the deployment's own.
            let of_backend = self.lanes.get(&Lane::Webhook).map(|lane| (*lane, None, false));
            for (lane, target, hides_content) in of_devices.chain(of_backend) {
                if !self.lanes.contains(&lane) {
                    unprovided.push(lane);
                    continue;
                }
                let job = render::push(missed.message, user, lane, target, hides_content, self.ttl);
                let job = Event::new(job, missed.trace);
                if made.insert(job.event_id) {
                    jobs.entry(lane).or_default().push(job);
                }
            }
        }
        (jobs, unprovided)
    }
}

/// Why a recipient needs no push, if there is a reason by now.
pub(crate) fn reason_to_spare(seq: Seq, member: MemberPosition, now: Timestamp) -> Option<&'static str> {
    if member.read >= seq {
        Some(Stage::Read.as_str())
    } else if member.received >= seq {
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

fn receipts<T: Payload>(pile: Vec<Delivery<T>>) -> Vec<Receipt> {
    pile.into_iter().map(|delivery| delivery.receipt).collect()
}
