//! A lane between its queue and its provider.

use super::*;

/// `count` messages that B missed.
async fn miss(fixture: &Fixture, count: usize) {
    for number in 0..count {
        let message = fixture.says(&format!("message {number}")).await;
        fixture.missed(&message, &["B"]).await;
    }
}

fn away() -> Verdict {
    Verdict::TryLater { reason: "away".into(), at_least: Duration::ZERO }
}

#[tokio::test]
async fn a_push_whose_time_is_over_is_parked_and_not_sent() {
    let fixture = Fixture::new().await;
    let (backend, mut calls) = Scripted::on(Lane::Webhook);
    let notifier = Running::start(&fixture, config(None), [backend]);
    let yesterday = Timestamp::now().before(Duration::from_secs(24 * 3600));
    let message = fixture.says_at("too late", yesterday).await;
    fixture.missed(&message, &["B"]).await;
    let parked = fixture.parked(1).await.remove(0);
    assert_eq!((&*parked.reason, parked.job.message_id), ("expired", message.id));
    notifier.counts("pushes_total{lane=\"webhook\",outcome=\"expired\"} 1").await;
    notifier.finished().await;
    calls.none_waiting();
}

#[tokio::test]
async fn a_push_that_would_expire_before_its_next_try_is_parked() {
    let fixture = Fixture::new().await;
    let (backend, mut calls) = Scripted::on(Lane::Webhook);
    let notifier = Running::start(&fixture, config(None), [backend]);
    fixture.missed(&fixture.says("hello").await, &["B"]).await;
    let until = Timestamp::now().after(Duration::from_secs(25 * 3600));
    calls.next().await.answer(Verdict::SlowDown { until, scope: Scope::Provider });
    assert_eq!(fixture.parked(1).await[0].reason, "expired");
    notifier.finished().await;
}

#[tokio::test]
async fn no_more_pushes_are_under_way_than_allowed() {
    let fixture = Fixture::new().await;
    let (backend, mut calls) = Scripted::on(Lane::Webhook);
    miss(&fixture, 9).await;
    let notifier = Running::start(&fixture, config(None), [backend]);
    let mut left = calls.take(4).await;
    for _ in 0..5 {
        calls.none_waiting();
        left.remove(0).deliver();
        left.push(calls.next().await);
    }
    left.into_iter().for_each(Call::deliver);
    notifier.counts("pushes_total{lane=\"webhook\",outcome=\"pushed\"} 9").await;
    notifier.finished().await;
    calls.none_waiting();
}

/// Each read of the queue would take one of the store's two reader threads.
#[tokio::test]
async fn a_push_that_ends_costs_no_read_of_the_queue() {
    let fixture = Fixture::new().await;
    let (backend, mut calls) = Scripted::on(Lane::Webhook);
    // Another notifier looks for parked pushes.
    assert!(fixture.engines.leases.hold("parked-webhook", "another", TEST_TIMEOUT).await.unwrap());
    miss(&fixture, 12).await;
    let slots = NonZeroUsize::new(16).unwrap();
    let notifier = Running::start(&fixture, Config { push_concurrency: slots, ..config(None) }, [backend]);
    let under_way = calls.take(12).await;
    notifier.counts("offline_events_total 12").await;
    let counts = fixture.embedded.counts();
    let before = counts.reader_calls();
    for (nth, call) in (1..).zip(under_way) {
        call.deliver();
        notifier.counts(&format!("pushes_total{{lane=\"webhook\",outcome=\"pushed\"}} {nth}")).await;
    }
    fixture.nothing_is_queued().await;
    let reads = counts.reader_calls() - before;
    assert!(reads <= 2, "{reads} reads: a receive of each of the two queues may have begun one before");
    notifier.finished().await;
}

