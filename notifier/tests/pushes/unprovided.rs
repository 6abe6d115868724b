//! Pushes to devices whose provider is not configured are kept, told of, and sent when it is.

use super::*;

#[tokio::test]
async fn without_a_provider_pushes_are_parked_and_go_out_when_there_is_one() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    fixture.registers("B", "phone", Platform::Fcm).await;
    fixture.registers("B", "iphone", Platform::Apns).await;
    let notifier = Running::with_webhook(&fixture, &webhook);
    assert!(notifier.health.report().await.degraded.is_empty());
    for content in ["one", "two"] {
        fixture.missed(&fixture.says(content).await, &["B"]).await;
        // The backend's own is not held up.
        assert_eq!(webhook.next().await.json["body"], content);
    }
    let parked = fixture.parked(4).await;
    for (lane, reason) in [
        (Lane::Fcm, "no provider: FCM is not configured"),
        (Lane::Apns, "no provider: APNs is not configured"),
    ] {
        let of_lane = parked.iter().filter(|push| push.job.lane == lane);
        assert_eq!(of_lane.filter(|push| push.reason == reason && push.attempts == 0).count(), 2);
    }
    notifier.counts("no_provider_total{lane=\"fcm\"} 2").await;
    let report = notifier.health.report().await;
    let told: Vec<_> = report.degraded.iter().map(|(name, why)| (*name, why.as_str())).collect();
    let sentence = |provider: &str| {
        format!(
            "no provider: {provider} is not configured; devices are registered for it, and their pushes are parked"
        )
    };
    let expected = [("push.apns", &*sentence("APNs")), ("push.fcm", &*sentence("FCM"))];
    assert_eq!((report.ready, told), (true, expected.to_vec()), "each once, and messages are delivered");
    notifier.finished().await;

    // A process that finds them says so.
    let notifier = Running::start(&fixture, config(None), []);
    until(|| async { (notifier.health.report().await.degraded.len() == 2).then_some(()) }).await;
    notifier.finished().await;

    // With FCM's key its pushes go out by themselves; APNs' wait.
    let (fcm, mut phones) = Scripted::on(Lane::Fcm);
    let notifier = Running::start(&fixture, config(None), [fcm]);
    let mut calls = phones.take(2).await;
    calls.sort_by_key(|call| call.event.payload.seq);
    let said: Vec<_> = calls.iter().map(|call| call.event.payload.body.to_string()).collect();
    assert_eq!(said, ["one", "two"]);
    calls.into_iter().for_each(Call::deliver);
    assert!(fixture.parked(2).await.iter().all(|push| push.job.lane == Lane::Apns));
    notifier.counts("pushes_total{lane=\"fcm\",outcome=\"pushed\"} 2").await;
    notifier.finished().await;
    phones.none_waiting();
}

#[tokio::test]
async fn of_two_notifiers_one_without_the_provider_loses_nothing() {
    let fixture = Fixture::new().await;
    fixture.registers("B", "phone", Platform::Fcm).await;
    let (fcm, mut phones) = Scripted::on(Lane::Fcm);
    let configured = Running::start(&fixture, config(None), [fcm]);
    let misconfigured = Running::start(&fixture, config(None), []);
    let mut number = 0;
    // Whichever of the two takes an event: until the second one has taken some.
    while !misconfigured.metrics.encode().contains("no_provider_total{lane=\"fcm\"}") {
        number += 1;
        fixture.missed(&fixture.says(&format!("message {number}")).await, &["B"]).await;
        phones.next().await.deliver();
    }
    assert!(configured.health.report().await.degraded.is_empty());
    assert_eq!(misconfigured.health.report().await.degraded.len(), 1);
    fixture.nothing_is_queued().await;
    fixture.parked(0).await;
    for notifier in [configured, misconfigured] {
        notifier.finished().await;
    }
    phones.none_waiting();
}

#[tokio::test]
async fn what_is_too_old_when_the_provider_comes_is_parked_as_expired() {
    let fixture = Fixture::new().await;
    fixture.registers("B", "phone", Platform::Fcm).await;
    let notifier = Running::start(&fixture, config(None), []);
    let long_ago = Timestamp::now().before(Duration::from_secs(25 * 3600));
    fixture.missed(&fixture.says_at("too late", long_ago).await, &["B"]).await;
    fixture.parked(1).await;
    notifier.finished().await;
    let (fcm, mut phones) = Scripted::on(Lane::Fcm);
    let notifier = Running::start(&fixture, config(None), [fcm]);
    notifier.counts("pushes_total{lane=\"fcm\",outcome=\"expired\"} 1").await;
    assert_eq!(fixture.parked(1).await[0].reason, "expired");
    notifier.finished().await;
    phones.none_waiting();
}

/// The webhook is wanted where some notifier has it.
#[tokio::test]
async fn of_two_notifiers_one_without_the_webhook_loses_nothing() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    let configured = Running::with_webhook(&fixture, &webhook);
    // Its first push shows that it has begun, and told the others.
    fixture.missed(&fixture.says("first").await, &["B"]).await;
    assert_eq!(webhook.next().await.json["body"], "first");
    let misconfigured = Running::start(&fixture, config(None), []);
    let mut number = 0;
    while !misconfigured.metrics.encode().contains("no_provider_total{lane=\"webhook\"}") {
        number += 1;
        let content = format!("message {number}");
        fixture.missed(&fixture.says(&content).await, &["B"]).await;
        assert_eq!(webhook.next().await.json["body"], *content);
    }
    assert!(configured.health.report().await.degraded.is_empty());
    let report = misconfigured.health.report().await;
    let told = "no provider: the webhook is not configured; another notifier has it, and the pushes that this one takes are parked";
    assert_eq!((report.ready, report.degraded["push.webhook"].as_str()), (true, told));
    fixture.nothing_is_queued().await;
    fixture.parked(0).await;
    configured.finished().await;

    // While no other one runs, it parks.
    fixture.missed(&fixture.says("alone").await, &["B"]).await;
    assert_eq!(fixture.parked(1).await[0].reason, "no provider: the webhook is not configured");
    misconfigured.finished().await;
    let configured = Running::with_webhook(&fixture, &webhook);
    assert_eq!(webhook.next().await.json["body"], "alone");
    configured.finished().await;
    webhook.none_waiting();
}

#[tokio::test]
async fn where_no_notifier_has_the_webhook_nothing_is_parked_for_it() {
    let fixture = Fixture::new().await;
    let notifier = Running::start(&fixture, config(None), []);
    fixture.missed(&fixture.says("to nobody").await, &["B"]).await;
    fixture.nothing_is_queued().await;
    fixture.parked(0).await;
    assert!(notifier.health.report().await.degraded.is_empty());
    notifier.finished().await;
}
