//! What is special about this engine: it is one process on one directory, and that process may be killed. The
//! contracts themselves are checked by the conformance suite.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use naru_embedded::{Embedded, Options};
use naru_engines::bus::{self, Delivery};
use naru_engines::live::{PresenceEntry, Signal};
use naru_engines::store::{Appended, Changed, Closing, Created, MemberChange, NewRoom};
use naru_engines::{Applied, EngineError};
use naru_model::hops::{Accepted, Offline, Payload};
use naru_model::live::{LiveEvent, News};
use naru_model::message::{Outcome, Rejection};
use naru_model::{
    ClientMessageId, Event, GatewayId, MemberVersion, MessageId, RoomId, RoomKind, Seq, SessionId, Timestamp,
    Trace, UserId,
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

async fn ack<T: Payload>(deliveries: Vec<Delivery<T>>) {
    bus::ack(deliveries.into_iter().map(|delivery| delivery.ack_handle)).await.unwrap();
}

/// The body of the process that [`a_killed_process_has_lost_nothing_it_confirmed`] kills: four tasks that append,
/// send, and close every other message, and print what was answered.
async fn live_until_killed(dir: &Path) {
    let engines = open(dir).engines();
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let engines = engines.clone();
        tasks.spawn(async move {
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
                    engines.store.intake.close(&[Closing { id: entry.id, outcome }]).await.unwrap();
                    println!("closed {}", entry.id);
                }
            }
        });
    }
    // The notifier's part: one event of each batch is never acknowledged.
    let mut receiver = engines.bus.offline.receiver().await.unwrap();
    let mut kept = Vec::new();
    loop {
        let mut batch = receiver.receive(8).await.unwrap();
        kept.extend(batch.pop());
        let ids: Vec<_> = batch.iter().map(|delivery| delivery.event.payload.message.id).collect();
        ids.iter().for_each(|id| println!("acknowledging {id}"));
        ack(batch).await;
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
    let (confirmed, closed) = (ids_of("confirmed"), ids_of("closed"));
    let (acknowledging, pushed) = (ids_of("acknowledging"), ids_of("pushed"));
    assert!(confirmed.len() > 100 && !closed.is_empty() && !pushed.is_empty());

    let engines = open(dir.path()).engines();
    let intake = &engines.store.intake;
    let open: HashSet<_> = intake
        .open(None, None, 10_000)
        .await
        .unwrap()
        .entries
        .into_iter()
        .map(|entry| entry.accepted.id)
        .collect();
    for record in intake.get(&confirmed.iter().copied().collect::<Vec<_>>()).await.unwrap() {
        let record = record.expect("what was confirmed is there");
        let id = record.accepted.id;
        assert_eq!(
            record.outcome.is_none(),
            open.contains(&id),
            "{id} is open exactly when it has no outcome"
        );
        assert!(record.outcome.is_some() || !closed.contains(&id), "{id} was closed");
    }

    // All that was sent and not acknowledged comes again; nothing that was acknowledged does. What was being acknowledged
    // when the process died may do either.
    let mut due: HashSet<_> = confirmed.difference(&acknowledging).copied().collect();
    let mut receiver = engines.bus.offline.receiver().await.unwrap();
    while !due.is_empty() {
        let batch = receiver.receive(100).await.unwrap();
        for delivery in &batch {
            let id = delivery.event.payload.message.id;
            assert!(!pushed.contains(&id), "{id} was acknowledged");
            due.remove(&id);
        }
        ack(batch).await;
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
        let batch = receiver.receive(10).await.unwrap();
        let ack_handles = batch.into_iter().map(|delivery| delivery.ack_handle);
        bus::retry(ack_handles, Duration::from_millis(300)).await.unwrap();
    }
    let engines = open(dir.path()).engines();
    let mut receiver = engines.bus.offline.receiver().await.unwrap();
    let batch = receiver.receive(10).await.unwrap();
    assert_eq!((batch[0].event.clone(), batch[0].attempt), (event, 2));
    ack(batch).await;
}

