//! Steering over HTTP.

use std::net::Ipv4Addr;

use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{APNS_TOKEN, Answered, FCM_TOKEN, World, alert, in_time, notification};

async fn world() -> World {
    World::with(|options| options.admin = Some((Ipv4Addr::LOCALHOST, 0).into())).await
}

async fn ask(world: &World, method: Method, path: &str, body: Value) -> Answered {
    let url = format!("{}{path}", world.phones.admin_url().expect("an admin"));
    let request = world.client.request(method, url);
    let request = if body.is_null() { request } else { request.json(&body) };
    in_time(request).await.expect("an answer")
}

async fn get(world: &World, path: &str) -> Answered {
    ask(world, Method::GET, path, Value::Null).await
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
async fn answers_are_asked_for() {
    let world = world().await;
    let token = "cEL2b7%2DtRkq:APA91bH";
    let path = format!("/answers/fcm/{token}");
    let quota = json!({"answer": "QUOTA_EXCEEDED", "times": 2, "retryAfterSeconds": 9});
    assert_eq!(ask(&world, Method::PUT, &path, quota).await.status, 204);
    let unregistered = json!({"answer": "unregistered"});
    assert_eq!(ask(&world, Method::PUT, &path, unregistered).await.status, 204);
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(world.send(&notification(FCM_TOKEN)).await.status);
    }
    assert_eq!(statuses, [429, 429, 404, 404]);
    assert_eq!(ask(&world, Method::DELETE, &path, Value::Null).await.status, 204);
    assert_eq!(world.send(&notification(FCM_TOKEN)).await.status, 200);

    let path = format!("/answers/apns/{APNS_TOKEN}");
    let gone = json!({"answer": "Unregistered", "timestampMs": 1_700_000_000_000_u64});
    assert_eq!(ask(&world, Method::PUT, &path, gone).await.status, 204);
    assert_eq!(world.push(APNS_TOKEN).await.json()["timestamp"], 1_700_000_000_000_u64);
    let raw = json!({"answer": "raw", "status": 418, "headers": {"x-tea": "yes"}, "body": "short and stout"});
    assert_eq!(ask(&world, Method::PUT, &path, raw).await.status, 204);
    let answered = world.push(APNS_TOKEN).await;
    assert_eq!((answered.status, answered.header("x-tea")), (418, Some("yes")));
    for answer in [json!({"answer": "slow", "ms": 1}), json!({"answer": "taken"})] {
        assert_eq!(ask(&world, Method::PUT, &path, answer).await.status, 204);
        assert_eq!(world.push(APNS_TOKEN).await.status, 200);
    }
    for answer in ["close", "takenUnheard"] {
        assert_eq!(ask(&world, Method::PUT, &path, json!({"answer": answer})).await.status, 204);
        in_time(world.device_request(APNS_TOKEN, &[], &alert())).await.expect_err("a closed connection");
    }
}

#[tokio::test]
async fn the_oauth2_endpoint_and_its_tokens_are_steered_too() {
    let world = world().await;
    let bearer = world.access_token().await;
    assert_eq!(ask(&world, Method::DELETE, "/access-tokens", Value::Null).await.status, 204);
    let body = json!({"message": notification(FCM_TOKEN)});
    assert_eq!(in_time(world.send_request(&bearer, &body)).await.expect("an answer").status, 401);
    let raw = json!({"answer": "raw", "status": 500, "times": 1});
    assert_eq!(ask(&world, Method::PUT, "/answers/fcm/oauth2", raw).await.status, 204);
    assert_eq!(world.exchange(&[]).await.status, 500);
    assert_eq!(world.exchange(&[]).await.status, 400);
}

