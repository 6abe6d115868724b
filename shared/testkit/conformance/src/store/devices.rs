//! [`Devices`](naru_engines::store::Devices).

use std::slice::from_ref;
use std::time::Duration;

use naru_model::hops::PushEnvironment;
use naru_model::{MessageId, Timestamp, UserId};

use super::fixtures::{device, user};
use super::{Of, Store, reopened, together};
use naru_engines::store::{Device, Platform};

pub(super) async fn d1_a_token_belongs_to_its_last_claimant(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (ada, ben) = (registered(&user()), registered(&user()));
    let spare = Device {
        platform: Platform::Apns,
        environment: PushEnvironment::Sandbox,
        locale: None,
        ..registered(&ada.user)
    };
    for device in [&ada, &ben, &spare] {
        store.devices.claim(device.clone()).await.unwrap();
    }
    assert_eq!(of_users(&store, &[&ada.user, &ben.user]).await, sorted([&ada, &ben, &spare]));

    // Ada's token moves to Ben's phone, then to his tablet.
    let phone = Device { token: ada.token.clone(), ..registered(&ben.user) };
    store.devices.claim(phone.clone()).await.unwrap();
    assert_eq!(of_users(&store, &[&ada.user]).await, from_ref(&spare));
    assert_eq!(of_users(&store, &[&ben.user]).await, sorted([&ben, &phone]));
    let tablet = Device { id: device(), ..phone };
    store.devices.claim(tablet.clone()).await.unwrap();
    assert_eq!(of_users(&store, &[&ben.user]).await, sorted([&ben, &tablet]));

    let store = reopened(subject, store).await;
    assert_eq!(of_users(&store, &[&ada.user, &ben.user]).await, sorted([&ben, &spare, &tablet]));
}

pub(super) async fn d1_of_many_at_the_same_time_one_has_the_token(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let first = registered(&user());
    let rivals: Vec<_> =
        (0..6).map(|_| Device { token: first.token.clone(), ..registered(&user()) }).collect();
    let mut claims = Vec::new();
    for rival in rivals.clone() {
        let store = subject.beside(&store).await;
        claims.push(async move { store.devices.claim(rival).await.unwrap() });
    }
    together(claims).await;
    let users: Vec<_> = rivals.iter().map(|rival| &rival.user).collect();
    assert_eq!(of_users(&store, &users).await.len(), 1, "owners of one token");
}

pub(super) async fn d2_claiming_again_replaces_the_token(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let old = registered(&user());
    let new = Device {
        id: old.id.clone(),
        locale: Some("en".into()),
        hides_content: true,
        ..registered(&old.user)
    };
    store.devices.claim(old.clone()).await.unwrap();
    store.devices.claim(new.clone()).await.unwrap();
    assert_eq!(of_users(&store, &[&old.user]).await, from_ref(&new));
    let elsewhere = Device { token: old.token, ..registered(&user()) };
    store.devices.claim(elsewhere.clone()).await.unwrap();
    assert_eq!(of_users(&store, &[&old.user, &elsewhere.user]).await, sorted([&new, &elsewhere]));
    let namesake = Device { id: new.id.clone(), ..registered(&user()) };
    store.devices.claim(namesake.clone()).await.unwrap();
    assert_eq!(of_users(&store, &[&new.user]).await, [new], "a device id is its user's own");
}

pub(super) async fn d3_only_an_older_token_is_removed(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let device = registered(&user());
    store.devices.claim(device.clone()).await.unwrap();
    let remove =
        async |token: &str, before| store.devices.remove_token(device.platform, token, before).await.unwrap();
    let at = device.registered_at;
    assert!(!remove(&device.token, at.before(Duration::from_millis(1))).await, "registered after that");
    assert!(!remove(&device.token, at).await, "registered at that moment");
    assert!(!remove("another", at.after(Duration::from_secs(9))).await, "not there");
    assert_eq!(of_users(&store, &[&device.user]).await, from_ref(&device));
    assert!(remove(&device.token, at.after(Duration::from_millis(1))).await);
    assert_eq!(of_users(&store, &[&device.user]).await, []);
    assert!(!remove(&device.token, at.after(Duration::from_millis(1))).await, "gone already");
}

pub(super) async fn d3_a_removed_device_is_gone(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (kept, gone) = (registered(&user()), registered(&user()));
    let namesake = Device { id: gone.id.clone(), ..registered(&kept.user) };
    for device in [&kept, &gone, &namesake] {
        store.devices.claim(device.clone()).await.unwrap();
    }
    assert!(store.devices.remove(&gone.user, &gone.id).await.unwrap());
    assert!(!store.devices.remove(&gone.user, &gone.id).await.unwrap(), "gone already");
    let store = reopened(subject, store).await;
    assert_eq!(of_users(&store, &[&gone.user, &kept.user]).await, sorted([&kept, &namesake]));
}

