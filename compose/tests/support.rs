//! All of Naru in this process, and people with phones.

use std::path::Path;
use std::time::Duration;

use futures_util::future::BoxFuture;
use naru::pipeline::Changes;
use naru::{PROGRAM, Pipeline};
use naru_client::{Claims, Client, Http, TEST_TIMEOUT, Webhook, token};
use naru_engines::EngineResult;
use naru_faults::{Call, Interceptor};
use naru_runtime::Settings;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::costs::Load;

/// The secret that signs tokens here.
pub const SECRET: &str = "a secret for tests, of 32 bytes or more";
/// The secret that signs webhook calls here.
pub const WEBHOOK_SECRET: &str = "a secret between friends";

/// A running Naru, its data, and the backend its pushes go to.
pub struct Naru {
    pub url: String,
    pub backend: Webhook,
    data: TempDir,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Naru {
    /// Starts one, embedded, with these flags besides.
    pub async fn start(flags: &[&str]) -> Self {
        Self::start_with(flags, Changes::default()).await
    }

    /// The same, with changes to what it is made of.
    pub async fn start_with(flags: &[&str], changes: Changes) -> Self {
        Self::start_as(&[&["--jwt-secret", SECRET], flags].concat(), changes).await
    }

    /// Starts one whose key for tokens is among the flags.
    pub async fn start_with_keys(flags: &[&str]) -> Self {
        Self::start_as(flags, Changes::default()).await
    }

    async fn start_as(flags: &[&str], changes: Changes) -> Self {
        let backend = Webhook::start().await;
        let data = tempfile::tempdir().expect("a folder for the data");
        let dir = data.path().to_str().expect("a folder with a plain name");
        let url = backend.url("/api/notifications/push");
        let own = [
            "naru",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            dir,
            "--push-webhook-url",
            &url,
            "--push-webhook-secret",
            WEBHOOK_SECRET,
        ];
        let matches = Settings::command(&PROGRAM).get_matches_from(own.iter().chain(flags));
        let settings = Settings::load(&PROGRAM, &matches, []).expect("flags that are right");
        let shutdown = CancellationToken::new();
        let pipeline = Pipeline::start_with(&settings, shutdown.clone(), changes)
            .await
            .expect("Naru starts")
            .expect("it was not told to stop");
        let url = pipeline.url().to_owned();
        Self { url, backend, data, shutdown, running: tokio::spawn(pipeline.run()) }
    }

    /// Where its data lies, if it is embedded.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// A phone of this person, connected and welcomed.
    pub async fn phone(&self, person: &str) -> Client {
        phone_on(&self.url, person).await
    }

    /// The same, by a token with these claims.
    pub async fn phone_of(&self, claims: &Claims) -> Client {
        let mut phone =
            Client::connect(&self.url, &token(SECRET.as_bytes(), claims)).await.expect("a welcome");
        phone.welcome().await;
        phone
    }

    /// Waits until the metrics have this line.
    pub async fn counts(&self, line: &str) {
        let anonymous = Http::without_token(&self.url);
        let counting = async {
            loop {
                let (_, page) = anonymous.get("/metrics").await;
                if page.as_str().expect("a text").lines().any(|counted| counted == line) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TEST_TIMEOUT, counting)
            .await
            .unwrap_or_else(|_| panic!("never counted: {line}"));
    }

    /// What the metrics have under this name.
    pub async fn counted(&self, name: &str) -> u64 {
        let (_, page) = Http::without_token(&self.url).get("/metrics").await;
        let page = page.as_str().expect("a text");
        let counted = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        counted.map_or(0, |count| count.parse().expect("a count"))
    }

    /// Waits until a batch of the persister failed and comes again.
    pub async fn retried_by_the_persister(&self) {
        let retrying = async {
            while self.counted("naru_persister_retried_total").await == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TEST_TIMEOUT, retrying).await.expect("it is retried");
    }

    /// How much there was to do.
    pub async fn load(&self) -> Load {
        Load {
            messages: self.counted("naru_persister_saved_total").await,
            intake: self.counted("naru_gateway_intake_batch_count").await,
            persist: self.counted("naru_persister_batch_count").await,
            publish: self.counted("naru_fanout_batch_count").await,
            lasted: Duration::ZERO,
        }
    }

    /// This person's HTTP API.
    pub fn http(&self, person: &str) -> Http {
        Http::new(&self.url, &token_of(person))
    }

    /// Stops it in order.
    pub async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), self.running).await;
        ended.expect("Naru stops in time").expect("it does not panic").expect("it leaves in order");
    }
}

/// A phone of this person, connected to a Naru and welcomed.
pub async fn phone_on(url: &str, person: &str) -> Client {
    let mut phone = Client::connect(url, &token_of(person)).await.expect("a welcome");
    phone.welcome().await;
    phone
}

/// A token that says who this person is. Ada and Ben have names that are not their ids.
pub fn token_of(person: &str) -> String {
    let mut claims = Claims::user(person);
    if let "A" | "B" = person {
        claims = claims.name(if person == "A" { "Ada" } else { "Ben" });
    }
    token(SECRET.as_bytes(), &claims)
}

/// An interceptor that does this before every call.
pub struct Before<F>(pub F);

impl<F: Fn(&Call) -> BoxFuture<'static, EngineResult<()>> + Send + Sync> Interceptor for Before<F> {
    // What `#[async_trait]` makes of `async fn before(&self, call: &Call)`.
    fn before<'me, 'call, 'both>(&'me self, call: &'call Call) -> BoxFuture<'both, EngineResult<()>>
    where
        'me: 'both,
        'call: 'both,
        Self: 'both,
    {
        (self.0)(call)
    }
}
