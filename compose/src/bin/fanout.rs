//! The fanout as a program.

use std::process::ExitCode;

use fanout::Config;
use naru::service;
use naru_runtime::{Program, Settings};
use tokio_util::sync::CancellationToken;

const PROGRAM: Program = Program {
    name: "fanout",
    about: "Finds the recipients of a saved message: a push for those that are offline, then publish for the others.",
    overrides: &[("admin_listen", "127.0.0.1:9103")],
};

fn main() -> ExitCode {
    let check = |settings: &Settings| Ok(settings.pick::<Config>().map(drop)?);
    service::main(&PROGRAM, Some(1), check, async |service| {
        let config = service.settings.pick()?;
        let never = CancellationToken::new();
        fanout::run(&config, service.engines.clone(), &service.metrics, &service.supervisor, never);
        Ok(None)
    })
}
