//! [`Presence`](naru_engines::live::Presence).

use std::slice::from_ref;
use std::sync::Arc;
use std::time::Duration;

use naru_model::{DeviceId, GatewayId, SessionId, Timestamp, UserId};
use tokio::time::Instant;

use super::fixtures::{device, user};
use super::{LiveLayer, Of};
use naru_engines::live::{Presence, PresenceEntry, Renewal, Seen};

/// Longer than every case.
const LONG: Duration = Duration::from_secs(600);
/// Ends while a case waits.
const SHORT: Duration = Duration::from_millis(300);
/// How far apart the clocks of a test and its engine may be.
const CLOCKS: Duration = Duration::from_millis(100);

pub(super) async fn e1_a_session_counts_while_its_gateways_lease_does(subject: Of<'_, LiveLayer>) {
    let presence = subject.open().await.presence;
    let (dies, lives) = (GatewayId::generate(), running(&presence).await);
    let (ada, ben) = (user(), user());
    let renewed = Instant::now();
    presence.renew(&dies, SHORT).await.unwrap();
    for session in [session(&ada, &dies), session(&ben, &dies), session(&ben, &lives)] {
        presence.attach(&session).await.unwrap();
    }
    until_offline(&presence, &ada, renewed).await;
    assert!(online(&presence, &ben).await, "another gateway's sessions stay");
}

pub(super) async fn e1_a_renewed_lease_runs_from_its_renewal(subject: Of<'_, LiveLayer>) {
    let presence = subject.open().await.presence;
    let (gateway, ada) = (running(&presence).await, user());
    presence.attach(&session(&ada, &gateway)).await.unwrap();
    for _ in 0..10 {
        presence.renew(&gateway, SHORT).await.unwrap();
    }
    let renewed = Instant::now();
    presence.renew(&gateway, SHORT).await.unwrap();
    until_offline(&presence, &ada, renewed).await;
}

pub(super) async fn e1_a_session_without_a_lease_does_not_count(subject: Of<'_, LiveLayer>) {
    let presence = subject.open().await.presence;
    let ada = user();
    presence.attach(&session(&ada, &GatewayId::generate())).await.unwrap();
    assert!(!online(&presence, &ada).await);
}

pub(super) async fn e1_a_gateway_that_resigns_takes_its_sessions_with_it(subject: Of<'_, LiveLayer>) {
    let presence = subject.open().await.presence;
    let (leaves, stays) = (running(&presence).await, running(&presence).await);
    let (ada, ben) = (user(), user());
    for session in [session(&ada, &leaves), session(&ben, &stays)] {
        presence.attach(&session).await.unwrap();
    }
    presence.resign(&leaves).await.unwrap();
    assert_eq!((online(&presence, &ada).await, online(&presence, &ben).await), (false, true));
    assert!(!seen(&presence, &ada).await.online);
}

pub(super) async fn e2_attach_and_detach_show_at_once(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let beside = subject.beside(&layer).await.presence;
    let presence = layer.presence;
    let (here, there) = (running(&presence).await, running(&presence).await);
    let (ada, ben) = (user(), user());
    let [phone, tablet, web] = [(&here, Some(device())), (&here, Some(device())), (&there, None)]
        .map(|(gateway, device)| PresenceEntry { device, ..session(&ada, gateway) });
    assert!(!online(&beside, &ada).await);
    for attached in [&phone, &tablet, &web] {
        assert_eq!(presence.attach(attached).await.unwrap(), None);
        assert!(online(&beside, &ada).await);
    }
    presence.attach(&session(&ben, &there)).await.unwrap();
    let asked = [ben, user(), ada.clone()];
    assert_eq!(beside.online(&asked).await.unwrap(), [true, false, true], "in their order");
    assert!(beside.online(&[]).await.unwrap().is_empty());
    for (detached, is_online) in [(&phone, true), (&tablet, true), (&web, false)] {
        presence.detach(detached).await.unwrap();
        assert_eq!(online(&beside, &ada).await, is_online);
    }
}

