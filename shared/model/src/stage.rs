//! The names of a push's stages: in metrics, in logs and on parked pushes.

/// How far a push has come, or why it is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A provider accepted the push.
    Pushed,
    /// The recipient's device has the message.
    Received,
    /// The recipient has read the message.
    Read,
    /// The push was too old to be of use when its turn came.
    Expired,
    /// The push could not be sent; it is kept where it can be listed and replayed.
    Parked,
}

impl Stage {
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Pushed => "pushed",
            Stage::Received => "received",
            Stage::Read => "read",
            Stage::Expired => "expired",
            Stage::Parked => "parked",
        }
    }
}
