//! Each service goes away for ten seconds, stopped in order or killed, while people talk. What they see is what
//! docs/OUTAGES.md says; nothing that was confirmed is lost, and all heals by itself.

use std::fs;
use std::time::{Duration, Instant};

use naru_client::{ServerProcess, Webhook};
use naru_services::{Kind, Service};
use tokio::sync::watch;

use super::cluster::{Cluster, until};
use super::traffic::{Gateways, Traffic, at};

/// How long a service is down.
const OUTAGE: Duration = Duration::from_secs(10);
/// After its return all clients are served again within this.
const MAX_RECOVERY: Duration = Duration::from_secs(5);
/// No process may take this much more memory for it.
const GROWTH: u64 = 64 << 20;
/// How many talk.
const TALKS: usize = 16;
/// How long each of them thinks between two messages.
const THINKS_FOR: Duration = Duration::from_millis(200);

/// How a service leaves.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Stopped,
    Killed,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_may_be_away_for_ten_seconds() {
    may_be_unavailable(Kind::Mongodb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_may_be_away_for_ten_seconds() {
    may_be_unavailable(Kind::Rabbitmq).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_may_be_away_for_ten_seconds() {
    may_be_unavailable(Kind::Redis).await;
}

/// A service of this kind is stopped, and then killed, below a deployment of one process of each worker and a second gateway.
async fn may_be_unavailable(kind: Kind) {
    let started = tokio::task::spawn_blocking(move || {
        let service = Service::start(kind);
        // A Redis of the test's own in any case: Pub/Sub has no databases.
        let redis = (kind != Kind::Redis).then(|| Service::start(Kind::Redis));
        let mongodb =
            if kind == Kind::Mongodb { service.url() } else { naru_services::url(Kind::Mongodb).to_owned() };
        let rabbitmq = if kind == Kind::Rabbitmq { service.url() } else { naru_services::own_virtual_host() };
        let on = (mongodb, rabbitmq, redis.as_ref().unwrap_or(&service).url());
        (service, redis, on)
    });
    let (mut service, _redis, (mongodb, rabbitmq, redis)) = started.await.expect("services");
    // What was not received is pushed soon, so that the end need not be waited for.
    let mut cluster = Cluster::on(mongodb, rabbitmq, redis).await.with("NARU_DELIVERY_GRACE", "1s");
    let workers = cluster.run_each().await;
    let other_gateway = cluster.run("gateway").await;
    let (_tell, gateways) = watch::channel(at(&[&workers[0], &other_gateway]));
    let all: Vec<&ServerProcess> = workers.iter().chain([&other_gateway]).collect();

    println!(
        "| service | left | acknowledged meanwhile | senders saw | listeners saw | longest wait | served again after | memory |"
    );
    for leaves in [Leaves::Stopped, Leaves::Killed] {
        outage(kind, &mut service, leaves, &all, &gateways, &mut cluster.backend).await;
    }
}

async fn outage(
    kind: Kind,
    service: &mut Service,
    leaves: Leaves,
    processes: &[&ServerProcess],
    gateways: &Gateways,
    backend: &mut Webhook,
) {
    let name = format!("{}-{leaves:?}", kind.as_str()).to_lowercase();
    let traffic = Traffic::start(&name, 0..TALKS, THINKS_FOR, gateways).await;
    traffic.goes_on(10 * TALKS as u64).await;
    let memory = memory_of(processes);

    let left = Instant::now();
    tokio::task::block_in_place(|| match leaves {
        Leaves::Stopped => service.stop(),
        Leaves::Killed => service.kill(),
    });
    let before = traffic.acknowledged();
    tokio::time::sleep_until((left + OUTAGE).into()).await;
    let meanwhile = traffic.acknowledged() - before;
    let grown = memory_of(processes).iter().zip(&memory).map(|(now, then)| now.saturating_sub(*then)).max();
    let grown = grown.expect("there are processes");
    tokio::task::block_in_place(|| service.start_again());
    let back = Instant::now();
    until("all clients are served again", async || traffic.all_served_since(back)).await;
    let healed = back.elapsed();
    traffic.goes_on(10 * TALKS as u64).await;
    let ended = Instant::now();

    let memories = traffic.end().await;
    let there = memories.check(processes[0]).await;
    memories.all_told(&there, backend).await;
    let [senders, listeners] = memories.troubles();
    println!(
        "| {} | {leaves:?} | {meanwhile} | {senders:?} | {listeners:?} | {:.1?} | {healed:.1?} | +{} MiB |",
        kind.as_str(),
        memories.slowest(left, ended).lasted,
        grown >> 20,
    );
    assert!(healed < MAX_RECOVERY, "{name}: served again only after {healed:?}");
    assert!(grown < GROWTH, "{name}: a process took {grown} bytes more");
}

/// What each process holds in memory, in bytes.
fn memory_of(processes: &[&ServerProcess]) -> Vec<u64> {
    let resident = |process: &&ServerProcess| {
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says so");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    };
    processes.iter().map(resident).collect()
}
