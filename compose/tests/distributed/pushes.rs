//! A provider is down for a minute, with 5,000 pushes waiting, and the notifier is killed meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use naru::distributed::Distributed;
use naru_client::ServerProcess;
use naru_engines::Engines;
use naru_engines::store::{Device, NewRoom, Platform};
use naru_model::hops::{Offline, PushEnvironment};
use naru_model::room::sorted_members;
use naru_model::{
    ClientMessageId, DeviceId, Event, Message, MessageId, RoomId, RoomKind, Seq, Timestamp, Trace, UserId,
};
use naru_phones::{Behaviour, Handle, Provider};
use naru_runtime::{Health, Settings};
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, counted, within};
use crate::phones::{Emulator, apns_token};

/// Each of the people has an Android phone, and misses this many messages: 5,000 pushes.
const PEOPLE: usize = 50;
const MESSAGES: usize = 100;
const PUSHES: u64 = (PEOPLE * MESSAGES) as u64;
/// How long FCM takes nothing: half of it it refuses connections, half of it it hangs.
const OUTAGE: Duration = Duration::from_secs(60);
/// Before and meanwhile a user with an iPhone misses a message this often.
const EVERY: Duration = Duration::from_millis(30);
/// How long that goes on before, to know how long a push takes when all is well.
const CALM: Duration = Duration::from_secs(15);
/// From the return of FCM until all is pushed: a breaker's pause is 30 s at most, and a retry's delay that is met here 2 min.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(240);
/// While FCM is down a push by APNs takes at most this much longer than twice what it took before, on a machine that compiles
/// and tests besides; the time without any notifier left out.
const FLAT: Duration = Duration::from_millis(500);
/// How many pushes of a lane a killed notifier may have had in flight: `push_concurrency`.
const MAX_IN_FLIGHT: u64 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_may_be_away_for_a_minute_and_the_notifier_die_twice() {
    let emulator = Emulator::new().await;
    let handle = emulator.handle();
    let mut cluster = Cluster::start().await;
    for (name, value) in emulator.phones.environment() {
        cluster = cluster.with(name, &value);
    }
    // Only the phones.
    cluster = cluster.with("NARU_PUSH_WEBHOOK_URL", "").with("NARU_PUSH_WEBHOOK_SECRET", "");
    let fixture = Fixture::build(&cluster).await;
    let mut notifier = cluster.run("notifier").await;
    let steady = Steady::start(&fixture, &handle);
    sleep_until(tokio::time::Instant::now() + CALM).await;
    let before = steady.latencies(0);

    handle.set(Provider::Fcm, Behaviour::Refuse).await;
    fixture.all_recipients_miss().await;
    // To decide who gets these takes seconds on a busy machine, and whoever misses a message then waits for it, whether FCM
    // works or not: the outage is measured from when all are in FCM's lane.
    let caught_up = async || {
        let decided = counted(&notifier, "naru_notifier_offline_events_total").await;
        decided + 2 >= steady.count() + MESSAGES as u64
    };
    within(CATCH_UP_TIMEOUT, "the pushes are in their lanes", caught_up).await;
    let (already, outage_at) = (handle.taken(), Instant::now());
    let moment = |seconds| tokio::time::Instant::from_std(outage_at) + Duration::from_secs(seconds);
    sleep_until(moment(15)).await;
    restart(&cluster, &mut notifier, &steady).await;
    sleep_until(moment(30)).await;
    handle.set(Provider::Fcm, Behaviour::Hang).await;
    sleep_until(moment(OUTAGE.as_secs())).await;
    assert_eq!(handle.counts(Provider::Fcm).taken, 0, "it was down");
    let during_outage = steady.latencies(already);

    // It is back, and sends every connection away after 100 ms. The notifier dies with pushes in flight.
    handle.set(Provider::Fcm, Behaviour::GoAway(Duration::from_millis(100))).await;
    let back_at = Instant::now();
    let taken = async |wanted: u64| {
        let enough = async || handle.counts(Provider::Fcm).taken >= wanted;
        within(CATCH_UP_TIMEOUT, &format!("{wanted} pushes are taken"), enough).await;
    };
    taken(PUSHES / 4).await;
    restart(&cluster, &mut notifier, &steady).await;
    taken(PUSHES / 2).await;
    handle.set(Provider::Fcm, Behaviour::Streams(1)).await;
    taken(PUSHES * 3 / 4).await;
    handle.set(Provider::Fcm, Behaviour::Usual).await;
    within(CATCH_UP_TIMEOUT, "every push has come", async || distinct(&handle) == PUSHES).await;
    let caught_up = back_at.elapsed();
    steady.stop().await;

    let fcm = handle.counts(Provider::Fcm);
    eprintln!("FCM: {fcm:?}; all {PUSHES} {caught_up:?} after its return, {} of them twice", fcm.repeated);
    eprintln!("APNs before: {}; while FCM was down: {}", in_words(&before), in_words(&during_outage));
    assert!(fcm.repeated <= MAX_IN_FLIGHT, "{fcm:?}: more came twice than a killed notifier had in flight");
    assert_eq!(fcm.taken, PUSHES + fcm.repeated);
    let [calm, outage] = [&before, &during_outage].map(|latencies| percentile(latencies, 99));
    assert!(outage < 2 * calm + FLAT, "the other provider's pushes waited: p99 {outage:?}, {calm:?} before");
    let parked = fixture.engines.store.pushes.parked(None, 10).await.expect("a list");
    assert_eq!(parked.len(), 0, "{parked:?}");
    fixture.distributed.close().await;
}

