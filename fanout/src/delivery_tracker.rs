//! Tracks the recipients that a published message still has to reach. When all are accounted for, and not before, its intake
//! entry is closed.
//!
//! A recipient is accounted for once they have proven to have the message, or their offline event is in the notifier's queue.
//! What is pending is in memory only, and needs no repair of its own:
//!
//! | dies or is lost between | then | seen |
//! |---|---|---|
//! | publish · socket (gateway or session dies, the live layer forgets) | no proof: an offline event at the grace time | a push, and `SYNC` on return |
//! | socket · phone (tunnel, frozen app) | no pong: the same | a push, and the message when it wakes |
//! | pong · proof recorded, or the proofs are lost | no proof: the same | a push too many, unless it was `RECEIVED` |
//! | publish · closed (the fanout dies) | the entry is open: the sweep resends it after the grace time and 5 s; then proofs are asked first | where there is no proof: a push, and the same `CHAT` once more |
//! | publish · closed (only this task panics) | it is restarted, and what was pending stays open: the same; batches that wait in its channel are tracked as usual | the same |
//! | offline event confirmed · closed | the same | the same push again, which its lane recognises by its id |
//!
//! Proofs are asked for all due messages at once, twice for each message: shortly after the publish, when nearly all are
//! proven, and at the grace time. Entries are closed, and rooms moved up in lists, for many messages in one write each, while
//! the next batches are taken over. A room is moved up before its entries are closed: after a crash in between, both are
//! repeated.

use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Fuse, FusedFuture};
use naru_engines::store::Closing;
use naru_engines::{EngineResult, Engines};
use naru_model::hops::Saved;
use naru_model::{Event, MessageId, UserId};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::pending_proofs::{PendingProofs, Published, Waiting, Writes, due};
use crate::publish::enqueue_offline;
use crate::telemetry::Telemetry;

/// When proofs are asked for the first time: gateways ping once a second, and record the proofs within 100 ms.
const FIRST_CHECK: Duration = Duration::from_millis(1_500);
/// How often due messages are checked, entries are closed and rooms are moved up.
const TICK: Duration = Duration::from_millis(250);
/// How many proofs are asked for in one call at most.
const MAX_ASKED: usize = 8_192;
/// How many bytes of messages wait for their proofs at most. Beyond, the oldest are treated as if
/// their grace time was over: that costs needless pushes, and bounds the memory.
const MAX_BYTES: usize = 64 << 20;
/// How many entries are closed in one call at most: after a stall tens of thousands are finished at once, and an engine that
/// closes them in one command would hold up appends.
const MAX_CLOSED: usize = 4_096;
/// How many finished entries wait to be closed at most; beyond, no batch is taken over. At 4,000 a second they are closed
/// within 4 s: the sweep, which takes entries 5 s after the grace time, does not resend them.
const MAX_UNCLOSED: usize = 16_384;
/// How many messages are known whose entries were closed last: about as many as can wait in a queue behind one that comes again,
/// at 16 bytes each.
const MAX_CLOSED_KNOWN: usize = 65_536;
/// How many batches may wait to be taken over; beyond, the fanout waits.
const MAX_BATCHES: usize = 8;

/// The messages that this process has published and whose entries it will close, or has closed lately. An overloaded one comes
/// to a message, or closes its entry, so late that the sweep resends it: it is not published once more.
#[derive(Clone, Default)]
pub(crate) struct Tracked(Arc<std::sync::Mutex<TrackedIds>>);

#[derive(Default)]
struct TrackedIds {
    all: HashSet<MessageId>,
    /// Those whose entries are closed, the oldest first.
    closed: VecDeque<MessageId>,
}

impl Tracked {
    pub(crate) fn add(&self, published: &[Published]) {
        self.ids().all.extend(published.iter().map(|published| published.message.id));
    }

    /// Leaves out the events of messages that are tracked, and those that are there twice.
    pub(crate) fn leave_out(&self, events: &mut Vec<Event<Saved>>) {
        let ids = self.ids();
        let mut seen = HashSet::with_capacity(events.len());
        events.retain(|Event { payload: Saved { message, .. }, .. }| {
            !ids.all.contains(&message.id) && seen.insert(message.id)
        });
    }

    /// Their entries are closed: whatever of them comes now was sent before that.
    fn closed(&self, closed: &[Closing]) {
        let TrackedIds { all, closed: queue } = &mut *self.ids();
        queue.extend(closed.iter().map(|closing| closing.id));
        for id in queue.drain(..queue.len().saturating_sub(MAX_CLOSED_KNOWN)) {
            all.remove(&id);
        }
    }

