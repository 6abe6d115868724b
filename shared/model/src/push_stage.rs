//! The names of a push's stages: in metrics, in logs and on parked pushes.

/// How far a push has come, or why it is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushStage {
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

impl PushStage {
    pub const fn as_str(self) -> &'static str {
        match self {
            PushStage::Pushed => "pushed",
            PushStage::Received => "received",
            PushStage::Read => "read",
            PushStage::Expired => "expired",
            PushStage::Parked => "parked",
        }
    }
}
