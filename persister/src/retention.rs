//! Removes what has been kept for long enough, every ten minutes, in small batches with pauses.
//!
//! One persister does it, by an advisory lease; two at once would only cost work. A pass that is cut off, by a failure or because the
//! process dies, leaves what it has not removed to the next one.
//!
//! **What is removed is not saved again.** The intake recognises a message for ever, but `chat_messages` only while it holds it. So a
//! message is removed only when its intake entry is closed (M9), the sweep hands on none whose entry is closed, and the persister
//! asks the intake before it saves a message that is old enough to have been removed ([`may_have_expired`]).

use std::time::Duration;

use naru_engines::retention::{BATCH, in_batches, walk};
use naru_engines::{EngineResult, Engines};
use naru_model::{HolderId, MessageId, Timestamp};
use tokio::time::{Instant, interval_at};
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::telemetry::{Removed, Telemetry};

/// How often a pass begins, and how long after the start the first one does.
const INTERVAL: Duration = Duration::from_secs(600);
const FIRST: Duration = Duration::from_secs(60);
/// The lease and its duration.
const LEASE: (&str, Duration) = ("retention", Duration::from_secs(900));
/// How long the members at a version are kept after their room has left it. Events on their way to the fanout name versions. One that
/// takes longer than this finds no members, and its entry stays open: the sweep has it saved and routed again, by the version of
/// then (`what_comes_again_is_routed_by_the_version_of_now`).
const VERSIONS_KEPT: Duration = Duration::from_secs(3600);
/// A walk over old messages begins where the one before ended, and at the beginning again after this: only the newest messages of
/// quiet rooms stay behind it.
const WALK_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// Says which settings keep contents that others are to remove.
pub(crate) fn warn(config: &Config) {
    if config.message_ttl.is_none() {
        return;
    }
    for (key, kept) in [("intake_keep", config.intake_keep), ("parked_keep", config.parked_keep)] {
        if kept.is_none() {
            tracing::warn!(
                "`message_ttl` is set and `{key}` is not: what messages say is kept there for ever"
            );
        }
    }
}

/// Whether a message of that id may have been removed from `chat_messages` by now. Half of the time, since machines' clocks differ.
pub(crate) fn may_have_expired(id: MessageId, ttl: Option<Duration>, now: Timestamp) -> bool {
    ttl.is_some_and(|ttl| now.since(id.made_at()) >= ttl / 2)
}

/// Removes old records.
pub(crate) struct Retention {
    engines: Engines,
    message_ttl: Option<Duration>,
    intake_keep: Option<Duration>,
    telemetry: Telemetry,
    /// Where the last walk over old messages ended, and when one began at the beginning.
    walked_to: Option<MessageId>,
    walked_all_at: Option<Instant>,
}

impl Retention {
    pub(crate) fn new(config: &Config, engines: Engines, telemetry: Telemetry) -> Self {
        let [message_ttl, intake_keep] =
            [config.message_ttl, config.intake_keep].map(|kept| kept.map(|kept| kept.0));
        Self { engines, message_ttl, intake_keep, telemetry, walked_to: None, walked_all_at: None }
    }

    /// Runs until stopped.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> EngineResult<()> {
        let holder = HolderId::generate();
        let mut passes = interval_at(Instant::now() + FIRST, INTERVAL);
        while stop.run_until_cancelled(passes.tick()).await.is_some() {
            // Where the lease can't be asked for, every persister does it.
            if let Ok(false) = self.engines.leases.hold(LEASE.0, holder.as_str(), LEASE.1).await {
                continue;
            }
            stop.run_until_cancelled(self.pass()).await;
        }
        Ok(())
    }

    /// One pass. What fails holds up nothing else, and is done by the next one.
    pub(crate) async fn pass(&mut self) {
        let versions = self.forget_versions().await;
        let messages = self.expire().await;
        let contents = self.forget_contents().await;
        let counts =
            [&versions, &messages, &contents].map(|removed| removed.as_ref().copied().unwrap_or_default());
        if let Some(error) = [versions, messages, contents].into_iter().find_map(Result::err) {
            tracing::warn!(%error, "not all was removed that is kept no longer; the next pass goes on");
        }
        let [versions, messages, contents] = counts;
        if versions + messages + contents > 0 {
            tracing::info!(versions, messages, contents, "removed what is kept no longer");
        }
    }

    async fn forget_versions(&self) -> EngineResult<u64> {
        let (rooms, left_before) = (&self.engines.store.rooms, Timestamp::now().before(VERSIONS_KEPT));
        let removed = in_batches(|| async {
            let removed = rooms.forget_versions(left_before, BATCH).await;
            self.counted(Removed::ROOM_VERSIONS, removed, |removed| *removed)
        });
        removed.await
    }

    async fn expire(&mut self) -> EngineResult<u64> {
        let Some(ttl) = self.message_ttl else { return Ok(0) };
        let is_all = self.walked_all_at.is_none_or(|at| at.elapsed() >= WALK_AGAIN);
        let (began, after) = (Instant::now(), self.walked_to.filter(|_| !is_all));
        let (this, before) = (&*self, Timestamp::now().before(ttl));
        let walked = walk(after, |after| async move {
            let step = this.engines.store.messages.expire(after, before, BATCH).await;
            this.counted(Removed::MESSAGES, step, |step| step.removed)
        });
        let (removed, walked_to) = walked.await?;
        if is_all {
            self.walked_all_at = Some(began);
        }
        self.walked_to = walked_to;
        Ok(removed)
    }

    async fn forget_contents(&self) -> EngineResult<u64> {
        let Some(keep) = self.intake_keep else { return Ok(0) };
        let (intake, before) = (&self.engines.store.intake, Timestamp::now().before(keep));
        let walked = walk(None, |after| async move {
            let step = intake.forget_contents(after, before, BATCH).await;
            self.counted(Removed::INTAKE_CONTENTS, step, |step| step.removed)
        });
        walked.await.map(|(removed, _)| removed)
    }

    fn counted<T>(&self, kind: Removed, step: EngineResult<T>, removed: fn(&T) -> u64) -> EngineResult<T> {
        step.inspect(|step| self.telemetry.removed(kind, removed(step)))
    }
}

#[cfg(test)]
mod tests;
