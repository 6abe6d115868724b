//! A message as its recipient's phone shows it.

use std::time::Duration;

use naru_model::hops::{Lane, PushJob, PushTarget};
use naru_model::{Message, UserId};

/// The push that notifies one recipient of a message through one lane. The same message makes the same push, so its event id
/// and its expiry are the same however often it is made. It expires `ttl` after the message was accepted. Hidden content is
/// not in it at all.
pub(crate) fn push(
    message: &Message,
    recipient: &UserId,
    lane: Lane,
    target: Option<PushTarget>,
    hides_content: bool,
    ttl: Duration,
) -> PushJob {
    PushJob {
        lane,
        message_id: message.id,
        chat_room_id: message.chat_room_id.clone(),
        seq: message.seq,
        recipient_id: recipient.clone(),
        title: if hides_content { "".into() } else { message.sender_name.clone() },
        body: if hides_content { "".into() } else { message.content.clone() },
        hides_content,
        badge: None,
        target,
        expires_at: message.timestamp.after(ttl),
    }
}