/// The process was started again with its clock an hour back: rows, which are due by that clock, are due all the same.
#[tokio::test]
async fn a_clock_an_hour_back_delays_no_event() {
    let dir = tempdir().unwrap();
    let (sent, retried) = (offline(&accepted("x")), offline(&accepted("y")));
    {
        let engines = open(dir.path()).engines();
        let mut receiver = engines.bus.offline.receiver().await.unwrap();
        engines.bus.offline.send(vec![retried.clone()]).await.unwrap();
        let batch = receiver.receive(10).await.unwrap();
        engines.bus.offline.send(vec![sent.clone()]).await.unwrap();
        let ack_handles = batch.into_iter().map(|delivery| delivery.ack_handle);
        bus::retry(ack_handles, Duration::from_millis(300)).await.unwrap();
    }
    let database = rusqlite::Connection::open(dir.path().join(Embedded::DATABASE)).unwrap();
    let later = "UPDATE queue SET writtenAt = writtenAt + 3600000, visibleAt = visibleAt + 3600000";
    assert_eq!(database.execute(later, []).unwrap(), 2);
    drop(database);
    let engines = open(dir.path()).engines();
    let mut receiver = engines.bus.offline.receiver().await.unwrap();
    for expected in [sent, retried] {
        let received = tokio::time::timeout(Duration::from_secs(20), receiver.receive(1)).await;
        let batch = received.expect("it is due").unwrap();
        assert_eq!(batch[0].event, expected);
        ack(batch).await;
    }
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
    assert!(!dir.path().join("naru.db-wal").exists(), "all of the log is in the database");
}

#[test]
fn an_owner_that_is_ending_is_waited_for() {
    let dir = tempdir().unwrap();
    let held = File::create(dir.path().join("naru.lock")).unwrap();
    held.lock().unwrap();
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(held);
    });
    drop(open(dir.path()));
    ending.join().unwrap();
}

