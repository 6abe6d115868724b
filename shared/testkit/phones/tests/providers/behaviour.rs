//! How whole providers behave.

use std::time::{Duration, Instant};

use naru_phones::{Behaviour, Provider};
use serde_json::json;

use crate::fixture::{APNS_TOKEN, FCM_TOKEN, Fixture, alert, in_time, notification, soon};

/// How long a request that hangs is waited for.
const SILENCE: Duration = Duration::from_millis(200);

#[tokio::test]
async fn connections_are_refused_until_it_listens_again() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.push(APNS_TOKEN).await.status, 200);
    for _ in 0..3 {
        fixture.handle.set(Provider::Apns, Behaviour::Refuse).await;
        // A second time is the same.
        fixture.handle.set(Provider::Apns, Behaviour::Refuse).await;
        for _ in 0..2 {
            let refused = in_time(fixture.device_request(APNS_TOKEN, &[], &alert())).await;
            // The first may find the old connection broken; no connection is a new one.
            assert!(refused.is_err());
        }
        let refused =
            in_time(fixture.device_request(APNS_TOKEN, &[], &alert())).await.expect_err("no listener");
        assert!(refused.is_connect(), "{refused:?}");
        // The other provider is not concerned.
        assert_eq!(fixture.send(&notification(FCM_TOKEN)).await.status, 200);
        fixture.handle.set(Provider::Apns, Behaviour::Usual).await;
        assert_eq!(fixture.push(APNS_TOKEN).await.status, 200);
    }
    assert_eq!(fixture.handle.counts(Provider::Apns).connections, 4);
}

#[tokio::test]
async fn connections_are_closed_at_once() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.push(APNS_TOKEN).await.status, 200);
    fixture.handle.set(Provider::Apns, Behaviour::Closed).await;
    for _ in 0..3 {
        in_time(fixture.device_request(APNS_TOKEN, &[], &alert())).await.expect_err("a closed connection");
    }
    fixture.handle.set(Provider::Apns, Behaviour::Usual).await;
    assert_eq!(fixture.push(APNS_TOKEN).await.status, 200);
    assert_eq!(fixture.handle.taken(), 2);
}

#[tokio::test]
async fn requests_hang_on_open_and_on_new_connections() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.push(APNS_TOKEN).await.status, 200);
    fixture.handle.set(Provider::Apns, Behaviour::Hang).await;
    for _ in 0..2 {
        let request = fixture.device_request(APNS_TOKEN, &[], &alert()).timeout(SILENCE);
        assert!(in_time(request).await.expect_err("silence").is_timeout());
    }
    let hanging = tokio::spawn(fixture.device_request(APNS_TOKEN, &[], &alert()).send());
    soon(async {
        while fixture.handle.counts(Provider::Apns).requests < 4 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    fixture.handle.set(Provider::Apns, Behaviour::Usual).await;
    assert_eq!(fixture.push(APNS_TOKEN).await.status, 200);
    assert!(!hanging.is_finished(), "what hangs goes on hanging");
    hanging.abort();
    assert_eq!(fixture.handle.taken(), 2);
}

#[tokio::test]
async fn access_tokens_hang_and_are_slow_too() {
    let fixture = Fixture::new().await;
    fixture.handle.set(Provider::Fcm, Behaviour::Slow(SILENCE)).await;
    let started = Instant::now();
    let bearer = fixture.access_token().await;
    assert!(started.elapsed() >= SILENCE);
    let body = json!({"message": notification(FCM_TOKEN)});
    assert_eq!(in_time(fixture.send_request(&bearer, &body)).await.expect("an answer").status, 200);
    assert!(started.elapsed() >= 2 * SILENCE);
}

#[tokio::test]
async fn a_connection_is_sent_away_and_requests_go_on() {
    let fixture = Fixture::new().await;
    let bearer = fixture.access_token().await;
    // An open connection is told as well as a new one.
    for provider in [Provider::Fcm, Provider::Apns] {
        fixture.handle.set(provider, Behaviour::GoAway(Duration::from_millis(20))).await;
    }
    let mut sent = 0;
    soon(async {
        let connections = |provider| fixture.handle.counts(provider).connections;
        while connections(Provider::Fcm).min(connections(Provider::Apns)) < 4 {
            assert_eq!(fixture.push(APNS_TOKEN).await.status, 200);
            let body = json!({"message": notification(FCM_TOKEN)});
            assert_eq!(in_time(fixture.send_request(&bearer, &body)).await.expect("an answer").status, 200);
            sent += 2;
        }
    })
    .await;
    assert_eq!(fixture.handle.taken(), sent);
}

#[tokio::test]
async fn accepted_requests_are_finished_when_a_connection_is_sent_away() {
    let fixture = Fixture::new().await;
    fixture.push(APNS_TOKEN).await;
    fixture.handle.set(Provider::Apns, Behaviour::Slow(Duration::from_millis(300))).await;
    let slow = tokio::spawn(fixture.device_request(APNS_TOKEN, &[], &alert()).send());
    soon(async {
        while fixture.handle.counts(Provider::Apns).requests < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    fixture.handle.set(Provider::Apns, Behaviour::GoAway(Duration::ZERO)).await;
    let response = soon(slow).await.expect("no panic").expect("an answer");
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(fixture.push(APNS_TOKEN).await.status, 200);
    assert_eq!(fixture.handle.counts(Provider::Apns).connections, 2);
}

#[tokio::test]
async fn an_open_connection_is_sent_away_when_its_limit_of_streams_is_outdated() {
    let fixture = Fixture::new().await;
    fixture.push(APNS_TOKEN).await;
    fixture.handle.set(Provider::Apns, Behaviour::Streams(2)).await;
    soon(async {
        while fixture.handle.counts(Provider::Apns).connections < 2 {
            assert_eq!(fixture.push(APNS_TOKEN).await.status, 200);
        }
    })
    .await;
}

#[tokio::test]
async fn it_ends_when_it_is_dropped() {
    let fixture = Fixture::new().await;
    let request = fixture.device_request(APNS_TOKEN, &[], &alert());
    assert_eq!(fixture.push(APNS_TOKEN).await.status, 200);
    let handle = fixture.handle.clone();
    drop(fixture.phones);
    in_time(request).await.expect_err("no listener");
    // There is nothing to wait for, either.
    soon(handle.set(Provider::Apns, Behaviour::Usual)).await;
}
