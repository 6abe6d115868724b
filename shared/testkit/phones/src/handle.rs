//! What a test does to the providers, and sees of them.

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
    /// Answers every push to this token like this, until [`Handle::answer_as_usual`]. For the OAuth2 endpoint, in the place
    /// of the token, [`crate::TOKEN_ENDPOINT`].
    pub fn answer(&self, token: &str, answer: Answer) {
        self.shared.script.stand(token, answer);
    }

    /// Answers the next pushes to this token like this, each once, in order, and then again as before. More of them go
    /// behind those that are still to come.
    pub fn answer_once(&self, token: &str, answers: impl IntoIterator<Item = Answer>) {
        self.shared.script.once(token, answers);
    }

    /// Answers pushes to this token as usual again. False, if it was so.
    pub fn answer_as_usual(&self, token: &str) -> bool {
        self.shared.script.forget(token)
    }

    /// Makes a whole provider behave like this; returns when it does. What is answered before that is answered as before.
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

    /// Ends all access tokens that were issued: the next request with one gets a 401.
    pub fn expire_access_tokens(&self) {
        self.shared.authority.expire_all();
    }

    /// What was taken, of both providers, in order: the newest [`crate::KEPT`] of it.
    pub fn received(&self) -> Vec<Arc<Push>> {
        self.received_after(0)
    }

    /// The same, of those with a number above this one.
    pub fn received_after(&self, number: u64) -> Vec<Arc<Push>> {
        self.shared.record.after(number)
    }

    /// How many were taken, of both providers, kept or not: the number of the newest.
    pub fn taken(&self) -> u64 {
        self.shared.record.newest()
    }

    /// What is taken from now on.
    pub fn subscribe(&self) -> Pushes {
        Pushes(self.shared.record.subscribe())
    }

    /// The first push with a number above this one; waits until there is one, however long that is.
    pub async fn next(&self, after: u64) -> Arc<Push> {
        self.find(|push| push.number > after).await
    }

    /// The first push, of those that are kept and those to come, that is wanted; waits until there is one, however long
    /// that is.
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

    /// Waits until so many were taken, of both providers, since the start.
    pub async fn wait_for(&self, taken: u64) {
        let mut newest = self.shared.record.watch_newest();
        let _the_sender_lives = newest.wait_for(|newest| *newest >= taken).await;
    }

    /// What happened at a provider since the start.
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
    /// The next one. None, when the providers have ended, or when more than 4,096 pushes were not asked for in time:
    /// a caller that needs all of them then begins again with [`Handle::received_after`].
    pub async fn next(&mut self) -> Option<Arc<Push>> {
        self.0.recv().await.ok()
    }
}
