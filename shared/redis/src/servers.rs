//! Redis's addresses: one server, or some nodes of a cluster that name the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use naru_engines::{Applied, EngineError, EngineResult};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisError,
    RedisResult,
};
use tokio::time::timeout;

use crate::error::{ENGINE, engine_error};

/// How long connecting may take, over all servers that are tried one after the other: network, TLS, handshake.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct Servers {
    clients: Vec<Client>,
    /// The first to try; advances when it can't be reached.
    first: AtomicUsize,
}

impl Servers {
    /// Reads URLs that are separated by commas.
    ///
    /// # Errors
    /// `Permanent` when one can't be read. The error is safe to log: it has no URL, and so no password.
    pub(crate) fn parse(urls: &str) -> EngineResult<Self> {
        let clients = urls.split(',').map(|url| Client::open(connection_info(url.trim())?));
        let clients: Vec<_> =
            clients.collect::<RedisResult<_>>().map_err(|error| EngineError::permanent(ENGINE, error))?;
        // Processes that start together spread over the nodes of a cluster.
        let first = usize::try_from(std::process::id()).unwrap_or_default();
        Ok(Self { clients, first: AtomicUsize::new(first) })
    }

    /// The number of servers: at least one.
    pub(crate) fn count(&self) -> usize {
        self.clients.len()
    }

    /// The nodes that a cluster's client tries first.
    pub(crate) fn infos(&self) -> impl Iterator<Item = ConnectionInfo> {
        self.clients.iter().map(|client| client.get_connection_info().clone())
    }

    /// Connects to the first server that answers.
    ///
    /// # Errors
    /// Within [`CONNECT_TIMEOUT`], when none does. The next attempt begins with the next server.
    pub(crate) async fn connect(
        &self,
        config: &AsyncConnectionConfig,
    ) -> EngineResult<MultiplexedConnection> {
        let first = self.first.load(Ordering::Relaxed);
        let mut last = None;
        let attempts = async {
            for server in first..first + self.count() {
                let client = &self.clients[server % self.count()];
                match client.get_multiplexed_async_connection_with_config(config).await {
                    Ok(connection) => {
                        self.first.store(server, Ordering::Relaxed);
                        return Some(connection);
                    }
                    Err(error) => last = Some((client, error)),
                }
            }
            None
        };
        if let Ok(Some(connection)) = timeout(CONNECT_TIMEOUT, attempts).await {
            return Ok(connection);
        }
        self.first.store(first + 1, Ordering::Relaxed);
        Err(match last {
            // An error must name its server.
            Some((client, error)) => match engine_error(error, Applied::No) {
                EngineError::Unavailable { source, .. } => {
                    let address = client.get_connection_info().addr();
                    EngineError::unavailable(ENGINE, Applied::No, format!("{address}: {source}"))
                }
                lasting => lasting,
            },
            None => {
                let why = format!("no server answered within {CONNECT_TIMEOUT:?}");
                EngineError::unavailable(ENGINE, Applied::No, why)
            }
        })
    }
}

fn connection_info(url: &str) -> Result<ConnectionInfo, RedisError> {
    let info = url.into_connection_info()?;
    // With RESP3, a subscriber's messages come through the caller's own, bounded queue.
    let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(info.set_redis_settings(redis).set_tcp_settings(TcpSettings::default().set_nodelay(true)))
}
