//! The gateway as a program.

use std::process::ExitCode;

use gateway::{Bound, Config};
use naru::service;
use naru_runtime::{Program, Settings};

const PROGRAM: Program = Program {
    name: "gateway",
    about: "Accepts what phones send, forwards what is for them, serves the HTTP API.",
    overrides: &[],
};

fn main() -> ExitCode {
    let check = |settings: &Settings| Ok(gateway::check(&settings.pick::<Config>()?, &settings.pick()?)?);
    service::main(&PROGRAM, None, check, async |service| {
        let (config, tokens) = (service.settings.pick()?, service.settings.pick()?);
        let (engines, metrics, health) =
            (service.engines.clone(), service.metrics.clone(), service.health.clone());
        let bound = Bound::new(config, &tokens, engines, metrics, health).await?;
        let url = bound.url();
        bound.run(&service.supervisor, None).await?;
        Ok(Some(url))
    })
}
