//! What the app's backend does with users.

use http::StatusCode;
use naru_model::{Timestamp, UserId};
use serde::{Deserialize, Serialize};

use super::{Answer, Call, json, no_content};

/// Ends a user's sessions on every gateway, and, if it is asked to, the user's tokens.
///
/// What if the process dies after the write? The gateways find it within a minute; the caller has no answer, and repeats it.
pub(super) async fn end_sessions(call: &Call<'_>, user: &UserId) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Query {
        not_before: Option<Timestamp>,
    }
    call.needs_service("ending sessions needs scope service")?;
    let Query { not_before } = call.query()?;
    call.gateway.engines.store.users.end_sessions(user, not_before).await?;
    call.gateway.users.publish(user).await?;
    tracing::info!(%user, caller = %call.caller.user, "a user's sessions were ended");
    Ok(no_content())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErasureBody {
    complete: bool,
    requested_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
}

/// Begins to erase a user's personal data; repeated, it begins anew.
pub(super) async fn erase(call: &Call<'_>, user: &UserId) -> Answer {
    call.needs_service("erasing a user needs scope service")?;
    call.gateway.eraser.begin(call.gateway, user).await?;
    tracing::info!(%user, caller = %call.caller.user, "a user is to be erased");
    erasure_with(call, user, StatusCode::ACCEPTED).await
}

/// How far the last erasure of a user is, if there was one.
pub(super) async fn erasure(call: &Call<'_>, user: &UserId) -> Answer {
    call.needs_service("erasing a user needs scope service")?;
    erasure_with(call, user, StatusCode::OK).await
}

async fn erasure_with(call: &Call<'_>, user: &UserId, status: StatusCode) -> Answer {
    let erasure = call.gateway.engines.store.users.erasure(user).await?;
    let completed_at = erasure.and_then(|erasure| erasure.completed_at);
    let requested_at = erasure.map(|erasure| erasure.requested_at);
    Ok(json(status, &ErasureBody { complete: completed_at.is_some(), requested_at, completed_at }))
}
