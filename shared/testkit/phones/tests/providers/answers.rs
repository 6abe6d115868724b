//! Answers on demand: by a token's name, and as a test asks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use naru_phones::{Answer, ApnsReason, FcmError, Provider};
use serde_json::json;

use crate::world::{APNS_TOKEN, FCM_TOKEN, World, alert, in_time, notification, soon};

/// For how long nothing must come from whom nothing is to come.
const SILENCE: Duration = Duration::from_millis(200);

#[tokio::test]
async fn fcm_tokens_by_name() {
    let world = World::new().await;
    let cases = [
        ("a~unregistered", 404, "NOT_FOUND", "UNREGISTERED"),
        ("a~quota", 429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
        ("a~unavailable", 503, "UNAVAILABLE", "UNAVAILABLE"),
        ("a~internal:b", 500, "INTERNAL", "INTERNAL"),
        ("a~sender-id-mismatch", 403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"),
        ("a~invalid", 400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ("a~third-party", 401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"),
    ];
    for (token, status, name, code) in cases {
        let answered = world.send(&notification(token)).await;
        assert_eq!(answered.error(), (status, name.to_owned(), code.to_owned()), "{token}");
        assert_eq!(answered.header("retry-after"), (status == 429).then_some("1"));
        if status == 400 {
            assert_eq!(answered.fields(), ["message.token"]);
        }
    }
    // What is wrong with the message is said first.
    assert_eq!(world.send(&json!({"token": "a~quota", "badge": 1})).await.status, 400);
    assert_eq!((world.handle.taken(), world.handle.counts(Provider::Fcm).refused), (0, 8));
}

#[tokio::test]
async fn apns_tokens_by_name() {
    let world = World::new().await;
    let cases = [
        ("00000410", 410, "Unregistered"),
        ("00000400", 400, "BadDeviceToken"),
        ("00000429", 429, "TooManyRequests"),
        ("00000500", 500, "InternalServerError"),
        ("00000503", 503, "ServiceUnavailable"),
    ];
    for (start, status, reason) in cases {
        let answered = world.push(&format!("{start}{}", &APNS_TOKEN[8..])).await;
        assert_eq!(answered.reason(), (status, reason.to_owned()));
        assert_eq!(answered.header("retry-after"), (status == 429).then_some("1"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later").as_millis();
        let is_recent = |timestamp: u64| now - u128::from(timestamp) < 60_000;
        assert_eq!(answered.json()["timestamp"].as_u64().map(is_recent), (status == 410).then_some(true));
    }
    assert_eq!((world.handle.taken(), world.handle.counts(Provider::Apns).refused), (0, 5));
}

#[tokio::test]
async fn some_names_are_slow_and_some_never_answer() {
    let world = World::new().await;
    let bearer = world.access_token().await;
    let slow = format!("00000200{}", &APNS_TOKEN[8..]);
    for request in [
        world.send_request(&bearer, &json!({"message": notification("a~slow")})),
        world.device_request(&slow, &[], &alert()),
    ] {
        let started = Instant::now();
        assert_eq!(in_time(request).await.expect("an answer").status, 200);
        assert!(started.elapsed() >= Duration::from_secs(1));
    }
    let silent = format!("00000408{}", &APNS_TOKEN[8..]);
    for request in [
        world.send_request(&bearer, &json!({"message": notification("a~hang")})),
        world.device_request(&silent, &[], &alert()),
    ] {
        assert!(in_time(request.timeout(SILENCE)).await.expect_err("silence").is_timeout());
    }
    assert_eq!(world.handle.taken(), 2);
}

#[tokio::test]
async fn every_error_of_fcm_can_be_asked_for() {
    let world = World::new().await;
    for code in FcmError::ALL {
        world.handle.answer(FCM_TOKEN, Answer::fcm(*code).retry_after(3));
        let answered = world.send(&notification(FCM_TOKEN)).await;
        let (status, _, said) = answered.error();
        assert_eq!((status, said.as_str()), (code.status(), code.as_str()));
        assert_eq!(answered.header("retry-after"), Some("3"));
    }
}

#[tokio::test]
async fn every_reason_of_apns_can_be_asked_for() {
    let world = World::new().await;
    for reason in ApnsReason::ALL {
        world.handle.answer(APNS_TOKEN, Answer::apns(*reason).since(1_700_000_000_000).retry_after(3));
        let answered = world.push(&APNS_TOKEN.to_uppercase()).await;
        assert_eq!(answered.reason(), (reason.status(), reason.as_str().to_owned()));
        assert_eq!(answered.header("retry-after"), Some("3"));
        let timestamp = (reason.status() == 410).then_some(1_700_000_000_000);
        assert_eq!(answered.json()["timestamp"].as_u64(), timestamp);
    }
}

#[tokio::test]
async fn answers_come_in_their_order_and_then_as_before() {
    let world = World::new().await;
    let unavailable = Answer::apns(ApnsReason::ServiceUnavailable);
    world.handle.answer(APNS_TOKEN, unavailable);
    world.handle.answer_once(APNS_TOKEN, [Answer::apns(ApnsReason::TooManyRequests), Answer::Taken]);
    world.handle.answer_once(APNS_TOKEN, [Answer::raw(302, "elsewhere")]);
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(world.push(APNS_TOKEN).await.status);
    }
    assert_eq!(statuses, [429, 200, 302, 503, 503]);
    // Another token's answers are its own.
    assert_eq!(world.push(&"a".repeat(64)).await.status, 200);
    assert!(world.handle.answer_as_usual(APNS_TOKEN));
    assert!(!world.handle.answer_as_usual(APNS_TOKEN));
    assert_eq!(world.push(APNS_TOKEN).await.status, 200);
}

#[tokio::test]
async fn what_is_asked_for_outweighs_a_name() {
    let world = World::new().await;
    world.handle.answer("a~unregistered", Answer::Taken);
    assert_eq!(world.send(&notification("a~unregistered")).await.status, 200);
}

#[tokio::test]
async fn raw_answers_are_word_for_word() {
    let world = World::new().await;
    let headers = vec![("Retry-After".to_owned(), "Sun, 22 Nov 2026 09:30:07 GMT".to_owned())];
    let body = "<html>busy</html>".to_owned();
    world.handle.answer(FCM_TOKEN, Answer::Raw { status: 502, headers, body });
    let answered = world.send(&notification(FCM_TOKEN)).await;
    assert_eq!((answered.status, answered.text.as_str()), (502, "<html>busy</html>"));
    assert_eq!(answered.header("retry-after"), Some("Sun, 22 Nov 2026 09:30:07 GMT"));
}

#[tokio::test]
async fn a_connection_is_closed_in_the_place_of_an_answer() {
    let world = World::new().await;
    let bearer = world.access_token().await;
    let body = json!({"message": notification(FCM_TOKEN)});
    world.handle.answer_once(FCM_TOKEN, [Answer::Close]);
    let error = in_time(world.send_request(&bearer, &body)).await.expect_err("a closed connection");
    assert!(!error.is_timeout(), "{error:?}");
    assert_eq!(in_time(world.send_request(&bearer, &body)).await.expect("a new one").status, 200);
    assert_eq!((world.handle.taken(), world.handle.counts(Provider::Fcm).connections), (1, 2));
}

#[tokio::test]
async fn a_push_that_was_taken_unheard_is_recognised_when_it_comes_again() {
    let world = World::new().await;
    let bearer = world.access_token().await;
    let id = [("apns-id", Some("123e4567-e89b-12d3-a456-4266554400a0"))];
    let message = json!({"message": {"token": FCM_TOKEN, "android": {"notification": {"tag": "7"}}}});
    world.handle.answer_once(APNS_TOKEN, [Answer::TakenUnheard]);
    world.handle.answer_once(FCM_TOKEN, [Answer::TakenUnheard]);
    let requests: [&dyn Fn() -> reqwest::RequestBuilder; 2] =
        [&|| world.device_request(APNS_TOKEN, &id, &alert()), &|| world.send_request(&bearer, &message)];
    for request in requests {
        in_time(request()).await.expect_err("a closed connection");
        assert_eq!(in_time(request()).await.expect("an answer").status, 200);
    }
    let repeated: Vec<bool> = world.handle.received().iter().map(|push| push.repeated).collect();
    assert_eq!(repeated, [false, true, false, true]);
    for provider in Provider::ALL {
        let counts = world.handle.counts(provider);
        assert_eq!((counts.taken, counts.repeated), (2, 1));
    }
}

#[tokio::test]
async fn a_hanging_request_leaves_the_others_of_its_connection_alone() {
    let world = World::new().await;
    world.push(APNS_TOKEN).await;
    world.handle.answer_once(APNS_TOKEN, [Answer::Hang]);
    let hanging = tokio::spawn(world.device_request(APNS_TOKEN, &[], &alert()).send());
    let other = "b".repeat(64);
    soon(async {
        while world.handle.counts(Provider::Apns).requests < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(world.push(&other).await.status, 200);
    assert!(!hanging.is_finished());
    let counts = world.handle.counts(Provider::Apns);
    assert_eq!((counts.connections, counts.most_streams_at_once), (1, 2));
    hanging.abort();
}
