//! How whole providers behave.

use std::time::{Duration, Instant};

use naru_phones::{Answer, ApnsReason, Conduct, FcmError, Provider};
use serde_json::json;
use tokio::task::JoinSet;

use crate::world::{APNS_TOKEN, FCM_TOKEN, World, alert, in_time, notification, soon};

/// For how long nothing must come from whom nothing is to come.
const SILENCE: Duration = Duration::from_millis(200);

#[tokio::test]
async fn nobody_listens_and_then_somebody_does() {
    let world = World::new().await;
    assert_eq!(world.push(APNS_TOKEN).await.status, 200);
    for _ in 0..3 {
        world.handle.set(Provider::Apns, Conduct::Refuse).await;
        assert_eq!(world.handle.counts(Provider::Apns).open_connections, 0);
        // A second time is the same.
        world.handle.set(Provider::Apns, Conduct::Refuse).await;
        for _ in 0..2 {
            let refused = in_time(world.device_request(APNS_TOKEN, &[], &alert())).await;
            // The first may find the old connection broken; no connection is a new one.
            assert!(refused.is_err());
        }
        let refused =
            in_time(world.device_request(APNS_TOKEN, &[], &alert())).await.expect_err("nobody listens");
        assert!(refused.is_connect(), "{refused:?}");
        // The other provider is not concerned.
        assert_eq!(world.send(&notification(FCM_TOKEN)).await.status, 200);
        world.handle.set(Provider::Apns, Conduct::Usual).await;
        assert_eq!(world.push(APNS_TOKEN).await.status, 200);
    }
    assert_eq!(world.handle.counts(Provider::Apns).connections, 4);
}

#[tokio::test]
async fn connections_are_closed_at_once() {
    let world = World::new().await;
    assert_eq!(world.push(APNS_TOKEN).await.status, 200);
    world.handle.set(Provider::Apns, Conduct::Closed).await;
    for _ in 0..3 {
        in_time(world.device_request(APNS_TOKEN, &[], &alert())).await.expect_err("a closed connection");
    }
    assert_eq!(world.handle.counts(Provider::Apns).open_connections, 0);
    world.handle.set(Provider::Apns, Conduct::Usual).await;
    assert_eq!(world.push(APNS_TOKEN).await.status, 200);
    assert_eq!(world.handle.taken(), 2);
}

