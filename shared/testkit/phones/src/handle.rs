//! A test's control of the providers, and its view of their pushes.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot};

use crate::Shared;
use crate::answer::Answer;
use crate::conduct::Conduct;
use crate::provider::Provider;
use crate::push::Push;
use crate::record::Counts;
use crate::server::Command;

/// A handle on running providers. Clones are handles on the same; none keeps them running.
#[derive(Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) fcm: mpsc::Sender<Command>,
    pub(crate) apns: mpsc::Sender<Command>,
}

impl Handle {
    /// Answers every push to this token like this, until [`Handle::answer_as_usual`]. [`crate::TOKEN_ENDPOINT`] in the place
    /// of the token stands for the OAuth2 endpoint.
    pub fn answer(&self, token: &str, answer: Answer) {
        self.shared.script.stand(token, answer);
    }

    /// Answers the next pushes to this token like this, each once, in order, and then again as before. Further answers
    /// follow those that are still to come.
    pub fn answer_once(&self, token: &str, answers: impl IntoIterator<Item = Answer>) {
        self.shared.script.once(token, answers);
    }

    /// Answers pushes to this token as usual again. False if it already did.
    pub fn answer_as_usual(&self, token: &str) -> bool {
        self.shared.script.forget(token)
    }

    /// Sets the conduct of a whole provider; returns when it is in force. Earlier answers are as before.
    pub async fn set(&self, provider: Provider, conduct: Conduct) {
        let (done, is_done) = oneshot::channel();
        let commands = match provider {
            Provider::Fcm => &self.fcm,
            Provider::Apns => &self.apns,
        };
        // Where the providers have ended there is nothing to wait for.
        if commands.send(Command { conduct, done }).await.is_ok() {
            let _ended = is_done.await;
        }
    }

    /// Expires all access tokens that were issued: the next request with one gets a 401.
    pub fn expire_access_tokens(&self) {
        self.shared.authority.expire_all();
    }

    /// The pushes that were taken, of both providers, in order: the newest [`crate::KEPT`].
    pub fn received(&self) -> Vec<Arc<Push>> {
        self.received_after(0)
    }

    /// The same, with a number above this one.
    pub fn received_after(&self, number: u64) -> Vec<Arc<Push>> {
        self.shared.record.after(number)
    }

    /// How many pushes were taken, of both providers, kept or not: the number of the newest.
    pub fn taken(&self) -> u64 {
        self.shared.record.newest()
    }

    /// The pushes that are taken from now on.
    pub fn subscribe(&self) -> Pushes {
        Pushes(self.shared.record.subscribe())
    }

    /// The first push with a number above this one; waits until there is one, however long that is.
    pub async fn next(&self, after: u64) -> Arc<Push> {
        self.find(|push| push.number > after).await
    }

    /// The first push that is wanted, of the kept ones and those to come; waits until there is one, however long that is.
    pub async fn find(&self, wanted: impl Fn(&Push) -> bool) -> Arc<Push> {
        let mut newest = self.shared.record.watch_newest();
        let mut seen = 0;
        loop {
            newest.mark_unchanged();
            for push in self.received_after(seen) {
                if wanted(&push) {
                    return push;
                }
                seen = push.number;
            }
            if newest.changed().await.is_err() {
                // This handle holds the sender.
                return std::future::pending().await;
            }
        }
    }

    /// Waits until this many pushes were taken, of both providers, since the start.
    pub async fn wait_for(&self, taken: u64) {
        let mut newest = self.shared.record.watch_newest();
        let _the_sender_lives = newest.wait_for(|newest| *newest >= taken).await;
    }

    /// The counts of a provider since the start.
    pub fn counts(&self, provider: Provider) -> Counts {
        self.shared.record.counts(provider)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Handle").field("taken", &self.taken()).finish_non_exhaustive()
    }
}

/// Pushes as they are taken.
#[derive(Debug)]
pub struct Pushes(broadcast::Receiver<Arc<Push>>);

impl Pushes {
    /// The next push. `None` when the providers have ended, or when the caller is more than 4,096 pushes behind: a caller
    /// that needs all of them then begins again with [`Handle::received_after`].
    pub async fn next(&mut self) -> Option<Arc<Push>> {
        self.0.recv().await.ok()
    }
}
