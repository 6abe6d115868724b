//! Receivers come and go: partitions move to those that have less than their share.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use naru_engines::bus::ack;
use naru_model::RoomId;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::fixtures::{self, Deployment, Process, TEST_TIMEOUT, accepted, number, partition, rooms_apart};

const PARTITIONS: usize = fixtures::PARTITIONS as usize;
/// Shares are even within this, under load.
const MAX_REBALANCE: Duration = Duration::from_secs(12);
/// A killed one's partitions are taken over within this.
const MAX_TAKEOVER: Duration = Duration::from_secs(5);

/// What all receivers together have seen.
#[derive(Default)]
struct Observed {
    /// Which consumer received of a partition last, and when.
    owner: HashMap<u32, (usize, Instant)>,
    arrived: HashMap<RoomId, Vec<(usize, u32)>>,
}

impl Observed {
    fn shares(&self) -> BTreeMap<usize, usize> {
        let mut shares = BTreeMap::new();
        self.owner.values().for_each(|(owner, _)| *shares.entry(*owner).or_default() += 1);
        shares
    }
}

/// A worker as [`naru_engines::work::work_on`] makes one: several batches at a time, never a room in two of them.
fn work(process: &Process, owner: usize, observed: &Arc<Mutex<Observed>>) -> JoinHandle<()> {
    let (queue, observed) = (process.bus().accepted, observed.clone());
    tokio::spawn(async move {
        let mut receiver = queue.receiver().await.unwrap();
        let unacknowledged = Arc::new(Mutex::new(HashSet::new()));
        loop {
            let batch = receiver.receive(16).await.unwrap();
            let rooms: HashSet<RoomId> =
                batch.iter().map(|delivery| delivery.event.payload.chat_room_id.clone()).collect();
            for room in &rooms {
                assert!(unacknowledged.lock().unwrap().insert(room.clone()), "{room} is in two batches");
            }
            let (unacknowledged, observed) = (unacknowledged.clone(), observed.clone());
            tokio::spawn(async move {
                sleep(Duration::from_millis(5)).await;
                let mut ack_handles = Vec::new();
                {
                    let mut observed = observed.lock().unwrap();
                    for delivery in batch {
                        let room = delivery.event.payload.chat_room_id.clone();
                        let partition = partition(&room);
                        observed.owner.insert(partition, (owner, Instant::now()));
                        observed.arrived.entry(room).or_default().push((owner, number(&delivery.event)));
                        ack_handles.push(delivery.ack_handle);
                    }
                }
                unacknowledged.lock().unwrap().retain(|room| !rooms.contains(room));
                let _comes_again = ack(ack_handles).await;
            });
        }
    })
}

/// Waits until it is so; how long that took.
async fn until(observed: &Mutex<Observed>, holds: impl Fn(&Observed) -> bool) -> Duration {
    let began = Instant::now();
    while !holds(&observed.lock().unwrap()) {
        let waited = began.elapsed();
        assert!(waited < TEST_TIMEOUT, "still {:?} after {waited:?}", observed.lock().unwrap().shares());
        sleep(Duration::from_millis(10)).await;
    }
    began.elapsed()
}

/// No receiver has more than a share, and every partition has a receiver.
fn even(observed: &Observed, receivers: usize) -> bool {
    let shares = observed.shares();
    let max = PARTITIONS.div_ceil(receivers);
    shares.len() == receivers
        && shares.values().sum::<usize>() == PARTITIONS
        && shares.values().all(|share| *share <= max)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_even_out_and_a_killed_one_is_taken_over() {
    let deployment = Deployment::shared();
    let first = deployment.process().await;
    let rooms = rooms_apart(PARTITIONS);
    let observed = Arc::new(Mutex::new(Observed::default()));
    let (stop, stopped) = watch::channel(false);
    let sender = {
        let (queue, rooms) = (first.bus().accepted, rooms.clone());
        tokio::spawn(async move {
            let mut round = 0;
            while !*stopped.borrow() {
                queue.send(rooms.iter().map(|room| accepted(room, round)).collect()).await.unwrap();
                round += 1;
                sleep(Duration::from_millis(20)).await;
            }
            round
        })
    };

    let one = work(&first, 1, &observed);
    let alone = until(&observed, |observed| even(observed, 1)).await;
    let before = observed.lock().unwrap().arrived.clone();
    let (second, third) = (deployment.process().await, deployment.process().await);
    let (two, three) = (work(&second, 2, &observed), work(&third, 3, &observed));
    let three_even = until(&observed, |observed| even(observed, 3)).await;
    println!("1 had all after {alone:?}; 1 to 3: even after {three_even:?}");
    assert!(three_even < MAX_REBALANCE, "{three_even:?}");

    // At rest it stays so.
    let shares = observed.lock().unwrap().owner.clone();
    sleep(Duration::from_secs(3)).await;
    let moved = observed.lock().unwrap().owner.iter().filter(|(nth, owner)| shares[nth].0 != owner.0).count();
    assert_eq!(moved, 0, "partitions moved though all had their shares");

    third.cable.cut();
    three.abort();
    let killed = Instant::now();
    let taken_over =
        until(&observed, |observed| observed.owner.values().all(|(owner, at)| *owner != 3 && *at > killed))
            .await;
    let two_even = until(&observed, |observed| even(observed, 2)).await;
    println!("the third was killed: taken over after {taken_over:?}, even after {two_even:?} more");
    assert!(taken_over < MAX_TAKEOVER, "{taken_over:?}");
    assert!(two_even < MAX_REBALANCE, "{two_even:?}");

    stop.send_replace(true);
    let rounds = sender.await.unwrap();
    let all = |observed: &Observed| {
        rooms.iter().all(|room| {
            let arrived: HashSet<u32> = observed.arrived[room].iter().map(|(_, number)| *number).collect();
            arrived.len() == rounds as usize
        })
    };
    until(&observed, all).await;
    for task in [one, two] {
        assert!(!task.is_finished(), "a room was in two batches");
        task.abort();
    }
    // Without a reassignment there is no doubt about the order.
    for (room, numbers) in before {
        assert!(numbers.is_sorted(), "{room}: {numbers:?}");
    }
    let observed = observed.lock().unwrap();
    let arrivals: usize = observed.arrived.values().map(Vec::len).sum();
    println!("{} events, {arrivals} arrivals", rounds as usize * PARTITIONS);
}
