//! Rooms and their members.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{RoomId, Timestamp, UserId};

/// Counts a room's changes of members, from 1. The members at one version never change, so a cache entry under
/// `(room, version)` needs no invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberVersion(pub u32);

impl MemberVersion {
    /// A room as it was made.
    pub const FIRST: MemberVersion = MemberVersion(1);

    /// The version after one change.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RoomKind {
    /// Exactly two users, for ever.
    Direct,
    /// Three or more users when it was made; users join and leave.
    Group,
}

/// A room at one version of its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Room {
    pub id: RoomId,
    pub kind: RoomKind,
    /// A group's name.
    pub name: Option<Arc<str>>,
    /// Its members, sorted, each once.
    pub member_ids: Arc<[UserId]>,
    /// The version of these members.
    pub member_version: MemberVersion,
    /// The user who made it; none when the app's backend did.
    pub maker_id: Option<UserId>,
    pub created_at: Timestamp,
}

impl Room {
    /// Whether a user is a member.
    pub fn has(&self, user: &UserId) -> bool {
        self.member_ids.binary_search(user).is_ok()
    }
}

/// A list of members in the form a room keeps: sorted, each once.
pub fn sorted_members(members: impl IntoIterator<Item = UserId>) -> Arc<[UserId]> {
    let mut members: Vec<_> = members.into_iter().collect();
    members.sort();
    members.dedup();
    members.into()
}
