//! What one user, one address or one session may do, and how much memory clients that do not read may hold.

use std::sync::Arc;
use std::time::{Duration, Instant};

use naru_client::{Claims, Client, Connect, Http, Incoming, Reading, token};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{Naru, SECRET, token_of};

fn service() -> String {
    token(SECRET.as_bytes(), &Claims::user("backend").with("scope", "service"))
}

/// A stranger may make a room with anybody and type there. Everybody else goes on as before.
#[tokio::test]
async fn a_flood_of_typing_closes_no_session() {
    let naru = Naru::start(&["--session-queue", "8"]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    naru.http("M").create_room(&["M", "B"]).await;
    let (mut ada, mut ben, mut mallory) =
        (naru.phone("A").await, naru.phone("B").await, naru.phone("M").await);
    for round in 0..20 {
        for seq in 0..250 {
            mallory.send_json(&json!({"type": "TYPING", "chatRoomId": "B_M"})).await;
            mallory.send_json(&json!({"type": "READ", "chatRoomId": "B_M", "seq": seq})).await;
        }
        ada.chat("A_B", "still here?", &round.to_string()).await;
        ada.expect("ACK").await;
        assert_eq!(ben.expect("CHAT").await["seq"], round + 1);
    }
    ben.quiet("ERROR").await;
    mallory.until_pong().await;
    assert_eq!(naru.counted("naru_gateway_closed_total{reason=\"slow_consumer\"}").await, 0);
    naru.stop().await;
}

/// Each type of frame takes from its user's rate; messages have their own.
#[tokio::test]
async fn frames_of_every_type_are_limited() {
    let sync = json!({"type": "SYNC", "rooms": []}).to_string();
    let position = |kind: &str| json!({"type": kind, "chatRoomId": "A_B", "seq": 1}).to_string();
    for (frame, allowed) in [
        (json!({"type": "PING"}).to_string(), 12),
        ("no JSON".to_owned(), 12),
        (json!({"type": "CHAT", "clientMessageId": "a-1"}).to_string(), 12),
        (json!({"type": "TYPING", "chatRoomId": "elsewhere"}).to_string(), 11),
        (sync, 3),
        (position("RECEIVED"), 120),
        (position("READ"), 120),
        (json!({"type": "TYPING", "chatRoomId": "A_B"}).to_string(), 120),
    ] {
        // A token comes back in 1,000 s: hardly any does while this runs.
        let naru = Naru::start(&["--rate-frames-per-second", "1", "--rate-frames-burst", "12"]).await;
        naru.http("A").create_room(&["A", "B"]).await;
        let (mut ada, mut tablet) = (naru.phone("A").await, naru.phone("A").await);
        let mut sent = 0;
        let refusal = loop {
            for _ in 0..10 {
                ada.send_text(&frame).await;
                sent += 1;
            }
            ada.chat("A_B", "a message is no such frame", &sent.to_string()).await;
            let refused = |answer: &Value| answer["code"] == "RATE_LIMITED";
            let refusal = loop {
                match ada.next().await {
                    Some(Incoming::Frame(answer)) if refused(&answer) => break Some(answer),
                    Some(Incoming::Frame(answer)) if answer["type"] == "ACK" => break None,
                    Some(Incoming::Frame(_)) => {}
                    closed => panic!("{frame}: {closed:?}"),
                }
            };
            if let Some(refusal) = refusal {
                break refusal;
            }
            assert!(sent < 10 * allowed, "{frame}: never refused");
        };
        assert!(sent > allowed - 10, "{frame}: refused after {sent}");
        assert!(refusal["retryAfterMs"].as_u64().is_some_and(|wait| wait > 0), "{frame}: {refusal}");
        // The user's sessions share the rate; another user has their own.
        tablet.send_json(&json!({"type": "SYNC", "rooms": []})).await;
        assert_eq!(tablet.expect("ERROR").await["code"], "RATE_LIMITED", "{frame}");
        naru.phone("B").await.quiet("ERROR").await;
        naru.stop().await;
    }
}

/// To read and refuse what is too much costs the others: it is done ever more slowly.
#[tokio::test]
async fn a_session_that_sends_too_much_is_read_ever_more_slowly() {
    let naru = Naru::start(&["--rate-frames-per-second", "1", "--rate-frames-burst", "12"]).await;
    let mut ada = naru.phone("A").await;
    for _ in 0..2_000 {
        ada.send_json(&json!({"type": "PING"})).await;
    }
    // 12 answers, and refusals after 10 ms, 20, 40 … 320 ms each.
    let end = tokio::time::Instant::now() + Duration::from_secs(3);
    let mut answers = 0;
    while let Ok(answer) = tokio::time::timeout_at(end, ada.next()).await {
        assert!(matches!(answer, Some(Incoming::Frame(_))), "{answer:?}");
        answers += 1;
    }
    assert!((13..40).contains(&answers), "{answers} answers in 3 s");
    naru.stop().await;
}

#[tokio::test]
async fn calls_are_limited_by_their_cost() {
    let naru = Naru::start(&["--rate-calls-per-second", "1", "--rate-calls-burst", "50"]).await;
    let ada = naru.http("A");
    ada.create_room(&["A", "B"]).await;
    let mut answered = 0;
    let (status, body) = loop {
        match ada.get("/api/rooms").await {
            (200, _) => answered += 1,
            refused => break refused,
        }
        assert!(answered < 20, "never refused");
    };
    assert_eq!((answered, status, &body["code"]), (3, 429, &json!("RATE_LIMITED")));
    // A room of a thousand costs more than two.
    let members: Vec<String> = (0..900).map(|number| format!("u{number}")).chain(["C".to_owned()]).collect();
    let cleo = naru.http("C");
    assert_eq!(cleo.post("/api/rooms", json!({"memberIds": members})).await.0, 429);
    assert_eq!(cleo.post("/api/rooms", json!({"memberIds": ["B", "C"]})).await.0, 201);
    let backend = Http::new(&naru.url, &service());
    for _ in 0..10 {
        assert_eq!(backend.get("/api/rooms").await.0, 200, "an app's backend is not limited");
    }
    naru.stop().await;
}

#[tokio::test]
async fn handshakes_are_limited_by_address_and_sessions_by_user() {
    let naru = Naru::start(&["--rate-connects-per-address", "1"]).await;
    let mut sessions = Vec::new();
    let refused = loop {
        let person = format!("u{}", sessions.len());
        match Connect::to(&naru.url, &token_of(&person)).client().await {
            Ok(session) => sessions.push(session),
            Err(refused) => break refused,
        }
        assert!(sessions.len() < 100, "never refused");
    };
    assert!(sessions.len() >= 10 && refused.status() == Some(429), "{}: {refused}", sessions.len());
    naru.stop().await;

    let naru = Naru::start(&["--max-sessions-per-user", "2"]).await;
    let (first, mut second) = (naru.phone("A").await, naru.phone("A").await);
    let refused = Connect::to(&naru.url, &token_of("A")).client().await.expect_err("a third session");
    assert_eq!(refused.status(), Some(429), "{refused}");
    first.close().await;
    naru.counts("naru_gateway_closed_total{reason=\"by_peer\"} 1").await;
    naru.phone("B").await.quiet("ERROR").await;
    naru.phone("A").await.quiet("ERROR").await;
    second.quiet("ERROR").await;
    naru.stop().await;
}

#[tokio::test]
async fn a_user_has_so_many_devices_and_a_name_so_many_bytes() {
    let naru = Naru::start(&["--max-devices-per-user", "2"]).await;
    let ada = naru.http("A");
    let register = async |device: &str| {
        let body = json!({"platform": "fcm", "token": format!("token-of-{device}")});
        ada.put(&format!("/api/devices/{device}"), body).await
    };
    assert_eq!([register("one").await.0, register("two").await.0, register("one").await.0], [200; 3]);
    let (status, body) = register("three").await;
    assert_eq!((status, &body["code"]), (409, &json!("CONFLICT")), "{body}");

    naru.http("A").create_room(&["A", "B"]).await;
    let mut ben = naru.phone("B").await;
    let claims = Claims::user("A").name(&"이".repeat(100));
    let mut ada = Client::connect(&naru.url, &token(SECRET.as_bytes(), &claims)).await.expect("a session");
    ada.chat("A_B", "hello", "1").await;
    assert_eq!(ben.expect("CHAT").await["senderName"], "이".repeat(85));
    let backend = Http::new(&naru.url, &service());
    let named =
        json!({"content": "hello", "clientMessageId": "2", "senderId": "A", "senderName": "x".repeat(257)});
    assert_eq!(backend.post("/api/rooms/A_B/messages", named).await.0, 400);
    naru.stop().await;
}

#[tokio::test]
async fn a_user_is_in_so_many_rooms() {
    let naru = Naru::start(&["--max-rooms-per-user", "2"]).await;
    let (ada, ben) = (naru.http("A"), naru.http("B"));
    let make = async |http: &Http, members: &[&str]| {
        let (status, body) = http.post("/api/rooms", json!({"memberIds": members})).await;
        (status, body["code"].as_str().or(body["id"].as_str()).unwrap_or_default().to_owned())
    };
    assert_eq!(make(&ada, &["A", "B"]).await, (201, "A_B".to_owned()));
    let (status, group) = make(&ada, &["A", "C", "D"]).await;
    assert_eq!(status, 201);
    let conflict = (409, "CONFLICT".to_owned());
    assert_eq!(make(&ada, &["A", "E"]).await, conflict);
    let (status, other) = make(&ben, &["A", "B", "E"]).await;
    assert_eq!(status, 201, "others bring her into theirs");
    assert_eq!(make(&ada, &["A", "B"]).await, (200, "A_B".to_owned()), "a room that is there is answered");
    assert_eq!(make(&ben, &["B", "E"]).await, conflict);
    let (status, body) = ada.post(&format!("/api/rooms/{group}/members"), json!({"userId": "B"})).await;
    assert_eq!((status, &body["code"]), (409, &json!("CONFLICT")), "{body}");

    let backend = Http::new(&naru.url, &service());
    assert_eq!(make(&backend, &["B", "F"]).await.0, 201, "the app's backend may");
    for left in [group, other] {
        assert_eq!(make(&ada, &["A", "E"]).await, conflict);
        assert_eq!(ada.delete(&format!("/api/rooms/{left}/members/A")).await.0, 204);
    }
    assert_eq!(make(&ada, &["A", "E"]).await.0, 201, "who leaves may make another");
    naru.stop().await;
}

/// A room that a SYNC names many times is answered once, from the earliest position.
#[tokio::test]
async fn a_sync_answers_each_room_once() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    for number in 1..=3 {
        ada.chat("A_B", "hello", &number.to_string()).await;
        ada.expect("ACK").await;
    }
    let from = |seq: u64| json!({"chatRoomId": "A_B", "afterSeq": seq});
    let rooms: Vec<Value> = std::iter::repeat_n(from(2), 500).chain([from(1)]).collect();
    let mut ben = naru.phone("B").await;
    ben.send_json(&json!({"type": "SYNC", "rooms": rooms})).await;
    let synced = ben.expect("SYNCED").await;
    assert_eq!(synced["rooms"], json!([{"chatRoomId": "A_B", "seq": 3, "complete": true, "epoch": 1}]));
    let frames = ben.until_pong().await;
    let seqs: Vec<&Value> =
        frames.iter().filter(|frame| frame["type"] == "CHAT").map(|chat| &chat["seq"]).collect();
    assert_eq!(seqs, [2, 3]);
    naru.stop().await;
}

