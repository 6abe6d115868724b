//! What was proven to have arrived: per message the set of those who have it, for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::live::Proofs;
use naru_model::{MessageId, RoomId, Seq, UserId};

use crate::keys::{Keys, Lua, Request, millis};
use crate::names::proof_key;

static RECORD: Lua = Lua::new(include_str!("scripts/record.lua"));

/// How many users one command names: a script can't take more than some thousand arguments.
const USERS_EACH: usize = 1_000;

pub(crate) struct Proven(pub(crate) Arc<Keys>);

#[async_trait]
impl Proofs for Proven {
    async fn record(&self, proofs: &[(MessageId, UserId)], keep: Duration) -> EngineResult<()> {
        let mut users_of: HashMap<MessageId, Vec<&str>> = HashMap::new();
        for (message, user) in proofs {
            users_of.entry(*message).or_default().push(user.as_str());
        }
        let requests = users_of.iter().flat_map(|(message, users)| {
            users
                .chunks(USERS_EACH)
                .map(|users| Request::script(&RECORD, proof_key(*message)).arg(millis(keep)).arg(users))
        });
        self.0.all::<()>(requests.collect()).await?;
        Ok(())
    }

    async fn proven(
        &self,
        message: MessageId,
        _room: &RoomId,
        _seq: Seq,
        users: &[UserId],
    ) -> EngineResult<Vec<bool>> {
        let names: Vec<&str> = users.iter().map(UserId::as_str).collect();
        let requests = names
            .chunks(USERS_EACH)
            .map(|users| Request::command("SMISMEMBER", proof_key(message)).arg(users));
        Ok(self.0.all::<Vec<bool>>(requests.collect()).await?.concat())
    }
}
