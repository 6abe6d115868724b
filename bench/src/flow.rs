//! Pairs of users writing to each other at a fixed rate.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use crate::{
    load::{Driver, Room},
    process::{self, Group},
    record::{Latency, Schedule, Totals},
    session::{Server, new_run},
};

/// From the last session's opening to the first message.
const LEAD: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
pub struct Options {
    pub server: Server,
    /// Messages per second, over all senders.
    pub rate: u32,
    /// How long to measure.
    pub duration: Duration,
    /// How long to send before that.
    pub warmup: Duration,
    /// How long stragglers are waited for after the last message was due.
    pub drain_timeout: Duration,
    /// Direct rooms; both members send.
    pub pairs: u32,
    /// Content size.
    pub bytes: u32,
    /// The server's processes.
    pub groups: Vec<Group>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub rate: u32,
    pub pairs: u32,
    pub bytes: u32,
    pub seconds: f64,
    #[serde(flatten)]
    pub totals: Totals,
    pub server: Vec<Cost>,
    pub tool: Cost,
    /// The machine's other processor time meanwhile: where it is not small, other processes disturbed the run.
    pub other_cpu_seconds: f64,
}

/// The cost of some processes in the measured part.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    pub name: String,
    pub cpu_seconds: f64,
    pub cpu_seconds_per_thousand: f64,
    /// At the end.
    pub memory_kib: u64,
}

/// Makes the rooms, connects all users, sends all messages when they are due, waits for the stragglers.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    run_as(options, &new_run()).await
}

/// The users of a run.
pub fn users(options: &Options, run: &str) -> Vec<String> {
    (0..options.pairs * 2).map(|number| format!("flow-{run}-{number}")).collect()
}

/// The same as a run of this name.
pub async fn run_as(options: &Options, run: &str) -> anyhow::Result<Report> {
    let run: Arc<str> = run.into();
    let users: Arc<[String]> = users(options, &run).into();
    let pairs = users.chunks(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect();
    let ids = options.server.make_rooms(pairs).await?;
    let rooms = ids.into_iter().enumerate();
    let rooms: Vec<_> = rooms.map(|(pair, id)| Room { id, members: [2 * pair, 2 * pair + 1] }).collect();

    let messages = |time: Duration| (time.as_secs_f64() * f64::from(options.rate)).round() as usize;
    let warmup = messages(options.warmup);
    let total = warmup + messages(options.duration);
    let (server, rate, drain_timeout) = (options.server.clone(), options.rate, options.drain_timeout);
    let content = "x".repeat(options.bytes as usize);
    let opening = spawn_blocking(move || -> anyhow::Result<(Driver, Schedule)> {
        let schedule = Schedule { start: Instant::now(), rate, warmup, total };
        let mut driver = Driver::new(schedule)?;
        server.open_all(&users, &run, &mut driver)?;
        driver.rooms(rooms, users, content);
        Ok((driver, schedule))
    });
    let (driver, mut schedule) = opening.await??;
    schedule.start = Instant::now() + LEAD;
    let driving = spawn_blocking(move || driver.run(schedule.start, drain_timeout));

    tokio::time::sleep_until(schedule.due(schedule.warmup).into()).await;
    let tool = Group::tool();
    let groups: Vec<_> = options.groups.iter().chain([&tool]).collect();
    let machine_before = process::machine_cpu_time()?;
    let before = groups.iter().map(|group| group.cpu_time()).collect::<anyhow::Result<Vec<_>>>()?;
    let totals = driving.await??.totals();
    let costs = groups.iter().zip(before).map(|(group, before)| Cost::since(before, group, totals.measured));
    let mut server = costs.collect::<anyhow::Result<Vec<_>>>()?;
    let machine = process::machine_cpu_time()?.saturating_sub(machine_before).as_secs_f64();
    let known: f64 = server.iter().map(|cost| cost.cpu_seconds).sum();
    let tool = server.pop().expect("the tool itself is the last");
    let Options { rate, pairs, bytes, .. } = *options;
    Ok(Report {
        rate,
        pairs,
        bytes,
        seconds: options.duration.as_secs_f64(),
        totals,
        server,
        tool,
        other_cpu_seconds: (machine - known).max(0.0),
    })
}

impl Cost {
    fn since(before: Duration, group: &Group, messages: usize) -> anyhow::Result<Self> {
        let cpu_seconds = group.cpu_time()?.saturating_sub(before).as_secs_f64();
        Ok(Self {
            name: group.name.clone(),
            cpu_seconds,
            cpu_seconds_per_thousand: cpu_seconds * 1000.0 / messages.max(1) as f64,
            memory_kib: group.memory_kib()?,
        })
    }
}

impl Report {
    /// How many sessions the server has ended.
    pub fn closed(&self) -> u64 {
        let is_end = |kind: &str| kind.starts_with("session ");
        self.totals.errors.iter().filter(|(kind, _)| is_end(kind)).map(|(_, count)| count).sum()
    }

    /// Whether every confirmed message came, once, to its receiver only.
    pub fn keeps_promises(&self) -> bool {
        self.totals.lost == 0 && self.totals.duplicates == 0 && self.totals.strays == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = &self.totals;
        writeln!(
            f,
            "{} messages/s for {:.0} s, {} pairs, {} bytes: {:.1} delivered/s\n",
            self.rate, self.seconds, self.pairs, self.bytes, totals.delivered_per_second
        )?;
        writeln!(
            f,
            "{:>12} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "ms since due", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for (name, Latency { p50, p90, p99, p99_9, max }) in
            [("sent", totals.send_lag), ("ACK", totals.ack), ("delivery", totals.delivery)]
        {
            writeln!(f, "{name:>12} {p50:>9.2} {p90:>9.2} {p99:>9.2} {p99_9:>9.2} {max:>9.2}")?;
        }
        writeln!(
            f,
            "\n{} scheduled, {} sent, {} acked, {} delivered (warm-up included)",
            totals.scheduled, totals.sent, totals.acked, totals.delivered
        )?;
        writeln!(
            f,
            "{} LOST, {} DUPLICATED, {} STRAY, {} unanswered, {} RESYNC, {} withheld",
            totals.lost, totals.duplicates, totals.strays, totals.unanswered, totals.resyncs, totals.withheld
        )?;
        for (kind, count) in &totals.errors {
            writeln!(f, "{count} × {kind}")?;
        }
        for cost in self.server.iter().chain([&self.tool]) {
            write!(
                f,
                "\n{}: {:.3} CPU s per 1,000 messages ({:.2} s in all), {:.1} MiB of memory",
                cost.name,
                cost.cpu_seconds_per_thousand,
                cost.cpu_seconds,
                cost.memory_kib as f64 / 1024.0
            )?;
        }
        write!(f, "\nothers on this machine: {:.2} CPU s", self.other_cpu_seconds)
    }
}

#[cfg(test)]
mod tests;
