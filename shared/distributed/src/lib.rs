//! MongoDB, RabbitMQ and Redis behind the engines, and the door of a service that stands on them.
//!
//! [`Distributed`] is to many processes what `Embedded` is to one: it has the engines. It waits for its three services at
//! the start, tells `/readyz` which of them does not answer, and leaves them in order. [`service`] is the `main` that the
//! gateway, the persister, the fanout and the notifier share.

pub mod service;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures_util::FutureExt;
use futures_util::future::try_join3;
use naru_engines::{EngineError, EngineResult, Engines};
use naru_mongo::Mongo;
use naru_rabbit::Rabbit;
use naru_redis::Redis;
use naru_runtime::{Backoff, Health, Secret, Settings, Span};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// The wait before a service that does not answer is tried again: up to this, doubling …
const RETRY_BASE: Duration = Duration::from_millis(250);
/// … up to this.
const RETRY_CAP: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Config {
    mongodb_url: String,
    mongodb_database: String,
    amqp_url: String,
    redis_url: String,
    delivery_grace: Span,
}

/// Connections to MongoDB, RabbitMQ and Redis.
pub struct Distributed {
    mongo: Mongo,
    rabbit: Rabbit,
    redis: Redis,
}

impl Distributed {
    /// Connects to all three at once. One that does not answer is tried again until it does, so that the order in which
    /// a deployment starts does not matter; meanwhile `health` says what is waited for. None: shutdown came first.
    ///
    /// # Errors
    /// When one answers and will never do: a wrong password, a database of another version.
    pub async fn wait_for(
        settings: &Settings,
        health: &Health,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let Config { mongodb_url, mongodb_database, amqp_url, redis_url, delivery_grace } =
            settings.pick()?;
        let options = naru_rabbit::Options { grace: delivery_grace.into(), ..Default::default() };
        let all = try_join3(
            answering("mongodb", health, || {
                Mongo::open(&mongodb_url, &mongodb_database, naru_mongo::Options::default())
            }),
            answering("rabbitmq", health, || Rabbit::open(&amqp_url, options.clone())),
            answering("redis", health, || Redis::open(&redis_url, naru_redis::Options::default())),
        );
        let Some(all) = shutdown.run_until_cancelled(all).await else { return Ok(None) };
        let (mongo, rabbit, redis) = all?;
        let backing = Self { mongo, rabbit, redis };
        backing.register_checks(health);
        Ok(Some(backing))
    }

    /// What the workers stand on.
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

    /// Closes what is open, after the workers have left.
    pub async fn close(self) {
        self.rabbit.close().await;
    }

    fn register_checks(&self, health: &Health) {
        let (mongo, rabbit, redis) = (self.mongo.clone(), self.rabbit.clone(), self.redis.clone());
        health.register("mongodb", move || asked(mongo.clone(), async |mongo| mongo.ping().await));
    }
}
