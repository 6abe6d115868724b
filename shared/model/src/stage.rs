//! A message's life. The same words are metric label, log field and test assertion.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a message is, for the message itself (`Accepted` to `Published`) or for one recipient (the rest).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// In the intake: it will be saved, whatever dies.
    Accepted,
    /// Not a member any more when it was to be saved; the sender was told.
    Rejected,
    /// In `chat_messages`, with its place in the room; the sender is told its id.
    Saved,
    /// Given to the live layer.
    Published,
    /// Written to a session of the recipient.
    Delivered,
    /// The recipient had no session: a push is due.
    Offline,
    /// A provider took the push.
    Pushed,
    /// The recipient's device has it.
    Received,
    /// The recipient has seen it.
    Read,
    /// The push was too old to be of use when its turn came.
    Expired,
    /// The push could not be sent; it is kept where it can be listed and replayed.
    Parked,
}

impl Stage {
    /// All of them, in the order of a message's life.
    pub const ALL: [Stage; 11] = [
        Stage::Accepted,
        Stage::Rejected,
        Stage::Saved,
        Stage::Published,
        Stage::Delivered,
        Stage::Offline,
        Stage::Pushed,
        Stage::Received,
        Stage::Read,
        Stage::Expired,
        Stage::Parked,
    ];

    /// Whether this stage may come right after `earlier`, for one recipient.
    pub const fn can_follow(self, earlier: Stage) -> bool {
        use Stage::{
            Accepted, Delivered, Expired, Offline, Parked, Published, Pushed, Read, Received, Rejected, Saved,
        };
        match self {
            Accepted => false,
            Rejected | Saved => matches!(earlier, Accepted),
            // Offline first, then publish; or, without a session, no push to wait for.
            Offline => matches!(earlier, Saved | Published | Delivered),
            Published => matches!(earlier, Saved | Offline | Pushed),
            Delivered => matches!(earlier, Published | Offline | Pushed),
            Pushed | Expired => matches!(earlier, Offline | Published | Parked),
            Parked => matches!(earlier, Offline | Published),
            // A device that comes back reads the store, whatever was or was not pushed.
            Received => !matches!(earlier, Accepted | Rejected | Received | Read),
            Read => !matches!(earlier, Accepted | Rejected | Read),
        }
    }

    /// Whether nothing more happens to the message after this.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Stage::Rejected | Stage::Read)
    }

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Accepted => "accepted",
            Stage::Rejected => "rejected",
            Stage::Saved => "saved",
            Stage::Published => "published",
            Stage::Delivered => "delivered",
            Stage::Offline => "offline",
            Stage::Pushed => "pushed",
            Stage::Received => "received",
            Stage::Read => "read",
            Stage::Expired => "expired",
            Stage::Parked => "parked",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_follows_a_terminal_stage() {
        for last in Stage::ALL.into_iter().filter(|stage| stage.is_terminal()) {
            for next in Stage::ALL {
                assert!(!next.can_follow(last), "{next} after {last}");
            }
        }
    }

    #[test]
    fn every_stage_but_the_first_can_be_reached() {
        for stage in Stage::ALL.into_iter().skip(1) {
            assert!(Stage::ALL.into_iter().any(|earlier| stage.can_follow(earlier)), "{stage}");
        }
    }

    #[test]
    fn the_four_lives_of_a_message() {
        use Stage::{
            Accepted, Delivered, Offline, Parked, Published, Pushed, Read, Received, Rejected, Saved,
        };
        let lives: [&[Stage]; 5] = [
            &[Accepted, Saved, Published, Delivered, Received, Read],
            &[Accepted, Saved, Offline, Published, Pushed, Received, Read],
            &[Accepted, Saved, Published, Delivered, Offline, Pushed, Read],
            &[Accepted, Saved, Offline, Parked, Pushed, Received],
            &[Accepted, Rejected],
        ];
        for life in lives {
            for step in life.windows(2) {
                assert!(step[1].can_follow(step[0]), "{} after {}", step[1], step[0]);
            }
        }
    }
}
