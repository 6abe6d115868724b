//! The record of a run: for each message, when it was sent, acknowledged and delivered, each counted once.
//!
//! A message's number determines when it is due and its sender, so the number in its `clientMessageId` is all that a
//! frame must carry, and no look-up happens while messages flow.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// When messages are due.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// When the first is due.
    pub start: Instant,
    /// Messages per second.
    pub rate: u32,
    /// How many of the first are not measured.
    pub warmup: usize,
    /// How many there are in all.
    pub total: usize,
}

impl Schedule {
    /// When this message should be sent.
    pub fn due(&self, number: usize) -> Instant {
        self.start + self.offset(number)
    }

    fn offset(&self, number: usize) -> Duration {
        Duration::from_secs_f64(number as f64 / f64::from(self.rate))
    }
}

#[derive(Debug)]
pub struct RunRecord {
    schedule: Schedule,
    messages: Vec<MessageRecord>,
    finished: usize,
    duplicates: u64,
    strays: u64,
    resyncs: u64,
    withheld: u64,
    errors: BTreeMap<String, u64>,
}

#[derive(Debug, Default, Clone)]
struct MessageRecord {
    sent: Stamp,
    acked: Stamp,
    delivered: Stamp,
    /// Answered with an `ERROR`, of whatever kind.
    failed: bool,
}

/// Microseconds since the message was due, plus one; zero: not yet. The largest is 71 minutes.
#[derive(Debug, Default, Clone, Copy)]
struct Stamp(u32);

impl Stamp {
    /// False if it was set before.
    fn set(&mut self, due: Instant) -> bool {
        let is_first = self.0 == 0;
        if is_first {
            let micros = u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX);
            self.0 = micros.saturating_add(1);
        }
        is_first
    }

    fn get(self) -> Option<u32> {
        self.0.checked_sub(1)
    }

    fn is_set(self) -> bool {
        self.0 > 0
    }
}

impl MessageRecord {
    /// Whether no further event of this message is expected.
    fn is_finished(&self) -> bool {
        if self.acked.is_set() { self.delivered.is_set() } else { self.failed }
    }
}

impl RunRecord {
    /// A record in which no message was sent yet.
    pub fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            messages: vec![MessageRecord::default(); schedule.total],
            finished: 0,
            duplicates: 0,
            strays: 0,
            resyncs: 0,
            withheld: 0,
            errors: BTreeMap::new(),
        }
    }

    /// The message was written to the sender's socket.
    pub fn sent(&mut self, number: usize) {
        self.messages[number].sent.set(self.schedule.due(number));
    }

    /// The sender got an `ACK`. A second one changes nothing.
    pub fn acked(&mut self, number: usize) {
        let due = self.schedule.due(number);
        self.change(number, |message| message.acked.set(due));
    }

    /// The receiver got the `CHAT`.
    pub fn delivered(&mut self, number: usize) {
        let due = self.schedule.due(number);
        if !self.change(number, |message| message.delivered.set(due)) {
            self.duplicates += 1;
        }
    }

    /// A session got a `CHAT` that is not for it: its own, or another room's.
    pub fn stray(&mut self) {
        self.strays += 1;
    }

    /// A session was notified that its live delivery was interrupted.
    pub fn resync(&mut self) {
        self.resyncs += 1;
    }

    /// The message was not sent, because its sender's last one was refused.
    pub fn withheld(&mut self, number: usize) {
        self.change(number, |message| message.failed = true);
        self.withheld += 1;
    }

    /// Another failure: an `ERROR` frame's code (with the message it is about), a closed session.
    pub fn error(&mut self, kind: &str, number: Option<usize>) {
        if let Some(number) = number.filter(|number| *number < self.messages.len()) {
            self.change(number, |message| message.failed = true);
        }
        *self.errors.entry(kind.to_owned()).or_default() += 1;
    }

    /// Whether no further event is expected.
    pub fn is_finished(&self) -> bool {
        self.finished == self.messages.len()
    }

    /// How many messages have been answered or refused, and have arrived if they were confirmed.
    pub fn finished(&self) -> usize {
        self.finished
    }

    fn change<T>(&mut self, number: usize, change: impl FnOnce(&mut MessageRecord) -> T) -> T {
        let message = &mut self.messages[number];
        let was_finished = message.is_finished();
        let result = change(message);
        self.finished = self.finished + usize::from(message.is_finished()) - usize::from(was_finished);
        result
    }

    pub fn totals(&self) -> Totals {
        let count = |wanted: fn(&MessageRecord) -> bool| {
            self.messages.iter().filter(|message| wanted(message)).count()
        };
        let measured = &self.messages[self.schedule.warmup..];
        let offset = |number: usize| self.schedule.offset(number);
        let last_delivery = measured.iter().enumerate().filter_map(|(number, message)| {
            Some(offset(number) + Duration::from_micros(message.delivered.get()?.into()))
        });
        let delivered = measured.iter().filter(|message| message.delivered.is_set()).count();
        let seconds =
            last_delivery.max().unwrap_or_default().as_secs_f64().max(offset(measured.len()).as_secs_f64());
        Totals {
            scheduled: self.messages.len(),
            sent: count(|message| message.sent.is_set()),
            acked: count(|message| message.acked.is_set()),
            delivered: count(|message| message.delivered.is_set()),
            unanswered: count(|message| message.sent.is_set() && !message.acked.is_set() && !message.failed),
            lost: count(|message| message.acked.is_set() && !message.delivered.is_set()),
            duplicates: self.duplicates,
            strays: self.strays,
            resyncs: self.resyncs,
            withheld: self.withheld,
            errors: self.errors.clone(),
            measured: measured.len(),
            delivered_per_second: delivered as f64 / seconds,
            send_lag: Latency::of(measured.iter().filter_map(|message| message.sent.get())),
            ack: Latency::of(measured.iter().filter_map(|message| message.acked.get())),
            delivery: Latency::of(measured.iter().filter_map(|message| message.delivered.get())),
        }
    }
}

