//! Restores of the store from a backup: the command that an operator gives after one, and the end of a process that ran
//! through one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Command;
use naru_embedded::{Embedded, Options};
use naru_engines::store::Epochs;
use naru_model::StoreEpoch;
use naru_mongo::Restored;
use naru_rabbit::Rabbit;
use naru_runtime::{Policy, Settings, Supervisor};
use serde::Deserialize;

use crate::pipeline::Engine;
use crate::service;

/// How often a process looks whether its store was restored.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Config {
    engine: Engine,
    data_dir: PathBuf,
    mongodb_url: String,
    mongodb_database: String,
    amqp_url: String,
    partitions: u32,
}

/// The subcommand.
pub fn command() -> Command {
    Command::new("restored").about(
        "After the data was restored from a backup, while Naru is stopped: begins an epoch, so that clients load their \
         rooms again (docs/RESTORE.md)",
    )
}

/// Does it, and prints the epoch on stdout.
///
/// # Errors
/// When the data is not there, is in use, or a service does not answer: nothing runs on it then, and it may be tried again.
pub async fn restored(settings: &Settings) -> anyhow::Result<()> {
    let config: Config = settings.pick()?;
    let epoch = match config.engine {
        Engine::Embedded => restored_in(&config.data_dir).await?,
        Engine::Distributed => {
            let data =
                Restored::open(&config.mongodb_url, &config.mongodb_database, config.partitions).await?;
            // The queues first, because the epoch tells that all is done.
            let options = naru_rabbit::Options { partitions: config.partitions, ..Default::default() };
            let rabbit = Rabbit::open(&config.amqp_url, options).await?;
            let purged = rabbit.purge().await;
            rabbit.close().await;
            let purged = purged.context("the queues were not emptied")?;
            service::print(format_args!("{purged} messages were removed from the queues\n"))?;
            data.begin_epoch().await?
        }
    };
    service::print(format_args!("the restored data begins epoch {epoch}; Naru can be started\n"))
}

async fn restored_in(data_dir: &Path) -> anyhow::Result<StoreEpoch> {
    let database = data_dir.join(Embedded::DATABASE);
    if !database.exists() {
        bail!("there is no {}: was it restored elsewhere? `data_dir` says where", database.display());
    }
    let embedded = Embedded::open(data_dir, Options::default())
        .with_context(|| format!("the data in {} can't be opened", data_dir.display()))?;
    let epoch = embedded.engines().store.epochs.restored().await;
    embedded.close().await;
    Ok(epoch?)
}

/// Stops the process when the store has another epoch than `then`, at which it started: it remembers what the store has no
/// more, such as heads, saved messages and members. (An embedded store belongs to its process, and can't be restored meanwhile.)
pub(crate) fn watch(epochs: Arc<dyn Epochs>, then: StoreEpoch, supervisor: &Supervisor) {
    supervisor.spawn("epoch", Policy::StopAll, move |stop| {
        let epochs = epochs.clone();
        async move {
            while stop.run_until_cancelled(tokio::time::sleep(CHECK_INTERVAL)).await.is_some() {
                match epochs.get().await {
                    Ok(now) if now != then => bail!(
                        "the data was restored from a backup while this process ran (epoch {then}, now {now}), and what \
                         it remembers is of the data before: start it again"
                    ),
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "the epoch was not read; trying again"),
                }
            }
            Ok(())
        }
    });
}
