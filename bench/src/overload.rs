//! More messages than the server can take: what its memory, its answers and its recovery are like.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::ensure;

use crate::{flow, process};

/// The load before and after.
const QUIET: (u32, u32) = (100, 20);
const QUIET_DURATION: Duration = Duration::from_secs(5);
/// How long each look at the recovery takes.
const LOOK: Duration = Duration::from_secs(1);
/// The server is as quick as before when the 99th percentile of its `ACK` is below this multiple, or below this time.
const AS_BEFORE: f64 = 3.0;
const AS_BEFORE_MS: f64 = 20.0;
/// When to give up.
const GIVE_UP: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Options {
    /// The overload.
    pub flow: flow::Options,
    /// How soon it must be as quick as before. What waits in the clients' own buffers at the end is dropped after `drain_timeout`.
    pub recover_within: Duration,
    pub max_memory_mib: u32,
    pub pids: Vec<u32>,
}

pub struct Report {
    quiet: flow::Report,
    load: flow::Report,
    recovered: Duration,
    peak_mib: u64,
    pub broken: Vec<String>,
}

/// Measures the quiet server, overloads it, and looks each second whether it is as quick as before.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let at = |rate, pairs, duration| flow::Options {
        rate,
        pairs,
        duration,
        warmup: Duration::ZERO,
        groups: Vec::new(),
        ..options.flow.clone()
    };
    let quiet = flow::run(&at(QUIET.0, QUIET.1, QUIET_DURATION)).await?;
    let load = flow::run(&options.flow).await?;
    let ended = Instant::now();
    let recovered = loop {
        let after = ended.elapsed();
        let now = flow::run(&at(QUIET.0, QUIET.1, LOOK)).await?;
        let is_as_before = now.totals.ack.p99 <= (quiet.totals.ack.p99 * AS_BEFORE).max(AS_BEFORE_MS);
        if is_as_before && now.totals.unanswered == 0 && now.totals.errors.is_empty() {
            break after;
        }
        ensure!(after < GIVE_UP, "not as quick as before after {GIVE_UP:?}: {now}");
    };
    let peak_mib = peak_mib(&options.pids)?;
    let mut broken = Vec::new();
    let totals = &load.totals;
    if peak_mib > options.max_memory_mib.into() {
        broken.push(format!("{peak_mib} MiB of memory, {} are the bound", options.max_memory_mib));
    }
    if totals.unanswered > 0 {
        broken.push(format!("{} messages were sent and not answered", totals.unanswered));
    }
    if !load.keeps_promises() || load.closed() > 0 {
        broken.push(format!(
            "{} lost, {} doubled, {} astray, {} sessions closed",
            totals.lost,
            totals.duplicates,
            totals.strays,
            load.closed()
        ));
    }
    if recovered > options.recover_within {
        broken.push(format!("recovered after {recovered:?}, not within {:?}", options.recover_within));
    }
    Ok(Report { quiet, load, recovered, peak_mib, broken })
}

/// The most resident memory that these processes ever had, together.
pub fn peak_mib(pids: &[u32]) -> anyhow::Result<u64> {
    let peaks = pids.iter().map(|pid| process::peak_resident_kib(*pid));
    Ok(peaks.sum::<anyhow::Result<u64>>()? / 1024)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "quiet: ACK p50 {:.1} ms, p99 {:.1} ms",
            self.quiet.totals.ack.p50, self.quiet.totals.ack.p99
        )?;
        writeln!(f, "{}", self.load)?;
        write!(
            f,
            "as quick as before {:.1} s after the end; at most {} MiB of memory",
            self.recovered.as_secs_f64(),
            self.peak_mib
        )
    }
}