/// Pushes that FCM has taken, each counted once.
fn distinct(handle: &Handle) -> u64 {
    let pushes = handle.received();
    let of_fcm = pushes.iter().filter(|push| push.provider == Provider::Fcm);
    let distinct: HashSet<_> = of_fcm.map(|push| (&push.token, &push.message_id)).collect();
    distinct.len() as u64
}

/// Kills the notifier and starts another.
async fn restart(cluster: &Cluster, notifier: &mut ServerProcess, steady: &Steady) {
    steady.no_notifier.store(true, Ordering::SeqCst);
    notifier.kill9().await;
    steady.forgive_what_it_had();
    *notifier = cluster.run("notifier").await;
    // It works when it has caught up with what came meanwhile.
    let pushed =
        async || counted(notifier, r#"naru_notifier_pushes_total{lane="apns",outcome="pushed"}"#).await > 0;
    within(Duration::from_secs(30), "the new notifier pushes", pushed).await;
    steady.no_notifier.store(false, Ordering::SeqCst);
}

/// What the notifiers work on.
struct Fixture {
    distributed: Distributed,
    engines: Engines,
    room: RoomId,
    people: Vec<UserId>,
}

impl Fixture {
    async fn build(cluster: &Cluster) -> Self {
        let environment = [
            ("NARU_MONGODB_URL", &cluster.mongodb_url),
            ("NARU_MONGODB_DATABASE", &cluster.mongodb_database),
            ("NARU_AMQP_URL", &cluster.amqp_url),
            ("NARU_REDIS_URL", &cluster.redis_url),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.clone()));
        let matches = Settings::command(&naru::PROGRAM).get_matches_from(["naru"]);
        let settings = Settings::load(&naru::PROGRAM, &matches, environment).expect("settings");
        let never = CancellationToken::new();
        let health = Health::new(never.clone());
        let distributed = Distributed::wait_for(&settings, &health, &never);
        let distributed = distributed.await.expect("services").expect("it is not stopped");
        let engines = distributed.engines();
        let person = |number: usize| UserId::new(format!("person{number}")).expect("a user id");
        let people: Vec<_> = (0..PEOPLE).map(person).collect();
        let (writer, iphone) = (person(PEOPLE), person(PEOPLE + 1));
        let room = RoomId::new("the-square").expect("a room id");
        let all = people.iter().cloned().chain([writer, iphone.clone()]);
        let new = NewRoom {
            id: room.clone(),
            kind: RoomKind::Group,
            name: None,
            member_ids: sorted_members(all),
            maker_id: None,
        };
        engines.store.rooms.create(new).await.expect("a room");
        let device = |user: &UserId, platform, token: String| Device {
            user: user.clone(),
            id: DeviceId::new("phone").expect("a device id"),
            platform,
            token: token.into(),
            environment: PushEnvironment::Production,
            locale: None,
            hides_content: false,
            registered_at: Timestamp::now(),
        };
        for user in &people {
            let token = format!("token-of-{user}");
            engines.store.devices.claim(device(user, Platform::Fcm, token)).await.expect("a device");
        }
        engines.store.devices.claim(device(&iphone, Platform::Apns, apns_token(1))).await.expect("a device");
        Self { distributed, engines, room, people }
    }

    fn message(&self, number: usize) -> Message {
        let id = MessageId::generate();
        Message {
            id,
            chat_room_id: self.room.clone(),
            seq: Seq(number as u64 + 1),
            sender_id: UserId::new(format!("person{PEOPLE}")).expect("a user id"),
            sender_name: "Ada".into(),
            content: format!("message {number}").into(),
            timestamp: Timestamp::now(),
            client_message_id: ClientMessageId::from(id),
            deleted_at: None,
        }
    }

    /// As a fanout says that these people have no session.
    async fn all_recipients_miss(&self) {
        let missed = |number| Offline { message: self.message(number), recipients: self.people.clone() };
        let events = (0..MESSAGES).map(|number| Event::new(missed(number), Trace::start())).collect();
        self.engines.bus.offline.send(events).await.expect("enqueued");
    }
}

