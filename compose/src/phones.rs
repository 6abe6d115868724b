//! The provider emulator: `naru phones`, and the phones on the demo's desk.
//!
//! It serves FCM's, Google OAuth2's and APNs' protocols (the crate `naru-phones`), so a notifier pushes to it as it does to
//! Google and Apple.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use naru_phones::{Options, Phones};
use tokio_util::sync::CancellationToken;

/// The subcommand.
pub fn command() -> Command {
    let address = |name: &'static str, default: &'static str, help: &'static str| {
        let arg = Arg::new(name).long(name).value_name("ADDRESS").default_value(default).help(help);
        arg.value_parser(value_parser!(SocketAddr))
    };
    Command::new("phones")
        .about(
            "Plays FCM and APNs for a notifier without keys, and prints the environment that leads it here",
        )
        .arg(
            Arg::new("dir")
                .long("dir")
                .value_name("DIR")
                .default_value("./naru-phones")
                .value_parser(value_parser!(PathBuf))
                .help("Where the keys and certificates lie; they are made when missing"),
        )
        .arg(
            Arg::new("host")
                .long("host")
                .value_name("NAME")
                .default_value("localhost")
                .help("The name by which the notifier reaches it; the certificate is for it"),
        )
        .arg(address("fcm", "127.0.0.1:9201", "Where FCM and OAuth2 listen"))
        .arg(address("apns", "127.0.0.1:9202", "Where APNs listens"))
        .arg(address("admin", "127.0.0.1:9200", "Where /pushes and /counts are, over HTTP"))
}

/// Runs the emulator until `shutdown`.
///
/// # Errors
/// When an address can't be bound, or the keys can't be made or read.
pub async fn run(wanted: &ArgMatches, shutdown: CancellationToken) -> anyhow::Result<()> {
    let address = |name: &str| wanted.get_one::<SocketAddr>(name).copied().context("an address");
    let dir = wanted.get_one::<PathBuf>("dir").context("--dir")?;
    let host = wanted.get_one::<String>("host").context("--host")?;
    let options = Options {
        fcm: address("fcm")?,
        apns: address("apns")?,
        admin: Some(address("admin")?),
        host: host.clone(),
        ..Options::in_dir(dir)
    };
    let phones = Phones::start(options).await?;
    crate::service::print(phones)?;
    shutdown.cancelled().await;
    Ok(())
}