/// The result of a run. Counts are of the whole run, latencies and throughput of its measured part.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Messages in the schedule.
    pub scheduled: usize,
    /// Written to a socket.
    pub sent: usize,
    /// Confirmed to their sender.
    pub acked: usize,
    /// Arrived at their receiver.
    pub delivered: usize,
    /// Sent, and neither confirmed nor refused.
    pub unanswered: usize,
    /// Confirmed, but never delivered.
    pub lost: usize,
    /// Delivered again to the same session.
    pub duplicates: u64,
    /// Delivered to a session they are not for.
    pub strays: u64,
    /// `RESYNC` frames. The tool does not catch up after one, so messages that such a session misses count as lost.
    pub resyncs: u64,
    /// Not sent, because the one before was refused a moment ago.
    #[serde(default)]
    pub withheld: u64,
    /// Errors and closed sessions by kind.
    pub errors: BTreeMap<String, u64>,
    /// Messages in the measured part.
    pub measured: usize,
    /// Deliveries per second, over the scheduled time or until the last delivery, whichever is longer.
    pub delivered_per_second: f64,
    /// How late the tool itself was.
    pub send_lag: Latency,
    /// Due → `ACK`.
    pub ack: Latency,
    /// Due → `CHAT` at the receiver.
    pub delivery: Latency,
}

/// A distribution, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

impl Latency {
    /// Zeros where there are no values.
    fn of(micros: impl Iterator<Item = u32>) -> Self {
        let mut histogram = Histogram::<u64>::new_with_max(u32::MAX.into(), 3).expect("legal bounds");
        micros.for_each(|micros| histogram.record(micros.into()).expect("within the bounds"));
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max() as f64 / 1000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fate_is_counted_once() {
        let due_a_second_ago = Instant::now() - Duration::from_secs(1);
        let mut record =
            RunRecord::new(Schedule { start: due_a_second_ago, rate: 1000, warmup: 1, total: 6 });
        (0..5).for_each(|number| record.sent(number));
        [0, 1, 2, 2].into_iter().for_each(|number| record.acked(number));
        [0, 1, 1].into_iter().for_each(|number| record.delivered(number));
        record.error("RATE_LIMITED", Some(3));
        record.stray();
        assert!(!record.is_finished());

        let totals = record.totals();
        assert_eq!((totals.scheduled, totals.sent, totals.acked, totals.delivered), (6, 5, 3, 2));
        assert_eq!((totals.lost, totals.unanswered, totals.duplicates, totals.strays), (1, 1, 1, 1));
        assert_eq!((totals.measured, totals.errors["RATE_LIMITED"]), (5, 1));
        assert!((900.0..2000.0).contains(&totals.ack.p50), "latency counts from when a message was due");
    }

    #[test]
    fn a_run_is_finished_when_every_message_has_its_end() {
        let mut record = RunRecord::new(Schedule { start: Instant::now(), rate: 1000, warmup: 0, total: 2 });
        record.acked(0);
        record.error("OVERLOADED", Some(1));
        assert!(!record.is_finished(), "confirmed, but not delivered");
        record.delivered(0);
        assert!(record.is_finished());
    }
}
