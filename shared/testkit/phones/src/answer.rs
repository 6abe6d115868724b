//! How a push is answered: as usual, or as a test wants it.

use std::time::Duration;

use crate::provider::Provider;

/// The answer to one valid push. An invalid push is refused, whatever answer is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// As usual: the push is taken, even if the token's name asks for another answer.
    Taken,
    /// As usual, after this long.
    Slow(Duration),
    /// The push is taken, and the connection is closed in the place of an answer: the client can't know the outcome.
    TakenUnheard,
    /// The connection is closed without an answer, and nothing is taken.
    Close,
    /// No answer: the connection stays open.
    Hang,
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
    /// This, and nothing is taken.
    Raw {
        /// The status, from 200 to 599.
        status: u16,
        /// Names and values.
        headers: Vec<(String, String)>,
        body: String,
    },
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

    /// This status with this body, and no header but the usual ones.
    pub fn raw(status: u16, body: impl Into<String>) -> Self {
        Self::Raw { status, headers: Vec::new(), body: body.into() }
    }

    /// The same with `Retry-After`, in seconds. It changes nothing where there is no error to send it with.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        match &mut self {
            Self::Fcm { retry_after, .. } | Self::Apns { retry_after, .. } => *retry_after = Some(seconds),
            Self::Raw { headers, .. } => headers.push(("retry-after".to_owned(), seconds.to_string())),
            Self::Taken | Self::Slow(_) | Self::TakenUnheard | Self::Close | Self::Hang => {}
        }
        self
    }

    /// The same with this `timestamp`, in milliseconds since 1970. It changes nothing but APNs' errors of status 410.
    pub fn since(mut self, milliseconds: u64) -> Self {
        if let Self::Apns { timestamp, .. } = &mut self {
            *timestamp = Some(milliseconds);
        }
        self
    }

    /// Whether the push is taken.
    pub(crate) const fn takes(&self) -> bool {
        matches!(self, Self::Taken | Self::Slow(_) | Self::TakenUnheard)
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

const SLOW: Answer = Answer::Slow(Duration::from_secs(1));

/// A part of an FCM token, and the answer that it gets.
static FCM_NAMES: [(&str, Answer); 9] = [
    ("~unregistered", Answer::fcm(FcmError::Unregistered)),
    ("~quota", Answer::Fcm { code: FcmError::QuotaExceeded, retry_after: Some(1) }),
    ("~unavailable", Answer::fcm(FcmError::Unavailable)),
    ("~internal", Answer::fcm(FcmError::Internal)),
    ("~sender-id-mismatch", Answer::fcm(FcmError::SenderIdMismatch)),
    ("~invalid", Answer::fcm(FcmError::InvalidArgument)),
    ("~third-party", Answer::fcm(FcmError::ThirdPartyAuthError)),
    ("~hang", Answer::Hang),
    ("~slow", SLOW),
];

/// The first digits of an APNs token, and the answer that it gets.
static APNS_NAMES: [(&str, Answer); 7] = [
    ("00000410", Answer::apns(ApnsReason::Unregistered)),
    ("00000400", Answer::apns(ApnsReason::BadDeviceToken)),
    ("00000429", Answer::Apns { reason: ApnsReason::TooManyRequests, retry_after: Some(1), timestamp: None }),
    ("00000500", Answer::apns(ApnsReason::InternalServerError)),
    ("00000503", Answer::apns(ApnsReason::ServiceUnavailable)),
    ("00000408", Answer::Hang),
    ("00000200", SLOW),
];

/// An enum of named errors with the wire form of each.
macro_rules! errors {
    (
        $(#[$outer:meta])* $name:ident
        { $($(#[$inner:meta])* $variant:ident = ($wire:literal, $status:literal),)* }
    ) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$inner])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As the provider writes it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $wire,)* }
            }

            /// The HTTP status that goes with it.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }
        }
    };
}

