//! `naru-bench`: the cost and the speed of a Naru server, measured through the contract on the wire.
//!
//! ```text
//! naru-bench idle --url http://127.0.0.1:8080 --secret S --connections 4000 --pid PID
//! naru-bench flow --url http://127.0.0.1:8080 --secret S --rate 500 --duration 20s --pairs 100 --pid PID --json
//! naru-bench fill --url http://127.0.0.1:8080 --secret S --messages 1000000 --rooms 100000
//! naru-bench overload --url http://127.0.0.1:8080 --secret S --rate 48000 --pairs 500 --pid PID --max-memory 640
//! naru-bench storm --url http://127.0.0.1:8080 --secret S --connections 5000 --connects-per-second 1000
//! naru-bench stranger --url http://127.0.0.1:8080 --secret S
//! naru-bench memory --url http://127.0.0.1:8080 --secret S --pid PID --max-memory 640
//! naru-bench push --url http://127.0.0.1:8080 --secret S --phones http://127.0.0.1:9200 --platform apns --pid PID
//!
//! naru-bench compare --rounds 5 --duration 10s --rates 300,1000,2000 --out target/comparison
//! naru-bench compare --against /other/target/release --systems naru,against,naru-services,against-services
//! naru-bench compare --fill-messages 1000000 --fill-rooms 100000
//! naru-bench peak --systems naru,socketio
//! naru-bench page target/comparison/comparison.json
//! ```
//!
//! With `--url` more than once, sessions are spread over several gateways: of two, each pair has one member on either.
//!
//! - `idle` opens sessions and reports the server's resident memory per connection.
//! - `flow` lets pairs of users write to each other at a fixed rate and reports how long the `ACK` and the delivery
//!   take, the server's cost, and the messages that were lost or came twice. It exits with 1 if a confirmed message was
//!   lost, came twice, or came to the wrong session.
//! - `fill` stores many messages in many rooms, as fast as the server takes them.
//! - `push` lets the members of a room miss messages, and reports how fast their phones get them from a server that pushes to
//!   the emulator of `naru phones`.
//!
//! Four show that a server keeps its bounds, and exit with 1 where it does not:
//!
//! - `overload` sends more than the server can take (give it twice its peak): memory stays below a bound, each message that
//!   was sent is answered, none is lost, and it is as quick as before within a time.
//! - `storm` opens many sessions at the same moment, and tries again where it is told to: all come in, no more than so many a
//!   second, and the sessions that were there stay.
//! - `stranger` is one user who does what they can to disturb others, with 50 sockets, beside pairs who write to each other:
//!   none of these is closed, and the 99th percentile of their `ACK` stays within a multiple of that without the stranger. The
//!   stranger's thread has the lowest priority, because the machine of the stranger would be another one.
//! - `memory` has clients ask for as much as they can and read nothing: memory stays below a bound, and is free again
//!   for others when they have gone.
//!
//! `compare` and `peak` start and stop the systems themselves: `naru` (one process), `naru-services` (two gateways,
//! persister, fanout, notifier, on RabbitMQ, Redis and SecantusDB), `socketio` and `ejabberd`
//! (`bench/peers/README.md` describes them), and with `--against DIR` the Naru of another directory, as `against` and
//! `against-services`. Missing programs are installed. See [`compare`] for how they take turns.
//!
//! - `compare` writes `comparison.json` (every measurement of every round), `comparison.md` and `comparison.html` into
//!   the directory `--out`, anew after each turn. With `--fill-messages` all rounds are measured, each system is filled,
//!   and all rounds are measured again. `page` makes table and page from such a JSON again.
//! - `peak` finds the highest rate that each system holds: the 99th percentile of the `ACK` below 100 ms, at least 98 % of
//!   the rate delivered, nothing lost or unanswered.
//!
//! Processor time is counted per group of processes with all that they have started, ended ones included. Memory is
//! `Pss`: shared memory is counted once. Naru's programs are started with a grace time (`NARU_DELIVERY_GRACE`) of
//! 2 s, so that their work on a message after it falls into the measured time, too.
//!
//! The load is *open-loop*: when each message is due is fixed before the run, and its latency counts from then, not
//! from when a slow server let the tool send it (no "coordinated omission"). The tool sends and reads on one thread and
//! reports how much of it was used, and how late its own sends were ("sent"): figures where that is not small against
//! the others measure the tool more than the server.
//!
//! The server's rate limit counts per user: above 100 messages per second and user (`NARU_RATE_MESSAGES_PER_SECOND`)
//! give it more pairs or a higher limit.