/// 12 MB of messages: more than the system's buffers of a connection hold.
async fn fill(naru: &Naru) -> Client {
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    for number in 0..200 {
        ada.chat("A_B", &"x".repeat(60_000), &number.to_string()).await;
    }
    for _ in 0..200 {
        ada.expect("ACK").await;
    }
    ada
}

/// Of an answer that is not read, no more is in memory than a part of the queue holds.
#[tokio::test]
async fn an_answer_is_made_as_it_is_read() {
    const READERS: u64 = 5;
    let flags = ["--max-content-bytes", "60000", "--rate-messages-per-second", "0", "--ping-interval", "1h"];
    let naru = Naru::start(&flags).await;
    let mut ada = fill(&naru).await;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut ben = naru.phone("B").await;
        ben.send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": "A_B", "afterSeq": 0}]})).await;
        ben.expect("CHAT").await;
        ben.reading(Reading::Paused);
        readers.push(ben);
    }
    // An answer is 12 MB, a part of it at most a quarter of `session_queue_bytes`. A PONG comes after what each has by now.
    ada.until_pong().await;
    let queued = naru.counted("naru_gateway_queued_bytes").await;
    assert!(queued <= READERS * (4 << 20) / 4, "{queued} bytes");
    for mut ben in readers {
        ben.reading(Reading::Answering);
        ben.expect("SYNCED").await;
    }
    naru.counts("naru_gateway_queued_bytes 0").await;
    naru.stop().await;
}