    /// It is left to the sweep.
    fn give_up(&self, id: MessageId) {
        self.ids().all.remove(&id);
    }

    fn clear(&self) {
        *self.ids() = TrackedIds::default();
    }

    fn ids(&self) -> std::sync::MutexGuard<'_, TrackedIds> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tracks published messages until their entries are closed. One clone runs at a time.
#[derive(Clone)]
pub(crate) struct DeliveryTracker {
    pub(crate) tracked: Tracked,
    engines: Engines,
    /// None: recipients have nothing to prove.
    grace: Option<Duration>,
    /// Cancelled when no proof will come any more: unproven recipients then get their offline events at once.
    no_more_proofs: CancellationToken,
    batches: Arc<Mutex<mpsc::Receiver<Vec<Published>>>>,
    max_bytes: usize,
    telemetry: Telemetry,
}

impl DeliveryTracker {
    pub(crate) fn new(
        engines: Engines,
        grace: Option<Duration>,
        no_more_proofs: CancellationToken,
        telemetry: Telemetry,
    ) -> (Self, mpsc::Sender<Vec<Published>>) {
        let (sender, batches) = mpsc::channel(MAX_BATCHES);
        let batches = Arc::new(Mutex::new(batches));
        let (tracked, max_bytes) = (Tracked::default(), MAX_BYTES);
        (Self { tracked, engines, grace, no_more_proofs, batches, max_bytes, telemetry }, sender)
    }

    /// Works until the fanout has ended. Messages unproven then stay open: the sweep brings them to another fanout.
    pub(crate) async fn run(self, stop: CancellationToken) -> EngineResult<()> {
        let mut batches = self.batches.lock().await;
        // What was pending when the run before panicked is not tracked any more.
        self.tracked.clear();
        let mut pending = PendingProofs::default();
        // One at a time, beside all else: however long it takes, batches are taken over meanwhile.
        let mut writing = pin!(Fuse::terminated());
        let (mut next_tick, mut next_write) = (Instant::now(), Instant::now());
        loop {
            let has_capacity = pending.bytes < self.max_bytes && pending.unclosed < MAX_UNCLOSED;
            tokio::select! {
                batch = batches.recv(), if has_capacity => match batch {
                    Some(batch) => self.take_over(&mut pending, batch),
                    None => break,
                },
                // After a pause this has passed already: a lone message is handled at once.
                () = sleep_until(next_tick), if pending.is_waiting() => {
                    self.tick(&mut pending, Instant::now()).await;
                    next_tick = Instant::now() + TICK;
                }
                // After a write that took longer than a tick, the next one begins at once.
                () = sleep_until(next_write), if writing.is_terminated() && pending.has_writes() => {
                    next_write = Instant::now() + TICK;
                    writing.set(self.write(pending.take_writes()).fuse());
                }
                left = &mut writing, if !writing.is_terminated() => pending.written(left),
                () = self.no_more_proofs.cancelled(), if pending.is_waiting() && !self.no_more_proofs.is_cancelled() => {
                    next_tick = Instant::now();
                }
            }
        }
        if !writing.is_terminated() {
            pending.written(writing.await);
        }
        self.last_tick(pending, &stop).await
    }

    fn take_over(&self, pending: &mut PendingProofs, batch: Vec<Published>) {
        let now = Instant::now();
        batch.into_iter().for_each(|published| pending.add(published, now));
        self.telemetry.unproven.set(pending.count());
    }

    /// Asks for the proofs that are due, and sends offline events where one is missing at the end.
    async fn tick(&self, pending: &mut PendingProofs, now: Instant) {
        let is_over = self.no_more_proofs.is_cancelled();
        let grace = if is_over { Duration::ZERO } else { self.grace.unwrap_or_default() };
        let over_budget = pending.bytes >= self.max_bytes;

        let first = due(
            &mut pending.before_first_check,
            now,
            if is_over { Duration::ZERO } else { FIRST_CHECK.min(grace) },
        );
        for (at, published) in self.unproven_of(pending, first).await {
            pending.until_grace_end.push_back((at, published));
        }
        let mut last = due(&mut pending.until_grace_end, now, grace);
        if over_budget {
            let half = pending.until_grace_end.len().div_ceil(2);
            last.extend(pending.until_grace_end.drain(..half));
        }
        let last = self.unproven_of(pending, last).await;
        self.enqueue_unproven(pending, last).await;
        self.telemetry.unproven.set(pending.count());
    }

