//! Several systems in one run: measured in turn, round after round, so that changes on the machine affect all of them
//! alike.
//!
//! Only the system whose turn it is runs. The others are stopped, with their data kept for their next turn, so they take
//! neither processor time nor memory. Each turn starts with messages that are not measured, since a program that was
//! just started is not yet as fast as it gets. The order changes from round to round: each system is first once.

pub mod chart;
pub mod page;
pub mod record;
pub mod stats;
pub mod table;

use std::time::Duration;

use crate::{
    fill, flow, idle,
    systems::{Running, System},
};
use record::{Comparison, Filled, Memory, Round, State};

/// The rate of a turn's first, unmeasured messages, unless the lowest of the rates is lower.
const WARM_RATE: u32 = 500;

#[derive(Debug, Clone)]
pub struct Options {
    /// How often each system has its turn.
    pub rounds: u32,
    /// Messages per second, one measurement each.
    pub rates: Vec<u32>,
    /// How long each is measured.
    pub duration: Duration,
    /// How long is sent before that, unmeasured.
    pub warmup: Duration,
    /// How long stragglers are waited for.
    pub drain_timeout: Duration,
    /// Direct rooms; both members send.
    pub pairs: u32,
    /// Content size.
    pub bytes: u32,
    /// The rate at which a message is alone, and how long.
    pub lone: (u32, Duration),
    /// Numbers of idle connections, in rising order, measured in the first round.
    pub connections: Vec<u32>,
    /// New connections per second.
    pub connect_rate: u32,
    /// How long all are held before the memory is read.
    pub hold: Duration,
    /// The messages stored after the first half of the rounds; the second half measures the full systems.
    pub fill: Option<fill::Amount>,
}

/// Measures all systems. The record so far is passed to `save` after each turn.
///
/// # Errors
/// When a system can't be started or stopped, or fails so that nothing can be measured.
pub async fn run(
    options: &Options,
    systems: &[System],
    comparison: &mut Comparison,
    mut save: impl FnMut(&Comparison) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut states = vec![State::Empty];
    states.extend(options.fill.is_some().then_some(State::Full));
    for state in states {
        for number in 1..=options.rounds {
            for place in 0..systems.len() {
                let system = &systems[(place + number as usize - 1) % systems.len()];
                eprintln!("round {number} of {}, {}: {}", options.rounds, state.as_str(), system.label);
                let running = system.start()?;
                if let (State::Full, 1, Some(amount)) = (state, number, &options.fill) {
                    let filled = fill::run(&running.server, amount).await?;
                    comparison.fills.push(Filled { system: system.key.clone(), report: filled });
                }
                let round = turn(options, system, &running, number, state).await?;
                comparison.rounds.push(round);
                running.stop()?;
                save(comparison)?;
            }
        }
    }
    Ok(())
}

async fn turn(
    options: &Options,
    system: &System,
    running: &Running,
    number: u32,
    state: State,
) -> anyhow::Result<Round> {
    let mut memory = Vec::new();
    if number == 1 && state == State::Empty {
        for connections in &options.connections {
            memory.push(idle_memory(options, running, *connections).await?);
        }
    }
    let flow = |rate: u32, warmup: Duration, duration: Duration| flow::Options {
        server: running.server.clone(),
        rate,
        duration,
        warmup,
        drain_timeout: options.drain_timeout,
        pairs: options.pairs,
        bytes: options.bytes,
        groups: running.groups.clone(),
    };
    let lowest = options.rates.iter().copied().min().unwrap_or(WARM_RATE).min(WARM_RATE);
    flow::run(&flow(lowest, Duration::ZERO, options.warmup)).await?;
    let lone = flow::run(&flow(options.lone.0, Duration::ZERO, options.lone.1)).await?;
    let mut flows = Vec::new();
    for rate in &options.rates {
        let report = flow::run(&flow(*rate, options.warmup, options.duration)).await?;
        let (ack, delivery) = (report.totals.ack, report.totals.delivery);
        eprintln!(
            "  {rate}/s: ACK {:.2} / {:.2} ms, delivery {:.2} / {:.2} ms, {:.3} CPU s per 1,000, {} lost",
            ack.p50,
            ack.p99,
            delivery.p50,
            delivery.p99,
            stats::cpu(&report),
            report.totals.lost
        );
        flows.push(report);
    }
    Ok(Round { number, system: system.key.clone(), state, memory, lone, flows })
}

async fn idle_memory(options: &Options, running: &Running, connections: u32) -> anyhow::Result<Memory> {
    let options = idle::Options {
        server: running.server.clone(),
        connections,
        connect_rate: options.connect_rate,
        hold: options.hold,
        groups: running.groups.clone(),
    };
    let report = tokio::task::spawn_blocking(move || idle::run(&options)).await??;
    eprintln!("  {connections} idle connections: {:.1} KiB each", report.kib_per_connection());
    Ok(Memory { connections, groups: report.memory })
}

#[cfg(test)]
pub mod tests;
