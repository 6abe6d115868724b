//! What a call costs: round trips, counted by a network on which each takes a while.

use std::time::Duration;

use naru_engines::EngineResult;
use naru_engines::conformance::LiveLayer;
use naru_engines::live::Attachment;
use naru_model::{GatewayId, MessageId, SessionId, UserId};
use naru_services::{Kind, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::{new_room, open, publish};

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
            let (asks, hears) = near.into_split();
            let (answers, takes) = TcpStream::connect(("127.0.0.1", port)).await.unwrap().into_split();
            carry(asks, takes, TRIP);
            carry(answers, hears, Duration::ZERO);
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

fn session(user: &UserId, gateway: &GatewayId) -> Attachment {
    Attachment { user: user.clone(), device: None, session: SessionId::generate(), gateway: gateway.clone() }
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
    near.presence.locate(&people).await.unwrap();
    near.presence.detach(&session(&people[0], &gateway)).await.unwrap();
    near.leases.hold("warm", "up", keep).await.unwrap();
    far.presence.locate(&people[..1]).await.unwrap();

    let message = proofs[0].0;
    let attached = session(&people[0], &gateway);
    let (presence, live) = (&far.presence, &far.live);
    let counted = [
        ("locate 1", trips(presence.locate(&people[..1])).await),
        ("locate 1,000", trips(presence.locate(&people)).await),
        ("seen 1,000", trips(presence.seen(&people)).await),
        ("publish 1", trips(publish(&far, &room, 0..1)).await),
        ("publish 256", trips(publish(&far, &room, 0..256)).await),
        ("evict", trips(live.evict(&gateway, &attached.session)).await),
        ("renew", trips(presence.renew(&gateway, LEASE)).await),
        ("attach", trips(presence.attach(&attached)).await),
        ("detach", trips(presence.detach(&attached)).await),
        ("record 1,000", trips(far.proofs.record(&proofs, keep)).await),
        ("proven 1,000", trips(far.proofs.proven(message, &room, naru_model::Seq(1), &people)).await),
        ("hold", trips(far.leases.hold("name", "holder", keep)).await),
    ];
    let expected = counted.map(|(call, _)| match call {
        "locate 1" | "locate 1,000" | "seen 1,000" => (call, 2),
        _ => (call, 1),
    });
    assert_eq!(counted, expected);
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
    measure!("locate 1", naru.presence.locate(&people[..1]));
    measure!("locate 100", naru.presence.locate(&people[..100]));
    measure!("locate 1,000", naru.presence.locate(&people));
    measure!("publish 1", publish(&naru, &room, 0..1));
    measure!("publish 256", publish(&naru, &room, 0..256));
    let attached = session(&people[0], &gateway);
    measure!("attach", naru.presence.attach(&attached));
    measure!("detach", naru.presence.detach(&attached));
    measure!("renew", naru.presence.renew(&gateway, LEASE));
    let proofs: Vec<_> = people[..100].iter().map(|user| (MessageId::generate(), user.clone())).collect();
    measure!("record 100", naru.proofs.record(&proofs, LEASE));
    measure!("hold", naru.leases.hold("name", "holder", LEASE));
    for (name, times) in took {
        println!(
            "{name:>14}: median {:?}, 99th percentile {:?}",
            times[ROUNDS / 2],
            times[ROUNDS * 99 / 100]
        );
    }
}
