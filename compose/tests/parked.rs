//! Pushes that could not be sent, over HTTP: listed, looked at, sent again, dropped, only by a service. The
//! same by command is in [`command`].

#[path = "parked/command.rs"]
mod command;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use naru::pipeline::Changes;
use naru_client::{Answer, Http};
use naru_engines::Engines;
use naru_engines::bus::ack;
use naru_engines::store::ParkedPush;
use naru_faults::{Interceptor, Only, Outage, intercepted};
use naru_model::hops::{Lane, Payload, PushEnvironment, PushJob, PushTarget};
use naru_model::{DeviceId, Message, MessageId, RoomId, Seq, Timestamp, UserId};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::{backend, done, refused};
use crate::support::{Before, Naru};

/// Years ago, and an hour more for each: so the order is that of the numbers.
fn moment(number: u8) -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000).after(Duration::from_secs(3600) * number.into())
}

/// The messages whose pushes may be parked.
const MESSAGES: u8 = 4;

fn message(number: u8) -> Message {
    let id = MessageId::from_bytes([number; 12]);
    Message {
        id,
        chat_room_id: RoomId::new("A_B").expect("a room id"),
        seq: Seq(number.into()),
        sender_id: UserId::new("A").expect("a user id"),
        sender_name: "Ada".into(),
        content: "안녕하세요".into(),
        timestamp: moment(number),
        client_message_id: id.into(),
        deleted_at: None,
    }
}

/// A push to Ben that was parked.
pub fn push(number: u8, lane: Lane) -> ParkedPush {
    let device = DeviceId::new("phone").expect("a device id");
    let target = || PushTarget {
        device_id: device,
        token: "a secret between phone and provider".into(),
        environment: PushEnvironment::Sandbox,
    };
    let job = PushJob {
        lane,
        message_id: MessageId::from_bytes([number; 12]),
        chat_room_id: RoomId::new("A_B").expect("a room id"),
        seq: Seq(number.into()),
        recipient_id: UserId::new("B").expect("a user id"),
        title: "Ada".into(),
        body: "안녕하세요".into(),
        hides_content: false,
        badge: Some(3),
        room_name: None,
        target: (lane != Lane::Webhook).then(target),
        expires_at: moment(number),
    };
    let reason = "the key was refused".to_owned();
    ParkedPush { event_id: job.event_id(), job, reason, attempts: 2, parked_at: moment(number) }
}

fn path(push: &ParkedPush) -> String {
    format!("/api/parked/{}", push.event_id)
}

fn replay(push: &ParkedPush) -> String {
    format!("{}/replay", path(push))
}

/// A Naru on engines that are changed, and the engines as they were.
async fn on(change: impl FnOnce(Engines) -> Engines + Send + 'static) -> (Naru, Engines) {
    let (tell, told) = mpsc::channel();
    let change = move |engines: Engines| {
        tell.send(engines.clone()).expect("the test waits for it");
        change(engines)
    };
    let changes = Changes { engines: Some(Box::new(change)), ..Changes::default() };
    let naru = Naru::start_with(&["--demo", "off"], changes).await;
    // The room of the pushes that are parked, and their messages: what goes out again is for its members.
    naru.http("B").create_room(&["A", "B"]).await;
    let engines = told.recv().expect("engines");
    let run: Vec<_> = (1..=MESSAGES).map(message).collect();
    assert_eq!(engines.store.messages.append_run(&run).await.expect("they are saved").stored, run.len());
    (naru, engines)
}

async fn park<const N: usize>(engines: &Engines, pushes: [&ParkedPush; N]) {
    for push in pushes {
        engines.store.pushes.park(std::slice::from_ref(push)).await.expect("it is kept");
    }
}

/// The event ids of all that is parked.
async fn listed(http: &Http) -> Vec<Value> {
    let page = done(http.get("/api/parked?limit=200").await);
    assert_eq!(page["nextCursor"], Value::Null);
    page["parked"].as_array().expect("a list").iter().map(|push| push["eventId"].clone()).collect()
}