/// Beyond the budget of the process, those are closed that have left most unread.
#[tokio::test]
async fn who_leaves_too_much_unread_is_closed() {
    let flags =
        ["--max-queued-bytes", "1000000", "--rate-messages-per-second", "0", "--session-queue", "100000"];
    let naru = Naru::start(&flags).await;
    let room = naru.http("A").create_room(&["A", "B", "C"]).await;
    let (mut ada, mut ben, mut cleo) = (naru.phone("A").await, naru.phone("B").await, naru.phone("C").await);
    ben.reading(Reading::Paused);
    let content = "x".repeat(8192);
    let closed = "naru_gateway_closed_total{reason=\"overloaded\"}";
    let is_online = async |person: &str| {
        let (_, seen) = naru.http("A").get(&format!("/api/presence?userIds={person}")).await;
        seen[0]["online"] == true
    };
    let mut sent = 0;
    while is_online("B").await {
        for _ in 0..32 {
            ada.chat(&room, &content, &format!("a-{sent}")).await;
            match ada.next().await {
                Some(Incoming::Frame(answer)) if answer["type"] == "ACK" => drop(cleo.expect("CHAT").await),
                // Until he is closed.
                Some(Incoming::Frame(answer)) => assert_eq!(answer["code"], "OVERLOADED", "{answer}"),
                closed => panic!("{closed:?}"),
            }
            sent += 1;
        }
        assert!(sent < 8192, "never closed");
    }
    ben.reading(Reading::Answering);
    assert_eq!(ben.closed().await.0, 1013, "after {sent} messages");
    naru.counts(&format!("{closed} 1")).await;
    ada.quiet("ERROR").await;
    cleo.quiet("ERROR").await;
    tokio::time::timeout(Duration::from_secs(5), naru.counts("naru_gateway_queued_bytes 0"))
        .await
        .expect("all is freed");
    naru.phone("B").await.quiet("ERROR").await;
    naru.stop().await;
}

