//! Ids are types: a room can't be passed as a user, and every id was checked when it was made.

use std::fmt;
use std::sync::Arc;

use bson::oid::ObjectId;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Timestamp;

/// Why a text is not an id of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be {rule}")]
pub struct InvalidId {
    kind: &'static str,
    rule: &'static str,
}

impl InvalidId {
    /// `kind` with its article, and the rule that was broken.
    pub(crate) const fn new(kind: &'static str, rule: &'static str) -> Self {
        Self { kind, rule }
    }
}

/// A cheaply cloned, checked text.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a text.
            ///
            /// # Errors
            #[doc = concat!("When it is not ", $rule, ".")]
            pub fn new(text: impl AsRef<str> + Into<Arc<str>>) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(text.as_ref()) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId { kind: $kind, rule: $rule })
                }
            }

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(Arc::<str>::deserialize(deserializer)?).map_err(de::Error::custom)
            }
        }
    };
}

/// What a path segment of a URL may hold unescaped (RFC 3986, section 3.3), and the `|` of Auth0's user ids. None of these
/// is escaped in JSON or has a meaning in a key of an engine.
fn is_user_id(text: &str) -> bool {
    const SIGNS: &[u8] = b"-._~!$&'()*+,;=:@|";
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || SIGNS.contains(&byte))
}

/// No control characters: such an id could not be written in a log line, a header or a channel name.
fn is_printable(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len()) && !text.chars().any(char::is_control)
}

text_id!(
    /// A user of the app, as its tokens name them (`sub`).
    UserId, "a user id", "1 to 128 characters of A-Z a-z 0-9 - . _ ~ ! $ & ' ( ) * + , ; = : @ |", is_user_id
);
text_id!(
    /// A chat room. The longest direct room: two escaped user ids of 256 bytes and the `_` between them.
    RoomId, "a chatRoomId", "1 to 513 bytes without control characters", |text| is_printable(text, 513)
);
text_id!(
    /// One of a user's devices; its name space is the user's own.
    DeviceId, "a device id", "1 to 128 bytes without control characters", |text| is_printable(text, 128)
);
text_id!(
    /// The client's own name for a message, kept for resends; unique per sender and room.
    ClientMessageId, "a clientMessageId", "1 to 64 bytes", |text| (1..=64).contains(&text.len())
);
text_id!(
    /// One WebSocket connection.
    SessionId, "a session id", "1 to 64 bytes without control characters", |text| is_printable(text, 64)
);
text_id!(
    /// One run of one gateway process: a restarted gateway has another id.
    GatewayId, "a gateway id", "1 to 64 bytes without control characters", |text| is_printable(text, 64)
);
text_id!(
    /// One task of one process, as the holder of a lease.
    HolderId, "a holder id", "1 to 64 bytes without control characters", |text| is_printable(text, 64)
);

impl SessionId {
    /// A new one (a random UUID).
    pub fn generate() -> Self {
        Self(uuid_text())
    }
}

impl GatewayId {
    /// A new one (a random UUID): the boot id of this run.
    pub fn generate() -> Self {
        Self(uuid_text())
    }
}

impl HolderId {
    /// A new one (a random UUID).
    pub fn generate() -> Self {
        Self(uuid_text())
    }
}

fn uuid_text() -> Arc<str> {
    let mut buffer = uuid::Uuid::encode_buffer();
    Arc::from(&*uuid::Uuid::new_v4().simple().encode_lower(&mut buffer))
}

impl RoomId {
    /// The room of exactly two users: their ids sorted, `~` written `~0`, `_` written `~1`, joined with `_`.
    ///
    /// The escapes make the name unique: no other pair has the same one.
    pub fn direct(one: &UserId, other: &UserId) -> Self {
        let (first, second) = if one <= other { (one, other) } else { (other, one) };
        let escape = |id: &UserId| id.as_str().replace('~', "~0").replace('_', "~1");
        Self(format!("{}_{}", escape(first), escape(second)).into())
    }

    /// A new group's id. It holds no `_`, so it is never the id of a direct room.
    pub fn generate() -> Self {
        Self(MessageId::generate().to_string().into())
    }
}

impl From<MessageId> for ClientMessageId {
    /// The name that the gateway gives to a message whose client gave none.
    fn from(id: MessageId) -> Self {
        Self(id.to_string().into())
    }
}

/// A message's id for life: an ObjectId, made by the gateway, the same in intake, events and `chat_messages`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(ObjectId);

