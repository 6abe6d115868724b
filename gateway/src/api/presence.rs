//! Which users are connected, for callers that share a room with them.

use http::StatusCode;
use naru_model::{Timestamp, UserId};
use serde::{Deserialize, Serialize};

use super::{Answer, Call, json};
use crate::refusal::Refusal;

/// How many users one call asks about at most.
const MAX_USERS: usize = 100;

pub(super) async fn show(call: &Call<'_>) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Query {
        user_ids: String,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        user_id: &'a UserId,
        online: bool,
        last_seen_at: Option<Timestamp>,
    }
    let Query { user_ids } = call.query()?;
    let users: Vec<UserId> =
        user_ids.split(',').filter(|id| !id.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
    if users.len() > MAX_USERS {
        return Err(Refusal::Invalid(format!("userIds must name at most {MAX_USERS} users")));
    }
    let engines = &call.gateway.engines;
    let known = match call.caller.is_service {
        true => vec![true; users.len()],
        false => engines.store.rooms.share_a_room(&call.caller.user, &users).await?,
    };
    let users: Vec<_> =
        users.into_iter().zip(known).filter_map(|(user, known)| known.then_some(user)).collect();
    let seen = engines.presence.seen(&users).await?;
    let body: Vec<_> = users
        .iter()
        .zip(seen)
        .map(|(user_id, seen)| Body { user_id, online: seen.online, last_seen_at: seen.last_seen_at })
        .collect();
    Ok(json(StatusCode::OK, &body))
}
