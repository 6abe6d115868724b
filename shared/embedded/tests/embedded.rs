//! What is special about this engine: it is one process on one directory, and that process may be killed. The
//! contracts themselves are checked by the conformance suite.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use naru_embedded::{Embedded, Options};
use naru_engines::bus::{Delivery, Verdict};
use naru_engines::live::Signal;
use naru_engines::store::{Appended, NewRoom, Settlement};
use naru_engines::{Applied, EngineError};
use naru_model::hops::{Accepted, Offline, Payload};
use naru_model::live::{LiveEvent, News};
use naru_model::message::Outcome;
use naru_model::{
    ClientMessageId, Event, GatewayId, MemberVersion, MessageId, RoomId, RoomKind, Seq, Timestamp, Trace,
    UserId,
};
use tempfile::tempdir;
use tokio::task::JoinSet;

fn open(dir: &Path) -> Embedded {
    Embedded::open(dir, Options::default()).unwrap()
}

fn ada() -> UserId {
    UserId::new("ada").unwrap()
}

fn accepted(content: &str) -> Accepted {
    let id = MessageId::generate();
    Accepted {
        id,
        chat_room_id: RoomId::new("ada_ben").unwrap(),
        sender_id: ada(),
        sender_name: "Ada".into(),
        content: content.into(),
        timestamp: Timestamp::now(),
        client_message_id: ClientMessageId::from(id),
        after: None,
        origin: None,
        trace: Trace::start(),
    }
}

fn offline(accepted: &Accepted) -> Event<Offline> {
    Event::new(Offline { message: accepted.at(Seq(1)), recipients: vec![ada()] }, accepted.trace)
}

async fn settle<T: Payload>(deliveries: Vec<Delivery<T>>, verdict: Verdict) {
    let receipts = deliveries.into_iter().map(|delivery| delivery.receipt).collect();
    naru_engines::bus::settle(receipts, verdict).await.unwrap();
}

/// The body of the process that [`a_killed_process_has_lost_nothing_it_confirmed`] kills: four lanes that append,
/// send, and settle every other message, and say so when it is confirmed.
async fn live_until_killed(dir: &Path) {
    let engines = open(dir).engines();
    let mut lanes = JoinSet::new();
    for _ in 0..4 {
        let engines = engines.clone();
        lanes.spawn(async move {
            for number in 1_u64.. {
                let entry = accepted("x");
                assert_eq!(
                    engines.store.intake.append(std::slice::from_ref(&entry)).await.unwrap(),
                    [Appended::New]
                );
                engines.bus.offline.send(vec![offline(&entry)]).await.unwrap();
                println!("confirmed {}", entry.id);
                if number % 2 == 0 {
                    let outcome = Outcome::Saved { seq: Seq(number) };
                    engines.store.intake.settle(&[Settlement { id: entry.id, outcome }]).await.unwrap();
                    println!("settled {}", entry.id);
                }
            }
        });
    }
    // The notifier's part: one event of each batch is never settled.
    let mut receiver = engines.bus.offline.receiver().await.unwrap();
    let mut kept = Vec::new();
    loop {
        let mut batch = receiver.receive(8).await.unwrap();
        kept.extend(batch.pop());
        let ids: Vec<_> = batch.iter().map(|delivery| delivery.event.payload.message.id).collect();
        ids.iter().for_each(|id| println!("settling {id}"));
        settle(batch, Verdict::Done).await;
        ids.iter().for_each(|id| println!("pushed {id}"));
    }
}

