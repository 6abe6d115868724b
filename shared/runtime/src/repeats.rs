//! Bounds the log: what fails a thousand times a second is written ten times a minute.
//!
//! A worker logs each failure where it handles it. While a disk is full or a service is away, each of its tries fails alike, and
//! the log would fill the disk. So of each warning and error, told by its place in the source, the first lines in a minute are
//! written, the others are counted, and a line says how many they were.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// So many lines of one place are written …
const MAX_LINES: u32 = 10;
/// … in this time.
const WINDOW: Duration = Duration::from_secs(60);

/// Lines left out since the process started.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// The part of the log that leaves lines out.
#[derive(Clone, Default)]
pub(crate) struct Repeats(Arc<Mutex<Places>>);

#[derive(Default)]
struct Places {
    known: HashMap<Identifier, Place>,
    /// A thread reports what was left out. It ends when nothing was.
    is_reporting: bool,
}

struct Place {
    metadata: &'static Metadata<'static>,
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl<S: Subscriber> Layer<S> for Repeats {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Levels are ordered by how much they say.
        if *metadata.level() > Level::WARN || self.admit(metadata, Instant::now()) {
            return true;
        }
        LEFT_OUT.fetch_add(1, Ordering::Relaxed);
        self.report_later();
        false
    }
}

impl Repeats {
    fn admit(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        let mut places = self.places();
        let new = || Place { metadata, since: now, lines: 0, left_out: 0 };
        let place = places.known.entry(metadata.callsite()).or_insert_with(new);
        if now.duration_since(place.since) >= WINDOW {
            (place.since, place.lines) = (now, 0);
        }
        if place.lines < MAX_LINES {
            place.lines += 1;
            return true;
        }
        place.left_out += 1;
        false
    }

    /// Starts the thread that reports, unless it runs. Here, in the middle of a line, no other line can be logged.
    fn report_later(&self) {
        if std::mem::replace(&mut self.places().is_reporting, true) {
            return;
        }
        let repeats = self.clone();
        let report = move || {
            loop {
                thread::sleep(WINDOW);
                let left_out = repeats.take_left_out();
                if left_out.is_empty() {
                    return;
                }
                for (metadata, lines) in left_out {
                    let (target, line) = (metadata.target(), metadata.line());
                    tracing::warn!(target, line, lines, "lines like earlier ones were left out");
                }
            }
        };
        if thread::Builder::new().name("naru-log".to_owned()).spawn(report).is_err() {
            self.places().is_reporting = false;
        }
    }

    /// What was left out since the last call. None: the caller reports no more.
    fn take_left_out(&self) -> Vec<(&'static Metadata<'static>, u64)> {
        let mut places = self.places();
        let take = |place: &mut Place| (place.metadata, std::mem::take(&mut place.left_out));
        let left_out: Vec<_> = places.known.values_mut().map(take).filter(|(_, lines)| *lines > 0).collect();
        places.is_reporting = !left_out.is_empty();
        left_out
    }

    /// Counts that a panic can't leave half changed.
    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The counter of lines left out.
#[derive(Debug)]
pub(crate) struct LeftOut;

impl Collector for LeftOut {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let help =
            "Warnings and errors that were not logged, because the same place had logged ten in that minute.";
        let metric = encoder.encode_descriptor("naru_log_left_out_lines", help, None, MetricType::Counter)?;
        ConstCounter::new(LEFT_OUT.load(Ordering::Relaxed)).encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::registry;

    use super::*;

    /// Counts the lines that are written.
    #[derive(Clone, Default)]
    struct Written(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Written {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn of_what_is_repeated_the_first_lines_are_written_and_the_others_counted() {
        let (repeats, written) = (Repeats::default(), Written::default());
        let lines = || written.0.swap(0, Ordering::Relaxed);
        let subscriber = registry().with(written.clone()).with(repeats.clone());
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..90_000 {
                tracing::warn!(number, "the disk is full");
            }
            assert_eq!(lines(), 10);
            tracing::error!("another failure");
            assert_eq!(lines(), 1, "each place has its own");
            for number in 0..100 {
                tracing::info!(number, "what goes well");
            }
            assert_eq!(lines(), 100, "only failures come in floods");
        });
        let left_out = repeats.take_left_out();
        assert_eq!(left_out.iter().map(|(_, lines)| *lines).collect::<Vec<_>>(), [89_990]);
        assert!(repeats.take_left_out().is_empty(), "reported once");

        let flooded = left_out[0].0;
        assert!(!repeats.admit(flooded, Instant::now()));
        assert!(repeats.admit(flooded, Instant::now() + WINDOW), "the next minute");
    }
}
