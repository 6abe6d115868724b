//! Which recipients get a message live, and which a push at once or later: a pure function of members and presence.

use std::collections::HashMap;

use naru_model::UserId;

/// Which members of a batch's rooms are online.
#[derive(Clone, Debug)]
pub enum Online {
    /// Presence has answered.
    Known(HashMap<UserId, bool>),
    /// Presence can't be asked. **Unknown is not offline**, and not online either.
    Unknown,
}

/// The recipients of one message, by how they get it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Members with a live session, the sender's other sessions included: the live layer delivers to them.
    pub live: Vec<UserId>,
    /// Recipients without one: they get a push now. Never the sender.
    pub offline: Vec<UserId>,
    /// Recipients with one: they get a push at the grace time, unless they prove to have the message. Never the sender.
    pub to_prove: Vec<UserId>,
}

impl Route {
    /// All but the sender, each once.
    pub fn recipients(&self) -> impl Iterator<Item = &UserId> {
        self.offline.iter().chain(&self.to_prove)
    }

    /// For a message whose grace time is over: a recipient with a proof needs no push, and all others get one now.
    pub fn late(&mut self, has_proven: impl Fn(&UserId) -> bool) {
        self.offline.append(&mut self.to_prove);
        self.offline.retain(|user| !has_proven(user));
    }
}

/// Routes one message. Every recipient is in either `offline` or `to_prove`; those in `to_prove` are also in `live`. When
/// presence is unknown, they are in `offline` and `live`.
pub fn route(sender: &UserId, members: &[UserId], online: &Online) -> Route {
    let mut route = Route::default();
    for member in members {
        let (is_online, is_known) = match online {
            Online::Known(online) => (online.get(member).copied().unwrap_or(false), true),
            Online::Unknown => (true, false),
        };
        if is_online {
            route.live.push(member.clone());
        }
        if member != sender {
            let list = if is_online && is_known { &mut route.to_prove } else { &mut route.offline };
            list.push(member.clone());
        }
    }
    route
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(id: &str) -> UserId {
        UserId::new(id).unwrap()
    }

    fn known(online: &[&str]) -> Online {
        Online::Known(online.iter().map(|id| (user(id), true)).collect())
    }

    #[test]
    fn an_online_recipient_has_to_prove_and_an_offline_one_gets_a_push() {
        let members = [user("ada"), user("ben"), user("cleo")];
        let routed = route(&user("ada"), &members, &known(&["ada", "ben"]));
        assert_eq!(routed.live, [user("ada"), user("ben")]);
        assert_eq!(routed.offline, [user("cleo")]);
        assert_eq!(routed.to_prove, [user("ben")]);
    }

    #[test]
    fn the_sender_has_nothing_to_prove() {
        let routed = route(&user("ada"), &[user("ada"), user("ben")], &known(&[]));
        assert_eq!(routed, Route { offline: vec![user("ben")], ..Route::default() });
    }

    #[test]
    fn unknown_presence_gives_push_and_message() {
        let routed = route(&user("ada"), &[user("ada"), user("ben")], &Online::Unknown);
        let live = vec![user("ada"), user("ben")];
        assert_eq!(routed, Route { live, offline: vec![user("ben")], to_prove: vec![] });
    }

    #[test]
    fn after_the_grace_time_all_without_proof_get_a_push() {
        let mut routed = route(
            &user("ada"),
            &[user("ada"), user("ben"), user("cleo"), user("dan")],
            &known(&["ben", "cleo"]),
        );
        routed.late(|proven| *proven == user("ben"));
        assert_eq!(routed.offline, [user("dan"), user("cleo")]);
        assert_eq!((routed.to_prove, routed.live), (vec![], vec![user("ben"), user("cleo")]));
    }

    proptest! {
        #[test]
        fn each_recipient_gets_a_push_or_must_prove(names in prop::collection::btree_set("[a-f]", 2..6), online in prop::collection::vec("[a-f]", 0..6)) {
            let members: Vec<UserId> = names.iter().map(|name| user(name)).collect();
            let online: Vec<&str> = online.iter().map(String::as_str).collect();
            for online in [known(&online), Online::Unknown] {
                let routed = route(&members[0], &members, &online);
                for member in &members[1..] {
                    prop_assert!(routed.offline.contains(member) != routed.to_prove.contains(member));
                    prop_assert!(routed.live.contains(member) || !routed.to_prove.contains(member));
                }
            }
        }
    }
}