pub(super) async fn d4_a_device_that_was_not_seen_is_forgotten(subject: Of<'_, Store>) {
    let store = subject.open().await;
    // Times so early that no other case's device is older.
    let at =
        |millis, user: &UserId| Device { registered_at: Timestamp::from_millis(millis), ..registered(user) };
    let (ada, ben) = (user(), user());
    let [old, older, just_seen, back] = [1, 2, 3, 1].map(|millis| at(millis, &ada));
    let of_ben = at(2, &ben);
    for device in [&old, &older, &just_seen, &back, &of_ben] {
        store.devices.claim(device.clone()).await.unwrap();
    }
    // A device that is registered again counts as seen.
    let back = Device { registered_at: Timestamp::now(), ..back };
    store.devices.claim(back.clone()).await.unwrap();

    let forget = async |store: &Store| store.devices.forget_unseen(just_seen.registered_at).await.unwrap();
    assert_eq!(forget(&store).await, 3);
    assert_eq!(of_users(&store, &[&ada, &ben]).await, sorted([&just_seen, &back]));
    assert_eq!(forget(&store).await, 0, "gone already");
    let store = reopened(subject, store).await;
    assert_eq!(of_users(&store, &[&ada, &ben]).await, sorted([&just_seen, &back]));
    // The place of a forgotten device is free, and so is its token.
    let again = Device { user: ben.clone(), registered_at: Timestamp::now(), ..old };
    store.devices.claim(again.clone()).await.unwrap();
    assert_eq!(of_users(&store, &[&ben]).await, [again]);
}

pub(super) async fn d5_spellings_of_a_token_are_one_token(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (ada, ben) = (user(), user());
    let small = MessageId::generate().to_string().replace('-', "");
    let capitals = small.to_ascii_uppercase();
    let spelled =
        |user: &UserId, token: &str, platform| Device { token: token.into(), platform, ..registered(user) };
    let old = spelled(&ada, &capitals, Platform::Apns);
    store.devices.claim(old.clone()).await.unwrap();
    let stored = |device: &Device| Device { token: small.as_str().into(), ..device.clone() };
    assert_eq!(of_users(&store, &[&ada]).await, [stored(&old)], "the canonical spelling");

    // The phone changes hands, in the other spelling and back.
    let new = spelled(&ben, &small, Platform::Apns);
    store.devices.claim(new.clone()).await.unwrap();
    assert_eq!(of_users(&store, &[&ada, &ben]).await, from_ref(&new));
    store.devices.claim(old.clone()).await.unwrap();
    assert_eq!(of_users(&store, &[&ada, &ben]).await, [stored(&old)]);
    let later = old.registered_at.after(Duration::from_secs(9));
    assert!(store.devices.remove_token(Platform::Apns, &capitals, later).await.unwrap());
    let store = reopened(subject, store).await;
    assert_eq!(of_users(&store, &[&ada, &ben]).await, []);

    // FCM's tokens are case-sensitive; so is what is not in hexadecimal digits.
    let opaque = format!("{capitals}-Z");
    let claimed = [
        spelled(&ada, &capitals, Platform::Fcm),
        spelled(&ada, &small, Platform::Fcm),
        spelled(&ada, &opaque, Platform::Apns),
    ];
    for device in &claimed {
        store.devices.claim(device.clone()).await.unwrap();
    }
    assert_eq!(of_users(&store, &[&ada]).await, sorted(&claimed));
}

fn registered(user: &UserId) -> Device {
    Device {
        user: user.clone(),
        id: device(),
        platform: Platform::Fcm,
        token: format!("token:{}", MessageId::generate()).into(),
        environment: PushEnvironment::Production,
        locale: Some("ko-KR".into()),
        hides_content: false,
        registered_at: Timestamp::now(),
    }
}

async fn of_users(store: &Store, users: &[&UserId]) -> Vec<Device> {
    let users: Vec<_> = users.iter().map(|user| (*user).clone()).collect();
    sorted(&store.devices.of_users(&users).await.unwrap())
}

/// Sorted by token: the contract has no order.
fn sorted<'a>(devices: impl IntoIterator<Item = &'a Device>) -> Vec<Device> {
    let mut devices: Vec<_> = devices.into_iter().cloned().collect();
    devices.sort_by(|one, other| one.token.cmp(&other.token));
    devices
}
