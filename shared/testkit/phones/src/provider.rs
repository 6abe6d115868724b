use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Firebase Cloud Messaging, HTTP v1, with Google's OAuth2 on the same address.
    Fcm,
    /// The Apple Push Notification service, HTTP/2 with provider tokens.
    Apns,
}