#[tokio::test]
async fn providers_are_steered() {
    let world = world().await;
    let put = async |body: Value| ask(&world, Method::PUT, "/providers/apns", body).await.status;
    assert_eq!(put(json!({"conduct": "failing", "answer": "ServiceUnavailable"})).await, 204);
    assert_eq!(world.push(APNS_TOKEN).await.status, 503);
    let failing =
        json!({"conduct": "failing", "answer": {"answer": "TooManyRequests", "retryAfterSeconds": 5}});
    assert_eq!(put(failing).await, 204);
    assert_eq!(world.push(APNS_TOKEN).await.header("retry-after"), Some("5"));
    assert_eq!(put(json!({"conduct": "slow", "ms": 1})).await, 204);
    assert_eq!(world.push(APNS_TOKEN).await.status, 200);
    assert_eq!(put(json!({"conduct": "refuse"})).await, 204);
    in_time(world.device_request(APNS_TOKEN, &[], &alert())).await.expect_err("nobody listens");
    for conduct in [
        json!({"conduct": "closed"}),
        json!({"conduct": "hang"}),
        json!({"conduct": "goaway", "everyMs": 100}),
        json!({"conduct": "streams", "streams": 3}),
        json!({"conduct": "usual"}),
        json!({"conduct": "refuse"}),
    ] {
        assert_eq!(put(conduct.clone()).await, 204, "{conduct}");
    }
    assert_eq!(ask(&world, Method::DELETE, "/providers/apns", Value::Null).await.status, 204);
    assert_eq!(world.push(APNS_TOKEN).await.status, 200);
}

#[tokio::test]
async fn bad_input_is_answered_with_a_sentence() {
    let world = world().await;
    let put = Method::PUT;
    let cases = [
        (put.clone(), "/answers/sms/a", json!({"answer": "taken"})),
        (put.clone(), "/answers/fcm/a", json!({"answer": "BadDeviceToken"})),
        (put.clone(), "/answers/apns/a", json!({"answer": "QUOTA_EXCEEDED"})),
        (put.clone(), "/answers/fcm/a", json!({"answer": "unregistered", "retryAfter": 1})),
        (put.clone(), "/answers/fcm/a", json!({"answer": "unregistered", "times": 0})),
        (put.clone(), "/answers/fcm/a", json!({"answer": "slow"})),
        (put.clone(), "/answers/fcm/a", json!({"answer": "raw"})),
        (put.clone(), "/answers/fcm/a", json!({"answer": "raw", "status": 99})),
        (put.clone(), "/answers/fcm/a", json!({"answer": "raw", "status": 200, "headers": {"a b": "c"}})),
        (put.clone(), "/answers/fcm/a", Value::Null),
        (put.clone(), "/providers/sms", json!({"conduct": "hang"})),
        (put.clone(), "/providers/fcm", json!({"conduct": "sleepy"})),
        (put.clone(), "/providers/fcm", json!({"conduct": "goaway"})),
        (put.clone(), "/providers/fcm", json!({"conduct": "slow", "everyMs": 1})),
        (put.clone(), "/providers/fcm", json!({"conduct": "streams", "streams": 0})),
        (put.clone(), "/providers/fcm", json!({"conduct": "failing"})),
        (
            put.clone(),
            "/providers/fcm",
            json!({"conduct": "failing", "answer": {"answer": "internal", "times": 1}}),
        ),
        (put.clone(), "/providers/fcm", json!([])),
        (Method::DELETE, "/providers/sms", Value::Null),
        (Method::DELETE, "/answers/sms/a", Value::Null),
        (Method::GET, "/pushes?after=soon", Value::Null),
        (Method::GET, "/pushes?before=1", Value::Null),
    ];
    for (method, path, body) in cases {
        let answered = ask(&world, method, path, body.clone()).await;
        let sentence = answered.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(
            answered.status == 400 && sentence.ends_with('.'),
            "{path} {body}: {} {sentence}",
            answered.status
        );
    }
    assert_eq!(get(&world, "/nowhere").await.status, 404);
    assert_eq!(ask(&world, Method::POST, "/pushes", Value::Null).await.status, 404);
}
