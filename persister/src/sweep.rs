//! Hands on again the messages that were accepted and then lost, by a worker that died or by a broker.
//!
//! The intake's open entries are the only source: an entry is open from its acceptance until every recipient is accounted
//! for. An entry is handed on again if it is open for three seconds and not saved, or saved and still open after the grace
//! time and five seconds, when a fanout that did not die must have closed it. One persister sweeps, by an advisory lease; two
//! at once would only cost work.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use naru_engines::{EngineResult, Engines};
use naru_model::hops::Accepted;
use naru_model::{Event, MessageId, Timestamp};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// The shortest pause between two sweeps.
const EVERY: Duration = Duration::from_secs(1);
/// A pause is at least this many times as long as its sweep: where thousands are open, the store is behind, and sweeping is
/// not to take more than a fifth of it.
const PAUSE: u32 = 4;
/// An entry that is open for longer is handed on again unless it is saved.
const OPEN_FOR: Duration = Duration::from_secs(3);
/// A saved entry is left to the fanout for the grace time and this.
const FANOUT_MARGIN: Duration = Duration::from_secs(5);
/// An entry that stays open is handed on again after twice as long each time, up to this: it may be waiting in a long queue.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How many entries one sweep reads, oldest first.
const AT_ONCE: usize = 10_000;
/// The lease and its duration. Where a pause is longer, another persister sweeps, and pauses too.
const LEASE: (&str, Duration) = ("sweep", Duration::from_secs(3));

/// Hands on all open intake entries, however young: at the start of a process whose bus loses its events when it dies. Call
/// it while a persister runs and before a gateway does. Returns the count.
///
/// # Errors
/// When the store or the bus does not answer.
pub async fn recover(engines: &Engines) -> EngineResult<usize> {
    let open = engines.store.intake.open(Timestamp::now(), AT_ONCE).await?;
    let count = open.len();
    hand_on(engines, open).await?;
    Ok(count)
}

pub(crate) async fn run(
    engines: Engines,
    grace: Duration,
    telemetry: Telemetry,
    stop: CancellationToken,
) -> EngineResult<()> {
    let closed_after = grace + FANOUT_MARGIN;
    let holder = naru_model::GatewayId::generate();
    let mut memory = Memory::default();
    let mut is_failing = false;
    let mut pause = Duration::ZERO;
    while stop.run_until_cancelled(sleep(pause)).await.is_some() {
        let began = Instant::now();
        // A failed sweep is not put off further: for messages that wait, an outage ends with the next sweep.
        match sweep(&engines, closed_after, &telemetry, holder.as_str(), &mut memory).await {
            Ok(()) => is_failing = false,
            Err(error) if !error.is_transient() => return Err(error),
            Err(error) => {
                if !is_failing {
                    tracing::warn!(%error, "open intake entries can't be swept; trying again every second");
                }
                is_failing = true;
            }
        }
        pause = EVERY.max(PAUSE * began.elapsed());
    }
    Ok(())
}

async fn sweep(
    engines: &Engines,
    closed_after: Duration,
    telemetry: &Telemetry,
    holder: &str,
    memory: &mut Memory,
) -> EngineResult<()> {
    // The lease only saves work. Where it can't be asked for, every persister sweeps.
    if let Ok(false) = engines.leases.hold(LEASE.0, holder, LEASE.1).await {
        return Ok(());
    }
    let open = engines.store.intake.open(Timestamp::now().before(OPEN_FOR), AT_ONCE).await?;
    let now = Instant::now();
    let due = memory.due(open, now);
    let due = left_to_the_fanout(engines, closed_after, memory, due, now).await?;
    if due.is_empty() {
        return Ok(());
    }
    let (count, ids) = (due.len(), due.iter().map(|entry| entry.id).collect::<Vec<_>>());
    if let Err(error) = hand_on(engines, due).await {
        ids.iter().for_each(|id| memory.look_again(*id, now));
        return Err(error);
    }
    tracing::info!(count, "open intake entries are handed on again");
    telemetry.swept.inc_by(count as u64);
    Ok(())
}

/// The due entries that the fanout can't be about to close: they are not saved, or its time is over.
async fn left_to_the_fanout(
    engines: &Engines,
    closed_after: Duration,
    memory: &mut Memory,
    due: Vec<Accepted>,
    now: Instant,
) -> EngineResult<Vec<Accepted>> {
    let today = Timestamp::now();
    let time_left = |entry: &Accepted| closed_after.saturating_sub(today.since(entry.timestamp));
    let young: Vec<MessageId> =
        due.iter().filter(|entry| !time_left(entry).is_zero()).map(|entry| entry.id).collect();
    if young.is_empty() {
        return Ok(due);
    }
    let saved = match engines.store.messages.find(&young).await {
        Ok(saved) => saved,
        Err(error) => {
            due.iter().for_each(|entry| memory.look_again(entry.id, now));
            return Err(error);
        }
    };
    let saved: HashSet<MessageId> = saved.into_iter().flatten().map(|message| message.id).collect();
    let (left, due): (Vec<_>, Vec<_>) = due.into_iter().partition(|entry| saved.contains(&entry.id));
    left.iter().for_each(|entry| memory.look_again(entry.id, now + time_left(entry)));
    Ok(due)
}