/// An answer over HTTP that is not read counts, too; while too much waits, new work is refused and old sessions go on.
#[tokio::test]
async fn beyond_the_budget_new_work_is_refused() {
    let flags =
        ["--max-content-bytes", "60000", "--rate-messages-per-second", "0", "--max-queued-bytes", "8000000"];
    let naru = Naru::start(&flags).await;
    let mut ada = fill(&naru).await;
    let mut unread = TcpStream::connect(naru.url.trim_start_matches("http://")).await.expect("it listens");
    let bearer = token_of("A");
    let head = format!("host: naru\r\nauthorization: Bearer {bearer}\r\nconnection: close\r\n");
    let request = format!("GET /api/rooms/A_B/messages?limit=200 HTTP/1.1\r\n{head}\r\n");
    unread.write_all(request.as_bytes()).await.expect("it reads");
    assert_eq!(&unread.read_u32().await.expect("an answer").to_be_bytes(), b"HTTP");

    ada.chat("A_B", "one more", "new").await;
    let refusal = ada.expect("ERROR").await;
    assert_eq!((&refusal["code"], &refusal["clientMessageId"]), (&json!("OVERLOADED"), &json!("new")));
    ada.send_json(&json!({"type": "SYNC", "rooms": []})).await;
    assert_eq!(ada.expect("ERROR").await["code"], "OVERLOADED");
    let (status, body) = naru.http("A").get("/api/rooms").await;
    assert_eq!((status, &body["code"]), (503, &json!("OVERLOADED")));
    let refused = Connect::to(&naru.url, &token_of("B")).client().await.expect_err("a new session");
    assert_eq!(refused.status(), Some(503), "{refused}");

    let mut rest = Vec::new();
    unread.read_to_end(&mut rest).await.expect("the whole answer");
    assert!(rest.len() > 12_000_000);
    ada.chat("A_B", "one more", "new").await;
    ada.expect("ACK").await;
    naru.stop().await;
}

