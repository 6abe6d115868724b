//! The notifier as a program.

use std::process::ExitCode;

use naru::service;
use naru_runtime::{Program, Settings};
use notifier::Notifier;

const PROGRAM: Program = Program {
    name: "notifier",
    about: "Pushes messages to the devices of recipients that are offline or have not proven delivery.",
    overrides: &[("admin_listen", "127.0.0.1:9104")],
};

fn main() -> ExitCode {
    let check = |settings: &Settings| Ok(notifier::check(&settings.pick()?)?);
    service::main(&PROGRAM, Some(1), check, async |service| {
        Notifier::new(service.settings.pick()?, service.engines.clone(), &service.metrics)?
            .spawn_on(&service.supervisor, &service.health);
        Ok(None)
    })
}
