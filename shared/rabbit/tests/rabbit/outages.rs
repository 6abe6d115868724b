//! What happens to the broker, under load: nothing that was confirmed is lost, and every process comes back by itself.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use naru_engines::bus::{Bus, ack, retry};
use naru_engines::{Applied, EngineError};
use naru_model::RoomId;
use naru_services::{Kind, Service};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::fixtures::{
    Deployment, TEST_TIMEOUT, accepted, done, next, number, offline, room, rooms_apart, soon, until_ok,
};

/// A broker that is back has its receivers back within this.
const MAX_RECOVERY: Duration = Duration::from_secs(5);

/// RabbitMQ 3.10.8 writes down which log is whose half a second after the last queue was declared. A quorum queue that is
/// killed before is there again afterwards, empty, and does not answer; its messages lie in a log that is not read. An
/// orderly stop writes it down.
fn new_names_are_written(broker: &mut Service) {
    broker.stop();
    broker.start_again();
}

/// One sender and one receiver, and a record of what was confirmed and what arrived.
struct Load {
    sent: watch::Receiver<u32>,
    arrived: Arc<Mutex<HashMap<RoomId, Vec<u32>>>>,
    last_arrival: watch::Receiver<Instant>,
    rooms: Vec<RoomId>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(bus: &Bus) -> Self {
        let rooms = rooms_apart(8);
        let (stop, stopped) = watch::channel(false);
        let (confirmed, sent) = watch::channel(0);
        let (arrives, last_arrival) = watch::channel(Instant::now());
        let arrived = Arc::new(Mutex::new(HashMap::<RoomId, Vec<u32>>::new()));
        let sender = {
            let (queue, rooms, stopped) = (bus.accepted.clone(), rooms.clone(), stopped.clone());
            tokio::spawn(async move {
                let mut round = 0;
                while !*stopped.borrow() {
                    let events: Vec<_> = rooms.iter().map(|room| accepted(room, round)).collect();
                    // As a sweep would: the same again until it is confirmed.
                    while let Err(error) = queue.send(events.clone()).await {
                        tracing::info!(%error, "not sent");
                        sleep(Duration::from_millis(20)).await;
                    }
                    confirmed.send_replace(round);
                    round += 1;
                }
            })
        };
        let receiver = {
            let (queue, arrived) = (bus.accepted.clone(), arrived.clone());
            tokio::spawn(async move {
                let mut receiver = queue.receiver().await.unwrap();
                loop {
                    let events = done(receiver.receive(64).await.unwrap()).await;
                    let mut arrived = arrived.lock().unwrap();
                    for event in events {
                        arrived.entry(event.payload.chat_room_id.clone()).or_default().push(number(&event));
                    }
                    arrives.send_replace(Instant::now());
                }
            })
        };
        Self { sent, arrived, last_arrival, rooms, stop, tasks: vec![sender, receiver] }
    }

    /// Until so many more rounds were confirmed.
    async fn rounds(&mut self, more: u32) {
        let up_to = *self.sent.borrow() + more;
        self.sent.wait_for(|sent| *sent >= up_to).await.unwrap();
    }

    /// How long after `since` the first event arrived.
    async fn next_arrival(&mut self, since: Instant) -> Duration {
        let arrived = soon("an arrival", self.last_arrival.wait_for(|at| *at > since)).await.unwrap();
        *arrived - since
    }