    /// The messages that some recipients have not proven to have, with these recipients. The others are closed.
    async fn unproven_of(&self, pending: &mut PendingProofs, waiting: Waiting) -> Waiting {
        if waiting.is_empty() {
            return waiting;
        }
        let asked: Vec<(MessageId, UserId)> = waiting
            .iter()
            .flat_map(|(_, published)| {
                published.unproven.iter().map(|user| (published.message.id, user.clone()))
            })
            .collect();
        let mut proven = Vec::with_capacity(asked.len());
        for asked in asked.chunks(MAX_ASKED) {
            match self.engines.proofs.proven(asked).await {
                Ok(answer) => proven.extend(answer),
                Err(error) => {
                    tracing::warn!(%error, "proof look-up failed; all recipients count as unproven");
                    proven.resize(proven.len() + asked.len(), false);
                }
            }
        }
        self.telemetry.proven.inc_by(proven.iter().filter(|proven| **proven).count() as u64);
        let mut proven = proven.into_iter();
        let mut left = Waiting::new();
        for (at, mut published) in waiting {
            published.unproven.retain(|_| !proven.next().unwrap_or(false));
            if published.unproven.is_empty() {
                pending.bytes -= published.bytes;
                pending.close(&published);
            } else {
                left.push_back((at, published));
            }
        }
        left
    }

    /// Sends offline events for recipients without a proof at the grace time; once confirmed, it closes their entries.
    async fn enqueue_unproven(&self, pending: &mut PendingProofs, unproven: Waiting) {
        if unproven.is_empty() {
            return;
        }
        let missed = unproven
            .iter()
            .map(|(_, Published { message, trace, unproven, .. })| (message, unproven.clone(), *trace));
        match enqueue_offline(&self.engines, &self.telemetry, missed).await {
            Ok(()) => {
                for (_, published) in unproven {
                    self.telemetry.without_proof.inc_by(published.unproven.len() as u64);
                    pending.bytes -= published.bytes;
                    pending.close(&published);
                }
            }
            Err(error) => {
                tracing::warn!(%error, messages = unproven.len(), "offline events were not enqueued; trying again");
                // They are the oldest.
                unproven.into_iter().rev().for_each(|waiting| pending.until_grace_end.push_front(waiting));
            }
        }
    }

    /// Moves rooms up in lists, then closes entries, the oldest first. Returns what is left to be repeated: a failed write,
    /// unless it would fail again. A room that can't be moved up stays where it is in lists, an entry that can't be closed is
    /// resent by the sweep, and neither holds up others.
    async fn write(&self, Writes { newest, closings }: Writes) -> Writes {
        let store = &self.engines.store;
        if !newest.is_empty() {
            match store.messages.bump(&newest).await {
                Ok(()) => {}
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, rooms = newest.len(), "rooms were not moved up in lists; trying again");
                    return Writes { newest, closings };
                }
                Err(error) => {
                    tracing::error!(%error, rooms = newest.len(), "rooms can't be moved up in lists")
                }
            }
        }
        // Popped from the end.
        let mut parts: Vec<&[Closing]> = closings.chunks(MAX_CLOSED).rev().collect();
        while let Some(part) = parts.pop() {
            match store.intake.close(part).await {
                Ok(()) => {
                    self.telemetry.closed.inc_by(part.len() as u64);
                    self.tracked.closed(part);
                }
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, entries = part.len(), "intake entries were not closed; trying again");
                    let left = [part].into_iter().chain(parts.into_iter().rev()).flatten().copied();
                    return Writes { newest: Vec::new(), closings: left.collect() };
                }
                Err(_) if part.len() > 1 => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                Err(error) => {
                    tracing::error!(%error, entry = %part[0].id, "an intake entry can't be closed");
                    self.tracked.give_up(part[0].id);
                }
            }
        }
        Writes::default()
    }

    /// The fanout has ended: messages proven by now are closed, the rest is left to the sweep.
    async fn last_tick(&self, mut pending: PendingProofs, stop: &CancellationToken) -> EngineResult<()> {
        if self.no_more_proofs.is_cancelled() {
            self.tick(&mut pending, Instant::now()).await;
        }
        let waiting = std::mem::take(&mut pending.before_first_check)
            .into_iter()
            .chain(std::mem::take(&mut pending.until_grace_end));
        let left = self.unproven_of(&mut pending, waiting.collect()).await;
        self.write(pending.take_writes()).await;
        if !left.is_empty() && stop.is_cancelled() {
            tracing::info!(messages = left.len(), "not proven yet: they stay open, for another fanout");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
