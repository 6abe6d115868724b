//! The live layer: publishing and subscribing.

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::live::{HasSession, Live, Subscription};
use naru_model::live::{Confirmation, LiveEvent, News};
use naru_model::{GatewayId, SessionId, UserId};
use redis::Cmd;

use crate::names::{GATEWAYS_CHANNEL, NEWS_CHANNEL, chat_channel, gateway_channel};
use crate::publish::{PubSub, publish_json};
use crate::subscribe;
use crate::wire::GatewayMessage;

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

    async fn user_changed(&self, user: &UserId) -> EngineResult<()> {
        self.send([publish_json(GATEWAYS_CHANNEL, &GatewayMessage::user_changed(user))?]).await
    }

    async fn subscribe(
        &self,
        gateway: &GatewayId,
        has_session: HasSession,
    ) -> EngineResult<Box<dyn Subscription>> {
        let subscribed = subscribe::subscribe(self.clone(), gateway.clone(), has_session, self.live_backlog);
        Ok(Box::new(subscribed.await?))
    }
}
