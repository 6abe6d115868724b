//! What a call costs: round trips, counted by a network on which each takes a while, and commands, counted by the server.

use std::collections::BTreeMap;
use std::time::Duration;

use naru_conformance::LiveLayer;
use naru_engines::EngineResult;
use naru_engines::live::PresenceEntry;
use naru_model::live::Confirmation;
use naru_model::message::Outcome;
use naru_model::{GatewayId, MessageId, Seq, SessionId, UserId};
use naru_services::{Kind, Service};
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::{new_room, open, other_client, publish};

/// Much longer than anything else in here takes, however busy the machine.
const TRIP: Duration = Duration::from_millis(400);
const LEASE: Duration = Duration::from_secs(600);

/// The same server, behind a network on which whatever is asked takes [`TRIP`] to arrive, however much it is.
async fn far_away(port: u16) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let (requests, to_near) = near.into_split();
            let (answers, to_server) = TcpStream::connect(("127.0.0.1", port)).await.unwrap().into_split();
            carry(requests, to_server, TRIP);
            carry(answers, to_near, Duration::ZERO);
        }
    });
    url
}

fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut under_way) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut buffer = [0; 65_536];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let _closed = sender.send((Instant::now() + delay, buffer[..read].to_vec()));
        }
    });
    tokio::spawn(async move {
        while let Some((due, bytes)) = under_way.recv().await {
            sleep_until(due).await;
            let _closed = to.write_all(&bytes).await;
        }
    });
}

fn users(count: usize) -> Vec<UserId> {
    (0..count).map(|_| UserId::new(format!("user-{}", MessageId::generate())).unwrap()).collect()
}

fn session(user: &UserId, gateway: &GatewayId) -> PresenceEntry {
    PresenceEntry {
        user: user.clone(),
        device: None,
        session: SessionId::generate(),
        gateway: gateway.clone(),
    }
}

/// Each of these users on one of four gateways.
async fn connect(naru: &LiveLayer, users: &[UserId]) {
    let gateways = [(); 4].map(|()| GatewayId::generate());
    for gateway in &gateways {
        naru.presence.renew(gateway, LEASE).await.unwrap();
    }
    for (user, gateway) in users.iter().zip(gateways.iter().cycle()) {
        naru.presence.attach(&session(user, gateway)).await.unwrap();
    }
}

async fn trips<T>(call: impl Future<Output = EngineResult<T>>) -> u128 {
    let asked = Instant::now();
    call.await.unwrap();
    asked.elapsed().as_millis() / TRIP.as_millis()
}

#[tokio::test]
async fn a_batch_takes_as_many_round_trips_as_one() {
    let service = Service::start(Kind::Redis);
    let near = open(&service.url()).await;
    let far = open(&far_away(service.port()).await).await;
    let people = users(1_000);
    connect(&near, &people).await;
    let (gateway, room, keep) = (GatewayId::generate(), new_room(), Duration::from_secs(60));
    let proofs: Vec<_> = people.iter().map(|user| (MessageId::generate(), user.clone())).collect();
    // From here on connections are there, and scripts known.
    near.proofs.record(&proofs[..1], keep).await.unwrap();
    near.presence.online(&people[..1]).await.unwrap();
    near.presence.seen(&people[..1]).await.unwrap();
    near.presence.detach(&session(&people[0], &gateway)).await.unwrap();
    near.leases.hold("warm", "up", keep).await.unwrap();
    // That it knows all four gateways.
    far.presence.online(&people[..4]).await.unwrap();

    let attached = session(&people[0], &gateway);
    let (presence, live) = (&far.presence, &far.live);
    let counted = [
        ("online 1", trips(presence.online(&people[..1])).await),
        ("online 1,000", trips(presence.online(&people)).await),
        ("seen 1,000", trips(presence.seen(&people)).await),
        ("publish 1", trips(publish(&far, &room, 0..1)).await),
        ("publish 256", trips(publish(&far, &room, 0..256)).await),
        ("evict", trips(live.evict(&gateway, &attached.session)).await),
        ("renew", trips(presence.renew(&gateway, LEASE)).await),
        ("attach", trips(presence.attach(&attached)).await),
        ("detach", trips(presence.detach(&attached)).await),
        ("record 1,000", trips(far.proofs.record(&proofs, keep)).await),
        ("proven 1,000", trips(far.proofs.proven(&proofs)).await),
        ("hold", trips(far.leases.hold("name", "holder", keep)).await),
    ];
    assert_eq!(counted, counted.map(|(call, _)| (call, 1)));
}

/// The commands that the server carries out for a call, those that scripts call included.
async fn commands<T>(
    other: &mut MultiplexedConnection,
    call: impl Future<Output = EngineResult<T>>,
) -> (T, String) {
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(other).await.unwrap();
    let answer = call.await.unwrap();
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(other).await.unwrap();
    let counts: BTreeMap<&str, &str> = info
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="))
        .map(|(command, stats)| (command, stats.split(',').next().unwrap()))
        .filter(|(command, _)| *command != "config|resetstat")
        .collect();
    (answer, counts.iter().map(|(command, calls)| format!("{command} {calls} ")).collect())
}