/// Has Ada write so many messages to Ben, one after the other. Returns how long the `ACK` took in half of the cases.
async fn conversation(ada: &mut Client, ben: &mut Client, name: &str, messages: u32) -> Duration {
    let mut took = Vec::new();
    for number in 0..messages {
        let sent = Instant::now();
        ada.chat("A_B", "hello", &format!("{name}-{number}")).await;
        ada.expect("ACK").await;
        took.push(sent.elapsed());
        ben.expect_where("CHAT", |chat| chat["chatRoomId"] == "A_B").await;
    }
    took.sort_unstable();
    took[took.len() / 2]
}

/// What half of the `ACK`s may take at most beside somebody who disturbs: much more than it is, and much less than it was.
fn is_undisturbed(beside: Duration, quiet: Duration) -> bool {
    beside < (10 * quiet).max(Duration::from_millis(250))
}

/// A page of a list costs the page, and one user has few calls in the store at a time.
#[tokio::test(flavor = "multi_thread")]
async fn lists_of_a_user_in_very_many_rooms_hold_up_nobody() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    // As another program may add them.
    let database = rusqlite::Connection::open(naru.data().join("naru.db")).expect("there is data");
    let rooms = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 20000)
        INSERT INTO chat_rooms (_id, user1Id, user2Id) SELECT 'M_' || n, 'M', 'other-' || n FROM numbers";
    assert_eq!(database.execute(rooms, []).expect("it takes them"), 20_000);
    drop(database);
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    let quiet = conversation(&mut ada, &mut ben, "quiet", 30).await;
    let mut lists = JoinSet::new();
    for _ in 0..32 {
        let mallory = naru.http("M");
        lists.spawn(async move {
            let mut after = String::new();
            for page in 0.. {
                let (status, list) = mallory.get(&format!("/api/rooms?limit=50&cursor={after}")).await;
                // The first one is asked for by all at once, and the rate is used up at some time.
                assert!(matches!(status, 200 | 429), "page {page}: {list}");
                after = list["nextCursor"].as_str().unwrap_or_default().to_owned();
            }
        });
    }
    let beside = conversation(&mut ada, &mut ben, "beside", 60).await;
    assert!(is_undisturbed(beside, quiet), "{beside:?} beside 32 lists, {quiet:?} without");
    // None has failed.
    assert!(lists.try_join_next().is_none());
    lists.shutdown().await;
    naru.stop().await;
}

