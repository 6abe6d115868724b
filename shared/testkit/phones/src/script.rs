//! The answers that a test has set, by token.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::answer::Answer;
use crate::provider::Provider;

/// The answers to give, by token.
#[derive(Default)]
pub(crate) struct Script {
    entries: Mutex<HashMap<String, Entry>>,
}

#[derive(Default)]
struct Entry {
    /// Answered first, each once, in this order.
    once: VecDeque<Answer>,
    /// Answered whenever there is nothing in `once`.
    standing: Option<Answer>,
}

impl Script {
    /// Sets this answer until [`Script::forget`].
    pub(crate) fn stand(&self, token: &str, answer: Answer) {
        self.with(|entries| entries.entry(key(token)).or_default().standing = Some(answer));
    }

    /// Adds these answers, each once, after those that are still to come.
    pub(crate) fn once(&self, token: &str, answers: impl IntoIterator<Item = Answer>) {
        self.with(|entries| entries.entry(key(token)).or_default().once.extend(answers));
    }

    /// Removes a token's answers. False if it has none.
    pub(crate) fn forget(&self, token: &str) -> bool {
        self.with(|entries| entries.remove(&key(token)).is_some())
    }

    /// The answer for the next valid push.
    pub(crate) fn next(&self, provider: Provider, token: &str) -> Answer {
        self.asked_for(token).or_else(|| Answer::by_name(provider, token)).unwrap_or(Answer::Taken)
    }

    /// The answer that was set, if there is one.
    pub(crate) fn asked_for(&self, token: &str) -> Option<Answer> {
        self.with(|entries| {
            let key = key(token);
            let entry = entries.get_mut(&key)?;
            let answer = entry.once.pop_front().or_else(|| entry.standing.clone());
            if entry.once.is_empty() && entry.standing.is_none() {
                entries.remove(&key);
            }
            answer
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<String, Entry>) -> T) -> T {
        change(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Hexadecimal digits are the same in another case: an APNs token is bytes.
fn key(token: &str) -> String {
    let hexadecimal = token.bytes().all(|digit| digit.is_ascii_hexdigit());
    if hexadecimal { token.to_ascii_lowercase() } else { token.to_owned() }
}
