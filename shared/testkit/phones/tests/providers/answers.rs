//! Answers on demand: by a token's name, and as a test asks.

use std::time::{SystemTime, UNIX_EPOCH};

use naru_phones::{Answer, ApnsReason, Provider};
use serde_json::json;

use crate::fixture::{APNS_TOKEN, FCM_TOKEN, Fixture, alert, in_time, notification};

#[tokio::test]
async fn fcm_tokens_by_name() {
    let fixture = Fixture::new().await;
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
        let answered = fixture.send(&notification(token)).await;
        assert_eq!(answered.error(), (status, name.to_owned(), code.to_owned()), "{token}");
        assert_eq!(answered.header("retry-after"), (status == 429).then_some("1"));
        if status == 400 {
            assert_eq!(answered.fields(), ["message.token"]);
        }
    }
    // What is wrong with the message is said first.
    assert_eq!(fixture.send(&json!({"token": "a~quota", "badge": 1})).await.status, 400);
    assert_eq!((fixture.handle.taken(), fixture.handle.counts(Provider::Fcm).refused), (0, 8));
}

#[tokio::test]
async fn apns_tokens_by_name() {
    let fixture = Fixture::new().await;
    let cases = [
        ("00000410", 410, "Unregistered"),
        ("00000400", 400, "BadDeviceToken"),
        ("00000429", 429, "TooManyRequests"),
        ("00000500", 500, "InternalServerError"),
        ("00000503", 503, "ServiceUnavailable"),
    ];
    for (start, status, reason) in cases {
        let answered = fixture.push(&format!("{start}{}", &APNS_TOKEN[8..])).await;
        assert_eq!(answered.reason(), (status, reason.to_owned()));
        assert_eq!(answered.header("retry-after"), (status == 429).then_some("1"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later").as_millis();
        let is_recent = |timestamp: u64| now - u128::from(timestamp) < 60_000;
        assert_eq!(answered.json()["timestamp"].as_u64().map(is_recent), (status == 410).then_some(true));
    }
    assert_eq!((fixture.handle.taken(), fixture.handle.counts(Provider::Apns).refused), (0, 5));
}

#[tokio::test]
async fn answers_come_in_their_order_and_then_as_before() {
    let fixture = Fixture::new().await;
    // The name asks for another answer.
    let gone = format!("00000410{}", &APNS_TOKEN[8..]);
    fixture
        .handle
        .answer(&gone, Answer::apns(ApnsReason::Unregistered).since(1_700_000_000_000).retry_after(3));
    fixture.handle.answer_once(&gone, [Answer::apns(ApnsReason::TooManyRequests)]);
    fixture.handle.answer_once(&gone, [Answer::raw(302, "elsewhere")]);
    assert_eq!(fixture.push(&gone).await.status, 429);
    let raw = fixture.push(&gone).await;
    assert_eq!((raw.status, raw.text.as_str()), (302, "elsewhere"));
    for _ in 0..2 {
        let answered = fixture.push(&gone).await;
        assert_eq!((answered.status, answered.header("retry-after")), (410, Some("3")));
        assert_eq!(answered.json()["timestamp"], 1_700_000_000_000_u64);
    }
    // Another token's answers are its own.
    assert_eq!(fixture.push(APNS_TOKEN).await.status, 200);
    fixture.handle.answer_as_usual(&gone);
    assert_eq!(fixture.push(&gone).await.header("retry-after"), None);
}

#[tokio::test]
async fn a_connection_is_closed_in_the_place_of_an_answer() {
    let fixture = Fixture::new().await;
    let bearer = fixture.access_token().await;
    let body = json!({"message": notification(FCM_TOKEN)});
    fixture.handle.answer_once(FCM_TOKEN, [Answer::Close]);
    let error = in_time(fixture.send_request(&bearer, &body)).await.expect_err("a closed connection");
    assert!(!error.is_timeout(), "{error:?}");
    assert_eq!(in_time(fixture.send_request(&bearer, &body)).await.expect("a new one").status, 200);
    assert_eq!((fixture.handle.taken(), fixture.handle.counts(Provider::Fcm).connections), (1, 2));
}

#[tokio::test]
async fn a_push_that_was_taken_and_not_answered_is_recognised_when_it_comes_again() {
    let fixture = Fixture::new().await;
    let bearer = fixture.access_token().await;
    let id = [("apns-id", Some("123e4567-e89b-12d3-a456-4266554400a0"))];
    let message = json!({"message": {"token": FCM_TOKEN, "android": {"notification": {"tag": "7"}}}});
    fixture.handle.answer_once(APNS_TOKEN, [Answer::TakenUnanswered]);
    fixture.handle.answer_once(FCM_TOKEN, [Answer::TakenUnanswered]);
    let requests: [&dyn Fn() -> reqwest::RequestBuilder; 2] =
        [&|| fixture.device_request(APNS_TOKEN, &id, &alert()), &|| fixture.send_request(&bearer, &message)];
    for request in requests {
        in_time(request()).await.expect_err("a closed connection");
        assert_eq!(in_time(request()).await.expect("an answer").status, 200);
    }
    let repeated: Vec<bool> = fixture.handle.received().iter().map(|push| push.repeated).collect();
    assert_eq!(repeated, [false, true, false, true]);
    for provider in [Provider::Fcm, Provider::Apns] {
        let counts = fixture.handle.counts(provider);
        assert_eq!((counts.taken, counts.repeated), (2, 1));
    }
}