#[tokio::test]
async fn the_same_push_is_not_sent_twice_at_once() {
    let fixture = Fixture::new().await;
    let (backend, mut calls) = Scripted::on(Lane::Webhook);
    let notifier = Running::start(&fixture, config(None), [backend]);
    let message = fixture.says("hello").await;
    fixture.missed(&message, &["B"]).await;
    let first = calls.next().await;
    fixture.missed(&message, &["B"]).await;
    notifier.counts("offline_events_total 2").await;
    first.deliver();
    notifier.counts("pushes_total{lane=\"webhook\",outcome=\"repeated\"} 1").await;
    notifier.finished().await;
    calls.none_waiting();
}

#[tokio::test]
async fn a_dead_token_is_forgotten_and_its_push_parked() {
    let fixture = Fixture::new().await;
    let (fcm, mut phones) = Scripted::on(Lane::Fcm);
    fixture.registers("B", "phone", Platform::Fcm).await;
    let notifier = Running::start(&fixture, config(None), [fcm]);
    fixture.missed(&fixture.says("hello").await, &["B"]).await;
    let since = Timestamp::now().after(MS);
    phones.next().await.answer(Verdict::TokenDead { since });
    assert_eq!(fixture.parked(1).await[0].reason, "the token is dead");
    assert_eq!(fixture.engines.store.devices.of_users(&[user("B")]).await.unwrap(), []);
    notifier.finished().await;
}

#[tokio::test]
async fn our_own_fault_costs_neither_the_push_nor_the_token() {
    let fixture = Fixture::new().await;
    let (fcm, mut phones) = Scripted::on(Lane::Fcm);
    fixture.registers("B", "phone", Platform::Fcm).await;
    let notifier = Running::start(&fixture, config(None), [fcm]);
    fixture.missed(&fixture.says("hello").await, &["B"]).await;
    let reason = "the key was revoked".into();
    phones.next().await.answer(Verdict::OurConfiguration { reason, scope: Scope::Provider });
    phones.next().await.deliver();
    assert_eq!(fixture.engines.store.devices.of_users(&[user("B")]).await.unwrap().len(), 1);
    notifier.finished().await;
}

#[tokio::test]
async fn a_failing_provider_is_asked_one_by_one_until_it_works() {
    let fixture = Fixture::new().await;
    let (backend, mut calls) = Scripted::on(Lane::Webhook);
    miss(&fixture, 20).await;
    let notifier = Running::start(&fixture, config(None), [backend]);
    let mut under_way = calls.take(4).await;
    // The tenth failure in a row opens the breaker; no other takes its place.
    for _ in 0..9 {
        under_way.remove(0).answer(away());
        under_way.push(calls.next().await);
    }
    under_way.into_iter().for_each(|call| call.answer(away()));
    for _ in 0..3 {
        let probe = calls.next().await;
        // Nothing is taken beside it, however long it takes.
        tokio::time::sleep(5 * MS).await;
        calls.none_waiting();
        probe.answer(away());
    }
    calls.next().await.deliver();
    // All at once again.
    let mut under_way = calls.take(4).await;
    for _ in 0..15 {
        under_way.remove(0).deliver();
        under_way.push(calls.next().await);
    }
    under_way.into_iter().for_each(Call::deliver);
    notifier.counts("pushes_total{lane=\"webhook\",outcome=\"pushed\"} 20").await;
    notifier.finished().await;
    calls.none_waiting();
}

#[tokio::test]
async fn a_lane_that_stands_still_holds_up_no_other() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    let (fcm, mut phones) = Scripted::on(Lane::Fcm);
    fixture.registers("B", "phone", Platform::Fcm).await;
    let notifier = Running::start(&fixture, config(Some(webhook.url("/push"))), [fcm]);
    miss(&fixture, 9).await;
    let hanging = phones.take(4).await;
    for _ in 0..9 {
        webhook.next().await;
    }
    hanging.into_iter().for_each(Call::deliver);
    phones.take(4).await.into_iter().for_each(Call::deliver);
    phones.next().await.deliver();
    notifier.finished().await;
}
