//! `naru-bench`: what a Naru server costs and how fast it is, measured through the contract on the wire.
//!
//! ```text
//! naru-bench idle --url http://127.0.0.1:8080 --secret S --connections 4000 --pid PID
//! naru-bench flow --url http://127.0.0.1:8080 --secret S --rate 500 --duration 20s --pairs 100 --pid PID --json
//! naru-bench push --url http://127.0.0.1:8080 --secret S --phones http://127.0.0.1:9200 --platform apns --pid PID
//! ```
//!
//! With `--url` more than once sessions are spread over several gateways: of two, each pair has one member on either.
//!
//! - `idle` opens sessions and reports the server's resident memory per connection.
//! - `flow` lets pairs of users write to each other at a fixed rate and reports how long the `ACK` and the delivery
//!   take, what the server spends on it, and what was lost or came twice. It leaves with 1 if anything confirmed was
//!   lost, came twice, or came to the wrong session.
//! - `push` lets the members of a room miss messages, and reports how fast their phones get them from a server that pushes to
//!   the emulator of `naru phones`.
//!
//! The load is *open-loop*: when each message is due is fixed before the run, and its latency counts from then, not
//! from when a slow server let the tool get round to it (no "coordinated omission"). The tool runs on one core and
//! reports what it used of it, and how late it was itself ("sent"): figures where that is not small against the
//! others say more about the tool than about the server.
//!
//! The server's rate limit counts per user: above 100 messages per second and user (`NARU_RATE_MESSAGES_PER_SECOND`)
//! give it more pairs or a higher limit.

#[cfg(test)]
mod fake_server;
mod flow;
mod idle;
mod ledger;
mod process;
mod push;
mod session;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let matches = command().get_matches();
    process::raise_open_files_limit().context("cannot raise the limit on open files")?;
    match matches.subcommand() {
        Some(("idle", matches)) => {
            let report = idle::run(&idle_options(matches)).await?;
            show(matches, &report, report.to_json());
            Ok(ExitCode::SUCCESS)
        }
        Some(("flow", matches)) => {
            let report = flow::run(&flow_options(matches)).await?;
            show(matches, &report, serde_json::to_string(&report)?);
            Ok(if report.keeps_promises() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Some(("push", matches)) => {
            let report = push::run(&push_options(matches)).await?;
            show(matches, &report, report.to_json());
            Ok(ExitCode::SUCCESS)
        }
        _ => unreachable!("clap requires one of the subcommands"),
    }
}

fn show(matches: &ArgMatches, table: &impl std::fmt::Display, json: String) {
    println!("{table}");
    if matches.get_flag("json") {
        println!("{json}");
    }
}

fn command() -> Command {
    let required =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).required(true).help(help);
    let count = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .default_value(default)
            .value_parser(value_parser!(u32).range(1..))
            .help(help)
    };
    let time = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name).long(name).default_value(default).value_parser(humantime::parse_duration).help(help)
    };
    let shared = [
        required("url", "The server: http://HOST:PORT (may be repeated: its gateways)")
            .action(ArgAction::Append),
        required("secret", "Its NARU_JWT_SECRET"),
        Arg::new("json")
            .long("json")
            .action(ArgAction::SetTrue)
            .help("Print one line of JSON after the table"),
    ];
    let pid = Arg::new("pid").long("pid").value_parser(value_parser!(u32)).help("A server process to watch");
    Command::new("naru-bench")
        .about("An open-loop load tool for Naru")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(Command::new("idle").about("Memory per idle connection").args(shared.clone()).args([
            count("connections", "4000", "How many sessions, each of its own user"),
            count("connect-rate", "500", "New sessions per second"),
            time("hold", "2s", "How long to hold them all before the memory is read"),
            pid.clone(),
        ]))
        .subcommand(
            Command::new("push")
                .about("How fast pushes leave, and what they cost")
                .args(shared.clone())
                .args([
                    required("phones", "The emulator's admin address: http://HOST:PORT"),
                    Arg::new("platform")
                        .long("platform")
                        .default_value("apns")
                        .value_parser(["apns", "fcm"])
                        .help("Whose phones"),
                    count("recipients", "50", "Members who are away, a phone each"),
                    count("messages", "100", "Messages that each of them misses"),
                    time("patience", "5m", "How long all of it may take"),
                    pid.clone(),
                ]),
        )
        .subcommand(
            Command::new("flow")
                .about("Latency, cost and loss of messages at a fixed rate")
                .args(shared)
                .args([
                    count("rate", "500", "Messages per second, over all senders"),
                    time("duration", "20s", "How long to measure"),
                    time("warmup", "3s", "How long to send before, unmeasured"),
                    time("settle", "10s", "How long to wait for stragglers before they count as lost"),
                    count("pairs", "100", "Direct rooms; both members send"),
                    count("bytes", "100", "Content size"),
                    pid.action(ArgAction::Append).help("A server process to watch (may be repeated)"),
                ]),
        )
}

