//! A bus that reorders as much as B4 lets a reassignment do, and one whose ordered hops lose (B1).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use naru_model::hops::Payload;
use naru_model::{Event, EventId};

use super::{Dice, locked};
use naru_engines::EngineResult;
use naru_engines::bus::{Bus, Delivery, Queue, Receiver};

/// A bus on which a share of the batches (0 none, 1 all) comes as after a reassignment to another receiver: in any order,
/// with some of its events only in a later batch. The rooms of the other batches come in any order too.
pub fn reordering(bus: Bus, seed: u64, share: f64) -> Bus {
    eprintln!("faults: {share} of the batches are reordered, by seed {seed}");
    let fault = Fault { seed, share, drops: false };
    Bus {
        accepted: FaultyQueue::around(bus.accepted, fault, 1),
        saved: FaultyQueue::around(bus.saved, fault, 2),
        offline: FaultyQueue::around(bus.offline, fault, 3),
        push_fcm: FaultyQueue::around(bus.push_fcm, fault, 4),
        push_apns: FaultyQueue::around(bus.push_apns, fault, 5),
        push_webhook: FaultyQueue::around(bus.push_webhook, fault, 6),
    }
}

/// A bus that loses a share (0 none, 1 all) of the events sent on its ordered hops, as when a process dies; the same
/// event twice at most, so that a test's wait for a third attempt has a bound.
pub fn losing(bus: Bus, seed: u64, share: f64) -> Bus {
    eprintln!("faults: {share} of the events on ordered hops are lost, by seed {seed}");
    let fault = Fault { seed, share, drops: true };
    Bus {
        accepted: FaultyQueue::around(bus.accepted, fault, 1),
        saved: FaultyQueue::around(bus.saved, fault, 2),
        ..bus
    }
}

#[derive(Clone, Copy)]
struct Fault {
    seed: u64,
    share: f64,
    /// Whether events are lost; otherwise they are reordered.
    drops: bool,
}

/// How often the same event may be lost.
const LOSSES: u8 = 2;

struct FaultyQueue<T: Payload> {
    inner: Arc<dyn Queue<T>>,
    fault: Fault,
    dice: Mutex<Dice>,
    /// How often each event was lost.
    lost: Mutex<HashMap<EventId, u8>>,
}

impl<T: Payload> FaultyQueue<T> {
    /// Each hop has its own random sequence.
    fn around(inner: Arc<dyn Queue<T>>, fault: Fault, hop: u64) -> Arc<Self> {
        let dice = Mutex::new(Dice(fault.seed.wrapping_add(hop << 56)));
        Arc::new(Self { inner, fault, dice, lost: Mutex::default() })
    }

    fn dice(&self) -> MutexGuard<'_, Dice> {
        locked(&self.dice)
    }

    fn keep(&self, mut events: Vec<Event<T>>) -> Vec<Event<T>> {
        if self.fault.drops {
            let (mut dice, mut lost) = (self.dice(), locked(&self.lost));
            events.retain(|event| {
                let times = lost.entry(event.event_id).or_default();
                let is_lost = *times < LOSSES && dice.within(self.fault.share);
                *times += u8::from(is_lost);
                !is_lost
            });
        }
        events
    }
}

#[async_trait]
impl<T: Payload> Queue<T> for FaultyQueue<T> {
    async fn send(&self, events: Vec<Event<T>>) -> EngineResult<()> {
        self.inner.send(self.keep(events)).await
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<T>>> {
        let inner = self.inner.receiver().await?;
        if self.fault.drops {
            return Ok(inner);
        }
        let dice = Dice(self.dice().next());
        Ok(Box::new(Reordering { inner, dice, share: self.fault.share }))
    }
}

struct Reordering<T: Payload> {
    inner: Box<dyn Receiver<T>>,
    dice: Dice,
    share: f64,
}

#[async_trait]
impl<T: Payload> Receiver<T> for Reordering<T> {
    async fn receive(&mut self, max: usize) -> EngineResult<Vec<Delivery<T>>> {
        let mut batch = self.inner.receive(max).await?;
        if self.dice.within(self.share) {
            self.dice.shuffle(&mut batch);
            let kept = 1 + self.dice.below(batch.len());
            // The dropped deliveries come again after those that are kept.
            batch.truncate(kept);
        } else {
            let mut ranks = HashMap::new();
            for delivery in &batch {
                ranks.entry(delivery.event.payload.room().clone()).or_insert_with(|| self.dice.next());
            }
            // The sort is stable: a room's own order stays.
            batch.sort_by_key(|delivery| ranks.get(delivery.event.payload.room()).copied());
        }
        Ok(batch)
    }
}
