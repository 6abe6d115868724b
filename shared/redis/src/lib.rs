//! Naru's live layer on Redis, a Redis Cluster, or Valkey.
//!
//! | part | where | when Redis loses it |
//! |---|---|---|
//! | live | Pub/Sub: `chat:<room>`, `naru:news`, `naru:gateway:<id>` | gateways receive `Interrupted`, and phones `SYNC` |
//! | presence | keys `naru:gateway:<id>`, `naru:presence:<user>` | gateways attach their sessions again; last seen begins anew |
//! | proofs | keys `naru:proofs:<time>:<shard>` | a push too many |
//! | leases | keys `naru:lease:<name>` | another holder may take over |
//!
//! **Any plain subscriber of `chat:*` receives every message**, and nothing else, as one JSON object with the fields
//! of the `CHAT` frame; beside them stand `recipients`, those of the members who are connected, and `origin`, the
//! session that sent it. Everything else, of whatever room, goes over Naru's own channels.
//!
//! # What it needs
//! - Redis 6.2 or Valkey, and the permission to use `INFO cluster`, scripts, and everything under `naru:` and
//!   `chat:`.
//! - **A Redis of its own**, or a cluster: Pub/Sub knows no database numbers, so two deployments on one server
//!   would receive each other's messages.
//! - `maxmemory-policy noeviction`. Keys are small and expire by themselves, but for those of connected users.
//! - No persistence is needed. Without it, a restart forgets when users were last seen.
//!
//! # When it can't be reached
//! Calls fail (`Unavailable`): after a second or two while it hangs, at once while it does not listen. Nothing is kept
//! for later but which sessions were detached meanwhile. Connections are made again by themselves. A gateway receives
//! `Interrupted` at once when its connection is closed and after three to four seconds of silence, and `Restored` when
//! it has received its own heartbeat through a new one.
//!
//! # On a cluster
//! Messages are published and received through any one node, since nodes pass on to each other what is published.
//! **What a broken link between two nodes loses is not announced**: it is the one loss that L1 does not cover here.
//! A phone sees by the `seq` that something is missing. Between messages published by different processes through
//! different nodes there is no order, either.
//!
//! Each key is asked for by a command of its own, all of them at once: looking up 256 users is 256 commands there, and two
//! on one server. The proofs of one time are spread over eight sets, so that no node has all the work of the moment.

mod error;
mod keys;
mod leases;
mod link;
mod names;
mod presence;
mod proofs;
mod publish;
mod servers;
mod signal_buffer;
mod subscribe;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use naru_engines::live::{Leases, Live, Presence, Proofs};
use naru_engines::{Applied, EngineError, EngineResult};
use redis::{Cmd, from_redis_value};

use crate::error::{ENGINE, engine_error, unreadable};
use crate::keys::Keys;
use crate::leases::RedisLeases;
use crate::link::Link;
use crate::presence::RedisPresence;
use crate::proofs::RedisProofs;
use crate::publish::PubSub;
use crate::servers::Servers;

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many signals a gateway may fall behind before it receives `Interrupted`. It does, too, at 32 MiB.
    pub live_backlog: usize,
    /// How long Redis may take to answer a call, once there is a connection. Making one takes a second at most.
    pub answer_within: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { live_backlog: 16_384, answer_within: Duration::from_millis(1_500) }
    }
}

/// The live layer on one Redis. Two connections, shared by all that is done, and one for each subscription.
pub struct Redis {
    live: Arc<PubSub>,
    presence: Arc<RedisPresence>,
    proofs: Arc<RedisProofs>,
    leases: Arc<RedisLeases>,
}

impl Redis {
    /// Connects to `redis://[user:password@]host:port/[database]`, or with TLS to `rediss://…`, which trusts what
    /// the system trusts. Of a cluster, name some nodes, separated by commas; that it is one, the server says. (A
    /// comma in a password is written `%2C`.)
    ///
    /// # Errors
    /// `Permanent` when the URL can't be read, the password is wrong, or several servers are named that are no
    /// cluster. `Unavailable`, within four seconds, when there is no connection: a service that starts before its
    /// Redis does asks again for as long as [`EngineError::is_transient`] says so.
    pub async fn open(url: &str, options: Options) -> EngineResult<Self> {
        let servers = Arc::new(Servers::parse(url)?);
        let publishing = Arc::new(Link::new(servers.clone(), options.answer_within));
        let keys = if is_cluster(&publishing).await? {
            Keys::of_cluster(&servers, options.answer_within).await?
        } else if servers.count() == 1 {
            // Of their own, so that a look-up does not wait behind a batch of messages.
            Keys::Server(Box::new(Link::new(servers.clone(), options.answer_within)))
        } else {
            let why = "several servers are named, but they are no cluster (cluster_enabled:0)";
            return Err(EngineError::permanent(ENGINE, why));
        };
        let keys = Arc::new(keys);
        Ok(Self {
            live: Arc::new(PubSub::new(publishing, servers, options.live_backlog)),
            presence: Arc::new(RedisPresence::new(keys.clone())),
            proofs: Arc::new(RedisProofs::new(keys.clone())),
            leases: Arc::new(RedisLeases(keys)),
        })
    }

    /// Publish and subscribe.
    pub fn live(&self) -> Arc<dyn Live> {
        self.live.clone()
    }

    /// Who is connected, and where.
    pub fn presence(&self) -> Arc<dyn Presence> {
        self.presence.clone()
    }

    /// What was proven to have arrived.
    pub fn proofs(&self) -> Arc<dyn Proofs> {
        self.proofs.clone()
    }

    /// Who does what only one should do.
    pub fn leases(&self) -> Arc<dyn Leases> {
        self.leases.clone()
    }
}

async fn is_cluster(link: &Link) -> EngineResult<bool> {
    let mut command = Cmd::new();
    command.arg("INFO").arg("cluster");
    let answer = link.send([command]).await?.pop();
    let answer = answer.ok_or_else(|| EngineError::poison(ENGINE, "an answer is missing"))?;
    let info: String =
        from_redis_value(answer.map_err(|error| engine_error(error, Applied::No))?).map_err(unreadable)?;
    Ok(info.lines().any(|line| line.trim() == "cluster_enabled:1"))
}