async fn hand_on(engines: &Engines, open: Vec<Accepted>) -> EngineResult<()> {
    if open.is_empty() {
        return Ok(());
    }
    let events = open.into_iter().map(|accepted| {
        let trace = accepted.trace;
        Event::new(accepted, trace)
    });
    engines.bus.accepted.send(events.collect()).await
}

/// When each open entry is to be handed on next.
#[derive(Default)]
struct Memory(HashMap<MessageId, (Instant, Duration)>);

impl Memory {
    /// The open entries that are due now. Entries that are open no more are removed.
    fn due(&mut self, open: Vec<Accepted>, now: Instant) -> Vec<Accepted> {
        let mut before = std::mem::take(&mut self.0);
        let mut due = Vec::new();
        for entry in open {
            let (at, wait) = before.remove(&entry.id).unwrap_or((now, OPEN_FOR));
            if at <= now {
                self.0.insert(entry.id, (now + wait, (wait * 2).min(MAX_WAIT)));
                due.push(entry);
            } else {
                self.0.insert(entry.id, (at, wait));
            }
        }
        due
    }

    /// Makes an entry that was not handed on due again at `at`.
    fn look_again(&mut self, id: MessageId, at: Instant) {
        self.0.insert(id, (at, OPEN_FOR));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Accepted {
        Accepted {
            id: MessageId::generate(),
            chat_room_id: "ada_ben".parse().expect("a room"),
            sender_id: "ada".parse().expect("a user"),
            sender_name: "Ada".into(),
            content: "lost again".into(),
            timestamp: Timestamp::now(),
            client_message_id: "c1".parse().expect("a name"),
            after: None,
            origin: None,
            trace: naru_model::Trace::start(),
        }
    }

    /// When an entry that stays open for five minutes is handed on, in seconds from its first sweep.
    fn handed_on_at(memory: &mut Memory, entry: &Accepted) -> Vec<u64> {
        let start = Instant::now();
        let is_due = |memory: &mut Memory, second: u64| {
            !memory.due(vec![entry.clone()], start + Duration::from_secs(second)).is_empty()
        };
        (0..300).filter(|second| is_due(memory, *second)).collect()
    }

    #[test]
    fn what_stays_open_is_handed_on_ever_more_seldom_and_never_given_up() {
        let mut memory = Memory::default();
        assert_eq!(handed_on_at(&mut memory, &entry()), [0, 3, 9, 21, 45, 93, 153, 213, 273]);
    }

    #[test]
    fn what_is_open_no_more_is_forgotten() {
        let (mut memory, entry, now) = (Memory::default(), entry(), Instant::now());
        assert_eq!(memory.due(vec![entry.clone()], now).len(), 1);
        assert!(memory.due(vec![entry.clone()], now).is_empty());
        assert!(memory.due(vec![], now).is_empty());
        assert_eq!(memory.due(vec![entry], now).len(), 1, "as if it had never been seen");
    }

    /// An intake entry of that age; if `seq` is given, its message is saved, too.
    async fn stored(engines: &Engines, name: &str, age: Duration, seq: Option<u64>) -> MessageId {
        let accepted = Accepted {
            client_message_id: name.parse().expect("a name"),
            timestamp: Timestamp::now().before(age),
            ..entry()
        };
        engines.store.intake.append(std::slice::from_ref(&accepted)).await.expect("it is appended");
        if let Some(seq) = seq {
            let message = accepted.at(naru_model::Seq(seq));
            engines.store.messages.append_run(&[message]).await.expect("it is saved");
        }
        accepted.id
    }

    #[tokio::test]
    async fn what_is_saved_is_left_to_the_fanout_for_its_time() {
        let directory = tempfile::tempdir().expect("a folder");
        let embedded = naru_embedded::Embedded::open(directory.path(), naru_embedded::Options::default());
        let engines = embedded.expect("it opens").engines();
        let telemetry = Telemetry::new(&naru_runtime::telemetry::Metrics::new());
        let second = Duration::from_secs(1);
        let _young = stored(&engines, "young", second, None).await;
        let _about_to_be_closed = stored(&engines, "saved", 14 * second, Some(1)).await;
        let lost = stored(&engines, "lost", 4 * second, None).await;
        let of_a_dead_fanout = stored(&engines, "unproven", 16 * second, Some(2)).await;

        let mut memory = Memory::default();
        for _ in 0..2 {
            sweep(&engines, 15 * second, &telemetry, "me", &mut memory).await.expect("it sweeps");
        }
        assert_eq!(telemetry.swept.get(), 2);
        let mut queue = engines.bus.accepted.receiver().await.expect("a receiver");
        let batch = queue.receive(9).await.expect("a batch");
        let mut handed_on: Vec<MessageId> = batch.iter().map(|delivery| delivery.event.payload.id).collect();
        let mut expected = [lost, of_a_dead_fanout];
        handed_on.sort_unstable();
        expected.sort_unstable();
        assert_eq!(handed_on, expected);
    }

    #[test]
    fn what_could_not_be_handed_on_is_due_at_once() {
        let (mut memory, entry, now) = (Memory::default(), entry(), Instant::now());
        memory.due(vec![entry.clone()], now);
        memory.look_again(entry.id, now);
        assert_eq!(memory.due(vec![entry], now).len(), 1);
    }
}
