//! The journey of one message, from process to process.

use naru::pipeline::Changes;

use super::cluster::Cluster;
use crate::authorisation::{
    every_call_is_answered_by_who_asks_on, every_frame_is_answered_by_who_sends_it_on,
};
use crate::journey::ada_writes_and_bens_phone_buzzes_on;
use crate::log::is_in_no_log;
use crate::phones::{
    Emulator, each_of_bens_phones_buzzes_once_in_one_process, each_of_bens_phones_buzzes_once_on,
};
use crate::support::Naru;
use crate::users::sessions_end_everywhere_and_tokens_with_them;

/// Two phones, four processes.
#[tokio::test]
async fn ada_writes_and_bens_phone_buzzes_through_four_processes() {
    let mut cluster = Cluster::start().await;
    let workers = cluster.run_each().await;
    ada_writes_and_bens_phone_buzzes_on(workers[0].url(), &mut cluster.backend).await;
}

/// Two gateways: what is asked of one is done by both.
#[tokio::test]
async fn sessions_end_on_every_gateway() {
    let cluster = Cluster::start().await;
    let (one, other) = (cluster.run("gateway").await, cluster.run("gateway").await);
    sessions_end_everywhere_and_tokens_with_them([one.url(), other.url()]).await;
}

/// Two phones, one process on three services.
#[tokio::test]
async fn ada_writes_and_bens_phone_buzzes_in_one_process_on_services() {
    let cluster = Cluster::start().await;
    let mut naru = Naru::start_with(&flags_of(&cluster), Changes::default()).await;
    ada_writes_and_bens_phone_buzzes_on(&naru.url, &mut naru.backend).await;
    naru.stop().await;
}

/// A phone of each kind, one process on three services: the push is enqueued first there, too.
#[tokio::test]
async fn each_of_bens_phones_buzzes_once_in_one_process_on_services() {
    let (emulator, cluster) = (Emulator::new().await, Cluster::start().await);
    each_of_bens_phones_buzzes_once_in_one_process(&emulator, &flags_of(&cluster)).await;
}

/// Who may do what, one process on three services.
#[tokio::test]
async fn every_call_and_frame_is_answered_by_who_asks_on_services() {
    let cluster = Cluster::start().await;
    every_call_is_answered_by_who_asks_on(&flags_of(&cluster)).await;
    let cluster = Cluster::start().await;
    every_frame_is_answered_by_who_sends_it_on(&flags_of(&cluster)).await;
}

/// The libraries that speak to the services say what they carry as little as Naru itself.
#[tokio::test]
async fn no_content_and_no_secret_is_in_the_log_on_services() {
    let cluster = Cluster::start().await;
    let flags = flags_of(&cluster);
    let names =
        flags.iter().step_by(2).map(|flag| flag.replace("--", "naru-").replace('-', "_").to_uppercase());
    let names: Vec<String> = names.collect();
    let variables: Vec<_> =
        names.iter().map(String::as_str).zip(flags.iter().skip(1).step_by(2).copied()).collect();
    is_in_no_log("text", &variables).await;
}

/// The flags that lead an all-in-one to its services.
pub fn flags_of(cluster: &Cluster) -> [&str; 10] {
    [
        "--engine",
        "distributed",
        "--mongodb-url",
        &cluster.mongodb_url,
        "--mongodb-database",
        &cluster.mongodb_database,
        "--amqp-url",
        &cluster.amqp_url,
        "--redis-url",
        &cluster.redis_url,
    ]
}

/// A phone of each kind, four processes.
#[tokio::test]
async fn each_of_bens_phones_buzzes_once_through_four_processes() {
    let emulator = Emulator::new().await;
    let mut cluster = Cluster::start().await;
    for (name, value) in emulator.phones.environment() {
        cluster = cluster.with(name, &value);
    }
    let workers = cluster.run_each().await;
    each_of_bens_phones_buzzes_once_on(workers[0].url(), &mut cluster.backend, &emulator.handle()).await;
}