fn ids<const N: usize>(pushes: [&ParkedPush; N]) -> Vec<Value> {
    pushes.map(|push| json!(push.event_id)).into()
}

#[tokio::test]
async fn what_is_parked_is_listed_and_dropped_by_a_service() {
    let (naru, engines) = on(|engines| engines).await;
    let [one, two, three] =
        [(1, Lane::Webhook), (2, Lane::Apns), (3, Lane::Fcm)].map(|(n, lane)| push(n, lane));
    park(&engines, [&three, &one, &two]).await;
    let service = backend(&naru);

    // Page by page, oldest first; a device's token is never told, nor is the content in lists.
    let first = done(service.get("/api/parked?limit=2").await);
    let wanted = |number: u8, push: &ParkedPush, lane, device: Value| {
        json!({
            "eventId": push.event_id, "lane": lane, "userId": "B", "deviceId": device, "chatRoomId": "A_B",
            "messageId": MessageId::from_bytes([number; 12]), "seq": number, "reason": "the key was refused",
            "attempts": 2, "parkedAt": moment(number), "expiresAt": moment(number),
        })
    };
    let phone = || json!("phone");
    let lines = [
        wanted(1, &one, "webhook", Value::Null),
        wanted(2, &two, "apns", phone()),
        wanted(3, &three, "fcm", phone()),
    ];
    assert_eq!(first["parked"], json!(lines[..2]));
    let cursor = first["nextCursor"].as_str().expect("there is more");
    let rest = done(service.get(&format!("/api/parked?limit=2&cursor={cursor}")).await);
    assert_eq!(rest, json!({"parked": [lines[2]], "nextCursor": null}));
    for (query, count) in [("", 3), ("?limit=0", 1), ("?limit=9999", 3), ("?cursor=", 3)] {
        let page = done(service.get(&format!("/api/parked{query}")).await);
        assert_eq!(page["parked"].as_array().map(Vec::len), Some(count), "{query}");
    }
    for query in ["cursor=x", "cursor=1.x", "cursor=x.1", "limit=-1", "limit=x"] {
        refused(service.get(&format!("/api/parked?{query}")).await, 400, "INVALID_FRAME");
    }

    let mut shown = lines[1].clone();
    (shown["title"], shown["body"]) = (json!("Ada"), json!("안녕하세요"));
    assert_eq!(done(service.get(&path(&two)).await), shown);

    // No other caller sees or does anything, not even of pushes that are to themselves.
    let ben = naru.http("B");
    refused(ben.get("/api/parked").await, 403, "FORBIDDEN");
    refused(ben.get(&path(&one)).await, 403, "FORBIDDEN");
    refused(ben.delete(&path(&one)).await, 403, "FORBIDDEN");
    refused(ben.post(&replay(&one), json!({})).await, 403, "FORBIDDEN");
    refused(Http::without_token(&naru.url).get("/api/parked").await, 401, "UNAUTHENTICATED");
    assert_eq!(listed(&service).await, ids([&one, &two, &three]));

    assert_eq!(service.delete(&path(&two)).await, (204, Value::Null));
    refused(service.delete(&path(&two)).await, 404, "NOT_FOUND");
    refused(service.get(&path(&two)).await, 404, "NOT_FOUND");
    refused(service.post(&replay(&two), json!({})).await, 404, "NOT_FOUND");
    refused(service.get("/api/parked/two").await, 400, "INVALID_FRAME");
    refused(service.post("/api/parked/two/replay", json!({})).await, 400, "INVALID_FRAME");
    assert_eq!(listed(&service).await, ids([&one, &three]));
    naru.stop().await;
}

