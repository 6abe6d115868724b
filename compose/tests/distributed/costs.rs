//! What messages cost between Naru and its services, counted: a change that adds a round trip fails here. The bounds and
//! their reasons are the table of `docs/COSTS.md`, which is made from [`BOUNDS`].

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mongodb::Collection;
use mongodb::bson::{Document, doc};
use naru_client::{Client, ServerProcess};
use naru_services::Kind;

use super::cluster::{Cluster, counted, http, phone, until};
use super::meter::{Metered, Protocol};
use crate::costs::{BURST, Bound, Done, Load, Per, WRITERS, bound, burst, hold};

/// What may be said on services. Bytes are those of all three, in both directions.
pub const BOUNDS: &[Bound] = &[
    bound("MongoDB: insert intake", 1, 1, Per::Intake, "a batch is stored before anything else happens"),
    bound("MongoDB: find chat_rooms", 1, 1, Per::Persist, "the present members decide what is saved (P8)"),
    bound(
        "MongoDB: insert chat_messages",
        1,
        1,
        Per::Persist,
        "the run, in one ordered insert: a prefix and never a gap",
    ),
    bound("MongoDB: update chat_rooms", 1, 1, Per::Tick, "rooms move up in lists"),
    bound("MongoDB: update intake", 1, 2, Per::Hundred, "entries are closed, a hundred at a time"),
    bound(
        "AMQP: basic.publish",
        2,
        1,
        Per::Hop,
        "one message for each batch, on each of the two ordered hops (for each partition that it touches, where there are several)",
    ),
    bound("AMQP: header", 4, 2, Per::Hop, "of each message, when it is published and when it is delivered"),
    bound("AMQP: body", 4, 4, Per::Hop, "the same, in frames of at most 128 KiB"),
    bound("AMQP: basic.deliver", 2, 1, Per::Hop, "the same messages, to the persister and to the fanout"),
    bound("AMQP: basic.ack", 4, 2, Per::Hop, "the broker's confirms, and the workers' acknowledgements"),
    bound("Redis: PUBLISH naru:gateway", 1, 1, Per::Persist, "the saved ids, one call for each gateway"),
    bound("Redis: MGET naru:presence", 1, 1, Per::Publish, "where all members of a batch are"),
    bound(
        "Redis: EVALSHA naru:gateway",
        4,
        2,
        Per::Publish,
        "whether the gateways' leases run, in the same round trip; and their renewals, by the clock",
    ),
    bound("Redis: PUBLISH chat", 1, 1, Per::Message, "each message to all gateways, pipelined"),
    bound(
        "Redis: EVALSHA naru:proofs",
        1,
        1,
        Per::Tick,
        "what pongs have proven, for all sessions of a gateway",
    ),
    bound("Redis: SMISMEMBER naru:proofs", 1, 1, Per::Tick, "the proofs of all messages that are due"),
    bound(
        "bytes",
        8_000,
        4_000,
        Per::Message,
        "a message of 14 bytes in its six wrappings, and what goes with it; without answers of MongoDB and Redis",
    ),
];

/// What processes say by the clock, whether there are messages or not: renewals of leases, checks of sessions, the sweep, looks at
/// the epoch, heartbeats, pings of drivers.
const UPKEEP: &[&str] = &[
    "MongoDB: find intake",
    "MongoDB: find meta",
    "MongoDB: hello",
    "MongoDB: ping",
    "MongoDB: endSessions",
    "Redis: EVALSHA naru:lease",
    "Redis: GET naru:presence",
    "Redis: PUBLISH heartbeat",
    "Redis: PING",
    "AMQP: other methods",
];

/// Naru on metered services.
struct Fixture {
    _cluster: Cluster,
    /// The intake, read past the meter.
    intake: Collection<Document>,
    mongodb: Metered,
    amqp: Metered,
    redis: Metered,
    gateway: ServerProcess,
    persister: ServerProcess,
    fanout: ServerProcess,
    _notifier: ServerProcess,
}

