//! Publishing: one process publishes everything on one connection, in order.

use std::sync::Arc;

use async_trait::async_trait;
use naru_engines::live::{IsHere, Live, Subscription};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::live::{Confirmation, LiveEvent, News};
use naru_model::{GatewayId, SessionId};
use redis::{Cmd, RedisWrite};
use serde::Serialize;

use crate::error::{ENGINE, engine_error};
use crate::link::Link;
use crate::names::{NEWS_CHANNEL, chat_channel, gateway_channel};
use crate::servers::Servers;
use crate::subscribe;
use crate::wire::{self, GatewayMessage};

/// The usual size of a command: a message of a small room. A longer one costs another allocation.
const TYPICAL_BYTES: usize = 512;

/// Publish and subscribe. On a cluster it uses one node at a time, not that of a channel's slot: nodes forward all
/// published messages to each other, and only messages published through one node keep their order. Clones share it.
#[derive(Clone)]
pub(crate) struct PubSub {
    link: Arc<Link>,
    servers: Arc<Servers>,
    live_backlog: usize,
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

    async fn send(&self, commands: impl IntoIterator<Item = Cmd>) -> EngineResult<()> {
        for answer in self.link.send(commands).await? {
            // The number of this server's subscribers; none is no error.
            answer.map_err(|error| engine_error(error, Applied::Unknown))?;
        }
        Ok(())
    }
}

#[async_trait]
impl Live for PubSub {
    async fn publish(&self, events: Vec<LiveEvent>) -> EngineResult<()> {
        let commands: Vec<Cmd> = events
            .iter()
            .map(|event| match &event.news {
                News::Chat(message) => publish_json(&chat_channel(&message.chat_room_id), event),
                News::Received(_) | News::Read(_) | News::Typing { .. } => publish_json(NEWS_CHANNEL, event),
            })
            .collect::<EngineResult<_>>()?;
        self.send(commands).await
    }

    async fn confirm(&self, gateway: &GatewayId, confirmations: Vec<Confirmation>) -> EngineResult<()> {
        let message = GatewayMessage::confirmations(confirmations);
        self.send([publish_json(&gateway_channel(gateway), &message)?]).await
    }

    async fn evict(&self, gateway: &GatewayId, session: &SessionId) -> EngineResult<()> {
        let message = GatewayMessage::eviction(session);
        self.send([publish_json(&gateway_channel(gateway), &message)?]).await
    }

    async fn subscribe(&self, gateway: &GatewayId, is_here: IsHere) -> EngineResult<Box<dyn Subscription>> {
        let subscribed = subscribe::subscribe(self.clone(), gateway.clone(), is_here, self.live_backlog);
        Ok(Box::new(subscribed.await?))
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
fn publish_json(channel: &str, payload: &impl Serialize) -> EngineResult<Cmd> {
    let mut command = publish(channel);
    let written = serde_json::to_writer(command.writer_for_next_arg(), payload);
    written.map_err(|error| EngineError::permanent(ENGINE, error))?;
    Ok(command)
}
