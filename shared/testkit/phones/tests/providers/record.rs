//! What was taken, and the waiting for it.

use naru_phones::Provider;

use crate::world::{APNS_TOKEN, FCM_TOKEN, World, notification, soon};

#[tokio::test]
async fn pushes_are_numbered_over_both_providers() {
    let world = World::new().await;
    world.push(APNS_TOKEN).await;
    world.send(&notification(FCM_TOKEN)).await;
    world.push(APNS_TOKEN).await;
    let seen: Vec<(u64, Provider)> =
        world.handle.received().iter().map(|push| (push.number, push.provider)).collect();
    assert_eq!(seen, [(1, Provider::Apns), (2, Provider::Fcm), (3, Provider::Apns)]);
    assert_eq!(world.handle.received_after(2).len(), 1);
    assert_eq!(world.handle.taken(), 3);
}

#[tokio::test]
async fn what_is_waited_for_comes() {
    let world = World::new().await;
    let handle = world.handle.clone();
    let next = tokio::spawn(async move { handle.next(1).await });
    let handle = world.handle.clone();
    let found = tokio::spawn(async move { handle.find(|push| push.provider == Provider::Fcm).await });
    let handle = world.handle.clone();
    let three = tokio::spawn(async move { handle.wait_for(3).await });
    world.push(APNS_TOKEN).await;
    world.push(&"b".repeat(64)).await;
    assert_eq!(soon(next).await.expect("no panic").token, "b".repeat(64));
    assert!(!found.is_finished() && !three.is_finished());
    world.send(&notification(FCM_TOKEN)).await;
    assert_eq!(soon(found).await.expect("no panic").number, 3);
    soon(three).await.expect("no panic");
    // What was there before is found too.
    assert_eq!(soon(world.handle.next(0)).await.number, 1);
}

#[tokio::test]
async fn a_subscriber_hears_what_comes_from_then_on() {
    let world = World::new().await;
    world.push(APNS_TOKEN).await;
    let mut pushes = world.handle.subscribe();
    world.push(APNS_TOKEN).await;
    assert_eq!(soon(pushes.next()).await.expect("a push").number, 2);
}

#[tokio::test]
async fn the_same_again_is_counted_by_its_identity_only() {
    let world = World::new().await;
    // Neither has an identity: two messages may say the same.
    for _ in 0..2 {
        world.push(APNS_TOKEN).await;
        world.send(&notification(FCM_TOKEN)).await;
    }
    for provider in Provider::ALL {
        let counts = world.handle.counts(provider);
        assert_eq!((counts.taken, counts.repeated), (2, 0));
    }
}
