//! What the live layer brings goes to the sessions that are here; what concerns nobody here is ignored.

use std::sync::Arc;

use naru_engines::live::{Signal, Subscription};
use naru_model::frame::ServerFrame;
use naru_model::live::{LiveEvent, News};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::Gateway;
use crate::refusal::to_text;

/// After an interruption clients are asked to `SYNC` at moments spread over this many milliseconds.
const RESYNC_SPREAD_MS: u64 = 2_000;

/// Listens until the live layer closes.
pub(crate) async fn listen(gateway: &Arc<Gateway>, subscription: &mut dyn Subscription) {
    while let Some(signal) = subscription.next().await {
        match signal {
            Signal::Event(event) => forward(gateway, &event),
            Signal::Confirmed(confirmations) => {
                for confirmation in confirmations.iter() {
                    gateway.pending.settle(confirmation.id, confirmation.outcome);
                }
            }
            Signal::Evict(session) => gateway.evicted(&session),
            Signal::Interrupted => tracing::warn!("the live layer was interrupted"),
            Signal::Restored => restored(gateway).await,
        }
    }
}

/// Writes an event to the sessions of its recipients, serialised once for all of them.
fn forward(gateway: &Gateway, event: &LiveEvent) {
    let mut frame: Option<Utf8Bytes> = None;
    let mut delivered = 0;
    for recipient in event.recipients.iter() {
        gateway.sessions.each_of(recipient, |session| {
            let has_drawn_it = match &event.news {
                News::Chat(message) => {
                    message.sender_id == session.identity.user
                        && session.has_sent(message.id, event.origin.as_ref())
                }
                _ => event.origin.as_ref() == Some(&session.id),
            };
            if !has_drawn_it {
                session.send(frame.get_or_insert_with(|| to_text(&event.news).into()).clone());
                delivered += 1;
            }
        });
    }
    if matches!(event.news, News::Chat(_)) {
        gateway.telemetry.delivered.inc_by(delivered);
    }
}

/// Nothing is lost from here on; what was lost meanwhile is in the store.
async fn restored(gateway: &Arc<Gateway>) {
    let sessions = gateway.sessions.all();
    tracing::info!(sessions = sessions.len(), "the live layer is back; asking clients to SYNC");
    for session in sessions {
        if let Err(error) = gateway.engines.presence.attach(&gateway.attachment(&session)).await {
            tracing::warn!(%error, "presence did not hear of a session");
        }
        session.send(to_text(&ServerFrame::Resync {
            reason: "live delivery was interrupted",
            rooms: None,
            retry_after_ms: Some(rand::random_range(0..RESYNC_SPREAD_MS)),
        }));
    }
}
