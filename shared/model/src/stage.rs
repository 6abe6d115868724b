//! The names of a message's stages, in the order of the walk-throughs of ARCHITECTURE.md. Metrics, logs and parked
//! pushes use those of a push.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a message is, for the message itself (`Accepted` to `Published`) or for one recipient (the rest).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// In the intake: it will be saved, whatever process dies.
    Accepted,
    /// The sender was not a member any more when it was to be saved, and was notified.
    Rejected,
    /// In `chat_messages`, with its place in the room; the sender is sent its id.
    Saved,
    /// Given to the live layer.
    Published,
    /// Written to a session of the recipient.
    Delivered,
    /// The recipient had no session: a push is due.
    Offline,
    /// A provider accepted the push.
    Pushed,
    /// The recipient's device has it.
    Received,
    /// The recipient has read it.
    Read,
    /// The push was too old to be of use when its turn came.
    Expired,
    /// The push could not be sent; it is kept where it can be listed and replayed.
    Parked,
}

impl Stage {
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
