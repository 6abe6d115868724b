//! The command line: every option with its help, and the values made from them.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::{
    compare, fill, flow, idle, memory, overload, peak,
    process::Group,
    push,
    session::{Protocol, Server},
    storm, stranger,
    systems::{Directories, KEYS},
};

fn required(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).required(true).help(help)
}

fn with_default(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).default_value(default).help(help)
}

fn count_arg(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    with_default(name, default, help).value_parser(value_parser!(u32).range(1..))
}

fn time_arg(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    with_default(name, default, help).value_parser(humantime::parse_duration)
}

/// Numbers with commas between them.
fn counts_arg(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    count_arg(name, default, help).value_delimiter(',')
}

pub fn command() -> Command {
    let json = Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print one line of JSON after the table");
    let server = [
        required("url", "The server: http://HOST:PORT (may be repeated: its gateways)")
            .action(ArgAction::Append),
        required("secret", "Its NARU_JWT_SECRET"),
        json.clone(),
    ];
    let pid = Arg::new("pid").long("pid").value_parser(value_parser!(u32)).help("A server process to watch");
    let pids = pid.clone().action(ArgAction::Append).help("A server process to watch (may be repeated)");
    let max_memory =
        count_arg("max-memory", "640", "The most resident memory of all watched processes, in MiB");
    let load = [
        count_arg("pairs", "100", "Direct rooms; both members send"),
        count_arg("bytes", "100", "Content size"),
        time_arg("drain-timeout", "10s", "How long to wait for stragglers before they count as lost"),
    ];
    let directories = [
        Arg::new("systems")
            .long("systems")
            .value_delimiter(',')
            .help("Which, with commas between; all if not given"),
        with_default("naru", "", "The directory of Naru's programs; that of this program if not given"),
        Arg::new("against")
            .long("against")
            .help("The directory of another version's programs, to be measured, too"),
        with_default("data", "target/bench-data", "Where the systems keep their data; on a real disk"),
        Arg::new("keep-data")
            .long("keep-data")
            .action(ArgAction::SetTrue)
            .help("Start with the data of an earlier run, which is removed otherwise"),
        Arg::new("set")
            .long("set")
            .action(ArgAction::Append)
            .help("NAME=VALUE for Naru's programs, as NARU_DELIVERY_GRACE=10s (may be repeated)"),
    ];
    Command::new("naru-bench")
        .about("An open-loop load tool for Naru")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(Command::new("idle").about("Memory per idle connection").args(server.clone()).args([
            count_arg("connections", "4000", "How many sessions, each of its own user"),
            count_arg("connect-rate", "500", "New sessions per second"),
            time_arg("hold", "2s", "How long to hold them all before the memory is read"),
            pids.clone(),
        ]))
        .subcommand(
            Command::new("push")
                .about("How fast pushes leave, and what they cost")
                .args(server.clone())
                .args([
                    required("phones", "The emulator's admin address: http://HOST:PORT"),
                    with_default("platform", "apns", "The provider whose devices they are")
                        .value_parser(["apns", "fcm"]),
                    count_arg("recipients", "50", "Members without a session, a device each"),
                    count_arg("messages", "100", "Messages that each of them misses"),
                    time_arg("timeout", "5m", "How long all of it may take"),
                    pid,
                ]),
        )
        .subcommand(
            Command::new("flow")
                .about("Latency, cost and loss of messages at a fixed rate")
                .args(server.clone())
                .args(load.clone())
                .args([
                    count_arg("rate", "500", "Messages per second, over all senders"),
                    time_arg("duration", "20s", "How long to measure"),
                    time_arg("warmup", "3s", "How long to send before, unmeasured"),
                    pids.clone(),
                ]),
        )
        .subcommand(
            Command::new("overload")
                .about("More than the server can take: memory, refusals, recovery")
                .args(server.clone())
                .args(load.clone())
                .args([
                    count_arg("rate", "48000", "Messages per second, over all senders: twice the peak"),
                    time_arg("duration", "1m", "How long"),
                    time_arg("recover-within", "5s", "How soon it must be as quick as before"),
                    max_memory.clone(),
                    pids.clone(),
                ]),
        )
        .subcommand(
            Command::new("storm")
                .about("Many sessions that are opened at the same moment")
                .args(server.clone())
                .args([
                    count_arg("connections", "5000", "How many sessions, each of its own user"),
                    count_arg("connects-per-second", "1000", "The server's NARU_RATE_CONNECTS_PER_SECOND"),
                    count_arg("rate", "100", "Messages per second of those who are there"),
                    count_arg("pairs", "20", "Their direct rooms"),
                    time_arg("timeout", "1m", "How long all of it may take"),
                ]),
        )
        .subcommand(
            Command::new("stranger")
                .about("One user who does the worst they can, beside others")
                .args(server.clone())
                .args([
                    count_arg("sockets", "50", "How many connections the stranger has"),
                    count_arg("rate", "100", "Messages per second of the others"),
                    count_arg("pairs", "20", "Their direct rooms"),
                    time_arg("duration", "1m", "How long"),
                    count_arg("max-ratio", "5", "How many times the quiet ACK p99 theirs may be"),
                ]),
        )
        .subcommand(
            Command::new("memory")
                .about("Clients that ask for as much as they can and read nothing")
                .args(server.clone())
                .args([
                    count_arg("sessions", "900", "How many, each of its own user; a tenth more each second"),
                    time_arg("duration", "20s", "How long"),
                    max_memory,
                    pids.clone(),
                ]),
        )
        .subcommand(Command::new("fill").about("Store many messages in many rooms").args(server).args([
            count_arg("messages", "1000000", "How many messages"),
            count_arg("rooms", "100000", "How many rooms, over which they are spread"),
            count_arg("bytes", "100", "Content size"),
        ]))
        .subcommand(
            Command::new("compare")
                .about("Measure several systems in interleaved rounds")
                .args(directories.clone())
                .args(load.clone())
                .args([
                    count_arg("rounds", "5", "How often each system has its turn"),
                    counts_arg("rates", "300,1000,2000", "Messages per second, with commas between"),
                    time_arg("duration", "10s", "How long each rate is measured"),
                    time_arg("warmup", "3s", "How long is sent before that, unmeasured"),
                    count_arg("lone-rate", "5", "Messages per second when each is alone"),
                    time_arg("lone-duration", "10s", "How long those are sent"),
                    counts_arg(
                        "connections",
                        "1000,2000,4000",
                        "Numbers of idle connections, in rising order",
                    ),
                    count_arg("connect-rate", "500", "New connections per second"),
                    time_arg("hold", "2s", "How long to hold them all before the memory is read"),
                    Arg::new("fill-messages")
                        .long("fill-messages")
                        .value_parser(value_parser!(u32).range(1..))
                        .help("Measure everything again after this many messages were stored"),
                    count_arg("fill-rooms", "100000", "The rooms over which they are spread"),
                    with_default("out", "target/comparison", "Where JSON, table and page go"),
                ]),
        )
        .subcommand(
            Command::new("peak")
                .about("The highest rate that each system holds")
                .args(directories)
                .args(load)
                .args([
                    count_arg("start", "1000", "The first rate that is tried"),
                    count_arg("limit", "32000", "The highest rate that is tried"),
                    count_arg("precision", "5", "When to stop, in percent of the rate"),
                    time_arg("duration", "4s", "How long each rate is measured"),
                    time_arg("warmup", "2s", "How long is sent before that, unmeasured"),
                    json,
                ]),
        )
        .subcommand(
            Command::new("page")
                .about("Make table and page from a comparison's JSON again")
                .arg(Arg::new("file").required(true).help("comparison.json; the others go beside it")),
        )
}