#[tokio::test]
async fn the_data_is_its_owners_only_whatever_it_was() {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let parent = tempdir().unwrap();
    let dir = parent.path().join("new").join("data");
    let files = ["naru.db", "naru.db-wal", "naru.db-shm", "naru.lock"].map(|name| dir.join(name));
    for made_by in ["this version", "one that let others read"] {
        let embedded = open(&dir);
        embedded.engines().store.intake.append(&[accepted("written")]).await.unwrap();
        assert_eq!(mode(&dir), 0o700, "{made_by}");
        for file in &files {
            assert_eq!(mode(file), 0o600, "{made_by}: {}", file.display());
        }
        // As a process that was killed leaves it: with its log.
        let copies = files.each_ref().map(|file| (file, fs::read(file).unwrap()));
        embedded.close().await;
        for (file, content) in copies {
            fs::write(file, content).unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[tokio::test]
async fn a_directory_of_all_users_is_refused_and_left_as_it_is() {
    let dir = tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let refused = Embedded::open(dir.path(), Options::default()).err().unwrap().to_string();
    assert!(refused.contains("shared by all users"), "{refused}");
    assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o7777, 0o1777);
}

#[tokio::test]
async fn data_made_otherwise_is_refused() {
    let dir = tempdir().unwrap();
    open(dir.path()).close().await;
    let database = rusqlite::Connection::open(dir.path().join(Embedded::DATABASE)).unwrap();
    for (version, why) in [(2, "of an older layout (schema 2)"), (99, "of a later layout (schema 99)")] {
        database.execute_batch(&format!("PRAGMA user_version = {version}")).unwrap();
        let refused = Embedded::open(dir.path(), Options::default()).err().unwrap().to_string();
        assert!(refused.contains(why), "{refused}");
        assert!(refused.contains(&dir.path().display().to_string()), "{refused}");
        assert_eq!(version == 2, refused.contains("move it away or delete it"), "{refused}");
    }
}

#[tokio::test]
async fn a_batch_costs_two_calls_of_the_writer_one_sync_and_no_read() {
    let dir = tempdir().unwrap();
    let embedded = open(dir.path());
    let store = embedded.engines().store;
    let rooms: Vec<_> = (0..8).map(|number| group(&format!("room_{number}"))).collect();
    for room in &rooms {
        store.rooms.create(room.clone()).await.unwrap();
    }
    let ids: Vec<_> = rooms.iter().map(|room| room.id.clone()).collect();
    let count = || {
        (
            embedded.counts().writer_calls(),
            embedded.counts().syncs(),
            embedded.counts().commits(),
            embedded.counts().reader_calls(),
        )
    };
    let (writes, syncs, commits, reads) = count();
    for seq in 1..=10 {
        let entries: Vec<_> =
            ids.iter().map(|room| Accepted { chat_room_id: room.clone(), ..accepted("x") }).collect();
        store.intake.append(&entries).await.unwrap();
        for room in store.rooms.current(&ids).await.unwrap() {
            let room = room.unwrap();
            let members = store.rooms.members_at(&room.id, room.member_version).await.unwrap();
            assert_eq!(members, Some(room.member_ids.clone()));
        }
        let run: Vec<_> = entries.iter().map(|entry| entry.at(Seq(seq))).collect();
        assert_eq!(store.messages.append_run(&run).await.unwrap().stored, run.len());
    }
    assert_eq!(count(), (writes + 20, syncs + 10, commits + 20, reads));
}

#[tokio::test]
async fn what_a_sender_is_told_of_the_intake_is_synced() {
    let dir = tempdir().unwrap();
    let embedded = open(dir.path());
    let intake = embedded.engines().store.intake;
    let syncs = embedded.counts().syncs();
    let first = accepted("one");
    let again =
        |content: &str| Accepted { client_message_id: first.client_message_id.clone(), ..accepted(content) };
    assert_eq!(intake.append(std::slice::from_ref(&first)).await.unwrap(), [Appended::New]);
    let saved = Closing { id: first.id, outcome: Outcome::Saved { seq: Seq(1) } };
    assert!(matches!(intake.append(&[again("one")]).await.unwrap()[..], [Appended::Resend(_)]));
    intake.close(&[saved]).await.unwrap();
    assert_eq!(embedded.counts().syncs(), syncs, "nothing was told that does not stand on a synced save");

    assert_eq!(intake.append(&[again("two")]).await.unwrap(), [Appended::Conflict]);
    assert_eq!(embedded.counts().syncs(), syncs + 1, "a conflict is told at once");
    let refused = accepted("three");
    intake.append(std::slice::from_ref(&refused)).await.unwrap();
    let outcome = Outcome::Rejected { reason: Rejection::NotAMember };
    intake.close(&[Closing { id: refused.id, outcome }]).await.unwrap();
    assert_eq!(embedded.counts().syncs(), syncs + 2, "so is a rejection");
}

/// R3 under concurrency: readers fill what they missed while changes overtake them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_room_that_was_changed_is_not_answered_as_it_was_before() {
    let dir = tempdir().unwrap();
    let embedded = open(dir.path());
    let rooms = embedded.engines().store.rooms;
    let id = group("room").id;
    let Created::New(room) = rooms.create(group("room")).await.unwrap() else { panic!("it is new") };
    let newest = Arc::new(AtomicU32::new(room.member_version.0));
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let (rooms, id, newest) = (rooms.clone(), id.clone(), newest.clone());
        readers.spawn(async move {
            while newest.load(Ordering::SeqCst) < 200 {
                let at_least = newest.load(Ordering::SeqCst);
                let room = rooms.current(std::slice::from_ref(&id)).await.unwrap().remove(0).unwrap();
                assert!(room.member_version.0 >= at_least, "{} after {at_least}", room.member_version.0);
                // Others of whom nothing is known, so that there is always something to read and to fill.
                let others = [id.clone(), RoomId::new("no_such_room").unwrap()];
                rooms.current(&others).await.unwrap();
            }
        });
    }
    for number in 0..200 {
        let change = MemberChange::Add(UserId::new(format!("user_{number}")).unwrap());
        let Changed::Now(room) = rooms.change(&id, change, 1000).await.unwrap() else { panic!("it changes") };
        newest.store(room.member_version.0, Ordering::SeqCst);
    }
    readers.join_all().await;
}

fn group(id: &str) -> NewRoom {
    NewRoom {
        id: RoomId::new(id).unwrap(),
        kind: RoomKind::Group,
        name: None,
        member_ids: [ada()].into(),
        maker_id: None,
    }
}

