//! The answers that a test has set, by token.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::answer::Answer;

#[derive(Default)]
pub(crate) struct Script {
    entries: Mutex<HashMap<String, Entry>>,
}

#[derive(Default)]
struct Entry {
    /// Answered first, each once, in this order.
    once: VecDeque<Answer>,
    /// Answered whenever there is nothing in `once`.
    default: Option<Answer>,
}

impl Script {
    /// Sets this answer until [`Script::forget`].
    pub(crate) fn set_default(&self, token: &str, answer: Answer) {
        self.entries().entry(token.to_owned()).or_default().default = Some(answer);
    }

    /// Adds these answers, each once, after those that are still to come.
    pub(crate) fn once(&self, token: &str, answers: impl IntoIterator<Item = Answer>) {
        self.entries().entry(token.to_owned()).or_default().once.extend(answers);
    }

    /// Removes a token's answers.
    pub(crate) fn forget(&self, token: &str) {
        self.entries().remove(token);
    }

    /// The next answer that was set, if there is one.
    pub(crate) fn next(&self, token: &str) -> Option<Answer> {
        let mut entries = self.entries();
        let entry = entries.get_mut(token)?;
        entry.once.pop_front().or_else(|| entry.default.clone())
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
