//! Which recipients get a push.

use naru_engines::store::{Advance, MemberPosition, MemberSettings, Moved, Positions};
use naru_engines::{Applied, EngineError, EngineResult};

use super::*;

#[tokio::test]
async fn the_backend_is_told_once_and_each_device_of_a_configured_provider() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    let (fcm, mut phones) = Scripted::on(Lane::Fcm);
    let mut devices = vec![
        fixture.registers("B", "phone", Platform::Fcm).await,
        fixture.registers("B", "tablet", Platform::Fcm).await,
    ];
    fixture.registers("B", "iphone", Platform::Apns).await;
    let notifier = Running::start(&fixture, config(Some(webhook.url("/push"))), [fcm]);
    let message = fixture.says("hello").await;
    let offline = fixture.missed(&message, &["B"]).await;

    let mut told = Vec::new();
    for call in phones.take(2).await {
        let job = &call.event.payload;
        assert_eq!((&*job.title, &*job.body, &job.recipient_id), ("Ada", "hello", &user("B")));
        assert_eq!((job.message_id, &job.chat_room_id, job.seq), (message.id, &fixture.room, Seq(1)));
        assert_eq!(call.event.trace, offline.trace);
        let target = job.target.clone().unwrap();
        told.push((target.device_id, target.token));
        call.deliver();
    }
    devices.sort_by(|one, other| one.id.cmp(&other.id));
    told.sort();
    assert_eq!(told, Vec::from_iter(devices.into_iter().map(|device| (device.id, device.token))));
    webhook.next().await;

    notifier.counts("no_provider_total{lane=\"apns\"} 1").await;
    notifier.counts("pushes_total{lane=\"fcm\",outcome=\"pushed\"} 2").await;
    notifier.counts("pushes_total{lane=\"webhook\",outcome=\"pushed\"} 1").await;
    notifier.finished().await;
    phones.none_waiting();
    webhook.none_waiting();
}

#[tokio::test]
async fn a_recipient_that_has_it_or_muted_the_room_is_not_pushed_to() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    let advance = |received, read| Advance {
        room: fixture.room.clone(),
        user: user("B"),
        device: None,
        received,
        read,
    };
    let first = fixture.says("read").await;
    fixture.engines.store.positions.advance(&[advance(Seq(1), Seq(1))]).await.unwrap();
    let second = fixture.says("received").await;
    fixture.engines.store.positions.advance(&[advance(Seq(2), Seq(0))]).await.unwrap();
    let third = fixture.says("not received").await;

    let notifier = Running::with_webhook(&fixture, &webhook);
    for message in [&first, &second, &third] {
        fixture.missed(message, &["B"]).await;
    }
    notifier.counts("spared_total{reason=\"read\"} 1").await;
    notifier.counts("spared_total{reason=\"received\"} 1").await;
    assert_eq!(webhook.next().await.json["body"], "not received");

    let muted = MemberSettings { muted: true, muted_until: None };
    fixture.engines.store.rooms.configure(&fixture.room, &user("B"), muted).await.unwrap();
    let fourth = fixture.says("muted").await;
    fixture.missed(&fourth, &["B"]).await;
    notifier.counts("spared_total{reason=\"muted\"} 1").await;

    let over = MemberSettings { muted: true, muted_until: Some(Timestamp::now()) };
    fixture.engines.store.rooms.configure(&fixture.room, &user("B"), over).await.unwrap();
    let fifth = fixture.says("not muted any more").await;
    fixture.missed(&fifth, &["B"]).await;
    assert_eq!(webhook.next().await.json["body"], "not muted any more");
    notifier.finished().await;
    webhook.none_waiting();
}

#[tokio::test]
async fn an_offline_event_that_comes_again_pushes_no_second_time() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    let message = fixture.says("hello").await;
    // Twice in one batch, and once after it was pushed.
    let event = missed(&message, &["B"]);
    fixture.engines.bus.offline.send(vec![event.clone(), event.clone()]).await.unwrap();
    let notifier = Running::with_webhook(&fixture, &webhook);
    webhook.next().await;
    notifier.counts("pushes_total{lane=\"webhook\",outcome=\"pushed\"} 1").await;
    // A second job of the batch would be counted by the time it has left the queue.
    fixture.nothing_is_queued().await;
    assert!(!notifier.metrics.encode().contains("outcome=\"repeated\"} 1"));
    fixture.engines.bus.offline.send(vec![event]).await.unwrap();
    notifier.counts("pushes_total{lane=\"webhook\",outcome=\"repeated\"} 1").await;
    notifier.finished().await;
    webhook.none_waiting();
}

