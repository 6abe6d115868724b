//! Right before each send, a push is what its recipient, room and device are now.

use naru_engines::store::{Changed, MemberChange, MemberSettings};
use naru_model::hops::Payload;

use super::*;

const ROOM: &str = "Project X";

/// No answer of the provider: the push is tried again.
fn away() -> Verdict {
    Verdict::TryLater { reason: "status 503".into(), at_least: Duration::ZERO }
}

/// C signs in on a phone of B's.
async fn changes_hands(fixture: &Fixture, phone: &Device) {
    assert!(fixture.engines.store.devices.remove(&phone.user, &phone.id).await.unwrap());
    fixture.engines.store.devices.claim(Device { user: user("C"), ..phone.clone() }).await.unwrap();
}

async fn leaves(fixture: &Fixture, member: &str) {
    let change = MemberChange::Remove(user(member));
    let changed = fixture.engines.store.rooms.change(&fixture.room, change, 10).await.unwrap();
    assert!(matches!(changed, Changed::Now(room) if !room.has(&user(member))));
}

#[tokio::test]
async fn a_phone_that_changed_hands_gets_no_push_of_its_owner_before() {
    for (lane, platform) in [(Lane::Fcm, Platform::Fcm), (Lane::Apns, Platform::Apns)] {
        let fixture = Fixture::of_group(ROOM).await;
        let (provider, mut phones) = Scripted::on(lane);
        let phone = fixture.registers("B", "phone", platform).await;
        let notifier = Running::start(&fixture, config(None), [provider]);
        fixture.missed(&fixture.says("for B only").await, &["B"]).await;
        let call = phones.next().await;
        changes_hands(&fixture, &phone).await;
        leaves(&fixture, "B").await;
        call.answer(away());
        fixture.nothing_is_queued().await;
        notifier.counts("spared_total{reason=\"left\"} 1").await;
        notifier.finished().await;
        phones.none_waiting();
    }
}

#[tokio::test]
async fn a_retry_asks_whether_the_device_is_still_its_recipients() {
    let fixture = Fixture::of_group(ROOM).await;
    let (fcm, mut phones) = Scripted::on(Lane::Fcm);
    let phone = fixture.registers("B", "phone", Platform::Fcm).await;
    let notifier = Running::start(&fixture, config(None), [fcm]);
    fixture.missed(&fixture.says("for B only").await, &["B"]).await;
    let call = phones.next().await;
    changes_hands(&fixture, &phone).await;
    call.answer(away());
    notifier.counts("spared_total{reason=\"unregistered\"} 1").await;
    notifier.finished().await;
    phones.none_waiting();
}

#[tokio::test]
async fn a_retry_asks_whether_the_message_was_deleted() {
    let fixture = Fixture::new().await;
    let (fcm, mut phones) = Scripted::on(Lane::Fcm);
    fixture.registers("B", "phone", Platform::Fcm).await;
    let notifier = Running::start(&fixture, config(None), [fcm]);
    let message = fixture.says("to be forgotten").await;
    fixture.missed(&message, &["B"]).await;
    let call = phones.next().await;
    fixture.engines.store.messages.delete(&[message.id], Timestamp::now()).await.unwrap();
    call.answer(away());
    notifier.counts("spared_total{reason=\"deleted\"} 1").await;
    fixture.nothing_is_queued().await;
    notifier.finished().await;
    phones.none_waiting();
}

/// A queue of old events, after an outage, sends and parks nothing of what was deleted meanwhile.
#[tokio::test]
async fn what_was_deleted_while_its_event_waited_is_neither_sent_nor_parked() {
    let fixture = Fixture::new().await;
    let (fcm, mut phones) = Scripted::on(Lane::Fcm);
    fixture.registers("B", "phone", Platform::Fcm).await;
    fixture.registers("B", "tablet", Platform::Apns).await;
    let minute_ago = Timestamp::now().before(Duration::from_secs(60));
    let old = fixture.says_at("to be forgotten", minute_ago).await;
    let mut again = fixture.says("a tombstone that is sent on once more").await;
    fixture.missed(&old, &["B"]).await;
    fixture.engines.store.messages.delete(&[old.id, again.id], Timestamp::now()).await.unwrap();
    again.delete(Timestamp::now());
    fixture.missed(&again, &["B"]).await;
    let notifier = Running::start(&fixture, config(None), [fcm]);
    notifier.counts("spared_total{reason=\"deleted\"} 2").await;
    fixture.nothing_is_queued().await;
    assert!(fixture.parked(0).await.is_empty());
    notifier.finished().await;
    phones.none_waiting();
}