#[tokio::test]
async fn requests_hang_on_open_and_on_new_connections() {
    let world = World::new().await;
    assert_eq!(world.push(APNS_TOKEN).await.status, 200);
    world.handle.set(Provider::Apns, Conduct::Hang).await;
    for _ in 0..2 {
        let request = world.device_request(APNS_TOKEN, &[], &alert()).timeout(SILENCE);
        assert!(in_time(request).await.expect_err("silence").is_timeout());
    }
    let hanging = tokio::spawn(world.device_request(APNS_TOKEN, &[], &alert()).send());
    soon(async {
        while world.handle.counts(Provider::Apns).requests < 4 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.handle.set(Provider::Apns, Conduct::Usual).await;
    assert_eq!(world.push(APNS_TOKEN).await.status, 200);
    assert!(!hanging.is_finished(), "what hangs goes on hanging");
    hanging.abort();
    assert_eq!(world.handle.taken(), 2);
}

#[tokio::test]
async fn access_tokens_hang_and_are_slow_too() {
    let world = World::new().await;
    world.handle.set(Provider::Fcm, Conduct::Slow(SILENCE)).await;
    let started = Instant::now();
    let bearer = world.access_token().await;
    assert!(started.elapsed() >= SILENCE);
    let body = json!({"message": notification(FCM_TOKEN)});
    assert_eq!(in_time(world.send_request(&bearer, &body)).await.expect("an answer").status, 200);
    assert!(started.elapsed() >= 2 * SILENCE);
}

#[tokio::test]
async fn a_connection_is_sent_away_and_requests_go_on() {
    let world = World::new().await;
    let bearer = world.access_token().await;
    // An open connection is told as well as a new one.
    for provider in Provider::ALL {
        world.handle.set(provider, Conduct::GoAway(Duration::from_millis(20))).await;
    }
    let mut sent = 0;
    soon(async {
        while Provider::ALL.iter().any(|provider| world.handle.counts(*provider).connections < 4) {
            assert_eq!(world.push(APNS_TOKEN).await.status, 200);
            let body = json!({"message": notification(FCM_TOKEN)});
            assert_eq!(in_time(world.send_request(&bearer, &body)).await.expect("an answer").status, 200);
            sent += 2;
        }
    })
    .await;
    assert_eq!(world.handle.taken(), sent);
}

#[tokio::test]
async fn what_a_connection_accepted_is_finished_when_it_is_sent_away() {
    let world = World::new().await;
    world.push(APNS_TOKEN).await;
    world.handle.answer_once(APNS_TOKEN, [Answer::Slow(Duration::from_millis(300))]);
    let slow = tokio::spawn(world.device_request(APNS_TOKEN, &[], &alert()).send());
    soon(async {
        while world.handle.counts(Provider::Apns).requests < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.handle.set(Provider::Apns, Conduct::GoAway(Duration::ZERO)).await;
    let response = soon(slow).await.expect("no panic").expect("an answer");
    assert_eq!(response.status().as_u16(), 200);
    drop(response);
    soon(async {
        while world.handle.counts(Provider::Apns).open_connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(world.handle.counts(Provider::Apns).connections, 1);
}

#[tokio::test]
async fn a_connection_carries_no_more_than_its_streams() {
    let world = World::new().await;
    world.push(APNS_TOKEN).await;
    world.handle.set(Provider::Apns, Conduct::Streams(2)).await;
    // The open connection was opened for more, and is sent away.
    soon(async {
        while world.handle.counts(Provider::Apns).open_connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.push(APNS_TOKEN).await;
    world.handle.answer(APNS_TOKEN, Answer::Slow(Duration::from_millis(20)));
    let mut requests = JoinSet::new();
    for _ in 0..20 {
        requests.spawn(world.device_request(APNS_TOKEN, &[], &alert()).send());
    }
    let responses = soon(requests.join_all()).await;
    assert!(responses.into_iter().all(|response| response.expect("an answer").status().is_success()));
    let counts = world.handle.counts(Provider::Apns);
    assert_eq!((counts.most_streams_at_once, counts.connections, counts.taken), (2, 2, 22));
}

#[tokio::test]
async fn a_provider_fails_whatever_it_is_asked() {
    let world = World::new().await;
    let unavailable = Answer::fcm(FcmError::Unavailable).retry_after(2);
    world.handle.set(Provider::Fcm, Conduct::Failing(unavailable)).await;
    world.handle.set(Provider::Apns, Conduct::Failing(Answer::apns(ApnsReason::Shutdown))).await;
    for message in [notification(FCM_TOKEN), json!({"badge": 1})] {
        let answered = world.send(&message).await;
        assert_eq!((answered.status, answered.header("retry-after")), (503, Some("2")), "{message}");
    }
    for token in [APNS_TOKEN, "00"] {
        assert_eq!(world.push(token).await.reason(), (503, "Shutdown".to_owned()));
    }
    // Even one that takes refuses what is not in order.
    world.handle.set(Provider::Apns, Conduct::Failing(Answer::Slow(Duration::ZERO))).await;
    assert_eq!(world.push("00").await.reason(), (400, "BadDeviceToken".to_owned()));
    assert_eq!(world.push(APNS_TOKEN).await.status, 200);
    world.handle.set(Provider::Fcm, Conduct::Usual).await;
    assert_eq!(world.send(&notification(FCM_TOKEN)).await.status, 200);
}

#[tokio::test]
async fn it_ends_when_it_is_dropped() {
    let world = World::new().await;
    let request = world.device_request(APNS_TOKEN, &[], &alert());
    assert_eq!(world.push(APNS_TOKEN).await.status, 200);
    let handle = world.handle.clone();
    drop(world.phones);
    soon(async {
        while handle.counts(Provider::Apns).open_connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    in_time(request).await.expect_err("nobody listens");
    // There is nobody to wait for, either.
    soon(handle.set(Provider::Apns, Conduct::Usual)).await;
}