/// Positions of which some look-ups fail.
struct Faulty<F> {
    inner: Arc<dyn Positions>,
    fault: F,
}

#[async_trait]
impl<F: Fn(&RoomId) -> EngineResult<()> + Send + Sync> Positions for Faulty<F> {
    async fn advance(&self, steps: &[Advance]) -> EngineResult<Vec<Moved>> {
        self.inner.advance(steps).await
    }

    async fn get(&self, members: &[(RoomId, UserId, Seq)]) -> EngineResult<Vec<MemberPosition>> {
        members.iter().try_for_each(|(room, ..)| (self.fault)(room))?;
        self.inner.get(members).await
    }

    async fn unread(&self, users: &[UserId]) -> EngineResult<Vec<u64>> {
        self.inner.unread(users).await
    }

    async fn forget(&self, user: &UserId, rooms: &[RoomId]) -> EngineResult<()> {
        self.inner.forget(user, rooms).await
    }

    async fn of_device(
        &self,
        user: &UserId,
        device: &DeviceId,
    ) -> EngineResult<Vec<naru_engines::store::DevicePosition>> {
        self.inner.of_device(user, device).await
    }
}

fn with_fault(
    fixture: &Fixture,
    fault: impl Fn(&RoomId) -> EngineResult<()> + Send + Sync + 'static,
) -> Engines {
    let mut engines = fixture.engines.clone();
    engines.store.positions = Arc::new(Faulty { inner: engines.store.positions, fault });
    engines
}

#[tokio::test]
async fn a_store_that_is_away_for_a_while_costs_time_and_no_push() {
    // The first look-up is the one for the offline event, the second the one for its push.
    for first_failure in [0, 1] {
        let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
        let lookups = std::sync::atomic::AtomicU32::new(0);
        let engines = with_fault(&fixture, move |_| {
            let lookup = lookups.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let away = (first_failure..first_failure + 3).contains(&lookup);
            if away { Err(EngineError::unavailable("test", Applied::No, "away")) } else { Ok(()) }
        });
        let message = fixture.says("hello").await;
        fixture.missed(&message, &["B"]).await;
        let notifier = Running::on(engines, config(Some(webhook.url("/push"))), []);
        assert_eq!(webhook.next().await.json["body"], "hello");
        notifier.counts("engine_failures_total 3").await;
        notifier.finished().await;
        webhook.none_waiting();
    }
}

#[tokio::test]
async fn an_event_that_can_not_be_handled_holds_up_no_other() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    let unreadable = RoomId::new("unreadable").unwrap();
    let poison = unreadable.clone();
    let engines = with_fault(&fixture, move |room| {
        if *room == poison { Err(EngineError::poison("test", "no position")) } else { Ok(()) }
    });
    let message = fixture.says("hello").await;
    let bad =
        missed(&Message { chat_room_id: unreadable, id: MessageId::generate(), ..message.clone() }, &["B"]);
    let good = missed(&message, &["B"]);
    fixture.engines.bus.offline.send(vec![bad, good]).await.unwrap();
    let notifier = Running::on(engines, config(Some(webhook.url("/push"))), []);
    assert_eq!(webhook.next().await.json["data"]["chatRoomId"], "A_B");
    notifier.finished().await;
    webhook.none_waiting();
}

/// Thirty-two messages to a room of a hundred would be 3,200 questions.
#[tokio::test]
async fn of_several_messages_to_one_room_each_member_is_looked_up_once() {
    let fixture = Fixture::new().await;
    let (backend, mut calls) = Scripted::on(Lane::Webhook);
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counts = asked.clone();
    let engines = with_fault(&fixture, move |_| {
        counts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    });
    let (mut events, read) = (Vec::new(), Seq(3));
    for number in 1..=5 {
        events.push(missed(&fixture.says(&format!("message {number}")).await, &["B"]));
    }
    let step = Advance { room: fixture.room.clone(), user: user("B"), device: None, received: read, read };
    fixture.engines.store.positions.advance(&[step]).await.unwrap();
    // The newest first: each message is compared with the position by itself.
    events.reverse();
    fixture.engines.bus.offline.send(events).await.unwrap();
    let notifier = Running::on(engines, config(None), [backend]);
    calls.take(2).await.into_iter().for_each(Call::deliver);
    notifier.counts("spared_total{reason=\"read\"} 3").await;
    notifier.finished().await;
    calls.none_waiting();
    let asked = asked.load(std::sync::atomic::Ordering::Relaxed);
    assert!(
        (2..=3).contains(&asked),
        "{asked}: once for the events, and once for each batch of the two pushes"
    );
}
