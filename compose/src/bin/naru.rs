//! All of Naru in one process, and its subcommands.

use std::process::ExitCode;

use anyhow::Context;
use naru::token::Signer;
use naru::{PROGRAM, Pipeline, epoch, parked, phones, secret, service, token};
use naru_runtime::{Settings, config, output, signal};

fn main() -> ExitCode {
    service::report(&PROGRAM, run())
}

fn run() -> anyhow::Result<()> {
    let subcommands = [token::command(), parked::command(), phones::command(), epoch::command()];
    let matches = Settings::command(&PROGRAM).subcommands(subcommands).get_matches();
    let settings = Settings::load(&PROGRAM, &matches, config::environment())?;
    if Settings::print_wanted(&matches) {
        return service::print(settings.print());
    }
    if let Some(("token", wanted)) = matches.subcommand() {
        let signer = Signer::new(&settings, secret::of(&settings)?)?;
        return service::print(format_args!("{}\n", token::print(wanted, &signer)?));
    }
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match matches.subcommand() {
        Some(("restored", _)) => return runtime()?.block_on(epoch::restored(&settings)),
        Some(("parked", wanted)) => return runtime()?.block_on(parked::run(wanted, &settings)),
        Some(("phones", wanted)) => {
            return runtime()?.block_on(async {
                let shutdown = signal::shutdown().context("signals can't be listened to")?;
                phones::run(wanted, shutdown).await
            });
        }
        _ => {}
    }
    service::prepare(&settings)?;
    runtime()?.block_on(serve(&settings))
}

async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let shutdown = signal::shutdown().context("signals can't be listened to")?;
    let Some(pipeline) = Pipeline::start(settings, shutdown).await? else {
        return Ok(());
    };
    output::line(format_args!("listening on {}", pipeline.url()));
    pipeline.run().await
}
