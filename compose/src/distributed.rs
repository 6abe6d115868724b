//! MongoDB, RabbitMQ and Redis behind the engines.
//!
//! [`Distributed`] has the engines of many processes, as `Embedded` has those of one. It waits for its three services at
//! the start, reports to `/readyz` which of them does not answer, and disconnects in order.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, try_join3};
use naru_engines::{EngineResult, Engines};
use naru_model::UserId;
use naru_mongo::Mongo;
use naru_rabbit::Rabbit;
use naru_redis::Redis;
use naru_runtime::{Backoff, Health, Settings, Span};
use serde::Deserialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// The delay before a service that does not answer is tried again: up to this, doubling …
const RETRY_BASE: Duration = Duration::from_millis(250);
/// … up to this.
const RETRY_CAP: Duration = Duration::from_secs(5);

/// What `/readyz` says, without the error's details, which its clients must not see.
const DOES_NOT_ANSWER: &str = "does not answer";
const TAKES_NO_WRITES: &str = "takes no writes: it is out of memory or disk, or a replica";

#[derive(Deserialize)]
struct Config {
    mongodb_url: String,
    mongodb_database: String,
    amqp_url: String,
    partitions: u32,
    redis_url: String,
    last_seen_keep: Span,
}

/// Connections to MongoDB, RabbitMQ and Redis.
pub struct Distributed {
    mongo: Mongo,
    rabbit: Arc<Rabbit>,
    redis: Arc<Redis>,
}

impl Distributed {
    /// Connects to all three at once. One that does not answer is tried again until it does, so a deployment may start in
    /// any order; meanwhile `health` reports the missing ones. None: shutdown came first.
    ///
    /// Boxed, so that the drivers are compiled here, and not once more for each binary that awaits it.
    ///
    /// # Errors
    /// When one of them can never serve: a wrong password, a database of another version.
    pub fn wait_for<'a>(
        settings: &'a Settings,
        health: &'a Health,
        shutdown: &'a CancellationToken,
    ) -> BoxFuture<'a, anyhow::Result<Option<Self>>> {
        Self::open(settings, health, shutdown).boxed()
    }

    async fn open(
        settings: &Settings,
        health: &Health,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let config: Config = settings.pick()?;
        let partitions = config.partitions;
        let all = try_join3(
            answering("mongodb", health, || {
                let options = naru_mongo::Options { partitions, ..Default::default() };
                Mongo::open(&config.mongodb_url, &config.mongodb_database, options).boxed()
            }),
            answering("rabbitmq", health, || {
                let options = naru_rabbit::Options { partitions, ..Default::default() };
                let opening = Rabbit::open(&config.amqp_url, options);
                // Opening does not wait for the broker; a service must not report that it serves before the broker answers.
                async move {
                    let rabbit = opening.await?;
                    rabbit.ping().await.map(|()| rabbit)
                }
                .boxed()
            }),
            answering("redis", health, || {
                let last_seen_keep = config.last_seen_keep.into();
                let options = naru_redis::Options { last_seen_keep, ..Default::default() };
                Redis::open(&config.redis_url, options).boxed()
            }),
        );
        let Some(all) = shutdown.run_until_cancelled(all).await else { return Ok(None) };
        let (mongo, rabbit, redis) = all?;
        let distributed = Self { mongo, rabbit: Arc::new(rabbit), redis: Arc::new(redis) };
        distributed.register_checks(health);
        Ok(Some(distributed))
    }

    /// The workers' engines.
    pub fn engines(&self) -> Engines {
        Engines {
            store: self.mongo.store(),
            bus: self.rabbit.bus(),
            live: self.redis.live(),
            presence: self.redis.presence(),
            proofs: self.redis.proofs(),
            leases: self.redis.leases(),
        }
    }

    /// Closes the connections, after the workers have stopped.
    pub async fn close(self) {
        self.rabbit.close().await;
    }

    fn register_checks(&self, health: &Health) {
        let mongo = self.mongo.clone();
        health.register("mongodb", move || {
            let mongo = mongo.clone();
            async move {
                mongo.ping().await.map_err(|_| DOES_NOT_ANSWER.to_owned())?;
                mongo.check_writes().await.map_err(|_| TAKES_NO_WRITES.to_owned())
            }
            .boxed()
        });
        let rabbit = self.rabbit.clone();
        health.register("rabbitmq", move || {
            let rabbit = rabbit.clone();
            async move {
                let says = |_| match rabbit.is_blocked() {
                    true => "takes no messages: it is short of memory or disk".to_owned(),
                    false => DOES_NOT_ANSWER.to_owned(),
                };
                rabbit.ping().await.map_err(says)
            }
            .boxed()
        });
        let (redis, probe) = (self.redis.clone(), UserId::new("~").expect("a user id"));
        health.register("redis", move || {
            let (redis, probe) = (redis.clone(), probe.clone());
            async move {
                let answers = redis.presence().online(slice::from_ref(&probe)).await;
                answers.map_err(|_| DOES_NOT_ANSWER.to_owned())?;
                redis.check_writes().await.map_err(|_| TAKES_NO_WRITES.to_owned())
            }
            .boxed()
        });
    }
}

/// Opens a service; retries until it answers.
async fn answering<'a, T>(
    name: &'static str,
    health: &Health,
    open: impl Fn() -> BoxFuture<'a, EngineResult<T>>,
) -> anyhow::Result<T> {
    health.register(name, || async { Err("has not answered yet".to_owned()) }.boxed());
    let mut backoff = Backoff::new(RETRY_BASE, RETRY_CAP);
    let mut is_told = false;
    loop {
        match open().await {
            Ok(service) => {
                if is_told {
                    tracing::info!(service = name, "answers now");
                }
                return Ok(service);
            }
            Err(error) if error.is_transient() => {
                if !is_told {
                    tracing::warn!(service = name, %error, "does not answer; waiting for it");
                    is_told = true;
                }
                sleep(backoff.next_delay()).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
