//! Over a hundred times kill -9, SIGSTOP and SIGCONT, of each worker and of gateways, and FLUSHALL, while people talk. Nothing
//! that was confirmed may be missing, nothing that was accepted may be forgotten, nothing may be there twice, every recipient
//! is told, and a client that stays connected has no gap without a `RESYNC`.
//!
//! All choices are drawn from one seed, which is printed and can be given again as `NARU_TEST_SEED`. It repeats the
//! choices, not the scheduling of the processes: a fault found with a seed may need a few tries to come again.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};
use naru_client::ServerProcess;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;

use super::cluster::{Cluster, until};
use super::traffic::{TOLD_WITHIN, Traffic, at};

/// How many rounds there are unless `NARU_TEST_ROUNDS` says otherwise.
const ROUNDS: u64 = 130;
/// How many talk.
const TALKS: usize = 16;
/// How long each of them thinks between two messages.
const THINKS_FOR: Duration = Duration::from_millis(200);
/// The longest wait between the chosen moment and the fault.
const FAULT_WITHIN: Duration = Duration::from_millis(3);
/// What may be killed or paused: two gateways and one of each other worker. Writers are on the first gateway, listeners on the
/// second.
const WORKERS: [&str; 5] = ["gateway", "gateway", "persister", "fanout", "notifier"];
const LISTENERS_GATEWAY: usize = 1;
/// Without these no message is acknowledged.
const NEEDED: [usize; 2] = [0, 2];
/// The longest pause of a worker that is needed: its clients and the sweep send again what it has in hand.
const NEEDED_AGAIN_WITHIN: Duration = Duration::from_secs(4);
/// How long a pause is so that the lease of a gateway has lapsed at its end.
const LAPSES_AFTER: Duration = Duration::from_secs(7);

/// What happens in one round.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill(usize),
    Pause(usize, Duration),
    /// Redis loses all its data.
    Flush,
}

impl Fault {
    /// One worker is paused at a time, and left alone meanwhile.
    fn draw(rng: &mut StdRng, paused: Option<usize>) -> Self {
        let kind = rng.random_range(0..14);
        let victims: Vec<usize> = (0..WORKERS.len()).filter(|worker| Some(*worker) != paused).collect();
        let victim = *victims.choose(rng).expect("there are others");
        match kind {
            0 => Self::Flush,
            1..=4 if paused.is_none() => {
                let victim = if rng.random_bool(0.5) { LISTENERS_GATEWAY } else { victim };
                let short = Duration::from_millis(rng.random_range(1..500));
                let long = if NEEDED.contains(&victim) { NEEDED_AGAIN_WITHIN } else { LAPSES_AFTER };
                Self::Pause(victim, if rng.random_bool(0.5) { long } else { short })
            }
            _ => Self::Kill(victim),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(victim) => write!(f, "kill {}", WORKERS[*victim]),
            Self::Pause(worker, time) if *time >= LAPSES_AFTER => {
                write!(f, "pause {} for long", WORKERS[*worker])
            }
            Self::Pause(worker, _) => write!(f, "pause {}", WORKERS[*worker]),
            Self::Flush => f.write_str("flush"),
        }
    }
}

/// A worker that is paused until then.
struct Paused {
    worker: usize,
    until: Instant,
}

impl Paused {
    /// Lets the worker go on at its time, if there is one.
    async fn end(paused: &mut Option<Self>, processes: &[ServerProcess]) {
        let Some(Self { worker, until }) = paused else { return std::future::pending().await };
        tokio::time::sleep_until((*until).into()).await;
        processes[*worker].thaw();
        *paused = None;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_pauses_and_flushes_lose_nothing() {
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
    let mut traffic = Traffic::start("kills", 0..TALKS, THINKS_FOR, &gateways).await;

    let mut redis = cluster.redis().await;
    let (begun, mut faults) = (Instant::now(), BTreeMap::<String, usize>::new());
    let mut paused = None::<Paused>;
    for _ in 0..rounds {
        let fault = Fault::draw(&mut rng, paused.as_ref().map(|paused| paused.worker));
        let moment = async {
            traffic.goes_on(rng.random_range(0..30)).await;
            pass(FAULT_WITHIN.mul_f64(rng.random_range(0.0..1.0))).await;
        };
        let mut moment = pin!(moment);
        while tokio::select! {
            () = &mut moment => false,
            () = Paused::end(&mut paused, &processes) => true,
        } {}
        match fault {
            Fault::Kill(victim) => {
                processes[victim].kill9().await;
                processes[victim] = cluster.run(WORKERS[victim]).await;
                tell.send_replace(at(&[&processes[0], &processes[1]]));
            }
            Fault::Pause(worker, time) => {
                processes[worker].freeze();
                paused = Some(Paused { worker, until: Instant::now() + time });
            }
            Fault::Flush => redis::cmd("FLUSHALL").exec_async(&mut redis).await.expect("it forgets"),
        }
        *faults.entry(fault.to_string()).or_default() += 1;
    }
    let took = begun.elapsed();
    if paused.is_some() {
        Paused::end(&mut paused, &processes).await;
    }

    // No client resends any more: what was accepted must end its journey by itself.
    traffic.hush().await;
    let database = cluster.database().await;
    let intake = database.collection::<Document>("intake");
    until("nothing accepted is open", async || {
        intake.count_documents(doc! { "open": true }).await.expect("a count") == 0
    })
    .await;
    traffic.all_received(&processes[0]).await;
    let memories = traffic.end().await;
    let longest_gap = memories.longest_gap();
    assert!(longest_gap < TOLD_WITHIN, "a gap of {longest_gap:?} without a RESYNC");
    let there = memories.check(&processes[0]).await;
    let saved: usize = there.values().map(Vec::len).sum();
    let counts = [
        intake.count_documents(doc! {}).await.expect("a count"),
        database.collection::<Document>("chat_messages").count_documents(doc! {}).await.expect("a count"),
    ];
    assert_eq!(counts, [saved as u64; 2], "accepted, saved, and in the history");
    let pushed = memories.all_told(&there, &mut cluster.backend).await;
    eprintln!(
        "{faults:?} in {took:?}: {saved} saved, {pushed} pushed, no gap without RESYNC above {longest_gap:.1?}; troubles: {:?}",
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
