//! More of each worker share the work; one that dies is replaced by those that are left.

use std::time::{Duration, Instant};

use naru_client::ServerProcess;
use naru_model::{RoomId, partition_of};
use tokio::sync::watch;

use super::cluster::{Cluster, counted, until, within};
use super::traffic::{Traffic, Wait, at};

/// More than a deployment has unless it says so.
const PARTITIONS: usize = 16;
/// Rooms for each partition: as many in each, so that a worker's share of the partitions is its share of the work.
const TALKS_EACH: usize = 8;
const TALKS: usize = TALKS_EACH * PARTITIONS;
/// About a hundred messages a second.
const THINKS_FOR: Duration = Duration::from_millis(1_200);
/// Within this, the work is shared out: partitions are let go a few at a time.
const SHARING_TIMEOUT: Duration = Duration::from_secs(40);
/// A worker with less than this share of what an equal one has is not doing its part.
const EVEN: f64 = 0.4;
/// Within this, what a dead worker had is done by others.
const TAKEOVER: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_share_the_work_and_two_take_over_from_one_that_dies() {
    let cluster = Cluster::start().await.with("NARU_PARTITIONS", &PARTITIONS.to_string());
    let gateways = [cluster.run("gateway").await, cluster.run("gateway").await];
    let mut persisters = vec![cluster.run("persister").await];
    let mut fanouts = vec![cluster.run("fanout").await];
    let (_tell, addresses) = watch::channel(at(&[&gateways[0], &gateways[1]]));
    let begun = Instant::now();
    let traffic = Traffic::start("scale", spread_evenly(), THINKS_FOR, &addresses).await;
    traffic.goes_on(2 * TALKS as u64).await;

    let joined = Instant::now();
    for _ in 0..2 {
        persisters.push(cluster.run("persister").await);
        fanouts.push(cluster.run("fanout").await);
    }
    even(&persisters, "naru_persister_saved_total").await;
    even(&fanouts, "naru_fanout_published_total").await;

    // What came to one that died is done by another, as soon as the broker has noticed.
    let mut deaths = Vec::new();
    for workers in [&mut persisters, &mut fanouts] {
        deaths.push(Instant::now());
        workers[0].kill9().await;
        workers.remove(0);
        traffic.goes_on(4 * TALKS as u64).await;
    }
    let ended = Instant::now();
    let memories = traffic.end().await;
    memories.check(&gateways[0]).await;
    let moments = [joined, deaths[0], deaths[1], ended].map(|moment| moment - begun);
    eprintln!("joined, first death, second death, end: {moments:.1?}; troubles: {:?}", memories.troubles());
    // While the work is shared out no client waits for a worker to be missed: that wait is the store's, and told.
    let sharing = memories.slowest(begun, deaths[0]);
    let takeover = memories.slowest(deaths[0], ended);
    for (Wait { room, number, sent, lasted }, when) in [(&sharing, "before"), (&takeover, "after")] {
        let sent = *sent - begun;
        eprintln!(
            "the longest wait {when} the first death: {lasted:.1?}, begun at {sent:.1?}, {room} {number}"
        );
    }
    assert!(takeover.lasted < TAKEOVER, "a client waited for an acknowledgement: {takeover:?}");
}

/// Numbers of talks whose rooms are spread evenly over the partitions.
fn spread_evenly() -> Vec<usize> {
    let mut rooms = [0; PARTITIONS];
    let has_place = |talk: &usize| {
        let room = RoomId::new(format!("scale-listener{talk}_scale-writer{talk}")).expect("a room id");
        let count = &mut rooms[partition_of(&room, PARTITIONS as u32) as usize];
        *count += 1;
        *count <= TALKS_EACH
    };
    (0..).filter(has_place).take(TALKS).collect()
}

/// Waits until each of them does its part of what is done.
async fn even(workers: &[ServerProcess], name: &str) {
    within(SHARING_TIMEOUT, &format!("{name} is shared out evenly"), async || {
        let before = counts(workers, name).await;
        let all_had_some = async || {
            let done: Vec<u64> =
                counts(workers, name).await.iter().zip(&before).map(|(now, before)| now - before).collect();
            done.iter().sum::<u64>() >= 200
        };
        until("enough is done to tell", all_had_some).await;
        let done: Vec<f64> = counts(workers, name)
            .await
            .iter()
            .zip(&before)
            .map(|(now, before)| (now - before) as f64)
            .collect();
        let fair = done.iter().sum::<f64>() / done.len() as f64;
        eprintln!("{name}: {done:?}");
        done.iter().all(|done| *done > EVEN * fair)
    })
    .await;
}

async fn counts(workers: &[ServerProcess], name: &str) -> Vec<u64> {
    let mut counts = Vec::new();
    for worker in workers {
        counts.push(counted(worker, name).await);
    }
    counts
}
