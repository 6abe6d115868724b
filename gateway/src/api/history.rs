//! A room's messages: read, and sent without a WebSocket.

use std::sync::Arc;

use http::StatusCode;
use naru_engines::store::Window;
use naru_model::{ClientMessageId, Message, RoomId, Seq, StoreEpoch, UserId};
use serde::{Deserialize, Serialize};

use super::{Answer, Call, json, rooms, unless_empty};
use crate::accept::SendRequest;
use crate::refusal::Refusal;
use crate::token::LONGEST_NAME;

/// How many messages one page holds: at most, and by default.
const PAGE: (usize, usize) = (200, 50);

pub(super) async fn read(call: &Call<'_>, room: &RoomId) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Query {
        #[serde(default, deserialize_with = "unless_empty")]
        before_seq: Option<u64>,
        #[serde(default, deserialize_with = "unless_empty")]
        after_seq: Option<u64>,
        #[serde(default, deserialize_with = "unless_empty")]
        limit: Option<usize>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        messages: Vec<Message>,
        has_more: bool,
        epoch: StoreEpoch,
    }
    let Query { before_seq, after_seq, limit } = call.query()?;
    let window = match (before_seq, after_seq) {
        (None, None) => Window::Latest,
        (Some(before), None) => Window::Before(Seq(before)),
        (None, Some(after)) => Window::After(Seq(after)),
        (Some(_), Some(_)) => {
            return Err(Refusal::Invalid("give beforeSeq or afterSeq, not both".to_owned()));
        }
    };
    let limit = limit.unwrap_or(PAGE.1);
    if !(1..=PAGE.0).contains(&limit) {
        return Err(Refusal::Invalid(format!("limit must be 1 to {}", PAGE.0)));
    }
    let (messages, has_more) = call.gateway.engines.store.messages.range(room, window, limit).await?;
    // Later, and not by an older state: nobody gets what was accepted after their removal.
    rooms::current(call, room).await?;
    Ok(json(StatusCode::OK, &Body { messages, has_more, epoch: call.gateway.epoch }))
}

pub(super) async fn send(call: &Call<'_>, chat_room_id: RoomId) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        content: Arc<str>,
        client_message_id: ClientMessageId,
        sender_id: Option<UserId>,
        sender_name: Option<Arc<str>>,
    }
    let Body { content, client_message_id, sender_id, sender_name } = call.json()?;
    let caller = &call.caller;
    let sender_id = sender_id.unwrap_or_else(|| caller.user.clone());
    if !caller.is_service && (sender_id != caller.user || sender_name.is_some()) {
        return Err(Refusal::Forbidden("speaking for another, or by another name, needs scope service"));
    }
    if sender_name.as_ref().is_some_and(|name| name.len() > LONGEST_NAME) {
        return Err(Refusal::Invalid(format!("senderName must be at most {LONGEST_NAME} bytes")));
    }
    let own_name = || {
        if sender_id == caller.user { caller.name.clone() } else { sender_id.as_str().into() }
    };
    let request = SendRequest {
        sender_name: sender_name.filter(|name| !name.is_empty()).unwrap_or_else(own_name),
        chat_room_id,
        sender_id,
        content,
        client_message_id,
        is_limited: !caller.is_service,
    };
    Ok(json(StatusCode::OK, &call.gateway.acceptor.accept_request(request).await?))
}
