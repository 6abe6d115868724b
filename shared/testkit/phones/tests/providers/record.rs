//! What the providers took: by their handle, and over HTTP.

use std::net::Ipv4Addr;

use naru_phones::Provider;
use serde_json::{Value, json};

use crate::world::{APNS_TOKEN, Answered, FCM_TOKEN, World, in_time, notification, soon};

async fn world() -> World {
    World::with(|options| options.admin = Some((Ipv4Addr::LOCALHOST, 0).into())).await
}

async fn get(world: &World, path: &str) -> Answered {
    let url = format!("{}{path}", world.phones.admin_url().expect("an admin"));
    in_time(world.client.get(url)).await.expect("an answer")
}

#[tokio::test]
async fn there_is_none_unless_it_is_asked_for() {
    assert_eq!(World::new().await.phones.admin_url(), None);
}

#[tokio::test]
async fn pushes_are_listed() {
    let world = world().await;
    assert_eq!(get(&world, "/healthz").await.text, "ok\n");
    assert_eq!(get(&world, "/readyz").await.text, "ok\n");
    assert_eq!(get(&world, "/pushes").await.json(), json!({"pushes": []}));
    world.send(&notification(FCM_TOKEN)).await;
    world.push(APNS_TOKEN).await;
    let listed = get(&world, "/pushes").await.json();
    assert_eq!(listed["pushes"].as_array().expect("a list").len(), 2);
    let push = &listed["pushes"][0];
    assert_eq!(
        (&push["number"], &push["provider"], &push["token"]),
        (&json!(1), &json!("fcm"), &json!(FCM_TOKEN))
    );
    assert_eq!(
        (&push["title"], &push["body"], &push["badge"]),
        (&json!("Ada"), &json!("Hello"), &Value::Null)
    );
    assert!(push["receivedAt"].is_u64() && push["json"]["message"].is_object());
    assert_eq!(get(&world, "/nowhere").await.status, 404);
}

#[tokio::test]
async fn counts_are_shown() {
    let world = world().await;
    world.push(APNS_TOKEN).await;
    let counts = get(&world, "/counts").await.json();
    assert_eq!(
        (&counts["taken"], &counts["apns"]["taken"], &counts["fcm"]["taken"]),
        (&json!(1), &json!(1), &json!(0))
    );
    for name in ["connections", "requests", "jwtsSeen", "maxStreamsAtOnce"] {
        assert_eq!(counts["apns"][name], 1, "{name}");
    }
    for name in ["refused", "oauthTokensIssued", "repeated"] {
        assert_eq!(counts["apns"][name], 0, "{name}");
    }
}

#[tokio::test]
async fn pushes_are_numbered_over_both_providers_and_can_be_waited_for() {
    let world = World::new().await;
    let (first, second) = (world.handle.clone(), world.handle.clone());
    let next = tokio::spawn(async move { first.next(1).await });
    let both = tokio::spawn(async move { second.wait_for(2).await });
    world.push(APNS_TOKEN).await;
    assert!(!next.is_finished() && !both.is_finished());
    world.send(&notification(FCM_TOKEN)).await;
    let push = soon(next).await.expect("no panic");
    assert_eq!((push.number, push.provider), (2, Provider::Fcm));
    soon(both).await.expect("no panic");
    // What was there before is found, too.
    assert_eq!(soon(world.handle.next(0)).await.provider, Provider::Apns);
    assert_eq!((world.handle.received().len(), world.handle.received_after(1).len()), (2, 1));
    assert_eq!(world.handle.taken(), 2);
}
