//! Publishing: one process publishes everything on one connection, in order.

use std::sync::Arc;

use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::GatewayId;
use redis::{Cmd, RedisWrite};
use serde::Serialize;

use crate::error::{ENGINE, engine_error};
use crate::link::Link;
use crate::names::gateway_channel;
use crate::servers::Servers;
use crate::wire;

/// The usual size of a command: a message of a small room. A longer one costs another allocation.
const TYPICAL_BYTES: usize = 512;

/// Publish and subscribe. On a cluster it uses one node at a time, not that of a channel's slot: nodes forward all
/// published messages to each other, and only messages published through one node keep their order. Clones share it.
#[derive(Clone)]
pub(crate) struct PubSub {
    link: Arc<Link>,
    servers: Arc<Servers>,
    pub(crate) live_backlog: usize,
}

impl PubSub {
    /// `live_backlog`: how many signals one subscription may fall behind before it is interrupted.
    pub(crate) fn new(link: Arc<Link>, servers: Arc<Servers>, live_backlog: usize) -> Self {
        Self { link, servers, live_backlog }
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Publishes a gateway's heartbeat to itself.
    pub(crate) async fn heartbeat(&self, gateway: &GatewayId) -> EngineResult<()> {
        let mut command = publish(&gateway_channel(gateway));
        command.write_arg(wire::HEARTBEAT);
        self.send([command]).await
    }

    pub(crate) async fn send(&self, commands: impl IntoIterator<Item = Cmd>) -> EngineResult<()> {
        for answer in self.link.send(commands).await? {
            // The number of this server's subscribers; none is no error.
            answer.map_err(|error| engine_error(error, Applied::Unknown))?;
        }
        Ok(())
    }
}

/// The command without its payload.
fn publish(channel: &str) -> Cmd {
    let mut command = Cmd::with_capacity(3, TYPICAL_BYTES);
    command.write_arg(b"PUBLISH");
    command.write_arg(channel.as_bytes());
    command
}

/// Writes the payload straight into the command.
pub(crate) fn publish_json(channel: &str, payload: &impl Serialize) -> EngineResult<Cmd> {
    let mut command = publish(channel);
    let written = serde_json::to_writer(command.writer_for_next_arg(), payload);
    written.map_err(|error| EngineError::permanent(ENGINE, error))?;
    Ok(command)
}
