//! A user's personal data is erased and exported. What is erased is searched for in every store, past Naru.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use naru::pipeline::Changes;
use naru_client::{Claims, Client, Http, ServerProcess, TEST_TIMEOUT, Webhook, token};
use naru_engines::Engines;
use naru_faults::{Counted, Only, intercepted};
use naru_model::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::{Before, Naru, SECRET, phone_on, token_of};

/// It is in all that the user wrote and gave, and nowhere else.
pub const MARKER: &str = "lethe";
/// The user to be erased.
const USER: &str = "E";
/// How long an erasure waits in these tests for gateways that may not know of it.
const ERASE_DELAY: Duration = Duration::from_millis(200);
/// How many messages the user writes to the group: so many that the tables have many pages.
const MANY: usize = 250;

/// An entry is open for the grace time, ten seconds, where a session ends before it has proven a message; an erasure waits for it.
const CLOSED_WITHIN: Duration = Duration::from_secs(30);

/// A Naru whose erasures wait for less.
pub fn hasty() -> Changes {
    Changes { erase_delay: Some(ERASE_DELAY), ..Changes::default() }
}

fn backend(url: &str) -> Http {
    Http::new(url, &token(SECRET.as_bytes(), &Claims::user("backend").service()))
}

/// The user's own token, of before.
pub fn users_token() -> String {
    let claims = Claims::user(USER).name(&format!("{MARKER}-name")).device(&format!("{MARKER}-device"));
    token(SECRET.as_bytes(), &claims)
}

/// What the user leaves behind.
pub struct Life {
    direct: String,
    group: String,
    left: String,
}

/// The user writes, is written to, sets what can be set, and leaves a group.
pub async fn live(url: &str) -> Life {
    let (own, ben, cleo) = (Http::new(url, &users_token()), http(url, "B"), http(url, "C"));
    for (http, device, name) in [(&own, MARKER, MARKER), (&cleo, "phone", "other")] {
        let registered = json!({"platform": "fcm", "token": format!("{name}-token"), "locale": name});
        assert_eq!(http.put(&format!("/api/devices/{device}-device"), registered).await.0, 200);
    }
    let direct = own.create_room(&[USER, "B"]).await;
    let group = own.create_room(&[USER, "B", "C"]).await;
    let left = ben.create_room(&[USER, "B", "C"]).await;
    assert_eq!(own.put("/api/blocks/C", Value::Null).await.0, 204);
    assert_eq!(cleo.put(&format!("/api/blocks/{USER}"), Value::Null).await.0, 204);
    assert_eq!(own.put(&format!("/api/rooms/{group}/settings"), json!({"muted": true})).await.0, 200);

    let mut phone = Client::connect(url, &users_token()).await.expect("a welcome");
    phone.welcome().await;
    let long = format!("{MARKER}-{}", "0123456789".repeat(700));
    for number in 0..MANY {
        let content = if number % 50 == 0 { long.clone() } else { format!("{MARKER} {number}") };
        phone.chat(&group, &content, &format!("c-{number}")).await;
    }
    phone.expect_where("ACK", |ack| ack["seq"] == MANY).await;
    for room in [&direct, &left] {
        assert_eq!(ben.send(room, "of Ben", "b-1").await.0, 200);
        phone.chat(room, &format!("{MARKER} here"), "c-1").await;
        let ack = phone.expect("ACK").await;
        phone.send_json(&json!({"type": "READ", "chatRoomId": room, "seq": ack["seq"]})).await;
        assert_eq!(ben.send(room, "of Ben, too", "b-2").await.0, 200);
    }
    assert_eq!(own.delete(&format!("/api/rooms/{left}/members/{USER}")).await.0, 204);
    phone.until_pong().await;
    phone.close().await;
    // To the user's phone, without a provider.
    assert_eq!(ben.send(&direct, "of Ben to a phone", "b-3").await.0, 200);
    Life { direct, group, left }
}

fn http(url: &str, person: &str) -> Http {
    Http::new(url, &token_of(person))
}

pub async fn erase(url: &str) {
    let (status, begun) = backend(url).delete(&format!("/api/users/{USER}")).await;
    assert_eq!((status, &begun["complete"]), (202, &json!(false)), "{begun}");
}

