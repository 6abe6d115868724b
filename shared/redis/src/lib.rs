//! Naru's live layer on Redis, a Redis Cluster, or Valkey.
//!
//! | part | where | when Redis loses it |
//! |---|---|---|
//! | live | Pub/Sub: `chat:<room>`, `naru:news`, `naru:gateways`, `naru:gateway:<id>` | gateways receive `Interrupted`; phones send `SYNC` |
//! | presence | keys `naru:gateway:<id>`, `naru:presence:<user>` | gateways attach their sessions again, single ones within 40 seconds; last seen begins anew |
//! | proofs | keys `naru:proofs:<time>:<shard>` | a push too many |
//! | leases | keys `naru:lease:<name>` | another holder may take over |
//!
//! **Any plain subscriber of `chat:*` receives every message**, and nothing else, as one JSON object with the fields
//! of the `CHAT` frame, and with `recipients`, the connected members, and `origin`, the sending session. All other
//! events, of whatever room, go over Naru's own channels.
//!
//! # Requirements
//! - Redis 6.2 or Valkey, and the permission to use `INFO cluster`, scripts, and everything under `naru:` and
//!   `chat:`.
//! - **A Redis of its own**, or a cluster: Pub/Sub has no database numbers, so two deployments on one server
//!   would receive each other's messages.
//! - `maxmemory-policy noeviction`. Keys are small and expire by themselves, except those of connected users. Other policies
//!   lose nothing for good, but a user whose key was evicted gets pushes only until the loss is found.
//! - No persistence is needed. Without it, a restart loses users' last-seen times.
//!
//! # When it can't be reached
//! Calls fail (`Unavailable`): after a second or two while it hangs, at once while it refuses connections. Only the
//! sessions that were detached meanwhile are kept for a retry. Connections are reopened automatically. A gateway
//! receives `Interrupted` at once when its connection is closed and after three to four seconds of silence, and
//! `Restored` when it has received its own heartbeat through a new one.
//!
//! # On a cluster
//! Messages are published and received through any one node, since nodes forward published messages to each other.
//! **A loss on a broken link between two nodes is not reported**: it is the one loss that L1 does not cover here.
//! A phone detects it by a gap in `seq`. Messages that different processes publish through different nodes have no
//! order, either.
//!
//! Each key has a command of its own, and all are sent at once: a look-up of 256 users is 256 commands there, and two on
//! one server. The proofs of one time are spread over eight sets, so that no node has the whole load.

mod error;
mod keys;
mod leases;
mod link;
mod live;
mod names;
mod presence;
mod proofs;
mod publish;
mod servers;
mod sighting;
mod signal_buffer;
mod subscribe;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use naru_engines::live::{Leases, Live, Presence, Proofs};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::GatewayId;
use redis::{Cmd, from_redis_value};

use crate::error::{ENGINE, engine_error, unreadable};
use crate::keys::Keys;
use crate::leases::RedisLeases;
use crate::link::Link;
use crate::presence::RedisPresence;
use crate::proofs::RedisProofs;
use crate::publish::PubSub;
use crate::servers::Servers;

/// How long the key of a check is kept.
const PROBE_TTL: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Options {
    /// How many signals a gateway may fall behind before it receives `Interrupted`; also at 32 MiB of them.
    pub live_backlog: usize,
    /// How long Redis may take to answer a call on an open connection. Connecting takes a second at most.
    pub answer_within: Duration,
    /// How long it is kept when a user without a session was last seen.
    pub last_seen_keep: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let last_seen_keep = Duration::from_secs(365 * 24 * 60 * 60);
        Self { live_backlog: 16_384, answer_within: Duration::from_millis(1_500), last_seen_keep }
    }
}

/// The live layer on one Redis. Two connections, shared by all calls, and one for each subscription.
pub struct Redis {
    live: Arc<PubSub>,
    presence: Arc<RedisPresence>,
    proofs: Arc<RedisProofs>,
    leases: Arc<RedisLeases>,
    /// The name of the key that shows whether writes are taken.
    probe: String,
}

impl Redis {
    /// Connects to `redis://[user:password@]host:port/[database]`, or with TLS to `rediss://…`, which trusts the
    /// system's certificates. For a cluster, name some nodes, separated by commas; the server reports that it is one.
    /// (A comma in a password is written `%2C`.)
    ///
    /// # Errors
    /// `Permanent` when the URL can't be read, the password is wrong, or several servers are named that are no
    /// cluster. `Unavailable`, within four seconds, when there is no connection: a service that starts before its
    /// Redis retries while [`EngineError::is_transient`] holds.
    pub async fn open(url: &str, options: Options) -> EngineResult<Self> {
        let servers = Arc::new(Servers::parse(url)?);
        let publishing = Arc::new(Link::new(servers.clone(), options.answer_within));
        let keys = if is_cluster(&publishing).await? {
            Keys::of_cluster(&servers, options.answer_within).await?
        } else if servers.count() == 1 {
            // A connection of their own: a look-up does not wait behind a batch of messages.
            Keys::Server(Box::new(Link::new(servers.clone(), options.answer_within)))
        } else {
            let why = "several servers are named, but they are no cluster (cluster_enabled:0)";
            return Err(EngineError::permanent(ENGINE, why));
        };
        let keys = Arc::new(keys);
        Ok(Self {
            live: Arc::new(PubSub::new(publishing, servers, options.live_backlog)),
            presence: Arc::new(RedisPresence::new(keys.clone(), options.last_seen_keep)),
            proofs: Arc::new(RedisProofs::new(keys.clone())),
            leases: Arc::new(RedisLeases(keys)),
            probe: format!("probe-{}", GatewayId::generate()),
        })
    }

    /// Publish and subscribe.
    pub fn live(&self) -> Arc<dyn Live> {
        self.live.clone()
    }

    /// Users' live sessions.
    pub fn presence(&self) -> Arc<dyn Presence> {
        self.presence.clone()
    }

    /// Proofs of received messages.
    pub fn proofs(&self) -> Arc<dyn Proofs> {
        self.proofs.clone()
    }

    /// Leases for work of one process.
    pub fn leases(&self) -> Arc<dyn Leases> {
        self.leases.clone()
    }
}

impl Redis {
    /// Whether it takes writes. A server that is out of memory, can't save its data, or is a replica by now, still answers reads.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_writes(&self) -> EngineResult<()> {
        // A lease that nobody else asks for: it is written each time.
        self.leases.hold(&self.probe, &self.probe, PROBE_TTL).await.map(drop)
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