impl Fixture {
    async fn start() -> Self {
        let services = tokio::task::spawn_blocking(|| {
            (naru_services::url(Kind::Mongodb).to_owned(), naru_services::own_virtual_host())
        });
        let (mongodb_url, amqp_url) = services.await.expect("services");
        let redis_service = tokio::task::spawn_blocking(|| naru_services::Service::start(Kind::Redis));
        let redis_service = redis_service.await.expect("a Redis");
        let meter = Metered::before(address(&mongodb_url), Protocol::Mongodb).await;
        let amqp = Metered::before(address(&amqp_url), Protocol::Amqp).await;
        let redis = Metered::before(address(&redis_service.url()), Protocol::Redis).await;
        let host = |url: &str, metered: &Metered| {
            url.replacen(&address(url).to_string(), &metered.address.to_string(), 1)
        };
        // A driver that looks for the replica set's members would go past the meter.
        let cluster = Cluster::on(
            format!("mongodb://{}/?directConnection=true", meter.address),
            host(&amqp_url, &amqp),
            host(&redis_service.url(), &redis),
        );
        let cluster = cluster.await.owning(redis_service);
        let gateway = cluster.run("gateway").await;
        let (persister, fanout) = (cluster.run("persister").await, cluster.run("fanout").await);
        let notifier = cluster.run("notifier").await;
        let direct = mongodb::Client::with_uri_str(&mongodb_url).await.expect("a URL");
        let intake = direct.database(&cluster.mongodb_database).collection("intake");
        Self {
            _cluster: cluster,
            intake,
            mongodb: meter,
            amqp,
            redis,
            gateway,
            persister,
            fanout,
            _notifier: notifier,
        }
    }

    /// Waits until every entry is closed.
    async fn closed(&self) {
        until("every entry is closed", async || {
            self.intake.count_documents(doc! { "open": true }).await.expect("a count") == 0
        })
        .await;
    }

    /// Everything that was said since the last call, but for the upkeep.
    fn said(&self) -> Done {
        let mut said = Done::new();
        for (meter, name) in [(&self.mongodb, "MongoDB"), (&self.amqp, "AMQP"), (&self.redis, "Redis")] {
            for (what, count) in meter.take() {
                let what = format!("{name}: {what}");
                if !UPKEEP.contains(&&*what) {
                    *said.entry("bytes".to_owned()).or_default() += count.bytes;
                    said.insert(what, count.times);
                }
            }
        }
        said
    }

    async fn load(&self) -> Load {
        Load {
            messages: counted(&self.persister, "naru_persister_saved_total").await,
            intake: counted(&self.gateway, "naru_gateway_intake_batch_count").await,
            persist: counted(&self.persister, "naru_persister_batch_count").await,
            publish: counted(&self.fanout, "naru_fanout_batch_count").await,
            lasted: Duration::ZERO,
        }
    }
}

/// Where a URL leads.
fn address(url: &str) -> SocketAddr {
    let host = url.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    host.parse().unwrap_or_else(|_| panic!("no address in {url}"))
}

/// Two people who write to each other in a room of their own.
async fn pair(gateway: &ServerProcess, number: usize) -> [(Client, String); 2] {
    let names = [format!("u{number}a"), format!("u{number}b")];
    let room = http(gateway, &names[0]).create_room(&[&names[0], &names[1]]).await;
    let [one, other] = [phone(gateway, &names[0]).await, phone(gateway, &names[1]).await];
    [(one, room.clone()), (other, room)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_message_and_a_burst_cost_no_more_than_their_bounds() {
    let fixture = Fixture::start().await;
    let mut people = Vec::new();
    for number in 0..WRITERS / 2 {
        people.extend(pair(&fixture.gateway, number).await);
    }
    // Rooms, heads and members are known after the first message.
    for pair in people.chunks_mut(2) {
        let [(one, room), (other, _)] = pair else { unreachable!("they come in pairs") };
        one.chat(room, "the room is known now", "warm-up").await;
        one.expect("ACK").await;
        other.expect("CHAT").await;
    }
    fixture.closed().await;

    fixture.said();
    let [(one, room), (other, _)] = &mut people[..2] else { unreachable!("there are fifty") };
    one.chat(room, "a lone message", "lone").await;
    one.expect("ACK").await;
    other.expect("CHAT").await;
    fixture.closed().await;
    let lone = fixture.said();

    let (before, began) = (fixture.load().await, Instant::now());
    let _people = burst(people).await;
    fixture.closed().await;
    let load = fixture.load().await.since(&before, began.elapsed());
    assert_eq!(load.messages, (WRITERS * BURST) as u64);
    hold(BOUNDS, &lone, &fixture.said(), &load);
}
