//! The all-in-one's door: reads what is wanted, does it, leaves in order.

use std::process::ExitCode;

use anyhow::Context;
use naru::{DOOR, Pipeline, secret, token};
use naru_runtime::telemetry::LogFormat;
use naru_runtime::{Settings, config, limits, signal, telemetry};
use serde::Deserialize;

#[derive(Deserialize)]
struct Logs {
    log: String,
    log_format: LogFormat,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("naru: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let matches = Settings::command(&DOOR).subcommand(token::command()).get_matches();
    let settings = Settings::load(&DOOR, &matches, config::environment())?;
    if Settings::print_wanted(&matches) {
        print!("{}", settings.print());
        return Ok(());
    }
    if let Some(("token", wanted)) = matches.subcommand() {
        println!("{}", token::print(wanted, &secret::of(&settings)?)?);
        return Ok(());
    }
    let logs: Logs = settings.pick()?;
    telemetry::init(&logs.log, logs.log_format)?;
    for name in settings.unknown_environment() {
        tracing::warn!(name, "an environment variable that no key has");
    }
    if let Err(error) = limits::raise_open_files() {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(&settings))
}

async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let shutdown = signal::shutdown().context("signals can't be listened to")?;
    let pipeline = Pipeline::start(settings, shutdown).await?;
    println!("listening on http://{}", pipeline.address());
    pipeline.run().await
}
