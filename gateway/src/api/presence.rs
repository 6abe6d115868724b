//! Which users are connected, for callers that share a room with them and are not blocked by them.

use futures_util::future::try_join;
use http::StatusCode;
use naru_model::{Timestamp, UserId};
use serde::Serialize;

use super::{Answer, Call, json};
use crate::refusal::Refusal;

/// How many users one call asks about at most.
const MAX_USERS: usize = 100;

pub(super) async fn show(call: &Call<'_>) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        user_id: &'a UserId,
        online: bool,
        last_seen_at: Option<Timestamp>,
    }
    let users = asked(call.query)?;
    if users.len() > MAX_USERS {
        return Err(Refusal::Invalid(format!("userIds must name at most {MAX_USERS} users")));
    }
    let engines = &call.gateway.engines;
    let known = match call.caller.is_service {
        true => vec![true; users.len()],
        false => {
            let (user, store) = (&call.caller.user, &engines.store);
            let (shared, blocked) =
                try_join(store.rooms.share_a_room(user, &users), store.users.blocked_by(user, &users))
                    .await?;
            shared.into_iter().zip(blocked).map(|(shared, blocked)| shared && !blocked).collect()
        }
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

/// The users of `?userIds=A,B` or `?userId=A&userId=B`: an id with a comma can be given in the second form only. A `+` is
/// itself and no space, because user ids may hold the one and not the other.
fn asked(query: &str) -> Result<Vec<UserId>, Refusal> {
    let invalid = |why: &str| Refusal::Invalid(why.to_owned());
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(&query.replace('+', "%2B"))
        .map_err(|error| Refusal::Invalid(error.to_string()))?;
    let values =
        |name: &'static str| pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value);
    let mut lists = values("userIds");
    let (list, single) = (lists.next(), values("userId"));
    if lists.next().is_some() {
        return Err(invalid("give userIds once, or userId for each user"));
    }
    let listed = list.into_iter().flat_map(|list| list.split(',')).filter(|id| !id.is_empty());
    let users: Vec<UserId> =
        listed.chain(single.map(String::as_str)).map(str::parse).collect::<Result<_, _>>()?;
    if list.is_none() && users.is_empty() {
        return Err(invalid("give userIds, or userId for each user"));
    }
    Ok(users)
}