impl MessageId {
    /// A new one: seconds, a number of this process, a counter.
    pub fn generate() -> Self {
        Self(ObjectId::new())
    }

    pub const fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(ObjectId::from_bytes(bytes))
    }

    /// No id that is made from this moment's second on is less, and each that was made before it is: an id begins with the
    /// second of its making, by its maker's clock.
    pub fn first_at(moment: Timestamp) -> Self {
        let second = moment.as_millis().div_euclid(1_000).clamp(0, u32::MAX.into());
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&u32::try_from(second).unwrap_or(u32::MAX).to_be_bytes());
        Self::from_bytes(bytes)
    }

    /// The greatest id that is less than this one.
    #[must_use]
    pub fn predecessor(&self) -> Self {
        let mut bytes = self.bytes();
        for byte in bytes.iter_mut().rev() {
            let (less, is_borrowed) = byte.overflowing_sub(1);
            *byte = less;
            if !is_borrowed {
                break;
            }
        }
        Self::from_bytes(bytes)
    }

    /// When it was made, to the second, by its maker's clock.
    pub fn made_at(&self) -> Timestamp {
        let [first, second, third, fourth, ..] = self.bytes();
        Timestamp::from_millis(i64::from(u32::from_be_bytes([first, second, third, fourth])) * 1_000)
    }

    pub const fn bytes(&self) -> [u8; 12] {
        self.0.bytes()
    }

    fn hex(&self) -> [u8; 24] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 24];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.bytes()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        text
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = self.hex();
        f.write_str(std::str::from_utf8(&hex).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for MessageId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = InvalidId { kind: "a message id", rule: "24 hexadecimal digits" };
        ObjectId::parse_str(text).map(Self).map_err(|_| invalid)
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A message's place in its room: 1, 2, 3 … without a gap. 0 stands before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first message.
    pub const ZERO: Seq = Seq(0);

    /// The place after this one.
    #[must_use]
    pub const fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Changes when the store is restored from a backup, which gives places in rooms once more, to other messages: what a
/// client has of another epoch may differ from what the store has at the same places.
///
/// It is the moment of the last restore, in milliseconds since 1970, or 1. A count would not do: who restores one backup twice
/// would count to the same number twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreEpoch(pub u64);

impl StoreEpoch {
    /// A store that was never restored.
    pub const FIRST: StoreEpoch = StoreEpoch(1);

    /// The epoch that a restore begins now, later than this one whatever the clock says.
    #[must_use]
    pub fn next(self, now: Timestamp) -> Self {
        Self(u64::try_from(now.as_millis()).unwrap_or_default().max(self.0 + 1))
    }
}

impl fmt::Display for StoreEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The partition of a room: FNV-1a of its id, mixed, modulo `partitions`. Stable for ever, on every machine; `partitions`
/// is stored with the data at first start, and another value is refused afterwards.
pub fn partition_of(room: &RoomId, partitions: u32) -> u32 {
    let hash = room.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // FNV's lowest bit is the parity of the bytes' lowest bits, and constant where a name repeats its characters, as direct
    // rooms' names often do ("rider7_driver7"): half of the partitions would stay empty. This is MurmurHash3's finalizer.
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let hash = hash ^ (hash >> 33);
    u32::try_from(hash % u64::from(partitions.max(1))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn user(text: &str) -> UserId {
        UserId::new(text).unwrap()
    }

    #[test]
    fn a_direct_room_is_named_after_its_two_people() {
        assert_eq!(RoomId::direct(&user("A"), &user("B")).as_str(), "A_B");
        assert_eq!(RoomId::direct(&user("B"), &user("A")).as_str(), "A_B");
        assert_eq!(RoomId::direct(&user("a_b"), &user("c~d")).as_str(), "a~1b_c~0d");
        assert_eq!(
            RoomId::direct(&user("auth0|5f7c"), &user("alice+chat@example.com")).as_str(),
            "alice+chat@example.com_auth0|5f7c"
        );
    }

    #[test]
    fn rooms_of_ids_that_were_always_valid_keep_their_names() {
        // Written down before further characters were allowed: stored rooms have these names.
        for (one, other, name) in [
            ("A", "B", "A_B"),
            ("B", "a", "B_a"),
            ("9", "A", "9_A"),
            ("a~1b", "c", "a~01b_c"),
            ("x_y", "z", "x~1y_z"),
            ("x", "y_z", "x_y~1z"),
            ("~_", "_~", "~1~0_~0~1"),
            ("me@example.com", "you:1", "me@example.com_you:1"),
            ("-", "...", "-_..."),
        ] {
            assert_eq!(RoomId::direct(&user(one), &user(other)).as_str(), name);
            assert_eq!(RoomId::direct(&user(other), &user(one)).as_str(), name);
        }
    }

    #[test]
    fn user_ids_are_limited_in_length_and_letters() {
        let identity_providers =
            ["auth0|5f7c8ec7c33c6c004bbafe82", "alice+chat@example.com", "waad|x=1,y=(2)"];
        for good in ["A", "a.b_c@d:e~f-9", ".", "..", "-._~!$&'()*+,;=:@|", &"x".repeat(128)] {
            assert!(UserId::new(good).is_ok(), "{good}");
        }
        for good in identity_providers {
            assert!(UserId::new(good).is_ok(), "{good}");
        }
        for bad in [
            "", "a b", "한", "a/b", "a\0", "a\"b", "a\\b", "a[b]", "a{b}", "a%b", "a?b", "a#b", "a<b", "a^b",
            "a`b",
        ] {
            assert!(UserId::new(bad).is_err(), "{bad}");
        }
        assert!(UserId::new("x".repeat(129)).is_err());
    }

    #[test]
    fn partitions_are_pinned() {
        // Computed independently of this code from the published parameters of FNV-1a and MurmurHash3.
        let room = |text: &str| partition_of(&RoomId::new(text).unwrap(), 32);
        assert_eq!([room("A_B"), room("ada_ben"), room("한강")], [14, 27, 3]);
    }

    #[test]
    fn rooms_whose_names_are_alike_spread_over_all_partitions() {
        let rooms = (0..200).map(|pair| RoomId::new(format!("rider{pair}_driver{pair}")).unwrap());
        let partitions: HashSet<u32> = rooms.map(|room| partition_of(&room, 32)).collect();
        assert_eq!(partitions.len(), 32);
    }

    #[test]
    fn message_ids_are_unique_and_read_back() {
        let ids: HashSet<_> = (0..10_000).map(|_| MessageId::generate()).collect();
        assert_eq!(ids.len(), 10_000);
        for id in ids.iter().take(100) {
            assert_eq!(id.to_string().parse::<MessageId>().unwrap(), *id);
        }
    }

    #[test]
    fn message_ids_tell_when_they_were_made() {
        let (before, id) = (Timestamp::now(), MessageId::generate());
        let second = Duration::from_secs(1);
        assert!(
            MessageId::first_at(before) <= id && id < MessageId::first_at(Timestamp::now().after(second))
        );
        assert!(id.made_at().after(second) > before && id.made_at() <= Timestamp::now());
        assert_eq!(
            MessageId::first_at(Timestamp::from_millis(-1)),
            MessageId::first_at(Timestamp::from_millis(999))
        );
        assert_eq!(
            MessageId::first_at(Timestamp::from_millis(i64::MAX)).made_at().as_millis(),
            4_294_967_295_000
        );
        let first = MessageId::first_at(before);
        assert!(first.predecessor() < first && first.predecessor().made_at() < first.made_at());
        assert_eq!(
            MessageId::from_bytes([7; 12]).predecessor().bytes(),
            [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 6]
        );
    }

    proptest! {
        #[test]
        fn different_pairs_never_share_a_direct_room(
            a in "[a_~01|]{1,4}", b in "[a_~01|]{1,4}", c in "[a_~01|]{1,4}", d in "[a_~01|]{1,4}"
        ) {
            let (a, b, c, d) = (user(&a), user(&b), user(&c), user(&d));
            let same_pair = (a == c && b == d) || (a == d && b == c);
            prop_assert_eq!(RoomId::direct(&a, &b) == RoomId::direct(&c, &d), same_pair);
        }

        /// A name from which the pair can be read back belongs to no other pair.
        #[test]
        fn a_direct_room_tells_its_pair(
            a in "[-A-Za-z0-9._~!$&'()*+,;=:@|]{3,128}", b in "[-A-Za-z0-9._~!$&'()*+,;=:@|]{3,128}"
        ) {
            let room = RoomId::direct(&user(&a), &user(&b));
            prop_assert!(RoomId::new(room.as_str()).is_ok());
            let unescape = |part: &str| part.replace("~1", "_").replace("~0", "~");
            let parts: Vec<String> = room.as_str().split('_').map(unescape).collect();
            let mut pair = [a, b];
            pair.sort();
            prop_assert_eq!(parts, pair);
        }
    }
}