#[tokio::test]
async fn a_killed_process_has_lost_nothing_it_confirmed() {
    if let Some(dir) = std::env::var_os("NARU_TEST_DIR") {
        return live_until_killed(Path::new(&dir)).await;
    }
    let dir = tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_process_has_lost_nothing_it_confirmed", "--nocapture"])
        .env("NARU_TEST_DIR", dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut lines: Vec<String> = said.by_ref().take(600).collect();
    child.kill().unwrap();
    lines.extend(said);
    child.wait().unwrap();
    let ids_of = |word: &str| {
        let ids = lines.iter().filter_map(|line| line.strip_prefix(word)?.trim().parse::<MessageId>().ok());
        ids.collect::<HashSet<_>>()
    };
    let (confirmed, settled) = (ids_of("confirmed"), ids_of("settled"));
    let (settling, pushed) = (ids_of("settling"), ids_of("pushed"));
    assert!(confirmed.len() > 100 && !settled.is_empty() && !pushed.is_empty());

    let engines = open(dir.path()).engines();
    let intake = &engines.store.intake;
    let open: HashSet<_> =
        intake.open(Timestamp::now(), 10_000).await.unwrap().into_iter().map(|entry| entry.id).collect();
    for record in intake.get(&confirmed.iter().copied().collect::<Vec<_>>()).await.unwrap() {
        let record = record.expect("what was confirmed is there");
        let id = record.accepted.id;
        assert_eq!(
            record.outcome.is_none(),
            open.contains(&id),
            "{id} is open exactly when it has no outcome"
        );
        assert!(record.outcome.is_some() || !settled.contains(&id), "{id} was settled");
    }

    // All that was sent and not settled comes again; nothing that was settled does. What was being settled when the
    // process died may do either.
    let mut due: HashSet<_> = confirmed.difference(&settling).copied().collect();
    let mut receiver = engines.bus.offline.receiver().await.unwrap();
    while !due.is_empty() {
        let batch = receiver.receive(100).await.unwrap();
        for delivery in &batch {
            let id = delivery.event.payload.message.id;
            assert!(!pushed.contains(&id), "{id} was settled");
            due.remove(&id);
        }
        settle(batch, Verdict::Done).await;
    }
}

#[tokio::test]
async fn a_retry_keeps_its_time_and_its_count_over_a_restart() {
    let dir = tempdir().unwrap();
    let event = offline(&accepted("x"));
    {
        let engines = open(dir.path()).engines();
        engines.bus.offline.send(vec![event.clone()]).await.unwrap();
        let batch = engines.bus.offline.receiver().await.unwrap().receive(10).await.unwrap();
        drop(batch);
        let mut receiver = engines.bus.offline.receiver().await.unwrap();
        settle(receiver.receive(10).await.unwrap(), Verdict::RetryAfter(Duration::from_millis(300))).await;
    }
    let engines = open(dir.path()).engines();
    let mut receiver = engines.bus.offline.receiver().await.unwrap();
    let batch = receiver.receive(10).await.unwrap();
    assert_eq!((batch[0].event.clone(), batch[0].attempt), (event, 2));
    settle(batch, Verdict::Done).await;
}

#[tokio::test]
async fn a_directory_has_one_owner_at_a_time() {
    let dir = tempdir().unwrap();
    let first = open(dir.path());
    let held = first.engines();
    let refused = Embedded::open(dir.path(), Options::default()).err().unwrap();
    assert!(refused.to_string().contains("in use by another process"), "{refused}");
    first.close().await;
    // Closed is closed, even for those who still hold it.
    let late = held.store.intake.append(&[accepted("late")]).await.unwrap_err();
    assert!(matches!(late, EngineError::Unavailable { applied: Applied::No, .. }), "{late}");
    open(dir.path()).close().await;
    assert!(!dir.path().join("naru.db-wal").exists(), "the log was brought home");
}

#[tokio::test]
async fn data_made_otherwise_is_refused() {
    let dir = tempdir().unwrap();
    open(dir.path()).close().await;
    let other = Options { partitions: 16, ..Options::default() };
    let refused = Embedded::open(dir.path(), other).err().unwrap();
    assert!(refused.to_string().contains("made with 32 partitions, 16 are configured"), "{refused}");

    let database = rusqlite::Connection::open(dir.path().join(Embedded::DATABASE)).unwrap();
    database.execute_batch("PRAGMA user_version = 99").unwrap();
    let refused = Embedded::open(dir.path(), Options::default()).err().unwrap();
    assert!(refused.to_string().contains("schema version 99"), "{refused}");
}

#[tokio::test]
async fn data_of_version_1_opens_and_keeps_what_it_holds() {
    let dir = tempdir().unwrap();
    let event = offline(&accepted("안녕하세요"));
    {
        let database = rusqlite::Connection::open(dir.path().join(Embedded::DATABASE)).unwrap();
        database.execute_batch(include_str!("../src/schema.1.sql")).unwrap();
        database
            .execute_batch(
                "PRAGMA user_version = 1;
                 INSERT INTO devices (userId, deviceId, platform, token, environment, registeredAt)
                     VALUES ('ada', 'phone', 'fcm', 'token', 'production', 1795339800042)",
            )
            .unwrap();
        let queued = "INSERT INTO queue (hop, visibleAt, eventId, event) VALUES ('offline', 0, ?1, ?2)";
        let json = serde_json::to_string(&event).unwrap();
        database.execute(queued, rusqlite::params![event.event_id.0.as_bytes(), json]).unwrap();
    }
    for _ in ["the first start of version 2", "the next one"] {
        let engines = open(dir.path()).engines();
        let devices = engines.store.devices.of_users(&[ada()]).await.unwrap();
        assert_eq!(devices.len(), 1);
        assert!(!devices[0].hides_content, "nobody had asked for it");
        let mut receiver = engines.bus.offline.receiver().await.unwrap();
        assert_eq!(receiver.receive(10).await.unwrap()[0].event, event);
    }
    let version = rusqlite::Connection::open(dir.path().join(Embedded::DATABASE)).unwrap();
    let version = version.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0)).unwrap();
    assert_eq!(version, 2);
}

