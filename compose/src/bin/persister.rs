//! The persister as a program.

use std::process::ExitCode;

use naru::service;
use naru_runtime::{Program, Settings};
use persister::Config;

const PROGRAM: Program = Program {
    name: "persister",
    about: "Gives every accepted message its place in the room, saves it and confirms the saved id.",
    overrides: &[("admin_listen", "127.0.0.1:9102")],
};

fn main() -> ExitCode {
    let check = |settings: &Settings| Ok(settings.pick::<Config>().map(drop)?);
    service::main(&PROGRAM, Some(1), check, async |service| {
        let config = service.settings.pick()?;
        persister::run(&config, service.engines.clone(), &service.metrics, &service.supervisor);
        Ok(None)
    })
}