fn idle_options(matches: &ArgMatches) -> idle::Options {
    idle::Options {
        server: server(matches),
        connections: count(matches, "connections"),
        connect_rate: count(matches, "connect-rate"),
        hold: time(matches, "hold"),
        pid: matches.get_one("pid").copied(),
    }
}

fn flow_options(matches: &ArgMatches) -> flow::Options {
    flow::Options {
        server: server(matches),
        rate: count(matches, "rate"),
        duration: time(matches, "duration"),
        warmup: time(matches, "warmup"),
        settle: time(matches, "settle"),
        pairs: count(matches, "pairs"),
        bytes: count(matches, "bytes"),
        pids: matches.get_many("pid").into_iter().flatten().copied().collect(),
    }
}

fn push_options(matches: &ArgMatches) -> push::Options {
    let text = |name: &str| matches.get_one::<String>(name).expect("required or has a default").clone();
    push::Options {
        server: server(matches),
        phones: text("phones"),
        platform: text("platform"),
        recipients: count(matches, "recipients"),
        messages: count(matches, "messages"),
        patience: time(matches, "patience"),
        pid: matches.get_one("pid").copied(),
    }
}

fn server(matches: &ArgMatches) -> session::Server {
    let text = |name: &str| matches.get_one::<String>(name).expect("required").clone();
    let urls = matches.get_many("url").expect("required").cloned().collect();
    session::Server { urls, secret: text("secret") }
}

fn count(matches: &ArgMatches, name: &str) -> u32 {
    *matches.get_one(name).expect("has a default")
}

fn time(matches: &ArgMatches, name: &str) -> Duration {
    *matches.get_one(name).expect("has a default")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_of_the_documentation_parse() {
        command().debug_assert();
        let line =
            "naru-bench flow --url u --url v --secret S --rate 500 --duration 20s --pid 1 --pid 2 --json";
        let matches = command().try_get_matches_from(line.split(' ')).expect("parses");
        let options = flow_options(matches.subcommand().expect("flow").1);
        assert_eq!(
            (options.rate, options.warmup, &options.pids[..]),
            (500, Duration::from_secs(3), &[1, 2][..])
        );
        assert_eq!([0, 1, 2].map(|number| options.server.url(number)), ["u", "v", "u"]);
        let line = "naru-bench push --url u --secret S --phones p --platform fcm --pid 1";
        let matches = command().try_get_matches_from(line.split(' ')).expect("parses");
        let options = push_options(matches.subcommand().expect("push").1);
        assert_eq!((options.recipients * options.messages, options.pid), (5_000, Some(1)));
        let line = "naru-bench idle --url u --secret S --connections 4000 --pid 1";
        let matches = command().try_get_matches_from(line.split(' ')).expect("parses");
        assert_eq!(idle_options(matches.subcommand().expect("idle").1).pid, Some(1));
    }
}