pub fn idle_options(matches: &ArgMatches) -> anyhow::Result<idle::Options> {
    Ok(idle::Options {
        server: server(matches),
        connections: count(matches, "connections"),
        connect_rate: count(matches, "connect-rate"),
        hold: time(matches, "hold"),
        groups: groups(matches)?,
    })
}

pub fn flow_options(matches: &ArgMatches) -> anyhow::Result<flow::Options> {
    Ok(flow::Options {
        server: server(matches),
        rate: count(matches, "rate"),
        duration: time(matches, "duration"),
        warmup: time(matches, "warmup"),
        drain_timeout: time(matches, "drain-timeout"),
        pairs: count(matches, "pairs"),
        bytes: count(matches, "bytes"),
        groups: groups(matches)?,
    })
}

/// Pairs that write to each other beside what is tried.
fn others(matches: &ArgMatches) -> anyhow::Result<flow::Options> {
    Ok(flow::Options {
        server: server(matches),
        rate: count(matches, "rate"),
        duration: Duration::from_secs(10),
        warmup: Duration::from_secs(2),
        drain_timeout: Duration::from_secs(5),
        pairs: count(matches, "pairs"),
        bytes: 100,
        groups: Vec::new(),
    })
}

pub fn overload_options(matches: &ArgMatches) -> anyhow::Result<overload::Options> {
    Ok(overload::Options {
        flow: flow::Options {
            duration: time(matches, "duration"),
            drain_timeout: time(matches, "drain-timeout"),
            bytes: count(matches, "bytes"),
            groups: groups(matches)?,
            ..others(matches)?
        },
        recover_within: time(matches, "recover-within"),
        max_memory_mib: count(matches, "max-memory"),
        pids: list(matches, "pid"),
    })
}

pub fn storm_options(matches: &ArgMatches) -> anyhow::Result<storm::Options> {
    Ok(storm::Options {
        others: others(matches)?,
        connections: count(matches, "connections"),
        per_second: count(matches, "connects-per-second"),
        timeout: time(matches, "timeout"),
    })
}

