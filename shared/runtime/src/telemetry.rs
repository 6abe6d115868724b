//! Log lines on stderr, and metrics to be scraped.

use std::io::IsTerminal;
use std::panic;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::output;
use crate::repeats::{LeftOut, Repeats};

/// The values of the key `log_format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    Text,
    /// For machines: one object per line.
    Json,
}

/// Libraries that write the data they carry into log lines, message bodies included. To see those, name the library
/// in the key `log`.
const UNHEARD: &str = "lapin=off";

/// Sends log lines to stderr; stdout is reserved for `listening on …`. `directives` is the key `log`.
///
/// A second call checks its directives and changes nothing, so that every test may call it.
///
/// # Errors
/// When `directives` has a word that is no level, or is no [`EnvFilter`].
pub fn init(directives: &str, format: LogFormat) -> Result<(), BadLog> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(directives)?)
        .with_writer(|| output::LogWriter)
        // It would be printed with `eprintln!`, which panics where a log line can't be written.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    // An error means that one is installed already, which the contract above allows.
    let _ = match format {
        LogFormat::Text => subscriber.finish().with(Repeats::default()).try_init(),
        LogFormat::Json => subscriber.json().finish().with(Repeats::default()).try_init(),
    };
    Ok(())
}

/// The key `log` can't be used.
#[derive(Debug, thiserror::Error)]
#[error("`log`: {0:?} is none of error, warn, info, debug, trace and off; for one module write module=debug")]
pub struct BadLog(String);

/// An [`EnvFilter`] takes any single word for the name of a module, so that "warning" logs nothing but a module of that
/// name: here, a word without "=" must be a level.
fn filter(directives: &str) -> Result<EnvFilter, BadLog> {
    let bad = |directive: &str| BadLog(directive.to_owned());
    for directive in directives.split(',') {
        let is_for_one_module = directive.contains(['=', '[', ']']);
        if !is_for_one_module && (directive.is_empty() || directive.parse::<LevelFilter>().is_err()) {
            return Err(bad(directive));
        }
    }
    EnvFilter::try_new(format!("{UNHEARD},{directives}")).map_err(|_| bad(directives))
}

/// Sends panics to the log, in its format: the standard hook writes to stderr by itself, and blocks where that is a pipe
/// that is not read.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace =
            (backtrace.status() == std::backtrace::BacktraceStatus::Captured).then_some(backtrace);
        tracing::error!(%panic, backtrace = backtrace.as_ref().map(tracing::field::display), "a task panicked");
    }));
}

/// The metrics of one process, shared by its workers. Clones are the same metrics.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The content type of [`Metrics::encode`].
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// Only the metrics of the process itself: memory, open files, start time, log lines lost and left out.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        registry.register_collector(Box::new(output::Lost));
        registry.register_collector(Box::new(LeftOut));
        Self(Arc::new(Mutex::new(registry)))
    }

    /// Lets a worker register its metrics as `naru_<prefix>_…`; returns what `register` returns, as a rule the struct of
    /// the handles.
    pub fn register<T>(&self, prefix: &str, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(self.lock().sub_registry_with_prefix("naru").sub_registry_with_prefix(prefix))
    }

    /// Everything registered, as OpenMetrics text, which Prometheus reads.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        text::encode(&mut page, &self.lock()).expect("writing to a String does not fail");
        page
    }

    /// A registry is consistent after every call, so one that a panicking `register` left behind can be used.
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker's metrics, each written once: `field: Type = value, "help";` makes a field, and the metric
/// `naru_<prefix>_<field>`. Without a value it is the type's default. Clones count together.
#[macro_export]
macro_rules! metrics {
    (
        $(#[$about:meta])*
        $vis:vis struct $name:ident($prefix:literal) {
            $($field:ident: $type:ty $(= $value:expr)?, $help:literal;)*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone)]
        $vis struct $name {
            $(pub(crate) $field: $type,)*
        }

        impl $name {
            pub(crate) fn new(metrics: &$crate::Metrics) -> Self {
                metrics.register($prefix, |registry| {
                    $(
                        let $field: $type = $crate::metrics!(@value $($value)?);
                        registry.register(stringify!($field), $help, $field.clone());
                    )*
                    Self { $($field,)* }
                })
            }
        }
    };
    (@value) => { Default::default() };
    (@value $value:expr) => { $value };
}

/// The process metrics under the names that all Prometheus clients use, read from Linux's `/proc` when scraped. A metric
/// that can't be read, as on another system, is absent.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let gauges = [
            ("process_resident_memory", "Memory held in RAM.", Some(Unit::Bytes), resident_memory_bytes()),
            ("process_open_fds", "Open file descriptors, sockets included.", None, open_fds()),
            (
                "process_start_time",
                "Start of the process, since 1970.",
                Some(Unit::Seconds),
                start_time_seconds(),
            ),
        ];
        for (name, help, unit, value) in gauges {
            if let Some(value) = value {
                let metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
                ConstGauge::new(value).encode(metric)?;
            }
        }
        Ok(())
    }
}

fn resident_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes: u64 = field(&status, "VmRSS:")?.parse().ok()?;
    Some(kibibytes * 1024)
}

fn open_fds() -> Option<u64> {
    let listed = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the listing itself.
    Some(listed.saturating_sub(1) as u64)
}

fn start_time_seconds() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = field(&stat, "btime")?.parse().ok()?;
    let own = std::fs::read_to_string("/proc/self/stat").ok()?;
    Some(boot + start_ticks(&own)? / TICKS_PER_SECOND)
}

/// `USER_HZ`, the unit of the times in `/proc`: 100 on every architecture that Naru is built for.
const TICKS_PER_SECOND: u64 = 100;

/// Field 22 (`starttime`) of `/proc/<pid>/stat`, proc(5). Field 2 is the program's name in parentheses and may hold
/// anything; field 3 follows the last parenthesis.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, from_third) = stat.rsplit_once(')')?;
    from_third.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// The first word after `name` at the start of a line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn init_may_be_called_again_but_not_with_nonsense() {
        assert!(init("info", LogFormat::Text).is_ok());
        assert!(init("debug", LogFormat::Json).is_ok());
        assert!(init("naru=loud", LogFormat::Text).is_err());
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_with_those_that_are() {
        for good in
            ["info", "WARN", "off", "info,naru_engines=debug", "warn,naru::store=trace", "naru[span]=debug"]
        {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["warning", "inf", "", "info,", "info,verbose", "naru=loud", "naru_engines"] {
            let why = filter(bad).expect_err(bad).to_string();
            assert!(why.contains("is none of error, warn, info, debug, trace and off"), "{why}");
        }
    }

    #[test]
    fn metrics_carry_their_prefix() {
        let metrics = Metrics::new();
        let counter = metrics.register("gateway", |registry| {
            let counter = Counter::<u64>::default();
            registry.register("sends", "Messages taken", counter.clone());
            counter
        });
        counter.inc();
        let page = metrics.encode();
        assert!(page.contains("# HELP naru_gateway_sends Messages taken.\n"), "{page}");
        assert!(page.contains("naru_gateway_sends_total 1\n"), "{page}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_is_measured() {
        let page = Metrics::new().encode();
        let value = |name| -> u64 { field(&page, name).expect(name).parse().expect("an integer") };
        assert!(value("process_resident_memory_bytes ") > 1 << 20);
        assert!(value("process_open_fds ") >= 3);
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("it is after 1970").as_secs();
        let age = now.abs_diff(value("process_start_time_seconds "));
        assert!(age < 3600, "this test did not start {age} s ago");
    }

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        assert_eq!(start_ticks(stat), Some(12345));
    }
}
