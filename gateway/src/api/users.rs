//! What the app's backend does with users.

use naru_model::{Timestamp, UserId};
use serde::Deserialize;

use super::{Answer, Call, no_content};
use crate::refusal::Refusal;

/// Ends a user's sessions on every gateway, and, if it is asked to, the user's tokens.
///
/// What if the process dies after the write? The gateways find it within a minute; the caller has no answer, and repeats it.
pub(super) async fn end_sessions(call: &Call<'_>, user: &UserId) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Query {
        not_before: Option<Timestamp>,
    }
    if !call.caller.is_service {
        return Err(Refusal::Forbidden("ending sessions needs scope service"));
    }
    let Query { not_before } = call.query()?;
    call.gateway.engines.store.users.end_sessions(user, not_before).await?;
    call.gateway.users.publish(user).await?;
    tracing::info!(%user, caller = %call.caller.user, "a user's sessions were ended");
    Ok(no_content())
}
