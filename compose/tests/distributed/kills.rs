//! A hundred times kill -9, of each worker and of gateways, while people talk. Nothing that was confirmed may be missing,
//! nothing that was accepted may be forgotten, nothing may be there twice, and every recipient is told.
//!
//! All choices are drawn from one seed, which is printed and can be given again as `NARU_TEST_SEED`. It repeats the
//! choices, not the scheduling of the processes: a fault found with a seed may need a few tries to come again.

use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};
use naru_client::ServerProcess;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;

use super::cluster::{Cluster, until};
use super::traffic::{Traffic, at};

/// How many rounds there are unless `NARU_TEST_ROUNDS` says otherwise.
const ROUNDS: u64 = 100;
/// How many talk.
const TALKS: usize = 16;
/// How long each of them thinks between two messages.
const THINKS_FOR: Duration = Duration::from_millis(200);
/// The longest wait between the chosen moment and the kill.
const KILL_WITHIN: Duration = Duration::from_millis(3);
/// What may be killed: two gateways and one of each other worker.
const WORKERS: [&str; 5] = ["gateway", "gateway", "persister", "fanout", "notifier"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_of_any_worker_lose_nothing() {
    let given = |name: &str| Some(std::env::var(name).ok()?.parse().expect("a number"));
    let seed: u64 = given("NARU_TEST_SEED").unwrap_or_else(rand::random);
    let rounds = given("NARU_TEST_ROUNDS").unwrap_or(ROUNDS);
    eprintln!("NARU_TEST_SEED={seed} NARU_TEST_ROUNDS={rounds}");
    let mut rng = StdRng::seed_from_u64(seed);

    // A recipient without proof of delivery is pushed to soon, so that the end need not be waited for.
    let mut cluster = Cluster::start().await.with("NARU_DELIVERY_GRACE", "1s").with("NARU_PARTITIONS", "4");
    let mut processes: Vec<ServerProcess> = Vec::new();
    for worker in WORKERS {
        processes.push(cluster.run(worker).await);
    }
    let (tell, gateways) = watch::channel(at(&[&processes[0], &processes[1]]));
    let traffic = Traffic::start("kills", 0..TALKS, THINKS_FOR, &gateways).await;

    let (begun, mut kills) = (Instant::now(), [0; WORKERS.len()]);
    for _ in 0..rounds {
        let victim = rng.random_range(0..WORKERS.len());
        traffic.goes_on(rng.random_range(0..30)).await;
        pass(KILL_WITHIN.mul_f64(rng.random_range(0.0..1.0))).await;
        processes[victim].kill9().await;
        kills[victim] += 1;
        processes[victim] = cluster.run(WORKERS[victim]).await;
        tell.send_replace(at(&[&processes[0], &processes[1]]));
    }
    let took = begun.elapsed();

    let memories = traffic.end().await;
    // No client resends any more: what was accepted must end its journey by itself.
    let database = cluster.database().await;
    let intake = database.collection::<Document>("intake");
    until("nothing accepted is open", async || {
        intake.count_documents(doc! { "open": true }).await.expect("a count") == 0
    })
    .await;
    let there = memories.check(&processes[0]).await;
    let saved: usize = there.values().map(Vec::len).sum();
    let counts = [
        intake.count_documents(doc! {}).await.expect("a count"),
        database.collection::<Document>("chat_messages").count_documents(doc! {}).await.expect("a count"),
    ];
    assert_eq!(counts, [saved as u64; 2], "accepted, saved, and in the history");
    let pushed = memories.all_told(&there, &mut cluster.backend).await;
    eprintln!(
        "killed {kills:?} of {WORKERS:?} in {took:?}: {saved} saved, {pushed} pushed; troubles: {:?}",
        memories.troubles()
    );
}

/// Lets a time pass that is shorter than a timer can tell. It is part of the fault, nothing is hoped of it.
async fn pass(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        tokio::task::yield_now().await;
    }
}