    /// Everything that was confirmed arrives, each room's events for the first time in order.
    async fn ends(mut self) -> usize {
        self.stop.send_replace(true);
        soon("the last send", self.tasks.remove(0)).await.unwrap();
        let rounds = *self.sent.borrow();
        let began = Instant::now();
        loop {
            let missing = {
                let arrived = self.arrived.lock().unwrap();
                let all = |room: &RoomId| arrived.get(room).is_some_and(|got| got.contains(&rounds));
                self.rooms.iter().filter(|room| !all(room)).count()
            };
            if missing == 0 {
                break;
            }
            assert!(began.elapsed() < TEST_TIMEOUT, "the last event of {missing} rooms");
            sleep(Duration::from_millis(20)).await;
        }
        self.tasks.remove(0).abort();
        let arrived = self.arrived.lock().unwrap();
        for room in &self.rooms {
            let numbers = &arrived[room];
            let mut seen = BTreeSet::new();
            let first: Vec<_> = numbers.iter().filter(|number| seen.insert(**number)).copied().collect();
            assert_eq!(first, (0..=rounds).collect::<Vec<_>>(), "{room}");
        }
        arrived.values().map(Vec::len).sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_may_be_killed_stopped_and_frozen_under_load() {
    let mut broker = Service::start(Kind::Rabbitmq);
    let deployment = Deployment::at(broker.url());
    let process = deployment.process().await;
    let bus = process.bus();
    let mut load = Load::start(&bus);
    soon("confirms", load.rounds(50)).await;

    // An orderly stop first, see `new_names_are_written`.
    for orderly in [true, false] {
        if orderly {
            broker.stop()
        } else {
            broker.kill()
        }
        let sending =
            async || bus.accepted.send(vec![accepted(&room(), 0)]).await.err().ok_or("it still sends");
        let (error, noticed) = until_ok(sending).await;
        println!("orderly {orderly}: noticed after {noticed:?}: {error}");
        process.rabbit.ping().await.unwrap_err();
        broker.start_again();
        let back = Instant::now();
        let first = load.next_arrival(back).await;
        println!("orderly {orderly}: received {first:?} after the broker was back");
        assert!(first < MAX_RECOVERY, "{first:?}");
        soon("confirms", load.rounds(50)).await;
        process.rabbit.ping().await.unwrap();
    }

    broker.freeze();
    let frozen = Instant::now();
    let (error, _) = until_ok(async || match bus.accepted.send(vec![accepted(&room(), 0)]).await {
        Err(error @ EngineError::Unavailable { applied: Applied::No, .. }) => Ok(error),
        other => Err(other),
    })
    .await;
    println!("frozen: the connection is given up after {:?}: {error}", frozen.elapsed());
    assert!(frozen.elapsed() < Duration::from_secs(10));
    broker.thaw();
    let back = Instant::now();
    let first = load.next_arrival(back).await;
    println!("received {first:?} after the broker went on");
    assert!(first < MAX_RECOVERY + Duration::from_secs(5), "{first:?}");
    soon("confirms", load.rounds(50)).await;
    println!("{} arrivals", load.ends().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_next_try_outlives_the_broker() {
    /// Longer than the broker is down.
    const DELAY: Duration = Duration::from_secs(15);
    /// What falls due before the hop's queue is back is offered to it again after three minutes (the broker's
    /// `dead_letter_worker_publisher_confirm_timeout`).
    const REDELIVERY_TIMEOUT: Duration = Duration::from_secs(240);
    const COUNT: usize = 40;
    let mut broker = Service::start(Kind::Rabbitmq);
    let mut deployment = Deployment::at(broker.url());
    deployment.options.wait_delays = vec![DELAY];
    let process = deployment.process().await;
    let bus = process.bus();
    let mut receiver = bus.offline.receiver().await.unwrap();
    let events: BTreeMap<_, _> =
        (0..COUNT).map(|_| offline()).map(|event| (event.event_id.0, event)).collect();
    bus.offline.send(events.values().cloned().collect()).await.unwrap();
    new_names_are_written(&mut broker);
    until_ok(async || process.rabbit.ping().await).await;
    let mut held = Vec::new();
    while held.len() < COUNT {
        held.extend(soon("the first try", receiver.receive(COUNT)).await.unwrap());
    }
    let asked = Instant::now();
    retry(held.into_iter().map(|delivery| delivery.ack_handle), DELAY).await.unwrap();
    broker.kill();
    broker.start_again();

    let mut again = BTreeMap::new();
    while again.len() < COUNT {
        let batch = timeout(REDELIVERY_TIMEOUT, receiver.receive(COUNT)).await.expect("the second try");
        for delivery in batch.unwrap() {
            // The broker says nothing to an ack. Killed before it has written it down, it delivers the first try again.
            if delivery.attempt == 2 {
                assert!(asked.elapsed() + Duration::from_millis(2) >= DELAY, "too early");
                again.insert(delivery.event.event_id.0, delivery.event);
            }
            let _comes_again = ack([delivery.ack_handle]).await;
        }
    }
    assert_eq!(again, events);
    println!("all came again after {:?}, {DELAY:?} was asked", asked.elapsed());
}

#[tokio::test]
async fn a_broker_may_be_late() {
    let mut broker = Service::start(Kind::Rabbitmq);
    broker.stop();
    let deployment = Deployment::at(broker.url());
    let process = deployment.process().await;
    let bus = process.bus();
    process.rabbit.ping().await.unwrap_err();
    let error = bus.offline.send(vec![offline()]).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { applied: Applied::No, .. }), "{error}");
    let mut receiver = bus.offline.receiver().await.unwrap();
    // The thread is not given up to the broker's start, so the driver tries on meanwhile.
    let mut broker = tokio::task::spawn_blocking(move || {
        broker.start_again();
        broker
    })
    .await
    .unwrap();
    let event = offline();
    let (_, after) = until_ok(async || bus.offline.send(vec![event.clone()]).await).await;
    assert!(after < MAX_RECOVERY, "{after:?}");
    assert_eq!(next(&mut receiver).await, event);
    broker.stop();
}

/// A broker without memory stops reading from publishers, and says nothing to a send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_memory_takes_nothing_and_loses_nothing() {
    let broker = Service::start(Kind::Rabbitmq);
    let mut deployment = Deployment::at(broker.url());
    deployment.options.publish_timeout = Duration::from_secs(1);
    let process = deployment.process().await;
    let bus = process.bus();
    let mut receiver = bus.offline.receiver().await.unwrap();
    let (before, meanwhile, after) = (offline(), offline(), offline());
    bus.offline.send(vec![before.clone()]).await.unwrap();
    control(&broker, &["set_vm_memory_high_watermark", "absolute", "1MB"]);

    // What is there is received, and acknowledged: only sends are not heard.
    assert_eq!(next(&mut receiver).await, before);
    let error = bus.offline.send(vec![meanwhile.clone()]).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { applied: Applied::Unknown, .. }), "{error}");
    let told = process.rabbit.ping().await.unwrap_err();
    assert!(told.to_string().contains("short of memory or disk"), "{told}");
    let trying = {
        let (queue, after) = (bus.offline.clone(), after.clone());
        tokio::spawn(async move { while queue.send(vec![after.clone()]).await.is_err() {} })
    };
    control(&broker, &["set_vm_memory_high_watermark", "0.6"]);
    soon("a confirm", trying).await.unwrap();
    process.rabbit.ping().await.unwrap();
    // The one that was given up was on its way, as its error said.
    let mut missing = HashSet::from([meanwhile.event_id, after.event_id]);
    while !missing.is_empty() {
        missing.remove(&next(&mut receiver).await.event_id);
    }
}