/// Waits until the erasure is complete.
pub async fn completes(url: &str, patience: Duration) {
    let begun = Instant::now();
    loop {
        let (status, erasure) = backend(url).get(&format!("/api/users/{USER}/erasure")).await;
        assert_eq!(status, 200, "{erasure}");
        if erasure["complete"] == true {
            assert!(erasure["completedAt"].is_string(), "{erasure}");
            return;
        }
        assert!(begun.elapsed() < patience, "after {patience:?}: {erasure}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What the others see, and what the user's tokens are good for.
pub async fn is_gone_and_others_are_not(url: &str, life: &Life) {
    let ben = http(url, "B");
    for room in [&life.direct, &life.group, &life.left] {
        let history = ben.history(room, "afterSeq=0&limit=100").await;
        for (message, seq) in history.iter().zip(1_u64..) {
            assert_eq!(message["seq"], seq, "dense");
            let is_users = message["senderId"] == USER;
            assert_eq!(message["deletedAt"].is_string(), is_users, "{message}");
            assert_eq!(message["content"] == "", is_users, "{message}");
            assert_eq!(message["senderName"] == "", is_users, "{message}");
        }
        let written = if *room == life.group { MANY } else { 1 };
        assert_eq!(history.iter().filter(|message| message["senderId"] == USER).count(), written);
    }
    let (_, group) = ben.get(&format!("/api/rooms/{}", life.group)).await;
    assert_eq!(group["memberIds"], json!(["B", "C"]));
    assert!(group["lastMessage"]["deletedAt"].is_string(), "{group}");
    let (_, direct) = ben.get(&format!("/api/rooms/{}", life.direct)).await;
    assert_eq!(direct["memberIds"], json!(["B", USER]));
    assert_eq!(http(url, "C").get("/api/blocks").await.1, json!({"blocks": [{"userId": USER}]}));

    let parked = parked(url).await;
    let of: Vec<&str> = parked.iter().filter_map(|push| push["userId"].as_str()).collect();
    assert!(!of.is_empty() && of.iter().all(|user| *user == "C"), "Ben's messages to Cleo: {of:?}");

    assert_eq!(Http::new(url, &users_token()).get("/api/rooms").await.0, 401);
    let refused = Client::connect(url, &users_token()).await.expect_err("a token of before");
    assert_eq!(refused.status(), Some(401));
    let items = exported(url, 200).await;
    let user = items.iter().find(|item| item["type"] == "user").expect("the user");
    assert_eq!((&user["blocks"], &user["lastSeenAt"]), (&json!([]), &Value::Null));
    assert!(items.iter().all(|item| item["type"] != "device"));
    for room in items.iter().filter(|item| item["type"] == "room") {
        // Sending has read up to one's own message.
        assert_eq!((&room["receivedSeq"], &room["muted"]), (&json!(0), &json!(false)), "{room}");
    }
}

/// All that is exported, in pages of this size.
async fn exported(url: &str, limit: usize) -> Vec<Value> {
    let (backend, mut items, mut cursor) = (backend(url), Vec::new(), String::new());
    loop {
        let path = format!("/api/users/{USER}/export?limit={limit}&cursor={cursor}");
        let (status, mut page) = backend.get(&path).await;
        assert_eq!(status, 200, "{page}");
        let Value::Array(more) = page["items"].take() else { panic!("{page}") };
        assert!(more.len() <= limit.max(3), "the user with devices, or at most {limit}: {}", more.len());
        items.extend(more);
        match page["nextCursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => return items,
        }
    }
}

/// Every row of every table that has the marker.
fn rows_with_marker(data: &Path) -> Vec<String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(data.join("naru.db"), flags).expect("there is data");
    database.busy_timeout(TEST_TIMEOUT).expect("it waits");
    let mut tables =
        database.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").expect("a schema");
    let tables = tables.query_map([], |row| row.get::<_, String>(0)).expect("names");
    let mut found = Vec::new();
    for table in tables {
        let table = table.expect("a name");
        let mut rows = database.prepare(&format!("SELECT * FROM {table}")).expect("a table");
        let columns = rows.column_count();
        let mut rows = rows.query([]).expect("rows");
        while let Some(row) = rows.next().expect("a row") {
            let has_marker = |column| match row.get_ref(column).expect("a column") {
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => contains(bytes),
                _ => false,
            };
            if (0..columns).any(has_marker) {
                found.push(format!("{table}: {row:?}"));
            }
        }
    }
    found
}

fn contains(bytes: &[u8]) -> bool {
    bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes())
}

/// The files in which the marker's bytes are.
fn files_with_marker(data: &Path) -> Vec<String> {
    let files = std::fs::read_dir(data).expect("a directory").map(|file| file.expect("a file").path());
    let with_marker = files.filter(|file| contains(&std::fs::read(file).expect("a file that can be read")));
    with_marker.map(|file| file.display().to_string()).collect()
}

/// All parked pushes.
async fn parked(url: &str) -> Vec<Value> {
    let (backend, mut parked, mut cursor) = (backend(url), Vec::new(), String::new());
    loop {
        let (status, mut page) = backend.get(&format!("/api/parked?limit=100&cursor={cursor}")).await;
        let Value::Array(more) = page["parked"].take() else { panic!("{status} {page}") };
        parked.extend(more);
        match page["nextCursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => return parked,
        }
    }
}

/// Waits until the pushes that have no provider are parked: those of the user's messages to Cleo, and one to the user.
pub async fn pushes_are_parked(url: &str) {
    let parking = async {
        loop {
            let parked = parked(url).await;
            let to = |user: &str| parked.iter().filter(|push| push["userId"] == user).count();
            if to("C") > MANY && to(USER) > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, parking).await.expect("pushes are parked");
}

/// Waits until every push is on its way to the backend, so that none is in a table of queues.
async fn nothing_is_queued(data: &Path) {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(data.join("naru.db"), flags).expect("there is data");
    let queued = || database.query_row("SELECT count(*) FROM queue", [], |row| row.get::<_, i64>(0));
    let emptied = async {
        while queued().expect("a count") > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, emptied).await.expect("the queues are emptied");
}

#[tokio::test]
async fn an_erased_user_leaves_tombstones_and_nothing_else_in_any_table_or_file() {
    let naru = Naru::start_with(&["--rate-messages-per-second", "0"], hasty()).await;
    let life = live(&naru.url).await;
    pushes_are_parked(&naru.url).await;
    nothing_is_queued(naru.data()).await;
    assert!(rows_with_marker(naru.data()).len() > MANY, "the search finds what is there");
    // As `intake_keep` leaves it: the messages have theirs still.
    let database = Connection::open(naru.data().join("naru.db")).expect("there is data");
    let dropped = "UPDATE intake SET senderName = NULL, content = NULL WHERE open = 0 AND position % 2 = 0";
    assert!(database.execute(dropped, []).expect("it is dropped") > 1);
    drop(database);
    for caller in ["B", USER] {
        let (status, _) = naru.http(caller).delete(&format!("/api/users/{USER}")).await;
        assert_eq!(status, 403);
        assert_eq!(naru.http(caller).get(&format!("/api/users/{USER}/erasure")).await.0, 403);
    }
    let none = json!({"complete": false, "requestedAt": null, "completedAt": null});
    assert_eq!(backend(&naru.url).get(&format!("/api/users/{USER}/erasure")).await, (200, none));
    let mut phone = Client::connect(&naru.url, &users_token()).await.expect("a welcome");
    phone.welcome().await;
    erase(&naru.url).await;
    assert_eq!(phone.closed().await.0, 4401);
    completes(&naru.url, CLOSED_WITHIN).await;
    assert_eq!(rows_with_marker(naru.data()), Vec::<String>::new());
    assert_eq!(files_with_marker(naru.data()), Vec::<String>::new());
    is_gone_and_others_are_not(&naru.url, &life).await;

    // Once more, with nothing left to do; and a user of whom nothing is known.
    erase(&naru.url).await;
    completes(&naru.url, CLOSED_WITHIN).await;
    let (status, _) = backend(&naru.url).delete("/api/users/nobody").await;
    assert_eq!(status, 202);
    naru.stop().await;
}

/// The store takes its time with a message: it is accepted before the erasure, and saved after its first pass.
#[tokio::test]
async fn a_message_accepted_while_the_erasure_runs_does_not_survive() {
    let (let_through, held) = watch::channel(true);
    let holding = Before(move |_: &naru_faults::Call| {
        let mut held = held.clone();
        Box::pin(async move {
            held.wait_for(|through| *through).await.expect("the test runs");
            Ok(())
        }) as _
    });
    let holding = Arc::new(Only(&["messages.append_run"], holding));
    let calls = Arc::new(Counted::default());
    let counted = calls.clone();
    let change = |engines| intercepted(intercepted(engines, holding), counted);
    let changes = Changes { engines: Some(Box::new(change)), ..hasty() };
    let naru = Naru::start_with(&[], changes).await;
    let own = Http::new(&naru.url, &users_token());
    let room = own.create_room(&[USER, "B"]).await;
    assert_eq!(own.send(&room, &format!("{MARKER} saved"), "c-1").await.0, 200);
    let_through.send_replace(false);
    let mut phone = Client::connect(&naru.url, &users_token()).await.expect("a welcome");
    phone.welcome().await;
    phone.chat(&room, &format!("{MARKER} accepted"), "c-2").await;
    naru.counts("naru_gateway_accepted_total 2").await;

    erase(&naru.url).await;
    let first_pass = async {
        while naru.http("B").history(&room, "").await[0]["deletedAt"].is_null() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, first_pass).await.expect("the first pass");
    // Each pass looks into the user's one room. A third one shows that the second, of after the delay, completed nothing.
    let third_pass = async {
        while calls.count("intake.of_sender") < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, third_pass).await.expect("it is not complete, and goes on");
    let (_, erasure) = backend(&naru.url).get(&format!("/api/users/{USER}/erasure")).await;
    assert_eq!(erasure["complete"], false, "an entry is open");
    let_through.send_replace(true);
    completes(&naru.url, 3 * TEST_TIMEOUT).await;
    assert_eq!(rows_with_marker(naru.data()), Vec::<String>::new());
    let history = naru.http("B").history(&room, "afterSeq=0").await;
    let deleted: Vec<bool> = history.iter().map(|message| message["deletedAt"].is_string()).collect();
    assert_eq!(deleted, [true, true]);
    naru.stop().await;
}

#[tokio::test]
async fn an_export_has_all_that_is_stored_of_a_user_page_by_page() {
    let naru = Naru::start(&["--rate-messages-per-second", "0"]).await;
    let life = live(&naru.url).await;
    let path = format!("/api/users/{USER}/export");
    for caller in ["B", USER] {
        assert_eq!(naru.http(caller).get(&path).await.0, 403);
    }
    for cursor in ["zz", "41.zz", ".41"] {
        let (status, body) = backend(&naru.url).get(&format!("{path}?cursor={cursor}")).await;
        assert_eq!((status, &body["code"]), (400, &json!("INVALID_FRAME")), "{cursor}: {body}");
    }
    let items = exported(&naru.url, 200).await;
    for limit in [1, 7] {
        let paged = exported(&naru.url, limit).await;
        let but_user = |items: &[Value]| items[1..].to_vec();
        assert_eq!(but_user(&paged), but_user(&items), "pages of {limit}");
    }
    let of = |kind: &str| items.iter().filter(|item| item["type"] == kind).cloned().collect::<Vec<_>>();
    assert_eq!((&of("user")[0]["userId"], &of("user")[0]["blocks"]), (&json!(USER), &json!(["C"])));
    assert!(of("user")[0]["lastSeenAt"].is_string());
    let device = &of("device")[0];
    assert_eq!(device["token"], format!("{MARKER}-token"));
    assert_eq!(
        (&device["locale"], &device["deviceId"]),
        (&json!(MARKER), &json!(format!("{MARKER}-device")))
    );
    let rooms: Vec<(String, bool, bool)> = of("room")
        .iter()
        .map(|room| {
            let id = room["chatRoomId"].as_str().expect("an id").to_owned();
            (id, room["isMember"] == true, room["muted"] == true)
        })
        .collect();
    let mut expected = vec![(life.direct, true, false), (life.group, true, true), (life.left, false, false)];
    expected.sort();
    assert_eq!(rooms, expected);
    assert_eq!(of("message").len(), MANY + 2);
    let text = Value::from(items).to_string();
    assert!(
        text.contains(&format!("{MARKER} 249")) && !text.contains("of Ben"),
        "the user's own messages only"
    );
    naru.stop().await;
}

/// A Naru, and its engines.
async fn with_engines(flags: &[&str]) -> (Naru, Engines) {
    let (tell, told) = mpsc::channel();
    let change = move |engines: Engines| {
        tell.send(engines.clone()).expect("the test waits for it");
        engines
    };
    let changes = Changes { engines: Some(Box::new(change)), ..hasty() };
    let naru = Naru::start_with(flags, changes).await;
    (naru, told.recv().expect("engines"))
}

/// All messages expire, as `message_ttl` has it: the last one of a room leaves a tombstone, of the others nothing is left.
async fn all_messages_expire(engines: &Engines) {
    let closed = async {
        while engines.store.intake.newest_open().await.expect("it answers").is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(CLOSED_WITHIN, closed).await.expect("all are accounted for");
    let (tomorrow, mut after) = (Timestamp::now().after(Duration::from_secs(24 * 3600)), None);
    loop {
        after = engines.store.messages.expire(after, tomorrow, 100).await.expect("they expire").next;
        if after.is_none() {
            return;
        }
    }
}

/// The intake has the content of what has expired for as long as `intake_keep` says, and that it was saved.
#[tokio::test]
async fn an_export_has_what_has_expired_as_messages() {
    let (naru, engines) = with_engines(&[]).await;
    let own = Http::new(&naru.url, &users_token());
    let room = own.create_room(&[USER, "B"]).await;
    for number in 1..=3 {
        assert_eq!(own.send(&room, &format!("{MARKER} {number}"), &format!("c-{number}")).await.0, 200);
    }
    all_messages_expire(&engines).await;
    let items = exported(&naru.url, 200).await;
    let kinds: Vec<_> = items.iter().map(|item| item["type"].as_str().expect("a kind")).collect();
    assert_eq!(kinds, ["user", "room", "message", "message", "message"]);
    for (message, number) in items[2..].iter().zip(1..) {
        let content = if number < 3 { format!("{MARKER} {number}") } else { String::new() };
        assert_eq!((&message["seq"], &message["content"]), (&json!(number), &json!(content)), "{message}");
        assert_eq!(message["deletedAt"].is_string(), number == 3, "{message}");
    }
    naru.stop().await;
}

/// A parked push says what its message said, also when that has expired: whose it was, only the intake knows then.
#[tokio::test]
async fn an_erasure_finds_the_parked_pushes_of_messages_that_have_expired() {
    let (naru, engines) = with_engines(&["--rate-messages-per-second", "0"]).await;
    live(&naru.url).await;
    pushes_are_parked(&naru.url).await;
    nothing_is_queued(naru.data()).await;
    all_messages_expire(&engines).await;
    let parked_with_marker = || {
        let rows = rows_with_marker(naru.data());
        rows.into_iter().filter(|row| row.starts_with("parked: ")).count()
    };
    assert!(parked_with_marker() > MANY, "those of the user's messages to Cleo");
    erase(&naru.url).await;
    completes(&naru.url, CLOSED_WITHIN).await;
    assert_eq!(rows_with_marker(naru.data()), Vec::<String>::new());
    let parked = parked(&naru.url).await;
    assert!(
        !parked.is_empty() && parked.iter().all(|push| push["userId"] == "C"),
        "of Ben to Cleo: {parked:?}"
    );
    naru.stop().await;
}

/// The process is killed in the middle of a pass, and the next one completes it, without anyone asking.
#[tokio::test]
async fn a_kill_in_the_middle_of_an_erasure_is_repaired_at_the_next_start() {
    let data = tempfile::tempdir().expect("a folder for the data");
    let backend_of_app = Webhook::start().await;
    let webhook = backend_of_app.url("/push");
    let variables = [
        ("NARU_JWT_SECRET", SECRET),
        ("NARU_PUSH_WEBHOOK_URL", webhook.as_str()),
        ("NARU_RATE_MESSAGES_PER_SECOND", "0"),
    ];
    let start = async || {
        ServerProcess::start(env!("CARGO_BIN_EXE_naru"), data.path(), &variables).await.expect("it starts")
    };
    let mut server = start().await;
    let own = Http::new(server.url(), &users_token());
    let room = own.create_room(&[USER, "B"]).await;
    let mut phone = Client::connect(server.url(), &users_token()).await.expect("a welcome");
    phone.welcome().await;
    const MESSAGES: i64 = 3_000;
    for number in 0..MESSAGES {
        phone.chat(&room, &format!("{MARKER} {number}"), &format!("c-{number}")).await;
        if number % 100 == 99 {
            phone.expect_where("ACK", |ack| ack["seq"] == number + 1).await;
        }
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let stored = Connection::open_with_flags(data.path().join("naru.db"), flags).expect("there is data");
    let tombstones = || {
        let sql = "SELECT count(*) FROM chat_messages WHERE deletedAt IS NOT NULL";
        stored.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a count")
    };
    erase(server.url()).await;
    let begun = async {
        while tombstones() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, begun).await.expect("the first pass");
    server.kill9().await;
    let done = tombstones();
    assert!((1..MESSAGES).contains(&done), "killed in the middle: {done} of {MESSAGES}");

    let server = start().await;
    completes(server.url(), Duration::from_secs(180)).await;
    assert_eq!(rows_with_marker(data.path()), Vec::<String>::new());
    let mut ben = phone_on(server.url(), "B").await;
    ben.until_pong().await;
    assert_eq!(tombstones(), MESSAGES);
}