#[tokio::test]
async fn a_batch_is_a_handful_of_commands() {
    let service = Service::start(Kind::Redis);
    let naru = open(&service.url()).await;
    let mut other = other_client(&service.url()).await;
    let (people, strangers) = (users(256), users(256));
    connect(&naru, &people).await;
    // From here on scripts and gateways are known.
    naru.presence.online(&people).await.unwrap();
    naru.proofs.record(&[(MessageId::generate(), people[0].clone())], LEASE).await.unwrap();

    let (online, counts) = commands(&mut other, naru.presence.online(&people)).await;
    assert!(online.iter().all(|is_online| *is_online));
    // Two are sent, together; the others are the script's, which reads the leases of four gateways.
    assert_eq!(counts, "evalsha 1 hmget 4 mget 1 time 1 ");

    // A thousand messages of four seconds, which are two sets; a proof of each is asked for, and that of a stranger.
    let messages = (0..1_000_u32).map(|number| {
        let mut id = MessageId::generate().bytes();
        id[..4].copy_from_slice(&(1_800_000_000 + number % 4).to_be_bytes());
        MessageId::from_bytes(id)
    });
    let (mut proofs, mut asked) = (Vec::new(), Vec::new());
    for ((message, user), stranger) in messages.zip(people.iter().cycle()).zip(strangers.iter().cycle()) {
        proofs.push((message, user.clone()));
        asked.extend([(message, user.clone()), (message, stranger.clone())]);
    }
    let ((), counts) = commands(&mut other, naru.proofs.record(&proofs, LEASE)).await;
    assert_eq!(counts, "evalsha 2 pexpire 2 pttl 2 sadd 2 ");
    let (proven, counts) = commands(&mut other, naru.proofs.proven(&asked)).await;
    assert_eq!(proven, [true, false].repeat(1_000));
    assert_eq!(counts, "smismember 2 ");

    let confirmation = Confirmation { id: proofs[0].0, outcome: Outcome::Saved { seq: Seq(1) } };
    let gateway = GatewayId::generate();
    let confirming = naru.live.confirm(&gateway, vec![confirmation; 256]);
    assert_eq!(commands(&mut other, confirming).await.1, "publish 1 ");
}

#[tokio::test]
async fn a_proof_is_kept_as_long_as_the_longest_wish_for_any_of_its_time() {
    let service = Service::start(Kind::Redis);
    let naru = open(&service.url()).await;
    let mut other = other_client(&service.url()).await;
    let message = MessageId::generate();
    let keys = async |other: &mut MultiplexedConnection| {
        redis::cmd("KEYS").arg("naru:proofs:*").query_async::<Vec<String>>(other).await.unwrap()
    };
    for (keep, min, max) in [(60, 50, 60), (10, 40, 60), (600, 590, 600)] {
        let proofs = [(message, users(1).remove(0))];
        naru.proofs.record(&proofs, Duration::from_secs(keep)).await.unwrap();
        let keys = keys(&mut other).await;
        assert_eq!(keys.len(), 1, "{keys:?}");
        let left: i64 = redis::cmd("TTL").arg(&keys[0]).query_async(&mut other).await.unwrap();
        assert!((min..=max).contains(&left), "{keep}: {left} s are left");
    }
}

/// Not a test but a measurement, of the build it runs in: `cargo test --release -p naru-redis -- cost --nocapture`.
#[tokio::test]
async fn what_a_call_takes_on_this_machine() {
    const ROUNDS: usize = 200;
    let service = Service::start(Kind::Redis);
    let naru = open(&service.url()).await;
    let people = users(1_000);
    connect(&naru, &people).await;
    let (gateway, room) = (GatewayId::generate(), new_room());
    let mut took: Vec<(&str, Vec<Duration>)> = Vec::new();
    macro_rules! measure {
        ($name:literal, $call:expr) => {{
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                let asked = Instant::now();
                $call.await.unwrap();
                times.push(asked.elapsed());
            }
            times.sort();
            took.push(($name, times));
        }};
    }
    measure!("online 1", naru.presence.online(&people[..1]));
    measure!("online 256", naru.presence.online(&people[..256]));
    measure!("online 100", naru.presence.online(&people[..100]));
    measure!("online 1,000", naru.presence.online(&people));
    measure!("publish 1", publish(&naru, &room, 0..1));
    measure!("publish 256", publish(&naru, &room, 0..256));
    let attached = session(&people[0], &gateway);
    measure!("attach", naru.presence.attach(&attached));
    measure!("detach", naru.presence.detach(&attached));
    measure!("renew", naru.presence.renew(&gateway, LEASE));
    let proofs: Vec<_> = people[..100].iter().map(|user| (MessageId::generate(), user.clone())).collect();
    measure!("record 100", naru.proofs.record(&proofs, LEASE));
    measure!("proven 100", naru.proofs.proven(&proofs));
    measure!("hold", naru.leases.hold("name", "holder", LEASE));
    for (name, times) in took {
        println!(
            "{name:>14}: median {:?}, 99th percentile {:?}",
            times[ROUNDS / 2],
            times[ROUNDS * 99 / 100]
        );
    }
}
