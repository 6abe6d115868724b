//! The notifier from an offline event to a provider's answer: real lanes on the embedded engine, and a real HTTP server
//! as the app's main backend.

mod current;
mod lanes;
mod mockpost;
mod offline;
mod phones;
mod shutdown;
mod tls;
mod unprovided;
mod webhook;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use naru_client::{TEST_TIMEOUT, Webhook};
use naru_embedded::Embedded;
use naru_engines::Engines;
use naru_engines::store::{Device, NewRoom, ParkedPush, Platform};
use naru_model::hops::{Lane, Offline, PushEnvironment, PushJob};
use naru_model::room::sorted_members;
use naru_model::{
    ClientMessageId, DeviceId, Event, Message, MessageId, RoomId, RoomKind, Seq, Timestamp, Trace, UserId,
};
use notifier::{Config, Notifier, Provider, RetryPolicy, Scope, Verdict};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use naru_runtime::supervisor::Unclean;
use naru_runtime::{Health, Metrics, Secret, Span, Supervisor};

const SECRET: &str = "a secret of the backend's";
const MS: Duration = Duration::from_millis(1);
/// The waits between tries, in the time of a test.
const RETRY_POLICY: RetryPolicy = RetryPolicy([
    MS,
    MS.saturating_mul(2),
    MS.saturating_mul(4),
    MS.saturating_mul(8),
    MS.saturating_mul(16),
]);

fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

fn config(webhook_url: Option<String>) -> Config {
    Config {
        push_webhook_secret: webhook_url.is_some().then(|| Secret::from(SECRET.to_owned())),
        push_webhook_url: webhook_url.map(Secret::from),
        push_webhook_timeout: Span(TEST_TIMEOUT),
        push_concurrency: NonZeroUsize::new(4).unwrap(),
        push_ttl: Span(Duration::from_secs(24 * 3600)),
        push_hide_content: false,
        push_loc_key: "NARU_NEW_MESSAGE".to_owned(),
        push_sound: Some("default".to_owned()),
        push_mutable_content: true,
        push_interruption_level: None,
        push_android_channel: Some("messages".to_owned()),
        push_group_title: "{sender} · {group}".to_owned(),
        parked_keep: None,
        message_ttl: None,
        push_device_ttl: Span(Duration::from_secs(270 * 24 * 3600)),
        fcm_service_account_file: None,
        fcm_base_url: None,
        apns_key_file: None,
        apns_key_id: None,
        apns_team_id: None,
        apns_topic: None,
        apns_base_url: None,
        extra_ca_file: None,
    }
}

/// The data of one installation: the room A_B, and what was said in it.
struct Fixture {
    engines: Engines,
    embedded: Embedded,
    room: RoomId,
    dir: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(NewRoom {
            id: RoomId::direct(&user("A"), &user("B")),
            kind: RoomKind::Direct,
            name: None,
            member_ids: sorted_members([user("A"), user("B")]),
            maker_id: None,
        })
        .await
    }

    /// The same, with a group of A, B, C and D in the place of A_B.
    async fn of_group(name: &str) -> Self {
        Self::with(NewRoom {
            id: RoomId::new("group").unwrap(),
            kind: RoomKind::Group,
            name: Some(name.into()),
            member_ids: sorted_members(["A", "B", "C", "D"].map(user)),
            maker_id: None,
        })
        .await
    }

    async fn with(room: NewRoom) -> Self {
        let fixture = Self::open(tempfile::tempdir().unwrap(), room.id.clone());
        fixture.engines.store.rooms.create(room).await.unwrap();
        fixture
    }

    /// Waits until no event and no job is left, those that are put off included: what was to come has come.
    async fn nothing_is_queued(&self) {
        let database = self.database();
        let left =
            || database.query_row("SELECT count(*) FROM queue", [], |row| row.get::<_, i64>(0)).unwrap();
        let empty = async {
            while left() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(naru_client::TEST_TIMEOUT, empty).await.expect("the queue runs empty");
    }

    /// The event id, without hyphens, of each push that a provider took, and the id that the provider gave it.
    fn recorded(&self) -> Vec<(String, String)> {
        let database = self.database();
        let mut pushes = database.prepare("SELECT lower(hex(eventId)), providerId FROM pushes").unwrap();
        let recorded = pushes.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        recorded.unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn database(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.dir.path().join(Embedded::DATABASE)).unwrap()
    }

    /// Ada's next message, saved.
    async fn says(&self, content: &str) -> Message {
        self.says_at(content, Timestamp::now()).await
    }

    async fn says_at(&self, content: &str, timestamp: Timestamp) -> Message {
        let head = self.engines.store.messages.heads(std::slice::from_ref(&self.room)).await.unwrap()[0];
        let id = MessageId::generate();
        let message = Message {
            id,
            chat_room_id: self.room.clone(),
            seq: Seq(head.0 + 1),
            sender_id: user("A"),
            sender_name: "Ada".into(),
            content: content.into(),
            timestamp,
            client_message_id: ClientMessageId::from(id),
            deleted_at: None,
        };
        self.engines.store.messages.append_run(std::slice::from_ref(&message)).await.unwrap();
        message
    }

    /// Fanout's event: these people missed it.
    async fn missed(&self, message: &Message, recipients: &[&str]) -> Event<Offline> {
        let event = missed(message, recipients);
        self.engines.bus.offline.send(vec![event.clone()]).await.unwrap();
        event
    }

    async fn registers(&self, owner: &str, device: &str, platform: Platform) -> Device {
        let device = Device {
            user: user(owner),
            id: DeviceId::new(device).unwrap(),
            platform,
            token: format!("token of {device}").into(),
            environment: PushEnvironment::Production,
            locale: None,
            hides_content: false,
            registered_at: Timestamp::now(),
        };
        self.engines.store.devices.claim(device.clone()).await.unwrap();
        device
    }

    /// What is parked, once it is `count` pushes.
    async fn parked(&self, count: usize) -> Vec<ParkedPush> {
        until(|| async {
            let parked = self.engines.store.pushes.parked(None, 1000).await.unwrap();
            (parked.len() == count).then_some(parked)
        })
        .await
    }

    /// The data is gone from under the notifier, which then can acknowledge nothing; then it comes up again.
    async fn crashed(self, notifier: Running) -> Self {
        let Self { embedded, room, dir, .. } = self;
        embedded.close().await;
        notifier.stop(Duration::ZERO).await.unwrap().unwrap_err();
        Self::open(dir, room)
    }

    fn open(dir: TempDir, room: RoomId) -> Self {
        let embedded = Embedded::open(dir.path(), naru_embedded::Options::default()).unwrap();
        Self { engines: embedded.engines(), embedded, room, dir }
    }
}

