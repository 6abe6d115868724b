//! Who gets a message live, and who a push at once or later: a pure function of the members and of where they are.

use std::collections::HashMap;

use naru_engines::live::Location;
use naru_model::UserId;

/// Where the members of a batch's rooms are.
#[derive(Clone, Debug)]
pub enum Whereabouts {
    /// Presence has answered.
    Known(HashMap<UserId, Location>),
    /// Presence can't be asked. **Unknown is not offline**, and not online either.
    Unknown,
}

/// To whom one message goes, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Members who have a live session, the sender's other sessions included: they hear of it on the live layer.
    pub live: Vec<UserId>,
    /// Recipients without one: they get a push now. Never the sender.
    pub offline: Vec<UserId>,
    /// Recipients with one: they get a push later, unless they prove to have the message. Never the sender.
    pub owed: Vec<UserId>,
}

/// Routes one message. Every recipient is either offline or owed; who is owed is live. When it is not known where they
/// are, they are offline and live.
pub fn route(sender: &UserId, members: &[UserId], whereabouts: &Whereabouts) -> Route {
    let mut route = Route::default();
    for member in members {
        let (is_online, is_known) = match whereabouts {
            Whereabouts::Known(locations) => (locations.get(member).is_some_and(Location::is_online), true),
            Whereabouts::Unknown => (true, false),
        };
        if is_online {
            route.live.push(member.clone());
        }
        if member != sender {
            let list = if is_online && is_known { &mut route.owed } else { &mut route.offline };
            list.push(member.clone());
        }
    }
    route
}

#[cfg(test)]
mod tests {
    use naru_model::GatewayId;
    use proptest::prelude::*;

    use super::*;

    fn user(id: &str) -> UserId {
        UserId::new(id).unwrap()
    }

    fn known(online: &[&str]) -> Whereabouts {
        let here = Location { gateways: vec![GatewayId::new("g").unwrap()] };
        Whereabouts::Known(online.iter().map(|id| (user(id), here.clone())).collect())
    }

    #[test]
    fn who_is_here_hears_and_who_is_not_is_owed_a_push() {
        let members = [user("ada"), user("ben"), user("cleo")];
        let routed = route(&user("ada"), &members, &known(&["ada", "ben"]));
        assert_eq!(routed.live, [user("ada"), user("ben")]);
        assert_eq!(routed.offline, [user("cleo")]);
        assert_eq!(routed.owed, [user("ben")]);
    }

    #[test]
    fn the_sender_is_owed_nothing() {
        let routed = route(&user("ada"), &[user("ada"), user("ben")], &known(&[]));
        assert_eq!(routed, Route { offline: vec![user("ben")], ..Route::default() });
    }

    #[test]
    fn unknown_is_both() {
        let routed = route(&user("ada"), &[user("ada"), user("ben")], &Whereabouts::Unknown);
        let live = vec![user("ada"), user("ben")];
        assert_eq!(routed, Route { live, offline: vec![user("ben")], owed: vec![] });
    }

    proptest! {
        #[test]
        fn never_neither(names in prop::collection::btree_set("[a-f]", 2..6), online in prop::collection::vec("[a-f]", 0..6)) {
            let members: Vec<UserId> = names.iter().map(|name| user(name)).collect();
            let online: Vec<&str> = online.iter().map(String::as_str).collect();
            for whereabouts in [known(&online), Whereabouts::Unknown] {
                let routed = route(&members[0], &members, &whereabouts);
                for member in &members[1..] {
                    prop_assert!(routed.offline.contains(member) != routed.owed.contains(member));
                    prop_assert!(routed.live.contains(member) || !routed.owed.contains(member));
                }
            }
        }
    }
}
