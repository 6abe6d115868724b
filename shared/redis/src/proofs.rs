//! Proofs of received messages: sets of (message, user), one for the messages of each time, kept for a while.
//!
//! A proof's set follows from the message's id, which begins with the second in which it was made. The messages of a batch
//! are about equally old, so it takes a few commands, however many it holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::live::Proofs;
use naru_model::{MessageId, UserId};

use crate::keys::{Keys, Lua, Request, millis};
use crate::names::proofs_key;

static RECORD: Lua = Lua::new(include_str!("scripts/record.lua"));

/// How many seconds of messages share a set. Redis frees an expired set in one piece, during which it serves no request:
/// 2 ms for 20,000 proofs, but 63 ms for 160,000 (measured on Redis 7.0).
const BUCKET_SECONDS: u32 = 2;
/// A set lies on one node of a cluster, so there a bucket is this many sets: all nodes share the load.
const CLUSTER_SHARDS: u8 = 8;
/// How many proofs one command names: a script can't take more than some thousand arguments.
const PROOFS_EACH: usize = 4_000;

pub(crate) struct RedisProofs {
    keys: Arc<Keys>,
    shards: u8,
}

impl RedisProofs {
    pub(crate) fn new(keys: Arc<Keys>) -> Self {
        let shards = if keys.is_cluster() { CLUSTER_SHARDS } else { 1 };
        Self { keys, shards }
    }

    /// A message's bucket and shard.
    fn key(&self, message: MessageId) -> (u32, u8) {
        let [a, b, c, d, .., last] = message.bytes();
        (u32::from_be_bytes([a, b, c, d]) / BUCKET_SECONDS, last % self.shards)
    }

    /// One request for each set and [`PROOFS_EACH`] proofs, and the places of its proofs.
    fn requests(
        &self,
        proofs: &[(MessageId, UserId)],
        begin: impl Fn(String) -> Request,
    ) -> (Vec<Request>, Vec<Vec<usize>>) {
        let mut places: HashMap<(u32, u8), Vec<usize>> = HashMap::new();
        for (place, (message, _)) in proofs.iter().enumerate() {
            places.entry(self.key(*message)).or_default().push(place);
        }
        let mut member = Vec::new();
        let mut requests = Vec::new();
        for ((bucket, shard), places) in places {
            for places in places.chunks(PROOFS_EACH) {
                let request = places.iter().fold(begin(proofs_key(bucket, shard)), |request, place| {
                    let (message, user) = &proofs[*place];
                    member.clear();
                    member.extend_from_slice(&message.bytes());
                    member.extend_from_slice(user.as_str().as_bytes());
                    request.arg(&member[..])
                });
                requests.push((request, places.to_vec()));
            }
        }
        requests.into_iter().unzip()
    }
}

#[async_trait]
impl Proofs for RedisProofs {
    async fn record(&self, proofs: &[(MessageId, UserId)], keep: Duration) -> EngineResult<()> {
        let (requests, _) = self.requests(proofs, |key| Request::script(&RECORD, key).arg(millis(keep)));
        self.keys.all::<()>(requests).await?;
        Ok(())
    }

    async fn proven(&self, asked: &[(MessageId, UserId)]) -> EngineResult<Vec<bool>> {
        let (requests, places) = self.requests(asked, |key| Request::command("SMISMEMBER", &[key]));
        let answers: Vec<Vec<bool>> = self.keys.all(requests).await?;
        let mut proven = vec![false; asked.len()];
        for (place, answer) in places.concat().into_iter().zip(answers.concat()) {
            proven[place] = answer;
        }
        Ok(proven)
    }
}