fn missed(message: &Message, recipients: &[&str]) -> Event<Offline> {
    let recipients = recipients.iter().map(|id| user(id)).collect();
    Event::new(Offline { message: message.clone(), recipients }, Trace::start())
}

/// Asks until there is an answer; panics when there is none within [`TEST_TIMEOUT`].
async fn until<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(MS).await;
        }
    };
    timeout(TEST_TIMEOUT, asking).await.expect("it did not happen")
}

/// A notifier at work.
struct Running {
    metrics: Metrics,
    health: Health,
    shutdown: CancellationToken,
    supervisor: Supervisor,
}

impl Running {
    fn start(
        fixture: &Fixture,
        config: Config,
        providers: impl IntoIterator<Item = Arc<dyn Provider>>,
    ) -> Self {
        Self::on(fixture.engines.clone(), config, providers)
    }

    fn on(engines: Engines, config: Config, providers: impl IntoIterator<Item = Arc<dyn Provider>>) -> Self {
        let (metrics, shutdown) = (Metrics::new(), CancellationToken::new());
        let supervisor = Supervisor::new("test", shutdown.clone(), &metrics);
        let notifier = Notifier::new(config, engines, &metrics).unwrap().with_retry_policy(RETRY_POLICY);
        let health = Health::new(shutdown.clone());
        providers.into_iter().fold(notifier, Notifier::with_provider).spawn_on(&supervisor, &health);
        Self { metrics, health, shutdown, supervisor }
    }

    /// With the backend as its only provider.
    fn with_webhook(fixture: &Fixture, webhook: &Webhook) -> Self {
        Self::start(fixture, config(Some(webhook.url("/push"))), [])
    }

    /// Waits for a line of the metrics' page.
    async fn counts(&self, line: &str) {
        let line = format!("naru_notifier_{line}\n");
        until(|| async { self.metrics.encode().contains(&line).then_some(()) }).await;
    }

    /// Waits until a metric that goes on growing is at least this.
    async fn counts_at_least(&self, metric: &str, least: u64) {
        let metric = format!("naru_notifier_{metric} ");
        until(|| async {
            let page = self.metrics.encode();
            let value: u64 = page.lines().find_map(|line| line.strip_prefix(&metric))?.parse().unwrap();
            (value >= least).then_some(())
        })
        .await;
    }

    /// Tells it to stop; it has so long.
    fn stop(self, deadline: Duration) -> JoinHandle<Result<(), Unclean>> {
        self.shutdown.cancel();
        tokio::spawn(self.supervisor.run(deadline))
    }

    /// Everything in flight is finished, nothing more is taken.
    async fn finished(self) {
        self.stop(TEST_TIMEOUT).await.unwrap().unwrap();
    }
}

/// A provider whose every answer the test gives.
struct Scripted {
    lane: Lane,
    calls: mpsc::UnboundedSender<Call>,
}

/// A push that waits for its verdict; without one, it is [`Verdict::TryLater`].
struct Call {
    event: Event<PushJob>,
    verdict: oneshot::Sender<Verdict>,
}

impl Call {
    fn answer(self, verdict: Verdict) {
        self.verdict.send(verdict).unwrap();
    }

    fn deliver(self) {
        self.answer(Verdict::Delivered { provider_id: "7".into() });
    }
}

/// The test's end of a [`Scripted`].
struct Calls(mpsc::UnboundedReceiver<Call>);

impl Scripted {
    fn on(lane: Lane) -> (Arc<dyn Provider>, Calls) {
        let (calls, received) = mpsc::unbounded_channel();
        (Arc::new(Self { lane, calls }), Calls(received))
    }
}

#[async_trait]
impl Provider for Scripted {
    fn lane(&self) -> Lane {
        self.lane
    }

    async fn push(&self, event: &Event<PushJob>) -> Verdict {
        let (verdict, answered) = oneshot::channel();
        let _ = self.calls.send(Call { event: event.clone(), verdict });
        answered.await.unwrap_or(Verdict::TryLater { reason: "no verdict".into(), at_least: Duration::ZERO })
    }
}

impl Calls {
    async fn next(&mut self) -> Call {
        timeout(TEST_TIMEOUT, self.0.recv()).await.expect("no push came").expect("the provider lives")
    }

    /// That many different pushes, all under way at once.
    async fn take(&mut self, count: usize) -> Vec<Call> {
        let mut calls = Vec::new();
        while calls.len() < count {
            calls.push(self.next().await);
        }
        let different: HashSet<_> = calls.iter().map(|call| call.event.event_id).collect();
        assert_eq!(different.len(), count);
        calls
    }

    fn none_waiting(&mut self) {
        assert!(self.0.try_recv().is_err(), "a push too many");
    }
}
