//! The two providers.

use std::fmt;

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Firebase Cloud Messaging, HTTP v1, with Google's OAuth2 on the same address.
    Fcm,
    /// The Apple Push Notification service, HTTP/2 with provider tokens.
    Apns,
}

impl Provider {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Fcm, Self::Apns];

    /// `fcm` or `apns`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fcm => "fcm",
            Self::Apns => "apns",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