pub(super) async fn e3_detaching_leaves_the_other_sessions(subject: Of<'_, LiveLayer>) {
    let presence = subject.open().await.presence;
    let (gateway, ada, ben) = (running(&presence).await, user(), user());
    let sessions = [session(&ada, &gateway), session(&ada, &gateway), session(&ben, &gateway)];
    for session in &sessions {
        presence.attach(session).await.unwrap();
    }
    presence.detach(&sessions[0]).await.unwrap();
    presence.detach(&sessions[0]).await.unwrap();
    presence.detach(&session(&ada, &gateway)).await.unwrap();
    assert!(online(&presence, &ada).await, "the other session is there");
    presence.detach(&sessions[1]).await.unwrap();
    assert!(!online(&presence, &ada).await);
    assert!(online(&presence, &ben).await, "another user's session is there");
}

pub(super) async fn e4_a_device_that_attaches_again_replaces_its_session(subject: Of<'_, LiveLayer>) {
    let presence = subject.open().await.presence;
    let (here, there) = (running(&presence).await, running(&presence).await);
    let (ada, ben, phone) = (user(), user(), device());
    let on = |user: &UserId, device: &DeviceId, gateway: &GatewayId| PresenceEntry {
        device: Some(device.clone()),
        ..session(user, gateway)
    };
    let (old, new) = (on(&ada, &phone, &here), on(&ada, &phone, &there));
    assert_eq!(presence.attach(&old).await.unwrap(), None);
    assert_eq!(presence.attach(&on(&ben, &phone, &here)).await.unwrap(), None, "another user's device");
    assert_eq!(presence.attach(&new).await.unwrap(), Some(old.clone()));

    // The gateway that closes the old session detaches it, later than the new one was attached.
    presence.detach(&old).await.unwrap();
    assert!(online(&presence, &ada).await);
    presence.detach(&new).await.unwrap();
    assert!(!online(&presence, &ada).await, "the old one does not count");

    for _ in 0..2 {
        assert_eq!(presence.attach(&session(&ada, &here)).await.unwrap(), None, "without a device");
    }
    assert_eq!(presence.attach(&on(&ada, &phone, &here)).await.unwrap(), None);
    assert_eq!(presence.attach(&on(&ada, &device(), &here)).await.unwrap(), None, "another device");
}

pub(super) async fn e5_last_seen_is_now_while_connected(subject: Of<'_, LiveLayer>) {
    let presence = subject.open().await.presence;
    let (gateway, ada) = (running(&presence).await, user());
    assert_eq!(seen(&presence, &ada).await, Seen { online: false, last_seen_at: None });

    let sessions = [session(&ada, &gateway), session(&ada, &gateway)];
    for session in &sessions {
        presence.attach(session).await.unwrap();
    }
    let mut asked = Timestamp::now();
    for detached in &sessions {
        asked = Timestamp::now();
        let now = seen(&presence, &ada).await;
        assert!(now.online);
        assert_within(now, asked);
        presence.detach(detached).await.unwrap();
    }
    let after = seen(&presence, &ada).await;
    assert!(!after.online);
    assert_within(after, asked);
    let later = presence.seen(&[user(), ada]).await.unwrap();
    assert_eq!(later, [Seen::default(), after], "it stays, in the order asked");
}

pub(super) async fn e5_last_seen_is_the_last_renewal_of_a_dead_gateway(subject: Of<'_, LiveLayer>) {
    let presence = subject.open().await.presence;
    let (gateway, ada) = (running(&presence).await, user());
    presence.attach(&session(&ada, &gateway)).await.unwrap();
    let (renewed, at) = (Instant::now(), Timestamp::now());
    presence.renew(&gateway, SHORT).await.unwrap();
    let answered = Timestamp::now();
    until_offline(&presence, &ada, renewed).await;
    let seen = seen(&presence, &ada).await.last_seen_at.expect("they were connected");
    let range = at.before(CLOCKS)..=answered.after(CLOCKS);
    assert!(range.contains(&seen), "{seen} is not when the lease was renewed: {range:?}");
}

