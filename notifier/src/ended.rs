//! Pushes that end at about the same time are recorded and acknowledged together: two calls for all of them.
//!
//! If the process dies before the record, the push comes again and is sent again, under the same event id. If it dies after
//! that, before the acknowledgement, the push comes again and is recognised.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::{join, join_all};
use naru_engines::bus::{self, AckHandle};
use naru_engines::store::Store;
use naru_model::hops::Lane;
use naru_model::{EventId, PushStage};
use tokio::sync::{mpsc, oneshot};

use crate::decide::Action;
use crate::telemetry::Telemetry;

/// How many pushes are recorded at once, at most.
const MAX_BATCH: usize = 256;

/// A push whose end has only to be recorded in the store and the queue.
pub(crate) struct Ended {
    pub(crate) ack_handle: AckHandle,
    pub(crate) event_id: EventId,
    pub(crate) action: Action,
}

/// Sends a lane's ended pushes to its recorder.
#[derive(Clone)]
pub(crate) struct Ending(mpsc::Sender<(Ended, oneshot::Sender<()>)>);

impl Ending {
    /// The recorder's task ends with the last of the lane's pushes.
    pub(crate) fn start(lane: Lane, store: Store, telemetry: Telemetry) -> Self {
        let (sender, ended) = mpsc::channel(MAX_BATCH);
        tokio::spawn(Recorder { lane, store, telemetry }.run(ended));
        Self(sender)
    }

    /// Returns when the queue has the outcome, so that a push keeps its place in the lane until then.
    pub(crate) async fn of(&self, ended: Ended) {
        let (tell, told) = oneshot::channel();
        // If a panic ended the recorder, the ack handle is dropped and the push comes again.
        if self.0.send((ended, tell)).await.is_ok() {
            let _told = told.await;
        }
    }
}

struct Recorder {
    lane: Lane,
    store: Store,
    telemetry: Telemetry,
}

impl Recorder {
    async fn run(self, mut ended: mpsc::Receiver<(Ended, oneshot::Sender<()>)>) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while ended.recv_many(&mut batch, MAX_BATCH).await > 0 {
            let (together, tell): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
            self.end(together).await;
            for told in tell {
                let _push_was_cut_off = told.send(());
            }
        }
    }

    async fn end(&self, ended: Vec<Ended>) {
        let (mut taken, mut finished) = (Vec::new(), Vec::new());
        let mut retries: BTreeMap<Duration, Vec<AckHandle>> = BTreeMap::new();
        for Ended { ack_handle, event_id, action } in ended {
            let stage = match action {
                Action::Ack { provider_id } => {
                    taken.push((event_id, provider_id));
                    PushStage::Pushed
                }
                Action::Park(stage, _) => stage,
                Action::RetryAfter(delay) => {
                    retries.entry(delay).or_default().push(ack_handle);
                    continue;
                }
            };
            self.telemetry.ended(self.lane, stage);
            finished.push(ack_handle);
        }
        let finish = async {
            if !taken.is_empty() {
                let recorded = self.store.pushes.record(&taken).await;
                // Sending the pushes again would be no better.
                self.telemetry.log_failure(recorded, "pushes were sent and could not be recorded");
            }
            ack(&self.telemetry, finished).await;
        };
        let retries = retries.into_iter().map(|(delay, ack_handles)| async move {
            let pushes = ack_handles.len();
            retry(&self.telemetry, ack_handles, delay).await;
            self.telemetry.retried(self.lane, pushes);
        });
        join(finish, join_all(retries)).await;
    }
}

/// Acknowledges finished pushes.
pub(crate) async fn ack(telemetry: &Telemetry, ack_handles: Vec<AckHandle>) {
    telemetry.log_failure(bus::ack(ack_handles).await, "pushes were not acknowledged; they may come again");
}

/// Retries pushes, exactly `after` from now.
pub(crate) async fn retry(telemetry: &Telemetry, ack_handles: Vec<AckHandle>, after: Duration) {
    let retried = bus::retry(ack_handles, after).await;
    telemetry.log_failure(retried, "pushes were not put off; they come again soon");
}