#[tokio::test]
async fn a_retry_goes_to_the_devices_present_token_and_hides_what_it_now_hides() {
    let fixture = Fixture::new().await;
    let (fcm, mut phones) = Scripted::on(Lane::Fcm);
    let phone = fixture.registers("B", "phone", Platform::Fcm).await;
    let notifier = Running::start(&fixture, config(None), [fcm]);
    fixture.missed(&fixture.says("hello").await, &["B"]).await;
    let call = phones.next().await;
    let renewed = Device { token: "another".into(), hides_content: true, ..phone };
    fixture.engines.store.devices.claim(renewed).await.unwrap();
    let event_id = call.event.event_id;
    call.answer(away());
    let again = phones.next().await;
    let job = &again.event.payload;
    assert_eq!((again.event.event_id, &*job.target.as_ref().unwrap().token), (event_id, "another"));
    assert_eq!((job.hides_content, &*job.title, &*job.body), (true, "", ""));
    again.deliver();
    notifier.finished().await;
}

#[tokio::test]
async fn the_backend_is_not_told_of_rooms_that_were_left_or_muted_meanwhile() {
    let fixture = Fixture::of_group(ROOM).await;
    let (backend, mut calls) = Scripted::on(Lane::Webhook);
    let notifier = Running::start(&fixture, config(None), [backend]);
    fixture.missed(&fixture.says("hello").await, &["B", "C"]).await;
    let under_way = calls.take(2).await;
    leaves(&fixture, "B").await;
    let muted = MemberSettings { muted: true, muted_until: None };
    fixture.engines.store.rooms.configure(&fixture.room, &user("C"), muted).await.unwrap();
    under_way.into_iter().for_each(|call| call.answer(away()));
    notifier.counts("spared_total{reason=\"left\"} 1").await;
    notifier.counts("spared_total{reason=\"muted\"} 1").await;
    notifier.finished().await;
    calls.none_waiting();
}

#[tokio::test]
async fn a_push_that_waited_for_its_turn_is_looked_up_again() {
    let fixture = Fixture::new().await;
    let (fcm, mut phones) = Scripted::on(Lane::Fcm);
    let phone = fixture.registers("B", "phone", Platform::Fcm).await;
    for number in 0..8 {
        fixture.missed(&fixture.says(&format!("message {number}")).await, &["B"]).await;
    }
    let notifier = Running::start(&fixture, config(None), [fcm]);
    let mut under_way = phones.take(4).await;
    // The place that becomes free brings a batch, of which the first takes it.
    under_way.remove(0).deliver();
    under_way.push(phones.next().await);
    changes_hands(&fixture, &phone).await;
    // The look-up of those that wait is from before; it counts for a tenth of a second.
    tokio::time::sleep(Duration::from_millis(150)).await;
    under_way.into_iter().for_each(Call::deliver);
    notifier.counts("spared_total{reason=\"unregistered\"} 3").await;
    notifier.finished().await;
    phones.none_waiting();
}

#[tokio::test]
async fn a_parked_push_that_is_sent_again_is_looked_up() {
    let fixture = Fixture::of_group(ROOM).await;
    let (fcm, mut phones) = Scripted::on(Lane::Fcm);
    fixture.registers("B", "phone", Platform::Fcm).await;
    let notifier = Running::start(&fixture, config(None), [fcm]);
    fixture.missed(&fixture.says("hello").await, &["B"]).await;
    phones.next().await.answer(Verdict::Refused("status 400".into()));
    let push = fixture.parked(1).await.remove(0);
    leaves(&fixture, "B").await;
    // As a replay does.
    assert_eq!(push.job.event_id(), push.event_id);
    fixture.engines.bus.push_fcm.send(vec![Event::new(push.job, Trace::start())]).await.unwrap();
    notifier.counts("spared_total{reason=\"left\"} 1").await;
    notifier.finished().await;
    phones.none_waiting();
}
