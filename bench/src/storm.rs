//! Many sessions that are opened at the same moment, as after a restart of a proxy.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use naru_client::{Client, Connect, ConnectError};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    flow,
    session::{Server, new_run},
};

/// When the sessions are opened, after the others began to write.
const LEAD: Duration = Duration::from_secs(4);
/// How long a client waits that was refused: this, and up to as much more.
const RETRY_MS: u64 = 1_000;
/// In any second the tool may see so much more than the rate: the burst, and what its own delays bring together.
const MAX_EXCESS: f64 = 1.5;
/// The server's burst, in seconds of its rate.
const BURST: f64 = 0.1;

#[derive(Debug)]
pub struct Options {
    /// Those who are there.
    pub others: flow::Options,
    pub connections: u32,
    /// The rate at which the server is to admit them.
    pub per_second: u32,
    pub timeout: Duration,
}

pub struct Report {
    took: Duration,
    refused: u32,
    /// The most that were admitted within a second.
    busiest: usize,
    quiet: flow::Report,
    beside: flow::Report,
    pub broken: Vec<String>,
}

/// Opens all sessions at once, while others write to each other.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let quiet = flow::run(&options.others).await?;
    let expected = Duration::from_secs(1) * options.connections / options.per_second;
    let others = flow::Options { duration: expected + 2 * LEAD, ..options.others.clone() };
    let storm = async {
        tokio::time::sleep(LEAD).await;
        timeout(options.timeout, open_all(&options.others.server, options.connections)).await
    };
    let (beside, storm) = tokio::join!(flow::run(&others), storm);
    let (beside, (mut opened, refused, took)) = (beside?, storm.context("not all sessions came in")??);
    opened.sort_unstable();
    let within_a_second = |from: &Instant| {
        opened.partition_point(|at| *at < *from + Duration::from_secs(1))
            - opened.partition_point(|at| at < from)
    };
    let busiest = opened.iter().map(within_a_second).max().unwrap_or(0);
    let mut broken = Vec::new();
    if busiest as f64 > f64::from(options.per_second) * MAX_EXCESS {
        broken
            .push(format!("{busiest} sessions came in within a second, {} are the rate", options.per_second));
    }
    let expected = f64::from(options.connections) / f64::from(options.per_second) - BURST;
    if took.as_secs_f64() < expected {
        broken.push(format!("all came in within {took:?}, at their rate it is {expected:.1} s"));
    }
    if !beside.keeps_promises() || beside.closed() > 0 || beside.totals.unanswered > 0 {
        broken.push("those who were there were closed, lost messages, or were not answered".to_owned());
    }
    Ok(Report { took, refused, busiest, quiet, beside, broken })
}

/// When each session was open, how many attempts were refused, and how long all of it took.
async fn open_all(server: &Server, count: u32) -> anyhow::Result<(Vec<Instant>, u32, Duration)> {
    let run = new_run();
    let connects = (0..count).map(|number| {
        Connect::to(server.url(number as usize), &server.token(&format!("storm-{run}-{number}")))
    });
    let connects: Vec<Connect> = connects.collect();
    let (start, mut opening) = (Instant::now(), JoinSet::new());
    for (number, connect) in connects.into_iter().enumerate() {
        opening.spawn(open(number as u64, connect));
    }
    let (mut sessions, mut opened, mut refused) = (Vec::new(), Vec::new(), 0);
    while let Some(session) = opening.join_next().await {
        let (client, at, times) = session??;
        sessions.push(client);
        opened.push(at);
        refused += times;
    }
    let took = start.elapsed();
    ensure!(sessions.len() == count as usize, "{} of {count} sessions are open", sessions.len());
    Ok((opened, refused, took))
}

/// Opens a session as apps do: again after a while, where it was refused.
async fn open(number: u64, connect: Connect) -> anyhow::Result<(Client, Instant, u32)> {
    let mut refused = 0;
    loop {
        match connect.client().await {
            Ok(client) => return Ok((client, Instant::now(), refused)),
            Err(error) if matches!(error.status(), Some(429 | 503)) => refused += 1,
            // The system's queue of new connections was full.
            Err(ConnectError::Unreachable { .. }) => {}
            Err(error) => return Err(error).context("a session can't be opened"),
        }
        tokio::time::sleep(Duration::from_millis(RETRY_MS + number * 7_919 % RETRY_MS)).await;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (quiet, beside) = (self.quiet.totals.ack, self.beside.totals.ack);
        writeln!(
            f,
            "all sessions open after {:.1} s, {} refused meanwhile, at most {} within a second",
            self.took.as_secs_f64(),
            self.refused,
            self.busiest
        )?;
        write!(
            f,
            "those who were there: ACK p50 {:.1} ms, p99 {:.1} ms; quiet {:.1} and {:.1} ms",
            beside.p50, beside.p99, quiet.p50, quiet.p99
        )
    }
}
