//! Publishing: everything that one process says goes out on one connection, in its order.

use std::sync::Arc;

use async_trait::async_trait;
use naru_engines::live::{Live, Subscription};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::live::{Confirmation, LiveEvent, News};
use naru_model::{GatewayId, SessionId};
use redis::Cmd;

use crate::error::{ENGINE, engine_error};
use crate::link::Link;
use crate::names::{NEWS_CHANNEL, chat_channel, gateway_channel};
use crate::servers::Servers;
use crate::{line, wire};

/// The live layer. Of a cluster it uses one node at a time, not that of a channel's slot: nodes pass on to each other
/// whatever is published, and only what is said to one node keeps its order. Clones are the same.
#[derive(Clone)]
pub(crate) struct Air {
    link: Arc<Link>,
    servers: Arc<Servers>,
    backlog: usize,
}

impl Air {
    /// `backlog`: how many signals one subscription may fall behind before it is interrupted.
    pub(crate) fn new(link: Arc<Link>, servers: Arc<Servers>, backlog: usize) -> Self {
        Self { link, servers, backlog }
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Lets a gateway hear from itself.
    pub(crate) async fn beat(&self, gateway: &GatewayId) -> EngineResult<()> {
        self.say([publish(gateway_channel(gateway), wire::BEAT)]).await
    }

    async fn say(&self, commands: impl IntoIterator<Item = Cmd>) -> EngineResult<()> {
        for answer in self.link.send(commands).await? {
            // How many subscribers this server has; that it is none is no error.
            answer.map_err(|error| engine_error(error, Applied::Unknown))?;
        }
        Ok(())
    }
}

#[async_trait]
impl Live for Air {
    async fn publish(&self, events: Vec<LiveEvent>) -> EngineResult<()> {
        let commands: Vec<Cmd> = events
            .iter()
            .map(|event| {
                let channel = match &event.news {
                    News::Chat(message) => chat_channel(&message.chat_room_id),
                    News::Received(_) | News::Read(_) | News::Typing { .. } => NEWS_CHANNEL.to_owned(),
                };
                Ok(publish(channel, &written(wire::write_event(event))?))
            })
            .collect::<EngineResult<_>>()?;
        self.say(commands).await
    }

    async fn confirm(&self, gateway: &GatewayId, confirmations: Vec<Confirmation>) -> EngineResult<()> {
        let payload = written(wire::write_confirmations(confirmations))?;
        self.say([publish(gateway_channel(gateway), &payload)]).await
    }

    async fn evict(&self, gateway: &GatewayId, session: &SessionId) -> EngineResult<()> {
        let payload = written(wire::write_eviction(session))?;
        self.say([publish(gateway_channel(gateway), &payload)]).await
    }

    async fn subscribe(&self, gateway: &GatewayId) -> EngineResult<Box<dyn Subscription>> {
        Ok(Box::new(line::subscribe(self.clone(), gateway.clone(), self.backlog).await?))
    }
}

fn publish(channel: String, payload: &[u8]) -> Cmd {
    let mut command = Cmd::new();
    command.arg("PUBLISH").arg(channel).arg(payload);
    command
}

fn written(payload: serde_json::Result<Vec<u8>>) -> EngineResult<Vec<u8>> {
    payload.map_err(|error| EngineError::permanent(ENGINE, error))
}