mod cli;
mod compare;
#[cfg(test)]
mod fake_server;
mod fill;
mod flow;
mod idle;
mod load;
mod memory;
mod overload;
mod peak;
mod peers;
mod process;
mod push;
mod record;
mod session;
mod storm;
mod stranger;
mod systems;

use std::{fs, path::Path, process::ExitCode, time::SystemTime};

use anyhow::Context as _;
use clap::ArgMatches;
use compare::record::{Comparison, Machine, Name};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let matches = cli::command().get_matches();
    process::raise_open_files_limit().context("cannot raise the limit on open files")?;
    match matches.subcommand() {
        Some(("idle", matches)) => {
            let report = idle::run(&cli::idle_options(matches)?)?;
            show(matches, &report, report.to_json());
        }
        Some(("flow", matches)) => {
            let report = flow::run(&cli::flow_options(matches)?).await?;
            show(matches, &report, serde_json::to_string(&report)?);
            return Ok(if report.keeps_promises() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Some(("fill", matches)) => {
            let report = fill::run(&cli::server(matches), &cli::amount(matches)).await?;
            show(matches, &report, serde_json::to_string(&report)?);
        }
        Some(("push", matches)) => {
            let report = push::run(&cli::push_options(matches)).await?;
            show(matches, &report, report.to_json());
        }
        Some(("overload", matches)) => {
            let report = overload::run(&cli::overload_options(matches)?).await?;
            return Ok(verdict(&report, &report.broken));
        }
        Some(("storm", matches)) => {
            let report = storm::run(&cli::storm_options(matches)?).await?;
            return Ok(verdict(&report, &report.broken));
        }
        Some(("stranger", matches)) => {
            let report = stranger::run(&cli::stranger_options(matches)?).await?;
            return Ok(verdict(&report, &report.broken));
        }
        Some(("memory", matches)) => {
            let report = memory::run(&cli::memory_options(matches)?).await?;
            return Ok(verdict(&report, &report.broken));
        }
        Some(("compare", matches)) => run_compare(matches).await?,
        Some(("peak", matches)) => run_peak(matches).await?,
        Some(("page", matches)) => {
            let file = Path::new(cli::text(matches, "file"));
            let comparison: Comparison = serde_json::from_slice(&fs::read(file)?)?;
            write_pages(&comparison, file.parent().context("a file is in a directory")?)?;
        }
        _ => unreachable!("clap requires one of the subcommands"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_compare(matches: &ArgMatches) -> anyhow::Result<()> {
    let (options, systems) = (cli::compare_options(matches), cli::directories(matches)?);
    let out = Path::new(cli::text(matches, "out"));
    let systems = systems.systems(&cli::list(matches, "systems"))?;
    systems::install(&systems)?;
    fs::create_dir_all(out)?;
    let mut comparison = Comparison {
        started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        machine: Machine::current(),
        versions: systems::versions()?,
        systems: systems
            .iter()
            .map(|system| Name { key: system.key.clone(), label: system.label.clone() })
            .collect(),
        rounds: Vec::new(),
        fills: Vec::new(),
    };
    let save = |comparison: &Comparison| {
        fs::write(out.join("comparison.json"), serde_json::to_vec(comparison)?)?;
        write_pages(comparison, out)
    };
    compare::run(&options, &systems, &mut comparison, save).await?;
    print!("{}", compare::table::markdown(&comparison));
    Ok(())
}

fn write_pages(comparison: &Comparison, out: &Path) -> anyhow::Result<()> {
    fs::write(out.join("comparison.md"), compare::table::markdown(comparison))?;
    Ok(fs::write(out.join("comparison.html"), compare::page::html(comparison))?)
}

async fn run_peak(matches: &ArgMatches) -> anyhow::Result<()> {
    let (options, directories) = (cli::peak_options(matches), cli::directories(matches)?);
    let systems = directories.systems(&cli::list(matches, "systems"))?;
    systems::install(&systems)?;
    for system in systems {
        eprintln!("{}", system.label);
        let running = system.start()?;
        let report = peak::run(&options, &running).await?;
        running.stop()?;
        println!("{}: {report}", system.label);
        if matches.get_flag("json") {
            println!("{}", json!({"system": system.key, "peak": report}));
        }
    }
    Ok(())
}

/// Prints what was measured, and which bounds were broken.
fn verdict(report: &impl std::fmt::Display, broken: &[String]) -> ExitCode {
    println!("{report}");
    for bound in broken {
        println!("BROKEN: {bound}");
    }
    if broken.is_empty() {
        println!("all bounds are kept");
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}

fn show(matches: &ArgMatches, table: &impl std::fmt::Display, json: String) {
    println!("{table}");
    if matches.get_flag("json") {
        println!("{json}");
    }
}