pub(super) async fn e6_a_renewal_tells_whether_the_lease_has_lapsed(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let beside = subject.beside(&layer).await.presence;
    let (presence, gateway, ada) = (layer.presence, GatewayId::generate(), user());
    presence.attach(&session(&ada, &gateway)).await.unwrap();
    assert_eq!(presence.renew(&gateway, LONG).await.unwrap(), Renewal::Lapsed, "it is new");
    assert!(online(&beside, &ada).await);
    let renewed = Instant::now();
    assert_eq!(presence.renew(&gateway, SHORT).await.unwrap(), Renewal::Unbroken);
    until_offline(&beside, &ada, renewed).await;
    assert_eq!(
        presence.renew(&gateway, LONG).await.unwrap(),
        Renewal::Lapsed,
        "a look-up has missed the session"
    );
    assert!(online(&beside, &ada).await);
    assert_eq!(presence.renew(&gateway, LONG).await.unwrap(), Renewal::Unbroken, "it was told");
}

pub(super) async fn e7_attached_shows_single_sessions(subject: Of<'_, LiveLayer>) {
    let presence = subject.open().await.presence;
    let (gateway, ada) = (running(&presence).await, user());
    let [phone, web] = [(); 2].map(|()| session(&ada, &gateway));
    let unleased = session(&user(), &GatewayId::generate());
    for attached in [&phone, &web, &unleased] {
        presence.attach(attached).await.unwrap();
    }
    presence.detach(&phone).await.unwrap();
    let asked = [unleased, session(&user(), &gateway), phone, web];
    assert_eq!(presence.attached(&asked).await.unwrap(), [true, false, false, true], "in their order");
    assert!(presence.attached(&[]).await.unwrap().is_empty());
}

pub(super) async fn e8_a_forgotten_user_was_never_seen(subject: Of<'_, LiveLayer>) {
    let presence = subject.open().await.presence;
    let (gateway, ada, ben) = (running(&presence).await, user(), user());
    let (one, other) = (session(&ada, &gateway), session(&ben, &gateway));
    for session in [&one, &other] {
        presence.attach(session).await.unwrap();
    }
    presence.detach(&other).await.unwrap();
    assert!(!presence.forget(&ada).await.unwrap(), "she is connected");
    assert!(online(&presence, &ada).await);
    assert_eq!(presence.attached(from_ref(&one)).await.unwrap(), [true]);
    presence.detach(&one).await.unwrap();
    for _ in 0..2 {
        assert!(presence.forget(&ada).await.unwrap());
        assert_eq!(seen(&presence, &ada).await, Seen::default());
    }
    assert!(seen(&presence, &ben).await.last_seen_at.is_some(), "another user");
    assert!(presence.forget(&user()).await.unwrap());
}

/// A gateway whose lease outlives the case.
async fn running(presence: &Arc<dyn Presence>) -> GatewayId {
    let gateway = GatewayId::generate();
    presence.renew(&gateway, LONG).await.unwrap();
    gateway
}

fn session(user: &UserId, gateway: &GatewayId) -> PresenceEntry {
    PresenceEntry {
        user: user.clone(),
        device: None,
        session: SessionId::generate(),
        gateway: gateway.clone(),
    }
}

async fn online(presence: &Arc<dyn Presence>, user: &UserId) -> bool {
    presence.online(from_ref(user)).await.unwrap()[0]
}

async fn seen(presence: &Arc<dyn Presence>, user: &UserId) -> Seen {
    presence.seen(from_ref(user)).await.unwrap()[0]
}

/// Waits for the end of a short lease, which must not come too early.
async fn until_offline(presence: &Arc<dyn Presence>, user: &UserId, renewed: Instant) {
    while online(presence, user).await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The engine may count in whole milliseconds.
    let waited = renewed.elapsed() + Duration::from_millis(2);
    assert!(waited >= SHORT, "the lease ended after {waited:?}, {SHORT:?} was asked");
}

/// Asserts that `seen` lies between `from` and now.
fn assert_within(seen: Seen, from: Timestamp) {
    let at = seen.last_seen_at.expect("connected now or before");
    let range = from.before(CLOCKS)..=Timestamp::now().after(CLOCKS);
    assert!(range.contains(&at), "{at} is not in {range:?}");
}