errors! {
    /// FCM's errors (FCM REST reference, `ErrorCode`).
    FcmError {
        /// Nothing more is known.
        Unspecified = ("UNSPECIFIED_ERROR", 500),
        /// Here: the registration token is none.
        InvalidArgument = ("INVALID_ARGUMENT", 400),
        /// The app is gone from the device.
        Unregistered = ("UNREGISTERED", 404),
        /// The token belongs to another sender.
        SenderIdMismatch = ("SENDER_ID_MISMATCH", 403),
        /// Too many messages.
        QuotaExceeded = ("QUOTA_EXCEEDED", 429),
        /// Overloaded.
        Unavailable = ("UNAVAILABLE", 503),
        /// An unknown internal error.
        Internal = ("INTERNAL", 500),
        /// The APNs key or the web push key of the project is wrong.
        ThirdPartyAuthError = ("THIRD_PARTY_AUTH_ERROR", 401),
    }
}

errors! {
    /// APNs' reasons (Apple, "Handling notification responses from APNs").
    ApnsReason {
        /// The collapse identifier is too long.
        BadCollapseId = ("BadCollapseId", 400),
        /// The device token is none, or of the other environment.
        BadDeviceToken = ("BadDeviceToken", 400),
        /// `apns-expiration` is no number.
        BadExpirationDate = ("BadExpirationDate", 400),
        /// `apns-id` is no UUID.
        BadMessageId = ("BadMessageId", 400),
        /// `apns-priority` is not 1, 5 or 10, or not fit for the push type.
        BadPriority = ("BadPriority", 400),
        /// `apns-topic` is no topic.
        BadTopic = ("BadTopic", 400),
        /// The device token belongs to another topic.
        DeviceTokenNotForTopic = ("DeviceTokenNotForTopic", 400),
        /// A header came twice.
        DuplicateHeaders = ("DuplicateHeaders", 400),
        /// The connection was idle for too long.
        IdleTimeout = ("IdleTimeout", 400),
        /// `apns-push-type` is missing or unknown.
        InvalidPushType = ("InvalidPushType", 400),
        /// The path has no device token.
        MissingDeviceToken = ("MissingDeviceToken", 400),
        /// `apns-topic` is missing.
        MissingTopic = ("MissingTopic", 400),
        /// There is no payload.
        PayloadEmpty = ("PayloadEmpty", 400),
        /// The key may not push to this topic.
        TopicDisallowed = ("TopicDisallowed", 400),
        /// The client certificate is invalid.
        BadCertificate = ("BadCertificate", 403),
        /// The client certificate is of the other environment.
        BadCertificateEnvironment = ("BadCertificateEnvironment", 403),
        /// The provider token is older than an hour.
        ExpiredProviderToken = ("ExpiredProviderToken", 403),
        /// The action is not allowed.
        Forbidden = ("Forbidden", 403),
        /// The provider token is not valid, or its signature is not.
        InvalidProviderToken = ("InvalidProviderToken", 403),
        /// There is no provider token.
        MissingProviderToken = ("MissingProviderToken", 403),
        /// The key is not related to the one of the connection's first push.
        UnrelatedKeyIdInToken = ("UnrelatedKeyIdInToken", 403),
        /// The key is of the other environment.
        BadEnvironmentKeyIdInToken = ("BadEnvironmentKeyIdInToken", 403),
        /// The path is none of those that there are.
        BadPath = ("BadPath", 404),
        /// The method is not POST.
        MethodNotAllowed = ("MethodNotAllowed", 405),
        /// The device token has expired.
        ExpiredToken = ("ExpiredToken", 410),
        /// The device token is inactive for the topic.
        Unregistered = ("Unregistered", 410),
        /// The payload is too large.
        PayloadTooLarge = ("PayloadTooLarge", 413),
        /// The provider token changes too often.
        TooManyProviderTokenUpdates = ("TooManyProviderTokenUpdates", 429),
        /// Too many pushes in a row to the same device.
        TooManyRequests = ("TooManyRequests", 429),
        InternalServerError = ("InternalServerError", 500),
        ServiceUnavailable = ("ServiceUnavailable", 503),
        /// The server is shutting down.
        Shutdown = ("Shutdown", 503),
    }
}
