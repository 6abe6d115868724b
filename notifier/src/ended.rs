//! Pushes that end at about the same time are recorded, told of and settled together: three calls for all of them.
//!
//! What if the process dies before the record? The push comes again and is sent again, under the same id. After it, and before
//! it is settled? It comes again and is recognised. Between the record and the outcome? The outcome is lost, which is for
//! whoever wants to know, and nobody's source.

use std::collections::BTreeMap;
use std::sync::Arc;

use naru_engines::bus::{Receipt, Verdict as Settled};
use naru_model::hops::{PushJob, PushOutcome};
use naru_model::{Event, Stage, Timestamp};
use tokio::sync::{mpsc, oneshot};

use crate::lane::Lane;
use crate::trouble::{note, settle};

/// So many at most are written at once.
const MOST: usize = 256;

/// A push that needs nothing more in its lane's hands.
pub(crate) struct Ended {
    pub(crate) receipt: Receipt,
    pub(crate) settled: Settled,
    /// What it came to; none when it is to be tried again.
    pub(crate) outcome: Option<Event<PushOutcome>>,
}

/// What a push came to, for whoever follows it.
pub(crate) fn outcome(
    event: &Event<PushJob>,
    attempts: u32,
    stage: Stage,
    provider_id: Option<String>,
    reason: Option<String>,
) -> Event<PushOutcome> {
    let job = &event.payload;
    let outcome = PushOutcome {
        event_id: event.event_id,
        message_id: job.message_id,
        chat_room_id: job.chat_room_id.clone(),
        seq: job.seq,
        recipient_id: job.recipient_id.clone(),
        device_id: job.target.as_ref().map(|target| target.device_id.clone()),
        lane: job.lane,
        stage,
        provider_id,
        reason,
        attempts,
        at: Timestamp::now(),
    };
    Event::new(outcome, event.trace)
}

/// Where a lane's pushes end.
#[derive(Clone)]
pub(crate) struct Ending(mpsc::Sender<(Ended, oneshot::Sender<()>)>);

impl Ending {
    /// Its task ends with the last of the lane's pushes.
    pub(crate) fn start(lane: &Arc<Lane>) -> Self {
        let (sender, ended) = mpsc::channel(MOST);
        tokio::spawn(run(lane.clone(), ended));
        Self(sender)
    }

    /// Returns when it is settled, so that a push keeps its place in the lane until then.
    pub(crate) async fn of(&self, ended: Ended) {
        let (tell, told) = oneshot::channel();
        // Without its task, which only a panic ends, the receipt is dropped and the push comes again.
        if self.0.send((ended, tell)).await.is_ok() {
            let _settled = told.await;
        }
    }
}

async fn run(lane: Arc<Lane>, mut ended: mpsc::Receiver<(Ended, oneshot::Sender<()>)>) {
    let mut batch = Vec::with_capacity(MOST);
    while ended.recv_many(&mut batch, MOST).await > 0 {
        let mut tell = Vec::with_capacity(batch.len());
        let mut together = Vec::with_capacity(batch.len());
        for (ended, told) in batch.drain(..) {
            together.push(ended);
            tell.push(told);
        }
        end(&lane, together).await;
        for told in tell {
            let _push_was_cut_off = told.send(());
        }
    }
}

async fn end(lane: &Lane, ended: Vec<Ended>) {
    let (mut taken, mut outcomes) = (Vec::new(), Vec::new());
    let mut receipts: BTreeMap<_, Vec<Receipt>> = BTreeMap::new();
    for Ended { receipt, settled, outcome } in ended {
        let delay = match settled {
            Settled::RetryAfter(delay) => Some(delay),
            Settled::Done | Settled::GiveBack => None,
        };
        receipts.entry(delay).or_default().push(receipt);
        if let Some(outcome) = outcome {
            if let Some(id) = &outcome.payload.provider_id {
                taken.push((outcome.payload.event_id, id.clone()));
            }
            lane.telemetry.ended(lane.name(), outcome.payload.stage);
            outcomes.push(outcome);
        }
    }
    if !taken.is_empty() {
        let recorded = lane.store.pushes.record(&taken).await;
        // Sending them again would be no better.
        note(recorded, "pushes were sent and could not be recorded", &lane.telemetry);
    }
    if !outcomes.is_empty() {
        let told = lane.outcomes.send(outcomes).await;
        note(told, "what pushes came to is not told", &lane.telemetry);
    }
    for (delay, receipts) in receipts {
        let settled = delay.map_or(Settled::Done, Settled::RetryAfter);
        settle(receipts, settled, &lane.telemetry).await;
    }
}