/// An operator's policy may bound a queue, which then refuses what is too much.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_full_for_a_while_costs_time_and_no_error() {
    let broker = Service::start(Kind::Rabbitmq);
    let deployment = Deployment::at(broker.url());
    let bounded = r#"{"max-length":1,"overflow":"reject-publish"}"#;
    control(&broker, &["set_policy", "bounded", r"\.offline$", bounded, "--apply-to", "queues"]);
    let process = deployment.process().await;
    let queue = process.bus().offline;
    let mut sending = {
        let queue = queue.clone();
        tokio::spawn(async move {
            for _ in 0..5 {
                queue.send(vec![offline()]).await?;
            }
            Ok::<_, EngineError>(())
        })
    };
    let waits = timeout(Duration::from_secs(1), &mut sending).await;
    assert!(waits.is_err(), "{waits:?}");
    let mut receiver = queue.receiver().await.unwrap();
    for _ in 0..5 {
        next(&mut receiver).await;
    }
    sending.await.unwrap().unwrap();
}

/// `rabbitmqctl`, with the broker's own settings: its name and cookie are of the test's making.
fn control(broker: &Service, arguments: &[&str]) {
    let environment = std::fs::read(format!("/proc/{}/environ", broker.pid())).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    let variables = environment.split('\0').filter_map(|variable| variable.split_once('='));
    let control = std::process::Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl")
        .env_clear()
        .envs(variables.filter(|(name, _)| !name.starts_with("RABBITMQ_SERVER")))
        .args(arguments)
        .output()
        .unwrap();
    assert!(control.status.success(), "{}", String::from_utf8_lossy(&control.stderr));
}