pub fn stranger_options(matches: &ArgMatches) -> anyhow::Result<stranger::Options> {
    Ok(stranger::Options {
        others: others(matches)?,
        sockets: count(matches, "sockets"),
        duration: time(matches, "duration"),
        max_ratio: count(matches, "max-ratio"),
    })
}

pub fn memory_options(matches: &ArgMatches) -> anyhow::Result<memory::Options> {
    Ok(memory::Options {
        server: server(matches),
        sessions: count(matches, "sessions"),
        duration: time(matches, "duration"),
        max_memory_mib: count(matches, "max-memory"),
        pids: list(matches, "pid"),
    })
}

pub fn amount(matches: &ArgMatches) -> fill::Amount {
    fill::Amount {
        messages: count(matches, "messages"),
        rooms: count(matches, "rooms"),
        bytes: count(matches, "bytes"),
    }
}

pub fn push_options(matches: &ArgMatches) -> push::Options {
    push::Options {
        server: server(matches),
        phones: text(matches, "phones").to_owned(),
        platform: text(matches, "platform").to_owned(),
        recipients: count(matches, "recipients"),
        messages: count(matches, "messages"),
        timeout: time(matches, "timeout"),
        pid: matches.get_one("pid").copied(),
    }
}

pub fn compare_options(matches: &ArgMatches) -> compare::Options {
    let fill = matches.get_one("fill-messages").map(|messages| fill::Amount {
        messages: *messages,
        rooms: count(matches, "fill-rooms"),
        bytes: count(matches, "bytes"),
    });
    compare::Options {
        rounds: count(matches, "rounds"),
        rates: list(matches, "rates"),
        duration: time(matches, "duration"),
        warmup: time(matches, "warmup"),
        drain_timeout: time(matches, "drain-timeout"),
        pairs: count(matches, "pairs"),
        bytes: count(matches, "bytes"),
        lone: (count(matches, "lone-rate"), time(matches, "lone-duration")),
        connections: list(matches, "connections"),
        connect_rate: count(matches, "connect-rate"),
        hold: time(matches, "hold"),
        fill,
    }
}

pub fn peak_options(matches: &ArgMatches) -> peak::Options {
    peak::Options {
        start: count(matches, "start"),
        limit: count(matches, "limit"),
        precision: f64::from(count(matches, "precision")) / 100.0,
        duration: time(matches, "duration"),
        warmup: time(matches, "warmup"),
        drain_timeout: time(matches, "drain-timeout"),
        pairs: count(matches, "pairs"),
        bytes: count(matches, "bytes"),
    }
}

/// Where the systems are. Data of an earlier run is removed, unless it is asked for.
pub fn directories(matches: &ArgMatches) -> anyhow::Result<Directories> {
    let data = PathBuf::from(text(matches, "data"));
    // Only the folders of a run: the directory may hold other files.
    for old in KEYS.map(|key| data.join(key)) {
        if !matches.get_flag("keep-data") && old.exists() {
            fs::remove_dir_all(&old).with_context(|| format!("{} can't be removed", old.display()))?;
        }
    }
    fs::create_dir_all(&data)?;
    let this = std::env::current_exe()?;
    let naru = match text(matches, "naru") {
        "" => this.parent().context("a program is in a directory")?.to_owned(),
        naru => naru.into(),
    };
    let variables = matches.get_many::<String>("set").into_iter().flatten().map(|variable| {
        let (name, value) =
            variable.split_once('=').with_context(|| format!("{variable:?} is not NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    });
    Ok(Directories {
        naru,
        against: matches.get_one::<String>("against").map(PathBuf::from),
        data: data.canonicalize()?,
        variables: variables.collect::<anyhow::Result<_>>()?,
    })
}

pub fn server(matches: &ArgMatches) -> Server {
    let urls = matches.get_many("url").expect("required").cloned().collect();
    Server { protocol: Protocol::Naru, urls, secret: text(matches, "secret").to_owned() }
}

/// A group for each watched process.
fn groups(matches: &ArgMatches) -> anyhow::Result<Vec<Group>> {
    matches.get_many("pid").into_iter().flatten().copied().map(Group::of_process).collect()
}

pub fn text<'a>(matches: &'a ArgMatches, name: &str) -> &'a str {
    matches.get_one::<String>(name).expect("required or has a default")
}

/// Values with commas between; none if the option is not given and has no default.
pub fn list<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> Vec<T> {
    matches.get_many(name).into_iter().flatten().cloned().collect()
}

fn count(matches: &ArgMatches, name: &str) -> u32 {
    *matches.get_one(name).expect("has a default")
}

fn time(matches: &ArgMatches, name: &str) -> Duration {
    *matches.get_one(name).expect("has a default")
}

#[cfg(test)]
mod tests;