#[tokio::test]
async fn a_replayed_push_goes_out_once() {
    let (mut naru, engines) = on(|engines| engines).await;
    let parked = push(1, Lane::Webhook);
    park(&engines, [&parked]).await;
    let service = backend(&naru);
    let (status, answer) = service.post(&replay(&parked), json!({})).await;
    assert_eq!(
        (status, &answer["eventId"], &answer["lane"]),
        (202, &json!(parked.event_id), &json!("webhook"))
    );
    let pushed = naru.backend.next().await;
    assert_eq!(pushed.header("x-naru-event-id"), parked.event_id.to_string());
    assert_eq!((&pushed.json["title"], &pushed.json["body"]), (&json!("Ada"), &json!("안녕하세요")));
    naru.counts("naru_notifier_pushes_total{lane=\"webhook\",outcome=\"pushed\"} 1").await;
    assert_eq!(listed(&service).await, ids([]));
    refused(service.post(&replay(&parked), json!({})).await, 404, "NOT_FOUND");

    // Parked though it was taken, as by a process that died in between: it is recognised.
    park(&engines, [&parked]).await;
    assert_eq!(service.post(&replay(&parked), json!({})).await.0, 202);
    naru.counts("naru_notifier_pushes_total{lane=\"webhook\",outcome=\"repeated\"} 1").await;
    naru.backend.none_waiting();
    assert_eq!(listed(&service).await, ids([]));
    naru.stop().await;
}

/// Dead between the lane and the list: it stays listed, and replaying it again pushes nothing twice.
#[tokio::test]
async fn a_replay_that_is_cut_short_stays_listed() {
    let outage = Arc::new(Outage::default());
    let cut = outage.clone();
    let (mut naru, engines) =
        on(move |engines| intercepted(engines, Arc::new(Only(&["pushes.drop_parked_at"], cut)))).await;
    let parked = push(1, Lane::Webhook);
    park(&engines, [&parked]).await;
    let service = backend(&naru);
    outage.cut(true);
    refused(service.post(&replay(&parked), json!({})).await, 503, "UNAVAILABLE");
    naru.backend.next().await;
    naru.counts("naru_notifier_pushes_total{lane=\"webhook\",outcome=\"pushed\"} 1").await;
    assert_eq!(listed(&service).await, ids([&parked]));
    outage.cut(false);
    assert_eq!(service.post(&replay(&parked), json!({})).await.0, 202);
    naru.counts("naru_notifier_pushes_total{lane=\"webhook\",outcome=\"repeated\"} 1").await;
    naru.backend.none_waiting();
    assert_eq!(listed(&service).await, ids([]));
    naru.stop().await;
}

/// Parked again before it is taken off the list: what is taken off is what it was, not what it is now.
#[tokio::test]
async fn a_replay_that_is_parked_at_once_is_listed_again() {
    let (go, wait) = watch::channel(false);
    let held = Before(move |_: &_| {
        let mut wait = wait.clone();
        Box::pin(async move {
            wait.wait_for(|go| *go).await.expect("the test goes on");
            Ok(())
        }) as _
    });
    let hold: Arc<dyn Interceptor> = Arc::new(Only(&["pushes.drop_parked_at"], held));
    let (naru, engines) = on(move |engines| intercepted(engines, hold)).await;
    let parked = push(1, Lane::Webhook);
    park(&engines, [&parked]).await;
    naru.backend.script([Answer::status(404)]);
    let service = backend(&naru);
    let replaying = {
        let (service, path) = (service.clone(), replay(&parked));
        tokio::spawn(async move { service.post(&path, json!({})).await })
    };
    naru.counts("naru_notifier_pushes_total{lane=\"webhook\",outcome=\"parked\"} 1").await;
    go.send(true).expect("it waits");
    assert_eq!(replaying.await.expect("no panic").0, 202);
    let shown = done(service.get(&path(&parked)).await);
    assert_eq!((&shown["reason"], &shown["attempts"]), (&json!("status 404"), &json!(1)));
    naru.stop().await;
}

