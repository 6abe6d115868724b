//! What was proven to have arrived: for a while in memory, and by received positions for ever.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::live::Proofs;
use naru_model::{MessageId, RoomId, Seq, UserId};
use tokio::time::Instant;

use crate::database::{Database, lock};
use crate::store::received;

pub(crate) struct Proven {
    database: Arc<Database>,
    state: Mutex<State>,
}

type Proof = (MessageId, UserId);

#[derive(Default)]
struct State {
    until: HashMap<Proof, Instant>,
    /// The same in the order of recording, to forget them by. One that was proven again is in it twice.
    order: VecDeque<(Instant, Proof)>,
}

impl State {
    /// Proofs are recorded with one `keep` as a rule, so the oldest expires first; a longer one delays forgetting.
    fn forget(&mut self, now: Instant) {
        while let Some((_, proof)) = self.order.front().filter(|(until, _)| *until <= now) {
            if self.until.get(proof).is_some_and(|until| *until <= now) {
                self.until.remove(proof);
            }
            self.order.pop_front();
        }
    }

    fn holds(&self, proof: &Proof) -> bool {
        self.until.get(proof).is_some_and(|until| Instant::now() < *until)
    }
}

impl Proven {
    pub(crate) fn new(database: Arc<Database>) -> Self {
        Self { database, state: Mutex::default() }
    }
}

#[async_trait]
impl Proofs for Proven {
    async fn record(&self, proofs: &[(MessageId, UserId)], keep: Duration) -> EngineResult<()> {
        let now = Instant::now();
        let mut state = lock(&self.state);
        state.forget(now);
        for proof in proofs {
            let until = state.until.entry(proof.clone()).or_insert(now);
            *until = (now + keep).max(*until);
            state.order.push_back((now + keep, proof.clone()));
        }
        Ok(())
    }

    async fn proven(
        &self,
        message: MessageId,
        room: &RoomId,
        seq: Seq,
        users: &[UserId],
    ) -> EngineResult<Vec<bool>> {
        let proven: Vec<_> = {
            let state = lock(&self.state);
            users.iter().map(|user| state.holds(&(message, user.clone()))).collect()
        };
        if proven.iter().all(|proven| *proven) {
            return Ok(proven);
        }
        let (room, users) = (room.clone(), users.to_vec());
        self.database
            .read(move |transaction| {
                let pairs = users.iter().zip(proven);
                pairs.map(|(user, proven)| Ok(proven || received(transaction, &room, user)? >= seq)).collect()
            })
            .await
    }
}
