//! Naru as services: the real programs, each its own process, on services that no other test uses.

use std::time::{Duration, Instant};

use mongodb::bson::oid::ObjectId;
use naru_client::{Client, Http, ServerProcess, TEST_TIMEOUT, Webhook};
use naru_services::{Kind, Service};
use redis::aio::MultiplexedConnection;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{SECRET, WEBHOOK_SECRET, phone_on, token_of};

/// How often something is looked at while it is waited for.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// What a deployment stands on, and where its processes keep their logs.
pub struct Cluster {
    /// The app's main backend, which is told of pushes.
    pub backend: Webhook,
    pub mongodb_url: String,
    pub mongodb_database: String,
    pub amqp_url: String,
    pub redis_url: String,
    environment: Vec<(&'static str, String)>,
    logs: TempDir,
    _redis: Option<Service>,
}

impl Cluster {
    /// On the broker and the MongoDB-wire server that the tests share, and a Redis of its own: Pub/Sub has no databases.
    pub async fn start() -> Self {
        let services = tokio::task::spawn_blocking(|| {
            let redis = Service::start(Kind::Redis);
            (naru_services::url(Kind::Mongodb).to_owned(), naru_services::own_virtual_host(), redis)
        });
        let (mongodb_url, amqp_url, redis) = services.await.expect("services");
        let redis_url = redis.url();
        Self::on(mongodb_url, amqp_url, redis_url).await.owning(redis)
    }

    /// On these services.
    pub async fn on(mongodb_url: String, amqp_url: String, redis_url: String) -> Self {
        let backend = Webhook::start().await;
        let mongodb_database = format!("naru-{}", ObjectId::new());
        let environment = vec![
            ("NARU_MONGODB_URL", mongodb_url.clone()),
            ("NARU_MONGODB_DATABASE", mongodb_database.clone()),
            ("NARU_AMQP_URL", amqp_url.clone()),
            ("NARU_REDIS_URL", redis_url.clone()),
            ("NARU_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
            ("NARU_JWT_SECRET", SECRET.to_owned()),
            ("NARU_PUSH_WEBHOOK_URL", backend.url("/api/notifications/push")),
            ("NARU_PUSH_WEBHOOK_SECRET", WEBHOOK_SECRET.to_owned()),
            ("NARU_RATE_MESSAGES_PER_SECOND", "0".to_owned()),
        ];
        let logs = tempfile::tempdir().expect("a folder for the logs");
        Self { backend, mongodb_url, mongodb_database, amqp_url, redis_url, environment, logs, _redis: None }
    }

    /// With this Redis for as long as it lasts.
    pub fn owning(self, redis: Service) -> Self {
        Self { _redis: Some(redis), ..self }
    }

    /// With this variable for every process that is started from now on.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// Starts a process of a worker; returns when it serves.
    pub async fn run(&self, worker: &str) -> ServerProcess {
        self.run_with(worker, &[]).await
    }

    /// The same, with variables of its own. A gateway has no admin address besides its own.
    pub async fn run_with(&self, worker: &str, more: &[(&str, &str)]) -> ServerProcess {
        let own = self.environment.iter().map(|(name, value)| (*name, value.as_str()));
        let mut variables: Vec<_> =
            own.filter(|(name, _)| worker != "gateway" || *name != "NARU_ADMIN_LISTEN").collect();
        variables.extend(more);
        let started = ServerProcess::start(program(worker), self.logs.path().join(worker), &variables).await;
        started.unwrap_or_else(|error| panic!("the {worker} does not start: {error}"))
    }

    /// One process of each worker, the gateway first.
    pub async fn run_each(&self) -> [ServerProcess; 4] {
        let gateway = self.run("gateway").await;
        [gateway, self.run("persister").await, self.run("fanout").await, self.run("notifier").await]
    }

    /// Redis, past Naru.
    pub async fn redis(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.redis_url.as_str()).expect("a URL");
        client.get_multiplexed_async_connection().await.expect("a connection")
    }

    /// The database, read past Naru.
    pub async fn database(&self) -> mongodb::Database {
        let client = mongodb::Client::with_uri_str(&self.mongodb_url).await.expect("a URL");
        client.database(&self.mongodb_database)
    }
}

/// A phone of this person, connected to this gateway and welcomed.
pub async fn phone(gateway: &ServerProcess, person: &str) -> Client {
    phone_on(gateway.url(), person).await
}

/// This person's HTTP API, through this gateway.
pub fn http(gateway: &ServerProcess, person: &str) -> Http {
    Http::new(gateway.url(), &token_of(person))
}

/// What a process counts under this name; 0 before it has counted anything.
pub async fn counted(process: &ServerProcess, name: &str) -> u64 {
    let (status, page) = Http::without_token(process.url()).get("/metrics").await;
    let Value::String(page) = page else { panic!("no metrics, but {status} {page}") };
    let lines = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let values = lines.map(|value| value.parse::<u64>().expect("a count"));
    values.sum()
}

/// Waits until `look` answers true; says `what` was waited for when it does not.
pub async fn until(what: &str, look: impl AsyncFn() -> bool) {
    within(TEST_TIMEOUT, what, look).await;
}

/// The same, within that long.
pub async fn within(patience: Duration, what: &str, look: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !look().await {
        assert!(begun.elapsed() < patience, "waited {patience:?} until {what}");
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// The program of a worker.
fn program(worker: &str) -> &'static str {
    match worker {
        "gateway" => env!("CARGO_BIN_EXE_gateway"),
        "persister" => env!("CARGO_BIN_EXE_persister"),
        "fanout" => env!("CARGO_BIN_EXE_fanout"),
        "notifier" => env!("CARGO_BIN_EXE_notifier"),
        other => panic!("no worker is called {other}"),
    }
}
