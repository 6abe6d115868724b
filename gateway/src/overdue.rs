//! Confirmations that did not come in time: the outcomes of these messages are looked up in the store.

use std::time::Duration;

use naru_engines::{EngineError, Engines};
use naru_model::MessageId;
use naru_model::live::Confirmation;
use naru_model::message::Outcome;
use tokio::time::MissedTickBehavior;

use crate::pending::Pending;
use crate::telemetry::Telemetry;

/// The interval of the search for overdue confirmations.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Looks up, in groups, the outcomes of messages whose confirmation is overdue.
pub(crate) async fn look_up(engines: &Engines, pending: &Pending, telemetry: &Telemetry) {
    let mut ticks = tokio::time::interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        telemetry.in_flight.set(i64::try_from(pending.in_flight()).unwrap_or(i64::MAX));
        let overdue = pending.overdue();
        if overdue.is_empty() {
            continue;
        }
        match outcomes(engines, &overdue).await {
            Ok(found) => pending.resolve(&found),
            Err(error) => {
                tracing::warn!(%error, count = overdue.len(), "overdue messages can't be looked up")
            }
        }
    }
}

async fn outcomes(engines: &Engines, ids: &[MessageId]) -> Result<Vec<Confirmation>, EngineError> {
    let saved = engines.store.messages.find(ids).await?;
    let (mut found, mut unsaved) = (Vec::new(), Vec::new());
    for (id, message) in ids.iter().zip(saved) {
        match message {
            Some(message) => {
                found.push(Confirmation { id: *id, outcome: Outcome::Saved { seq: message.seq } });
            }
            None => unsaved.push(*id),
        }
    }
    if !unsaved.is_empty() {
        let records = engines.store.intake.get(&unsaved).await?;
        let ended = records.into_iter().flatten();
        found
            .extend(ended.filter_map(|record| {
                Some(Confirmation { id: record.accepted.id, outcome: record.outcome? })
            }));
    }
    Ok(found)
}