/// A user with an iPhone who misses a message now and then.
struct Steady {
    sent: Arc<std::sync::Mutex<HashMap<String, (Instant, bool)>>>,
    /// While this is so, what is missed has to wait, and does not count.
    no_notifier: Arc<AtomicBool>,
    handle: Handle,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Steady {
    fn start(fixture: &Fixture, handle: &Handle) -> Self {
        let (sent, no_notifier, stop) = (
            Arc::<std::sync::Mutex<HashMap<_, _>>>::default(),
            Arc::<AtomicBool>::default(),
            CancellationToken::new(),
        );
        let offline = fixture.engines.bus.offline.clone();
        let iphone = UserId::new(format!("person{}", PEOPLE + 1)).expect("a user id");
        let (to, counts, told) = (sent.clone(), no_notifier.clone(), stop.clone());
        let messages: Vec<_> = (0..10_000).map(|number| fixture.message(MESSAGES + number)).collect();
        let task = tokio::spawn(async move {
            let mut ticks = interval(EVERY);
            for mut message in messages {
                if told.run_until_cancelled(ticks.tick()).await.is_none() {
                    return;
                }
                message.timestamp = Timestamp::now();
                let id = message.id.to_string();
                let entry = (Instant::now(), !counts.load(Ordering::SeqCst));
                to.lock().expect("no panic under the lock").insert(id, entry);
                let event = Event::new(Offline { message, recipients: vec![iphone.clone()] }, Trace::start());
                // Again until the broker has it, as a fanout does.
                while offline.send(vec![event.clone()]).await.is_err() {}
            }
        });
        Self { sent, no_notifier, handle: handle.clone(), stop, task }
    }

    /// How many messages were missed.
    fn count(&self) -> u64 {
        self.sent.lock().expect("no panic under the lock").len() as u64
    }

    /// What the notifier that was killed had not pushed yet does not count.
    fn forgive_what_it_had(&self) {
        let taken: HashSet<_> = self.handle.received().iter().map(|push| push.message_id.clone()).collect();
        let mut sent = self.sent.lock().expect("no panic under the lock");
        for (id, (_, counts)) in sent.iter_mut() {
            *counts &= taken.contains(&Some(id.clone()));
        }
    }

    /// How long each push took that counts and was taken after so many others; shortest first.
    fn latencies(&self, after: u64) -> Vec<Duration> {
        // The emulator's clock is the time of day; so is this.
        let (now, today) = (Instant::now(), Timestamp::now().as_millis());
        let sent = self.sent.lock().expect("no panic under the lock");
        let taken = self.handle.received_after(after);
        let latency = |push: &Arc<naru_phones::Push>| {
            let (sent_at, counts) = sent.get(push.message_id.as_deref()?)?;
            let sent_at = today - i64::try_from(now.duration_since(*sent_at).as_millis()).ok()?;
            let took = i64::try_from(push.received_at).ok()? - sent_at;
            counts.then(|| Duration::from_millis(u64::try_from(took).unwrap_or(0)))
        };
        let mut latencies: Vec<_> = taken.iter().filter_map(latency).collect();
        latencies.sort_unstable();
        latencies
    }

    /// Everything that was missed was pushed.
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("it ends");
        let sent = self.sent.lock().expect("no panic under the lock").len() as u64;
        let all = async || self.handle.counts(Provider::Apns).taken >= sent;
        timeout(CATCH_UP_TIMEOUT, within(CATCH_UP_TIMEOUT, "every iPhone push has come", all))
            .await
            .expect("in time");
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

fn in_words(sorted: &[Duration]) -> String {
    let [p50, p99] = [50, 99].map(|percent| percentile(sorted, percent));
    format!("{} pushes, p50 {p50:?}, p99 {p99:?}, longest {:?}", sorted.len(), percentile(sorted, 100))
}
