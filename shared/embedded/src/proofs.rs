//! Proofs that messages arrived, for a while.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::live::Proofs;
use naru_model::{MessageId, UserId};
use tokio::time::Instant;

use crate::lock::lock;

#[derive(Default)]
pub(crate) struct MemoryProofs(Mutex<State>);

type Proof = (MessageId, UserId);

#[derive(Default)]
struct State {
    until: HashMap<Proof, Instant>,
    /// The same in the order of recording, for expiry. A proof that was recorded again is in it twice.
    order: VecDeque<(Instant, Proof)>,
}

impl State {
    /// Proofs are recorded with one `keep` as a rule, so the oldest expires first; a longer one delays the removal.
    fn forget(&mut self, now: Instant) {
        while let Some((_, proof)) = self.order.front().filter(|(until, _)| *until <= now) {
            if self.until.get(proof).is_some_and(|until| *until <= now) {
                self.until.remove(proof);
            }
            self.order.pop_front();
        }
    }
}

#[async_trait]
impl Proofs for MemoryProofs {
    async fn record(&self, proofs: &[(MessageId, UserId)], keep: Duration) -> EngineResult<()> {
        let now = Instant::now();
        let mut state = lock(&self.0);
        state.forget(now);
        for proof in proofs {
            let until = state.until.entry(proof.clone()).or_insert(now);
            *until = (now + keep).max(*until);
            state.order.push_back((now + keep, proof.clone()));
        }
        Ok(())
    }

    async fn proven(&self, asked: &[(MessageId, UserId)]) -> EngineResult<Vec<bool>> {
        let (state, now) = (lock(&self.0), Instant::now());
        Ok(asked.iter().map(|proof| state.until.get(proof).is_some_and(|until| now < *until)).collect())
    }
}
