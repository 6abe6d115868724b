//! A test's control of the providers, and its view of their pushes.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::answer::Answer;
use crate::behaviour::Behaviour;
use crate::provider::Provider;
use crate::push::Push;
use crate::record::Counts;
use crate::server::Command;
use crate::state::State;

/// A handle on running providers. Clones are handles on the same; none keeps them running.
#[derive(Clone)]
pub struct Handle {
    pub(crate) state: Arc<State>,
    pub(crate) fcm: mpsc::Sender<Command>,
    pub(crate) apns: mpsc::Sender<Command>,
}

impl Handle {
    /// Answers every push to this token like this, until [`Handle::answer_as_usual`]. [`crate::TOKEN_ENDPOINT`] in the place
    /// of the token stands for the OAuth2 endpoint.
    pub fn answer(&self, token: &str, answer: Answer) {
        self.state.script.set_default(token, answer);
    }

    /// Answers the next pushes to this token like this, each once, in order, and then again as before. Further answers
    /// follow those that are still to come.
    pub fn answer_once(&self, token: &str, answers: impl IntoIterator<Item = Answer>) {
        self.state.script.once(token, answers);
    }

    /// Answers pushes to this token as usual again.
    pub fn answer_as_usual(&self, token: &str) {
        self.state.script.forget(token);
    }

    /// Sets the behaviour of a whole provider; returns when it is in force. Earlier answers are as before.
    pub async fn set(&self, provider: Provider, behaviour: Behaviour) {
        let (done, is_done) = oneshot::channel();
        let commands = match provider {
            Provider::Fcm => &self.fcm,
            Provider::Apns => &self.apns,
        };
        // Where the providers have ended there is nothing to wait for.
        if commands.send(Command { behaviour, done }).await.is_ok() {
            let _ended = is_done.await;
        }
    }

    /// The pushes that were taken, of both providers, in order: the newest [`crate::MAX_KEPT`].
    pub fn received(&self) -> Vec<Arc<Push>> {
        self.received_after(0)
    }

    /// The same, with a number above this one.
    pub fn received_after(&self, number: u64) -> Vec<Arc<Push>> {
        self.state.record.after(number)
    }

    /// How many pushes were taken, of both providers, kept or not: the number of the newest.
    pub fn taken(&self) -> u64 {
        self.state.record.newest()
    }

    /// The first push with a number above this one; waits until there is one, however long that is.
    pub async fn next(&self, after: u64) -> Arc<Push> {
        loop {
            self.wait_for(after + 1).await;
            if let Some(push) = self.received_after(after).into_iter().next() {
                return push;
            }
        }
    }

    /// Waits until this many pushes were taken, of both providers, since the start.
    pub async fn wait_for(&self, taken: u64) {
        self.state.record.wait_for(taken).await;
    }

    /// The counts of a provider since the start.
    pub fn counts(&self, provider: Provider) -> Counts {
        self.state.record.counts(provider)
    }
}
