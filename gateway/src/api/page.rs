//! Lists in pages: `?cursor=…&limit=…`. A cursor is the time and the id of the page's last entry. The id is in hexadecimal
//! digits: it may hold `&`, `+` and `%`, and a client may put a cursor into a URL as it is.

use std::fmt::Display;
use std::str::FromStr;

use naru_model::Timestamp;
use serde::Deserialize;

use super::{Call, unless_empty};
use crate::refusal::Refusal;

/// The page of a list that is asked for.
pub(super) struct Page<Id> {
    /// The last entry of the page before; none for the first page.
    pub(super) after: Option<(Timestamp, Id)>,
    /// How many entries, at most.
    pub(super) limit: usize,
}

impl<Id: FromStr> Page<Id> {
    /// Reads the query; a page holds `max` entries at most, and `usual` by default.
    pub(super) fn asked(call: &Call<'_>, (max, usual): (usize, usize)) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        struct Query {
            #[serde(default, deserialize_with = "unless_empty")]
            cursor: Option<String>,
            #[serde(default, deserialize_with = "unless_empty")]
            limit: Option<usize>,
        }
        let Query { cursor, limit } = call.query()?;
        let after = cursor.map(|text| read(&text)).transpose()?;
        Ok(Self { after, limit: limit.unwrap_or(usual).clamp(1, max) })
    }
}

fn read<Id: FromStr>(text: &str) -> Result<(Timestamp, Id), Refusal> {
    let read = || {
        let (at, digits) = text.split_once('.')?;
        Some((Timestamp::from_millis(at.parse().ok()?), of_digits(digits)?))
    };
    read().ok_or_else(|| Refusal::Invalid("cursor must be a nextCursor of before".to_owned()))
}

/// The `nextCursor` of a page that ends with this entry.
pub(super) fn cursor(at: Timestamp, id: impl Display) -> String {
    format!("{}.{}", at.as_millis(), to_digits(id))
}

/// An id in hexadecimal digits.
pub(super) fn to_digits(id: impl Display) -> String {
    id.to_string().bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The id that such digits stand for.
pub(super) fn of_digits<Id: FromStr>(digits: &str) -> Option<Id> {
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    let bytes = digits.as_bytes().chunks(2).map(byte).collect::<Option<_>>()?;
    String::from_utf8(bytes).ok()?.parse().ok()
}
