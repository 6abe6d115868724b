//! The model's types in documents, where BSON has a type of its own for them: `#[serde(with = "field")]`.
//!
//! Other ids are strings, in documents as in JSON.

use bson::DateTime;
use bson::oid::ObjectId;
use naru_engines::store::IntakePlace;
use naru_model::{EventId, MessageId, Seq, StoreEpoch, StoreTime, Timestamp};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// A type of the model that has a BSON type of its own.
pub(crate) trait Field: Sized {
    type Bson: Serialize + DeserializeOwned;

    /// The value in a document.
    fn to_bson(&self) -> Self::Bson;

    /// The value; none when out of range.
    fn from_bson(bson: Self::Bson) -> Option<Self>;
}

impl Field for MessageId {
    type Bson = ObjectId;

    fn to_bson(&self) -> ObjectId {
        ObjectId::from_bytes(self.bytes())
    }

    fn from_bson(bson: ObjectId) -> Option<Self> {
        Some(Self::from_bytes(bson.bytes()))
    }
}

impl Field for EventId {
    type Bson = bson::Uuid;

    fn to_bson(&self) -> bson::Uuid {
        bson::Uuid::from_bytes(self.0.into_bytes())
    }

    fn from_bson(bson: bson::Uuid) -> Option<Self> {
        Some(Self(Uuid::from_bytes(bson.bytes())))
    }
}

impl Field for Timestamp {
    type Bson = DateTime;

    fn to_bson(&self) -> DateTime {
        DateTime::from_millis(self.as_millis())
    }

    fn from_bson(bson: DateTime) -> Option<Self> {
        Some(Self::from_millis(bson.timestamp_millis()))
    }
}

/// A tick of the server's clock.
macro_rules! tick {
    ($type:ident) => {
        impl Field for $type {
            type Bson = bson::Timestamp;

            fn to_bson(&self) -> bson::Timestamp {
                let [time, increment] = [self.0 >> u32::BITS, self.0 & u64::from(u32::MAX)]
                    .map(|half| u32::try_from(half).unwrap_or(u32::MAX));
                bson::Timestamp { time, increment }
            }

            fn from_bson(bson: bson::Timestamp) -> Option<Self> {
                Some(Self(u64::from(bson.time) << u32::BITS | u64::from(bson.increment)))
            }
        }
    };
}

tick!(IntakePlace);
tick!(StoreTime);

impl Field for Seq {
    type Bson = i64;

    /// No room has enough messages to reach the end of `i64`.
    fn to_bson(&self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    fn from_bson(bson: i64) -> Option<Self> {
        u64::try_from(bson).ok().map(Self)
    }
}

impl Field for StoreEpoch {
    type Bson = i64;

    fn to_bson(&self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    fn from_bson(bson: i64) -> Option<Self> {
        u64::try_from(bson).ok().map(Self)
    }
}

impl<F: Field> Field for Option<F> {
    type Bson = Option<F::Bson>;

    fn to_bson(&self) -> Self::Bson {
        self.as_ref().map(F::to_bson)
    }

    fn from_bson(bson: Self::Bson) -> Option<Self> {
        match bson {
            Some(bson) => F::from_bson(bson).map(Some),
            None => Some(None),
        }
    }
}

pub(crate) fn serialize<F: Field, S: Serializer>(value: &F, serializer: S) -> Result<S::Ok, S::Error> {
    value.to_bson().serialize(serializer)
}

pub(crate) fn deserialize<'de, F: Field, D: Deserializer<'de>>(deserializer: D) -> Result<F, D::Error> {
    F::from_bson(F::Bson::deserialize(deserializer)?).ok_or_else(|| D::Error::custom("out of range"))
}

/// These values as documents have them.
pub(crate) fn all<F: Field>(values: &[F]) -> Vec<F::Bson> {
    values.iter().map(F::to_bson).collect()
}

/// These ids as strings.
pub(crate) fn texts<'a, T: AsRef<str> + 'a>(ids: impl IntoIterator<Item = &'a T>) -> Vec<&'a str> {
    ids.into_iter().map(T::as_ref).collect()
}
