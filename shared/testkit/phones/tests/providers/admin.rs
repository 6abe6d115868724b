//! What the providers took, over HTTP.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::world::{APNS_TOKEN, Answered, FCM_TOKEN, World, in_time, notification};

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
    assert_eq!(get(&world, "/pushes").await.json(), json!({"newest": 0, "pushes": []}));
    world.send(&notification(FCM_TOKEN)).await;
    world.push(APNS_TOKEN).await;
    let listed = get(&world, "/pushes").await.json();
    assert_eq!((&listed["newest"], listed["pushes"].as_array().expect("a list").len()), (&json!(2), 2));
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

    let only = |listed: Answered| {
        let pushes = listed.json()["pushes"].as_array().cloned().expect("a list");
        pushes.iter().map(|push| push["number"].as_u64().expect("a number")).collect::<Vec<_>>()
    };
    assert_eq!(only(get(&world, "/pushes?after=1").await), [2]);
    assert_eq!(only(get(&world, &format!("/pushes?token={FCM_TOKEN}")).await), [1]);
    assert_eq!(only(get(&world, &format!("/pushes?after=1&token={FCM_TOKEN}")).await), [0_u64; 0]);
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
    for name in ["connections", "openConnections", "requests", "jwtsSeen", "mostStreamsAtOnce"] {
        assert_eq!(counts["apns"][name], 1, "{name}");
    }
    for name in ["refused", "oauthTokensIssued", "repeated"] {
        assert_eq!(counts["apns"][name], 0, "{name}");
    }
}

#[tokio::test]
async fn bad_input_is_answered_with_a_sentence() {
    let world = world().await;
    for path in ["/pushes?after=soon", "/pushes?before=1"] {
        let answered = get(&world, path).await;
        let sentence = answered.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(answered.status == 400 && sentence.ends_with('.'), "{path}: {} {sentence}", answered.status);
    }
    assert_eq!(get(&world, "/nowhere").await.status, 404);
}
