//! The users that the caller blocks.

use http::StatusCode;
use naru_model::UserId;
use serde::Serialize;

use super::{Answer, Call, json, no_content};
use crate::refusal::Refusal;

/// How many users one user may block.
const MAX_BLOCKED: usize = 1_000;

pub(super) async fn list(call: &Call<'_>) -> Answer {
    #[derive(Serialize)]
    struct Body<'a> {
        blocks: Vec<Block<'a>>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Block<'a> {
        user_id: &'a UserId,
    }
    let users = std::slice::from_ref(&call.caller.user);
    let record = call.gateway.engines.store.users.get(users).await?.pop().unwrap_or_default();
    let blocks = record.blocked.iter().map(|user_id| Block { user_id }).collect();
    Ok(json(StatusCode::OK, &Body { blocks }))
}

pub(super) async fn add(call: &Call<'_>, other: &UserId) -> Answer {
    let user = &call.caller.user;
    if user == other {
        return Err(Refusal::Invalid("you can't block yourself".to_owned()));
    }
    if !call.gateway.engines.store.users.block(user, other, MAX_BLOCKED).await? {
        return Err(Refusal::Conflict("your block list is full"));
    }
    call.gateway.users.publish(user).await?;
    Ok(no_content())
}

pub(super) async fn remove(call: &Call<'_>, other: &UserId) -> Answer {
    let user = &call.caller.user;
    call.gateway.engines.store.users.unblock(user, other).await?;
    call.gateway.users.publish(user).await?;
    Ok(no_content())
}
