//! How a push is answered where it is not taken as usual: as its token asks by its name, or as a test wants it.

use crate::provider::Provider;

/// The answer to one valid push. An invalid push is refused, whatever answer is set.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The push is taken, and the connection is closed in the place of an answer: the client can't know the outcome.
    TakenUnanswered,
    /// The connection is closed without an answer, and nothing is taken.
    Close,
    /// One of FCM's errors.
    Fcm {
        code: FcmError,
        /// The `Retry-After` header, in seconds.
        retry_after: Option<u64>,
    },
    /// One of APNs' errors.
    Apns {
        reason: ApnsReason,
        /// The `Retry-After` header, in seconds.
        retry_after: Option<u64>,
        /// The `timestamp` of a 410, in milliseconds since 1970; now, if there is none. Other answers have none.
        timestamp: Option<u64>,
    },
    /// This status with this body.
    Raw { status: u16, body: String },
}

impl Answer {
    /// One of FCM's errors.
    pub const fn fcm(code: FcmError) -> Self {
        Self::Fcm { code, retry_after: None }
    }

    /// One of APNs' errors.
    pub const fn apns(reason: ApnsReason) -> Self {
        Self::Apns { reason, retry_after: None, timestamp: None }
    }

    /// This status with this body.
    pub fn raw(status: u16, body: impl Into<String>) -> Self {
        Self::Raw { status, body: body.into() }
    }

    /// The same with `Retry-After`, in seconds. It changes nothing but a provider's errors.
    pub const fn retry_after(mut self, seconds: u64) -> Self {
        if let Self::Fcm { retry_after, .. } | Self::Apns { retry_after, .. } = &mut self {
            *retry_after = Some(seconds);
        }
        self
    }

    /// The same with this `timestamp`, in milliseconds since 1970. It changes nothing but APNs' errors of status 410.
    pub const fn since(mut self, milliseconds: u64) -> Self {
        if let Self::Apns { timestamp, .. } = &mut self {
            *timestamp = Some(milliseconds);
        }
        self
    }

    /// The answer that a token's name asks for, so that a demo or a test in another process needs no call: see the table in
    /// this crate's documentation.
    pub(crate) fn by_name(provider: Provider, token: &str) -> Option<Self> {
        match provider {
            Provider::Fcm => {
                FCM_NAMES.iter().find(|(part, _)| token.contains(part)).map(|(_, answer)| answer)
            }
            Provider::Apns => {
                APNS_NAMES.iter().find(|(start, _)| token.starts_with(start)).map(|(_, answer)| answer)
            }
        }
        .cloned()
    }
}

/// A part of an FCM token, and the answer that it gets.
static FCM_NAMES: [(&str, Answer); 7] = [
    ("~unregistered", Answer::fcm(FcmError::Unregistered)),
    ("~quota", Answer::fcm(FcmError::QuotaExceeded).retry_after(1)),
    ("~unavailable", Answer::fcm(FcmError::Unavailable)),
    ("~internal", Answer::fcm(FcmError::Internal)),
    ("~sender-id-mismatch", Answer::fcm(FcmError::SenderIdMismatch)),
    ("~invalid", Answer::fcm(FcmError::InvalidArgument)),
    ("~third-party", Answer::fcm(FcmError::ThirdPartyAuthError)),
];

/// The first digits of an APNs token, and the answer that it gets.
static APNS_NAMES: [(&str, Answer); 5] = [
    ("00000410", Answer::apns(ApnsReason::Unregistered)),
    ("00000400", Answer::apns(ApnsReason::BadDeviceToken)),
    ("00000429", Answer::apns(ApnsReason::TooManyRequests).retry_after(1)),
    ("00000500", Answer::apns(ApnsReason::InternalServerError)),
    ("00000503", Answer::apns(ApnsReason::ServiceUnavailable)),
];

/// An enum of named errors with the wire form and the HTTP status of each.
macro_rules! errors {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = ($wire:literal, $status:literal),)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($variant,)* }

        impl $name {
            /// As the provider writes it.
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $wire,)* }
            }

            pub(crate) const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }
        }
    };
}

errors! {
    /// FCM's errors (FCM REST reference, `ErrorCode`).
    FcmError {
        InvalidArgument = ("INVALID_ARGUMENT", 400),
        ThirdPartyAuthError = ("THIRD_PARTY_AUTH_ERROR", 401),
        SenderIdMismatch = ("SENDER_ID_MISMATCH", 403),
        Unregistered = ("UNREGISTERED", 404),
        QuotaExceeded = ("QUOTA_EXCEEDED", 429),
        Internal = ("INTERNAL", 500),
        Unavailable = ("UNAVAILABLE", 503),
    }
}

errors! {
    /// The reasons of APNs that the emulator or a test gives (Apple, "Handling notification responses from APNs").
    ApnsReason {
        BadCollapseId = ("BadCollapseId", 400),
        BadDeviceToken = ("BadDeviceToken", 400),
        BadExpirationDate = ("BadExpirationDate", 400),
        BadMessageId = ("BadMessageId", 400),
        BadPriority = ("BadPriority", 400),
        DeviceTokenNotForTopic = ("DeviceTokenNotForTopic", 400),
        DuplicateHeaders = ("DuplicateHeaders", 400),
        InvalidPushType = ("InvalidPushType", 400),
        MissingTopic = ("MissingTopic", 400),
        PayloadEmpty = ("PayloadEmpty", 400),
        TopicDisallowed = ("TopicDisallowed", 400),
        ExpiredProviderToken = ("ExpiredProviderToken", 403),
        InvalidProviderToken = ("InvalidProviderToken", 403),
        MissingProviderToken = ("MissingProviderToken", 403),
        BadPath = ("BadPath", 404),
        MethodNotAllowed = ("MethodNotAllowed", 405),
        Unregistered = ("Unregistered", 410),
        PayloadTooLarge = ("PayloadTooLarge", 413),
        TooManyProviderTokenUpdates = ("TooManyProviderTokenUpdates", 429),
        TooManyRequests = ("TooManyRequests", 429),
        InternalServerError = ("InternalServerError", 500),
        ServiceUnavailable = ("ServiceUnavailable", 503),
    }
}