#[tokio::test]
async fn many_writes_share_one_commit() {
    let dir = tempdir().unwrap();
    let embedded = open(dir.path());
    let before = embedded.commits();
    let mut callers = JoinSet::new();
    for _ in 0..200 {
        let intake = embedded.engines().store.intake;
        callers.spawn(async move { intake.append(&[accepted("x")]).await.unwrap() });
    }
    assert!(callers.join_all().await.into_iter().all(|answers| answers == [Appended::New]));
    let commits = embedded.commits() - before;
    assert!(commits < 50, "200 writes took {commits} commits");
}

#[tokio::test]
async fn a_write_that_is_refused_leaves_its_neighbours_alone() {
    let dir = tempdir().unwrap();
    let engines = open(dir.path()).engines();
    let users = ["a", "b", "c"].map(|user| UserId::new(user).unwrap());
    let impossible = NewRoom {
        id: RoomId::new("three_in_a_direct_room").unwrap(),
        kind: RoomKind::Direct,
        name: None,
        member_ids: users.into(),
        maker_id: None,
    };
    let (one, other) = ([accepted("one")], [accepted("other")]);
    let intake = &engines.store.intake;
    let (one, refused, other) =
        tokio::join!(intake.append(&one), engines.store.rooms.create(impossible), intake.append(&other));
    assert!(matches!(refused, Err(EngineError::Permanent { .. })), "{refused:?}");
    assert_eq!((one.unwrap(), other.unwrap()), (vec![Appended::New], vec![Appended::New]));
}

#[tokio::test]
async fn who_lags_is_told_what_it_lost_and_delays_nobody() {
    let dir = tempdir().unwrap();
    let options = Options { live_backlog: 3, ..Options::default() };
    let embedded = Embedded::open(dir.path(), options).unwrap();
    let live = embedded.engines().live;
    let [slow, quick] = ["slow", "quick"].map(|id| GatewayId::new(id).unwrap());
    let mut slow = live.subscribe(&slow).await.unwrap();
    let mut quick = live.subscribe(&quick).await.unwrap();
    let event = |seq| LiveEvent {
        recipients: [ada()].into(),
        origin: None,
        news: News::Chat(accepted("x").at(Seq(seq))),
    };
    let seq = |signal| match signal {
        Some(Signal::Event(event)) => match &event.news {
            News::Chat(message) => message.seq.0,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    for number in 1..=5 {
        live.publish(vec![event(number)]).await.unwrap();
        assert_eq!(seq(quick.next().await), number);
    }
    for number in 1..=3 {
        assert_eq!(seq(slow.next().await), number);
    }
    assert_eq!(slow.next().await, Some(Signal::Interrupted));
    live.publish(vec![event(6)]).await.unwrap();
    assert_eq!(slow.next().await, Some(Signal::Restored));
    live.publish(vec![event(7)]).await.unwrap();
    assert_eq!(seq(slow.next().await), 7);

    embedded.close().await;
    assert_eq!(slow.next().await, None);
}

#[tokio::test]
async fn a_room_that_another_program_wrote_is_a_room() {
    let dir = tempdir().unwrap();
    let engines = open(dir.path()).engines();
    let foreign = rusqlite::Connection::open(dir.path().join(Embedded::DATABASE)).unwrap();
    foreign.execute_batch("INSERT INTO chat_rooms (_id, user1Id, user2Id) VALUES ('B_A', 'B', 'A')").unwrap();

    let id = RoomId::new("B_A").unwrap();
    let [a, b] = ["A", "B"].map(|user| UserId::new(user).unwrap());
    let room = engines.store.rooms.current(std::slice::from_ref(&id)).await.unwrap().remove(0).unwrap();
    assert_eq!((room.kind, room.member_version), (RoomKind::Direct, MemberVersion::FIRST));
    assert_eq!(*room.member_ids, [a.clone(), b]);
    let (rooms, more) = engines.store.rooms.of_user(&a, None, 10).await.unwrap();
    assert_eq!((rooms.len(), more), (1, None));
    assert_eq!(rooms[0].room, room);
}