/// A job goes out anew to its device as that is registered now, or not at all.
#[tokio::test]
async fn a_replay_goes_to_its_device_as_it_is_now() {
    // Without a provider for FCM, what is on its lane stays there for this test to see.
    let (naru, engines) = on(|engines| engines).await;
    let [one, two, apns] = [(1, Lane::Fcm), (2, Lane::Fcm), (3, Lane::Apns)].map(|(n, lane)| push(n, lane));
    park(&engines, [&one, &two, &apns]).await;
    let (service, ben) = (backend(&naru), naru.http("B"));
    refused(service.post(&replay(&one), json!({})).await, 409, "CONFLICT");
    done(ben.put("/api/devices/tablet", json!({"platform": "fcm", "token": "another-device"})).await);
    refused(service.post(&replay(&one), json!({})).await, 409, "CONFLICT");

    let mut lane = engines.bus.push_fcm.receiver().await.expect("a receiver");
    let mut next = async || {
        let mut batch = lane.receive(9).await.expect("a batch");
        assert_eq!(batch.len(), 1);
        let delivery = batch.remove(0);
        ack([delivery.ack_handle]).await.expect("it is done");
        delivery.event
    };
    done(ben.put("/api/devices/phone", json!({"platform": "fcm", "token": "the-new-one"})).await);
    let before = Timestamp::now();
    let answer = done(service.post(&replay(&one), json!({})).await);
    let event = next().await;
    let target = PushTarget {
        device_id: DeviceId::new("phone").expect("a device id"),
        token: "the-new-one".into(),
        environment: PushEnvironment::Production,
    };
    let expires_at = event.payload.expires_at;
    let anew = PushJob { target: Some(target), badge: None, expires_at, ..one.job.clone() };
    assert_eq!((event.event_id, &event.payload), (one.event_id, &anew));
    let day = Duration::from_secs(24 * 3600);
    assert!(before.after(day) <= expires_at && expires_at <= Timestamp::now().after(day), "{expires_at}");
    assert_eq!(answer, json!({"eventId": one.event_id, "lane": "fcm", "expiresAt": expires_at}));

    // What is not to be seen on that phone any more is not sent to it.
    let body = json!({"platform": "fcm", "token": "the-new-one", "hideContent": true});
    done(ben.put("/api/devices/phone", body).await);
    done(service.post(&replay(&two), json!({})).await);
    let job = next().await.payload;
    assert_eq!((job.hides_content, &*job.title, &*job.body), (true, "", ""));

    // The same name, but it is no iPhone any more.
    refused(service.post(&replay(&apns), json!({})).await, 409, "CONFLICT");
    assert_eq!(listed(&service).await, ids([&apns]));
    naru.stop().await;
}

/// Its text stays listed until it is dropped, and is not sent to a phone any more.
#[tokio::test]
async fn what_was_deleted_or_has_expired_is_not_sent_again() {
    let (mut naru, engines) = on(|engines| engines).await;
    let [expired, deleted, there] = [1, 2, 3].map(|number| push(number, Lane::Webhook));
    park(&engines, [&expired, &deleted, &there]).await;
    let messages = &engines.store.messages;
    // As `message_ttl` removes it.
    assert_eq!(messages.expire(None, Timestamp::now(), 1).await.expect("it expires").removed, 1);
    messages.delete(&[deleted.job.message_id], Timestamp::now()).await.expect("it is deleted");
    let service = backend(&naru);
    for gone in [&expired, &deleted] {
        refused(service.post(&replay(gone), json!({})).await, 409, "CONFLICT");
    }
    assert_eq!(service.post(&replay(&there), json!({})).await.0, 202);
    assert_eq!(naru.backend.next().await.header("x-naru-event-id"), there.event_id.to_string());
    assert_eq!(listed(&service).await, ids([&expired, &deleted]));
    naru.backend.none_waiting();
    naru.stop().await;
}
