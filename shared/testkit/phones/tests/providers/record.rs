//! What the providers took: by their handle, and over HTTP.

use std::net::Ipv4Addr;

use naru_phones::Provider;
use serde_json::{Value, json};

use crate::fixture::{APNS_TOKEN, Answered, FCM_TOKEN, Fixture, in_time, notification, soon};

async fn fixture() -> Fixture {
    Fixture::with(|options| options.admin = Some((Ipv4Addr::LOCALHOST, 0).into())).await
}

async fn get(fixture: &Fixture, path: &str) -> Answered {
    let url = format!("{}{path}", fixture.phones.admin_url().expect("an admin"));
    in_time(fixture.client.get(url)).await.expect("an answer")
}

#[tokio::test]
async fn there_is_none_unless_it_is_asked_for() {
    assert_eq!(Fixture::new().await.phones.admin_url(), None);
}

#[tokio::test]
async fn pushes_are_listed() {
    let fixture = fixture().await;
    assert_eq!(get(&fixture, "/healthz").await.text, "ok\n");
    assert_eq!(get(&fixture, "/readyz").await.text, "ok\n");
    assert_eq!(get(&fixture, "/pushes").await.json(), json!({"pushes": []}));
    fixture.send(&notification(FCM_TOKEN)).await;
    fixture.push(APNS_TOKEN).await;
    let listed = get(&fixture, "/pushes").await.json();
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
    assert_eq!(get(&fixture, "/nowhere").await.status, 404);
}

#[tokio::test]
async fn counts_are_shown() {
    let fixture = fixture().await;
    fixture.push(APNS_TOKEN).await;
    let counts = get(&fixture, "/counts").await.json();
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
    let fixture = Fixture::new().await;
    let (first, second) = (fixture.handle.clone(), fixture.handle.clone());
    let next = tokio::spawn(async move { first.next(1).await });
    let both = tokio::spawn(async move { second.wait_for(2).await });
    fixture.push(APNS_TOKEN).await;
    assert!(!next.is_finished() && !both.is_finished());
    fixture.send(&notification(FCM_TOKEN)).await;
    let push = soon(next).await.expect("no panic");
    assert_eq!((push.number, push.provider), (2, Provider::Fcm));
    soon(both).await.expect("no panic");
    // What was there before is found, too.
    assert_eq!(soon(fixture.handle.next(0)).await.provider, Provider::Apns);
    assert_eq!((fixture.handle.received().len(), fixture.handle.received_after(1).len()), (2, 1));
    assert_eq!(fixture.handle.taken(), 2);
}
