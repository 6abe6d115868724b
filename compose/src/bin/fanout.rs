//! The fanout as a program.

use std::process::ExitCode;

use fanout::Config;
use naru::service;
use naru_runtime::{Program, Settings};
use tokio_util::sync::CancellationToken;

const PROGRAM: Program = Program {
    name: "fanout",
    about: "Finds the people of a saved message: a push for who is offline, then publish for who is not.",
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
