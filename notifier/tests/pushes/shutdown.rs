//! What becomes of a push when its notifier is told to stop, or dies.

use naru_client::Answer;

use super::*;

#[tokio::test]
async fn a_stopping_notifier_finishes_what_it_has_in_flight_and_takes_nothing_more() {
    let fixture = Fixture::new().await;
    let (backend, mut calls) = Scripted::on(Lane::Webhook);
    let notifier = Running::start(&fixture, config(None), [backend]);
    fixture.missed(&fixture.says("in flight").await, &["B"]).await;
    let in_flight = calls.next().await;
    let event_id = in_flight.event.event_id;

    let stopped = notifier.stop(TEST_TIMEOUT);
    let later = fixture.missed(&fixture.says("later").await, &["B"]).await;
    in_flight.deliver();
    stopped.await.unwrap().unwrap();
    calls.none_waiting();
    assert_eq!(fixture.engines.store.pushes.done(&[event_id]).await.unwrap(), [true]);

    let (backend, mut calls) = Scripted::on(Lane::Webhook);
    let notifier = Running::start(&fixture, config(None), [backend]);
    let next = calls.next().await;
    assert_eq!(next.event.payload.message_id, later.payload.message.id);
    next.deliver();
    notifier.finished().await;
    calls.none_waiting();
}

#[tokio::test]
async fn what_the_deadline_cuts_off_comes_again() {
    let fixture = Fixture::new().await;
    let (backend, mut calls) = Scripted::on(Lane::Webhook);
    let notifier = Running::start(&fixture, config(None), [backend]);
    fixture.missed(&fixture.says("hello").await, &["B"]).await;
    let hanging = calls.next().await;
    let unclean = notifier.stop(MS).await.unwrap().unwrap_err();
    assert!(unclean.to_string().contains("notifier/push.webhook"), "{unclean}");

    let (backend, mut calls) = Scripted::on(Lane::Webhook);
    let notifier = Running::start(&fixture, config(None), [backend]);
    let again = calls.next().await;
    assert_eq!(again.event, hanging.event);
    again.deliver();
    notifier.finished().await;
}

#[tokio::test]
async fn a_provider_that_asks_to_wait_is_not_called_before_though_the_notifier_dies_meanwhile() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    webhook.script([Answer::retry_after(429, "1"), Answer::Hang]);
    let notifier = Running::with_webhook(&fixture, &webhook);
    fixture.missed(&fixture.says("for later").await, &["B"]).await;
    let first = webhook.next().await;
    notifier.counts("retries_total{lane=\"webhook\"} 1").await;
    fixture.missed(&fixture.says("in flight").await, &["B"]).await;
    webhook.next().await;

    let fixture = fixture.crashed(notifier).await;
    let notifier = Running::with_webhook(&fixture, &webhook);
    assert_eq!(webhook.next().await.json["body"], "in flight");
    let second = webhook.next().await;
    let waited = second.arrived - first.arrived;
    assert!(waited >= Duration::from_millis(999) && waited < Duration::from_secs(2), "{waited:?}");
    assert_eq!(second.header("x-naru-event-id"), first.header("x-naru-event-id"));
    notifier.finished().await;
    webhook.none_waiting();
}

#[tokio::test]
async fn a_push_cut_off_by_a_crash_comes_again_under_the_same_event_id() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    webhook.script([Answer::Hang]);
    let notifier = Running::with_webhook(&fixture, &webhook);
    fixture.missed(&fixture.says("hello").await, &["B"]).await;
    let first = webhook.next().await;

    let fixture = fixture.crashed(notifier).await;
    let notifier = Running::with_webhook(&fixture, &webhook);
    let second = webhook.next().await;
    assert_eq!(second.header("x-naru-event-id"), first.header("x-naru-event-id"));
    assert_eq!(second.body, first.body);
    notifier.finished().await;
    webhook.none_waiting();
}