#[tokio::test]
async fn many_writes_share_one_commit() {
    let dir = tempdir().unwrap();
    let embedded = open(dir.path());
    let before = embedded.counts().commits();
    let mut callers = JoinSet::new();
    for _ in 0..200 {
        let intake = embedded.engines().store.intake;
        callers.spawn(async move { intake.append(&[accepted("x")]).await.unwrap() });
    }
    assert!(callers.join_all().await.into_iter().all(|answers| answers == [Appended::New]));
    let commits = embedded.counts().commits() - before;
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
async fn a_subscription_that_lags_is_told_what_it_lost_and_delays_no_other() {
    let dir = tempdir().unwrap();
    let options = Options { live_backlog: 3, ..Options::default() };
    let embedded = Embedded::open(dir.path(), options).unwrap();
    let live = embedded.engines().live;
    let [slow, quick] = ["slow", "quick"].map(|id| GatewayId::new(id).unwrap());
    let mut slow = live.subscribe(&slow, Arc::new(|_| true)).await.unwrap();
    let mut quick = live.subscribe(&quick, Arc::new(|_| true)).await.unwrap();
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

/// The number that a query on the database's file answers.
fn number(dir: &Path, sql: &str) -> i64 {
    let database = rusqlite::Connection::open(dir.join(Embedded::DATABASE)).unwrap();
    database.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn of_members_who_come_and_go_no_row_is_kept_for_long() {
    let dir = tempdir().unwrap();
    let rooms = open(dir.path()).engines().store.rooms;
    let room = group("here");
    rooms.create(room.clone()).await.unwrap();
    let guest = UserId::new("guest").unwrap();
    for _ in 0..100 {
        for change in [MemberChange::Add(guest.clone()), MemberChange::Remove(guest.clone())] {
            rooms.change(&room.id, change, 10).await.unwrap();
        }
    }
    let rows = || number(dir.path(), "SELECT count(*) FROM memberships");
    let members = i64::try_from(room.member_ids.len()).unwrap();
    assert_eq!(rows(), members + 100);
    let later = Timestamp::now().after(Duration::from_secs(60));
    assert_eq!(rooms.forget_versions(later, 60).await.unwrap(), 60);
    assert_eq!(rooms.forget_versions(later, 60).await.unwrap(), 40);
    assert_eq!(rows(), members);
    assert_eq!(rooms.members_at(&room.id, MemberVersion(200)).await.unwrap(), None, "the guest is not known");
}

#[tokio::test]
async fn when_a_user_was_last_seen_is_kept_for_its_time_and_no_longer() {
    let dir = tempdir().unwrap();
    let last_seen_keep = Duration::from_secs(3_600);
    let embedded = Embedded::open(dir.path(), Options { last_seen_keep, ..Options::default() }).unwrap();
    let presence = embedded.engines().presence;
    let [ada, ben, cleo, dan] = ["ada", "ben", "cleo", "dan"].map(|name| UserId::new(name).unwrap());
    let visit = async |user: &UserId| {
        let (session, gateway) = (SessionId::generate(), GatewayId::generate());
        let session = PresenceEntry { user: user.clone(), device: None, session, gateway };
        presence.attach(&session).await.unwrap();
        presence.detach(&session).await.unwrap();
    };
    for user in [&ada, &ben, &cleo] {
        visit(user).await;
    }
    // Ada and Ben were here an hour ago, Ben a little less.
    let database = rusqlite::Connection::open(dir.path().join(Embedded::DATABASE)).unwrap();
    for (user, ago) in [("ada", 3_601), ("ben", 3_500)] {
        let moment = Timestamp::now().before(Duration::from_secs(ago)).as_millis();
        let sql = "UPDATE last_seen SET seenAt = ?2 WHERE userId = ?1";
        database.execute(sql, rusqlite::params![user, moment]).unwrap();
    }
    let seen = presence.seen(&[ada, ben, cleo]).await.unwrap();
    assert_eq!(seen.iter().map(|seen| seen.last_seen_at.is_some()).collect::<Vec<_>>(), [false, true, true]);
    visit(&dan).await;
    assert_eq!(number(dir.path(), "SELECT count(*) FROM last_seen WHERE userId = 'ada'"), 0);
    assert_eq!(number(dir.path(), "SELECT count(*) FROM last_seen"), 3);
}

/// The list of a user in many rooms is kept, and is the same as the one that is computed: after messages, a restart, and
/// rooms that the user joins, leaves, and comes back to.
#[tokio::test]
async fn a_list_that_is_kept_is_the_list_that_is_computed() {
    const COMPUTED: usize = 3;
    let dir = tempdir().unwrap();
    let with = |computed_places| {
        Embedded::open(dir.path(), Options { computed_places, ..Options::default() }).unwrap()
    };
    let make = async |embedded: &Embedded, count: u32| {
        for _ in 0..count {
            let id = RoomId::generate();
            let member_ids = [ada(), UserId::new("ben").unwrap()].into();
            let room = NewRoom { id, kind: RoomKind::Group, name: None, member_ids, maker_id: None };
            embedded.engines().store.rooms.create(room).await.unwrap();
        }
    };
    let list = async |embedded: &Embedded| {
        let rooms = embedded.engines().store.rooms;
        let (mut walked, mut cursor) = (Vec::new(), None);
        loop {
            let (page, next) = rooms.of_user(&ada(), cursor.as_ref(), 4).await.unwrap();
            walked.extend(page.into_iter().map(|summary| summary.room.id.clone()));
            cursor = next;
            if cursor.is_none() {
                return walked;
            }
        }
    };
    let speak = async |embedded: &Embedded, room: &RoomId| {
        let messages = embedded.engines().store.messages;
        let head = messages.heads(std::slice::from_ref(room)).await.unwrap()[0];
        let message = Accepted { chat_room_id: room.clone(), ..accepted("x") }.at(head.next());
        messages.append_run(std::slice::from_ref(&message)).await.unwrap();
        messages.bump(&[message]).await.unwrap();
    };
    let change = async |embedded: &Embedded, room: &RoomId, change| {
        let changed = embedded.engines().store.rooms.change(room, change, 9).await.unwrap();
        assert!(matches!(changed, Changed::Now(_)), "{changed:?}");
    };

    let embedded = with(COMPUTED);
    make(&embedded, 10).await;
    let before = embedded.counts().writer_calls();
    let rooms = list(&embedded).await;
    assert_eq!((rooms.len(), embedded.counts().writer_calls() - before), (10, 1), "places are given once");
    speak(&embedded, &rooms[7]).await;
    assert_eq!(list(&embedded).await[0], rooms[7]);
    embedded.close().await;

    let embedded = with(COMPUTED);
    speak(&embedded, &rooms[9]).await;
    assert_eq!(list(&embedded).await[..2], [&rooms[9], &rooms[7]].map(Clone::clone));
    // Fewer than would be kept, then more.
    for joined in [1, COMPUTED as u32] {
        make(&embedded, joined).await;
        change(&embedded, &rooms[5], MemberChange::Remove(ada())).await;
        assert!(!list(&embedded).await.contains(&rooms[5]));
        speak(&embedded, &rooms[5]).await;
        change(&embedded, &rooms[5], MemberChange::Add(ada())).await;
        assert_eq!(list(&embedded).await[0], rooms[5]);
        speak(&embedded, &rooms[2]).await;
    }
    let kept = list(&embedded).await;
    assert_eq!(kept.len(), 14);
    embedded.close().await;
    assert_eq!(kept, list(&with(1_000)).await);
}

/// Of two users who are both in very many rooms, the latest rooms of either are searched.
#[tokio::test]
async fn whether_two_users_share_a_room_is_found_in_many_rooms() {
    let dir = tempdir().unwrap();
    let engines = open(dir.path()).engines();
    let database = rusqlite::Connection::open(dir.path().join(Embedded::DATABASE)).unwrap();
    let numbers = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)";
    // Each shares a room with Ada, which is her latest one.
    for (user, count) in [("ada", 2_000), ("few", 10), ("many", 2_000)] {
        let rooms = format!(
            "{numbers} INSERT INTO chat_rooms (_id, createdAt) SELECT '{user}-' || n, n FROM numbers"
        );
        database.execute(&rooms, [count]).unwrap();
        let members = format!(
            "{numbers} INSERT INTO memberships (chatRoomId, userId, since, activity)
             SELECT '{user}-' || n, '{user}', 1, n FROM numbers"
        );
        database.execute(&members, [count]).unwrap();
        let shared =
            "INSERT INTO memberships (chatRoomId, userId, since, activity) VALUES ('ada-2000', ?1, 1, 0)";
        if user != "ada" {
            database.execute(shared, [user]).unwrap();
        }
    }
    let others = ["few", "many", "nobody", "ada"].map(|user| UserId::new(user).unwrap());
    let share = async || engines.store.rooms.share_a_room(&ada(), &others).await.unwrap();
    assert_eq!(share().await, [true, true, false, true]);

    // A room that both have joined since their lists were kept has no place in either, and is the latest of both.
    let sql = "DELETE FROM memberships WHERE userId = 'many' AND chatRoomId = 'ada-2000'";
    assert_eq!(database.execute(sql, []).unwrap(), 1);
    assert_eq!(share().await, [true, false, false, true]);
    let id = RoomId::generate();
    let member_ids = [ada(), UserId::new("many").unwrap()].into();
    let new = NewRoom { id, kind: RoomKind::Group, name: None, member_ids, maker_id: None };
    engines.store.rooms.create(new).await.unwrap();
    assert_eq!(share().await, [true, true, false, true]);
}

async fn with_a_message(dir: &Path) {
    let embedded = open(dir);
    embedded.engines().store.intake.append(&[accepted("kept")]).await.unwrap();
    embedded.close().await;
}

fn refusal(dir: &Path) -> String {
    let refused = Embedded::open(dir, Options::default()).err().expect("it is refused");
    refused.to_string()
}

/// SQLite would make a new database there, and throw the log away.
#[tokio::test]
async fn a_directory_that_has_lost_its_database_is_refused() {
    let dir = tempdir().unwrap();
    with_a_message(dir.path()).await;
    let (database, log) = (dir.path().join("naru.db"), dir.path().join("naru.db-wal"));
    let kept = fs::read(&database).unwrap();

    fs::remove_file(&database).unwrap();
    let why = refusal(dir.path());
    assert!(why.contains("naru.db is missing, but naru.marker") && why.contains("restore a backup"), "{why}");
    assert!(!database.exists(), "the refused start made nothing");
    fs::write(&database, "").unwrap();
    fs::write(&log, "messages").unwrap();
    let why = refusal(dir.path());
    assert!(why.contains("naru.db is empty, but naru.db-wal beside it holds newer messages"), "{why}");
    assert_eq!(fs::read(&log).unwrap(), b"messages", "the log is as it was");

    // Without a marker, as a copy of the two files has none.
    fs::remove_file(dir.path().join("naru.marker")).unwrap();
    assert!(refusal(dir.path()).contains("naru.db is empty, but naru.db-wal"));
    fs::remove_file(&log).unwrap();
    let database_without_tables = || {
        fs::remove_file(&database).unwrap();
        rusqlite::Connection::open(&database).unwrap().execute_batch("PRAGMA journal_mode = WAL").unwrap();
    };
    database_without_tables();
    fs::write(dir.path().join("naru.marker"), "").unwrap();
    let why = refusal(dir.path());
    assert!(why.contains("holds no tables, but naru.marker"), "{why}");

    fs::write(&database, kept).unwrap();
    let intake = open(dir.path()).engines().store.intake;
    assert_eq!(intake.open(None, None, 10).await.unwrap().entries.len(), 1, "put back, it is as it was");
}

/// Each moment at which the first start may have died.
#[tokio::test]
async fn a_first_start_that_died_is_made_up_for() {
    let dir = tempdir().unwrap();
    let (database, marker) = (dir.path().join("naru.db"), dir.path().join("naru.marker"));
    // Before the tables.
    fs::write(&database, "").unwrap();
    open(dir.path()).close().await;
    assert!(marker.exists());
    // Before the marker.
    fs::remove_file(&marker).unwrap();
    with_a_message(dir.path()).await;
    assert!(marker.exists(), "made by the next start");
    // A database in WAL mode, and no tables.
    fs::remove_file(&marker).unwrap();
    fs::remove_file(&database).unwrap();
    rusqlite::Connection::open(&database).unwrap().execute_batch("PRAGMA journal_mode = WAL").unwrap();
    with_a_message(dir.path()).await;
    assert!(marker.exists());
}

#[tokio::test]
async fn a_damaged_database_is_refused() {
    let dir = tempdir().unwrap();
    let embedded = open(dir.path());
    let entries: Vec<_> = (0..200).map(|number| accepted(&format!("message {number}"))).collect();
    embedded.engines().store.intake.append(&entries).await.unwrap();
    embedded.close().await;
    let database = dir.path().join("naru.db");
    let good = fs::read(&database).unwrap();
    let with = |start: usize, length: usize| {
        let mut bytes = good.clone();
        bytes[start..start + length].fill(0xA5);
        bytes
    };
    let damaged = [
        ("no header", with(0, 100)),
        ("a page in the middle", with(good.len() / 2 / 4096 * 4096, 4096)),
        ("cut off", good[..good.len() / 2].to_vec()),
    ];
    for (how, bytes) in damaged {
        fs::write(&database, bytes).unwrap();
        let why = refusal(dir.path());
        assert!(why.contains("naru.db is damaged") && why.contains("restore a backup"), "{how}: {why}");
    }
    fs::write(&database, good).unwrap();
    open(dir.path()).close().await;
}