/// After a restart of a proxy all clients come at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_handshakes_comes_in_at_the_rate() {
    const RATE: u32 = 50;
    let naru = Naru::start(&["--rate-connects-per-second", &RATE.to_string()]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    let (begun, mut storm) = (Instant::now(), JoinSet::new());
    for number in 0..2 * RATE {
        let connect = Connect::to(&naru.url, &token_of(&format!("u{number}")));
        storm.spawn(async move { connect.client().await });
    }
    let beside = conversation(&mut ada, &mut ben, "beside", 20).await;
    assert!(is_undisturbed(beside, Duration::ZERO), "{beside:?}");
    for session in storm.join_all().await {
        session.expect("its turn comes within five seconds").welcome().await;
    }
    // Two seconds' worth, without the burst.
    assert!(begun.elapsed() >= Duration::from_millis(1_500), "all came in after {:?}", begun.elapsed());
    naru.stop().await;
}

/// A stranger may be in a room with anybody, has many sockets, and knows the protocol.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_does_the_worst_closes_nobody() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let rooms = [
        naru.http("M").create_room(&["M", "A"]).await,
        naru.http("M").create_room(&["M", "B"]).await,
        naru.http("M").create_room(&["M", "A", "B"]).await,
    ];
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    let quiet = conversation(&mut ada, &mut ben, "quiet", 30).await;
    let (rooms, mut worst) = (Arc::new(rooms), JoinSet::new());
    for socket in 0..6_usize {
        let (mut mallory, rooms) = (naru.phone("M").await, rooms.clone());
        worst.spawn(async move {
            if socket == 0 {
                mallory.reading(Reading::Paused);
            }
            for number in 0.. {
                let room = &rooms[number % rooms.len()];
                let from: Vec<Value> =
                    rooms.iter().map(|room| json!({"chatRoomId": room, "afterSeq": 0})).collect();
                mallory
                    .send_json(&match socket {
                        0 | 1 => json!({"type": "SYNC", "rooms": from}),
                        2 => json!({"type": "TYPING", "chatRoomId": room}),
                        3 => json!({"type": "READ", "chatRoomId": room, "seq": number}),
                        4 => json!({"type": "UNKNOWN", "padding": "x".repeat(10_000)}),
                        _ => json!({"type": "CHAT", "chatRoomId": room, "content": "x".repeat(8_000)}),
                    })
                    .await;
            }
        });
    }
    for socket in 0..4 {
        let (mallory, room) = (naru.http("M"), rooms[2].clone());
        worst.spawn(async move {
            for round in 0.. {
                let nobodies = (0..100).map(|number| format!("n-{socket}-{round}-{number}"));
                let members: Vec<String> = nobodies.chain(["M".to_owned()]).collect();
                let _any = match socket {
                    0 => mallory.get("/api/rooms?limit=100").await,
                    1 => mallory.get(&format!("/api/rooms/{room}/messages?limit=200")).await,
                    2 => mallory.get("/api/presence?userIds=A,B,C,D,E,F").await,
                    _ => mallory.post("/api/rooms", json!({"memberIds": members})).await,
                };
            }
        });
    }
    let bearer = token_of("M");
    for socket in 0..4 {
        let (url, bearer) = (naru.url.clone(), bearer.clone());
        worst.spawn(async move {
            loop {
                if socket == 0 {
                    drop(Connect::to(&url, &bearer).client().await);
                    continue;
                }
                let mut half = TcpStream::connect(url.trim_start_matches("http://")).await.expect("it listens");
                let head = "POST /api/rooms HTTP/1.1\r\nhost: naru\r\ncontent-length: 60000\r\nauthorization: Bearer";
                let part = if socket == 1 { "GET /ws HTTP/1.1\r\n".to_owned() } else { format!("{head} {bearer}\r\n\r\n[") };
                half.write_all(part.as_bytes()).await.expect("it reads");
                let _end = half.read_to_end(&mut Vec::new()).await;
            }
        });
    }
    let beside = conversation(&mut ada, &mut ben, "beside", 40).await;
    assert!(is_undisturbed(beside, quiet), "{beside:?} beside the stranger, {quiet:?} without");
    worst.shutdown().await;
    ada.until_pong().await;
    ben.until_pong().await;
    naru.stop().await;
}
