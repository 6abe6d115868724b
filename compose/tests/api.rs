//! The HTTP API row by row, and the signals and answers of the WebSocket that go with it. (Parked pushes are in
//! [`crate::parked`].)

use naru_client::{Claims, Client, Http, token};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Naru, SECRET, token_of};

/// Asserts that an answer is this refusal, in the form that all have.
#[track_caller]
pub fn refused(answer: (u16, Value), status: u16, code: &str) {
    let (got, body) = answer;
    assert_eq!((got, &body["code"]), (status, &json!(code)), "{body}");
    let fields: Vec<_> = body.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["code", "message"]);
    assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
}

/// Asserts that an answer is no refusal, and returns its body.
#[track_caller]
pub fn done(answer: (u16, Value)) -> Value {
    let (status, body) = answer;
    assert!((200..300).contains(&status), "{status} {body}");
    body
}

/// A request as it goes over the wire: the status, the head of the answer, and its body.
async fn raw(naru: &Naru, request: &str, body: &[u8]) -> (u16, String, Value) {
    let address = naru.url.strip_prefix("http://").expect("http");
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let (token, length) = (token_of("A"), body.len());
    let head = format!(
        "{request} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers in UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let body = serde_json::from_str(body).unwrap_or_else(|_| body.into());
    (status, head.to_ascii_lowercase(), body)
}

/// The app's own backend.
pub fn backend(naru: &Naru) -> Http {
    Http::new(&naru.url, &token(SECRET.as_bytes(), &Claims::user("backend").service()))
}

/// A phone whose token names it.
async fn device(naru: &Naru, person: &str, device: &str) -> Client {
    let token = token(SECRET.as_bytes(), &Claims::user(person).device(device));
    let mut phone = Client::connect(&naru.url, &token).await.expect("a session");
    phone.welcome().await;
    phone
}

fn path_of(room: &str) -> String {
    format!("/api/rooms/{room}")
}

async fn room(http: &Http, room: &str) -> Value {
    done(http.get(&path_of(room)).await)
}

/// What one field of each of these holds.
fn all<'a>(field: &str, values: impl IntoIterator<Item = &'a Value>) -> Vec<Value> {
    values.into_iter().map(|value| value[field].clone()).collect()
}

/// RFC 3339 in UTC with milliseconds.
fn is_time(value: &Value) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    value.as_str().is_some_and(|text| {
        text.len() == 24
            && text.ends_with('Z')
            && text.char_indices().all(|(index, c)| match index {
                4 | 7 => c == '-',
                10 => c == 'T',
                13 | 16 => c == ':',
                19 => c == '.',
                23 => c == 'Z',
                _ => digits(&c.to_string()),
            })
    })
}

/// Sends messages numbered from `first` to `last` in the room and waits until all are saved.
async fn send_many(phone: &mut Client, room: &str, first: u64, last: u64) {
    for number in first..=last {
        phone.chat(room, &format!("message {number}"), &format!("{room} {number}")).await;
    }
    for _ in first..=last {
        phone.expect_where("ACK", |ack| ack["chatRoomId"] == room).await;
    }
}

#[tokio::test]
async fn two_people_have_one_direct_room() {
    let naru = Naru::start(&[]).await;
    for (caller, members, id) in [
        ("A", ["A", "B"], "A_B"),
        ("b", ["b", "a"], "a_b"),
        ("B", ["a", "B"], "B_a"),
        ("a_b", ["a_b", "c~d"], "a~1b_c~0d"),
        ("a~1b", ["a~1b", "c"], "a~01b_c"),
        ("x_y", ["x_y", "z"], "x~1y_z"),
        ("x", ["x", "y_z"], "x_y~1z"),
        ("me@example.com", ["you:1", "me@example.com"], "me@example.com_you:1"),
    ] {
        let http = naru.http(caller);
        let mut sorted = members;
        sorted.sort_unstable();
        let (status, made) = http.post("/api/rooms", json!({"memberIds": members})).await;
        assert_eq!((status, &made["id"], &made["memberIds"]), (201, &json!(id), &json!(sorted)));
        assert_eq!((&made["lastSeq"], &made["unreadCount"]), (&json!(0), &json!(0)));
        assert_eq!((&made["lastMessage"], &made["muted"]), (&Value::Null, &json!(false)));
        // Either of them, in either order, finds the same room.
        let other = members.into_iter().find(|member| *member != caller).expect("another");
        for (http, members) in [(http, [members[1], members[0]]), (naru.http(other), members)] {
            let (status, found) = http.post("/api/rooms", json!({"memberIds": members})).await;
            assert_eq!((status, &found["id"], &found["memberIds"]), (200, &json!(id), &json!(sorted)));
            assert_eq!(room(&http, id).await["id"], id);
        }
    }

    // Its members never change, even for the backend.
    let ada = naru.http("A");
    for http in [&ada, &backend(&naru)] {
        refused(http.post("/api/rooms/A_B/members", json!({"userId": "C"})).await, 409, "CONFLICT");
        for user in ["A", "B"] {
            refused(http.delete(&format!("/api/rooms/A_B/members/{user}")).await, 409, "CONFLICT");
        }
    }
    assert_eq!(room(&ada, "A_B").await["memberIds"], json!(["A", "B"]));
    refused(ada.post("/api/rooms", json!({"memberIds": ["B", "C"]})).await, 403, "FORBIDDEN");
    refused(ada.post("/api/rooms", json!({"memberIds": ["A", "C"], "id": "A_C"})).await, 403, "FORBIDDEN");
    assert_eq!(backend(&naru).post("/api/rooms", json!({"memberIds": ["Q", "P"]})).await.0, 201);
    assert_eq!(room(&naru.http("P"), "P_Q").await["id"], "P_Q");

    // At the same time, it is made once.
    let make = || async { naru.http("M").post("/api/rooms", json!({"memberIds": ["M", "N"]})).await.0 };
    let mut made = <[u16; 4]>::from(tokio::join!(make(), make(), make(), make()));
    made.sort_unstable();
    assert_eq!(made, [200, 200, 200, 201]);

    for members in [json!([]), json!(["B"]), json!(["B", "B"])] {
        refused(backend(&naru).post("/api/rooms", json!({"memberIds": members})).await, 400, "INVALID_FRAME");
    }
    for members in [
        json!(["A"]),
        json!(["A", "A"]),
        json!(["A", ""]),
        json!(["A", "b c"]),
        json!(["A", "b/c"]),
        json!(["A", "비"]),
        json!(["A", "b\u{0}"]),
        json!(["A", "x".repeat(129)]),
        json!(["A", 5]),
        json!(["A", null]),
        json!(["A", ["B"]]),
        json!("A"),
        json!({"A": "B"}),
        json!(null),
    ] {
        println!("{members}");
        refused(ada.post("/api/rooms", json!({"memberIds": members})).await, 400, "INVALID_FRAME");
    }
    let longest = "x".repeat(128);
    assert_eq!(ada.post("/api/rooms", json!({"memberIds": ["A", longest]})).await.0, 201);
    naru.stop().await;
}

#[tokio::test]
async fn groups_are_made_anew_each_time() {
    let naru = Naru::start(&["--max-room-members", "5"]).await;
    let (ada, backend) = (naru.http("A"), backend(&naru));
    let three = json!({"memberIds": ["C", "A", "B"], "name": "셋 \u{0}"});
    let (status, first) = ada.post("/api/rooms", three.clone()).await;
    assert_eq!((status, &first["name"]), (201, &three["name"]));
    assert_eq!(first["memberIds"], json!(["A", "B", "C"]));
    let second = done(ada.post("/api/rooms", three.clone()).await);
    assert_ne!(first["id"], second["id"], "the same members again make a new group");
    for person in ["A", "B", "C"] {
        let seen = room(&naru.http(person), first["id"].as_str().expect("an id")).await;
        assert_eq!((&seen["name"], &seen["memberIds"]), (&first["name"], &first["memberIds"]));
    }
    refused(ada.post("/api/rooms", json!({"memberIds": ["B", "C", "D"]})).await, 403, "FORBIDDEN");
    let with_id = |id: &str, members: Value| json!({"memberIds": members, "id": id});
    refused(ada.post("/api/rooms", with_id("mine", json!(["A", "B", "C"]))).await, 403, "FORBIDDEN");

    // A service may give an id, whatever its characters; but not one that another room has.
    for (id, path) in
        [("order-42", "order-42"), ("주문 4/2?#%+&", "%EC%A3%BC%EB%AC%B8%204%2F2%3F%23%25%2B%26")]
    {
        let (status, made) = backend.post("/api/rooms", with_id(id, json!(["A", "B", "C"]))).await;
        assert_eq!((status, &made["id"]), (201, &json!(id)));
        assert_eq!(room(&ada, path).await["id"], id);
        let (_, sent) = ada.send(path, "hello", "a-1").await;
        assert_eq!((&sent["chatRoomId"], &sent["seq"]), (&json!(id), &json!(1)));
        assert_eq!(ada.history(path, "").await[0]["chatRoomId"], id);
        done(ada.put(&format!("{}/settings", path_of(path)), json!({"muted": true})).await);
        refused(backend.post("/api/rooms", with_id(id, json!(["A", "B", "D"]))).await, 409, "CONFLICT");
        refused(backend.post("/api/rooms", with_id(id, json!(["A", "B"]))).await, 409, "CONFLICT");
    }
    ada.create_room(&["A", "B"]).await;
    refused(backend.post("/api/rooms", with_id("A_B", json!(["A", "B", "C"]))).await, 409, "CONFLICT");
    for id in [json!(""), json!(5), json!("x".repeat(10_000))] {
        let body = json!({"memberIds": ["A", "B", "C"], "id": id});
        refused(backend.post("/api/rooms", body).await, 400, "INVALID_FRAME");
    }

    // As many as may be, and not one more.
    let five = done(ada.post("/api/rooms", json!({"memberIds": ["A", "B", "C", "D", "E", "E"]})).await);
    assert_eq!(five["memberIds"], json!(["A", "B", "C", "D", "E"]));
    let (status, body) = ada.post("/api/rooms", json!({"memberIds": ["A", "B", "C", "D", "E", "F"]})).await;
    assert!((400..500).contains(&status) && body["code"].is_string(), "{status} {body}");
    let members = format!("{}/members", path_of(five["id"].as_str().expect("an id")));
    let (status, body) = ada.post(&members, json!({"userId": "F"})).await;
    assert!((400..500).contains(&status) && body["code"].is_string(), "{status} {body}");
    assert_eq!(done(ada.post(&members, json!({"userId": "E"})).await)["memberIds"], five["memberIds"]);
    naru.stop().await;
}

#[tokio::test]
async fn members_come_and_go() {
    let naru = Naru::start(&[]).await;
    let [ada, ben, cleo, dora] = ["A", "B", "C", "D"].map(|person| naru.http(person));
    let id = ada.create_room(&["A", "B", "C"]).await;
    let members = format!("{}/members", path_of(&id));
    let member = |user: &str| format!("{members}/{user}");
    let mut phone = naru.phone("A").await;
    send_many(&mut phone, &id, 1, 3).await;

    // Any member adds. A new member sees all that was said before.
    refused(dora.post(&members, json!({"userId": "D"})).await, 404, "ROOM_NOT_FOUND");
    let mut doras = naru.phone("D").await;
    done(ben.post(&members, json!({"userId": "D"})).await);
    assert_eq!(all("seq", &dora.history(&id, "afterSeq=0").await), [1, 2, 3]);
    let seen = room(&dora, &id).await;
    assert_eq!((&seen["memberIds"], &seen["unreadCount"]), (&json!(["A", "B", "C", "D"]), &json!(3)));
    doras.send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": id, "afterSeq": 1}]})).await;
    assert_eq!(doras.expect("CHAT").await["seq"], 2);
    assert_eq!(doras.expect("CHAT").await["seq"], 3);
    doras.expect("SYNCED").await;
    phone.chat(&id, "welcome", "a-4").await;
    assert_eq!(doras.expect("CHAT").await["seq"], 4);
    doras.chat(&id, "thanks", "d-1").await;
    assert_eq!(doras.expect("ACK").await["seq"], 5);
    done(ben.post(&members, json!({"userId": "D"})).await);
    assert_eq!(room(&dora, &id).await["memberIds"], json!(["A", "B", "C", "D"]), "added once");

    // Others can't remove, the maker and the backend can, and anyone leaves.
    for user in ["A", "C", "D"] {
        refused(ben.delete(&member(user)).await, 403, "FORBIDDEN");
    }
    refused(naru.http("X").delete(&member("B")).await, 404, "ROOM_NOT_FOUND");
    done(ada.delete(&member("D")).await);
    done(backend(&naru).delete(&member("C")).await);
    assert_eq!(room(&ada, &id).await["memberIds"], json!(["A", "B"]));
    refused(cleo.get(&path_of(&id)).await, 404, "ROOM_NOT_FOUND");
    done(ben.delete(&member("B")).await);
    refused(ben.get(&path_of(&id)).await, 404, "ROOM_NOT_FOUND");
    refused(ben.delete(&member("B")).await, 404, "ROOM_NOT_FOUND");
    // It stays a group, and a member who comes back finds everything.
    done(ada.post(&members, json!({"userId": "C"})).await);
    assert_eq!(cleo.history(&id, "").await.len(), 5);
    refused(cleo.delete(&member("A")).await, 403, "FORBIDDEN");
    done(backend(&naru).post(&members, json!({"userId": "E"})).await);
    assert_eq!(room(&ada, &id).await["memberIds"], json!(["A", "C", "E"]));

    for body in
        [json!({}), json!({"userId": 5}), json!({"userId": ""}), json!({"userId": "a b"}), json!(null)]
    {
        println!("{body}");
        refused(ada.post(&members, body).await, 400, "INVALID_FRAME");
    }
    refused(ada.delete(&member("a%20b")).await, 400, "INVALID_FRAME");
    naru.stop().await;
}

/// Once the call has returned, a removed member has no access to the room.
#[tokio::test]
async fn a_removed_member_is_a_stranger() {
    let naru = Naru::start(&[]).await;
    let (ada, cleo) = (naru.http("A"), naru.http("C"));
    let id = ada.create_room(&["A", "B", "C"]).await;
    let path = path_of(&id);
    let (mut adas, mut bens, mut cleos) =
        (naru.phone("A").await, naru.phone("B").await, naru.phone("C").await);
    let mut cleos_tablet = device(&naru, "C", "tablet").await;
    send_many(&mut adas, &id, 1, 2).await;
    cleos.chat(&id, "I am here", "c-1").await;
    cleos.expect("ACK").await;
    for phone in [&mut bens, &mut cleos_tablet] {
        phone.expect_where("CHAT", |chat| chat["seq"] == 3).await;
    }
    cleos.expect_where("CHAT", |chat| chat["seq"] == 2).await;
    for phone in [&mut adas, &mut bens, &mut cleos, &mut cleos_tablet] {
        phone.until_pong().await;
    }
    done(ada.delete(&format!("{path}/members/C")).await);

    for frame in [
        json!({"type": "CHAT", "chatRoomId": id, "content": "still here?", "clientMessageId": "c-2"}),
        json!({"type": "READ", "chatRoomId": id, "seq": 2}),
        json!({"type": "RECEIVED", "chatRoomId": id, "seq": 3}),
        json!({"type": "TYPING", "chatRoomId": id}),
        json!({"type": "SYNC", "rooms": [{"chatRoomId": id, "afterSeq": 0}]}),
    ] {
        cleos.send_json(&frame).await;
        assert_eq!(cleos.expect("ERROR").await["code"], "ROOM_NOT_FOUND", "{frame}");
    }
    refused(cleo.send(&id, "over HTTP?", "c-3").await, 404, "ROOM_NOT_FOUND");
    for call in ["", "/messages", "/messages?afterSeq=0"] {
        refused(cleo.get(&format!("{path}{call}")).await, 404, "ROOM_NOT_FOUND");
    }
    refused(cleo.put(&format!("{path}/settings"), json!({"muted": true})).await, 404, "ROOM_NOT_FOUND");
    refused(cleo.post(&format!("{path}/members"), json!({"userId": "C"})).await, 404, "ROOM_NOT_FOUND");
    assert_eq!(done(cleo.get("/api/rooms").await)["rooms"], json!([]));
    // Not even the backend speaks for her.
    let body = json!({"content": "x", "clientMessageId": "c-4", "senderId": "C"});
    refused(backend(&naru).post(&format!("{path}/messages"), body).await, 404, "ROOM_NOT_FOUND");
    cleos_tablet.send_json(&json!({"type": "SYNC"})).await;
    assert_eq!(cleos_tablet.expect("SYNCED").await["rooms"], json!([]));

    // The others go on without her.
    for number in 4..=8 {
        adas.chat(&id, "without her", &format!("a-{number}")).await;
        assert_eq!(bens.expect("CHAT").await["seq"], number);
    }
    bens.send_json(&json!({"type": "READ", "chatRoomId": id, "seq": 8})).await;
    assert_eq!(adas.expect("READ").await["seq"], 8);
    bens.send_json(&json!({"type": "TYPING", "chatRoomId": id})).await;
    adas.expect("TYPING").await;
    for phone in [&mut cleos, &mut cleos_tablet] {
        for frame_type in ["CHAT", "READ", "RECEIVED", "TYPING"] {
            phone.quiet(frame_type).await;
        }
    }
    for person in ["A", "B"] {
        assert_eq!(all("content", &naru.http(person).history(&id, "afterSeq=3").await), ["without her"; 5]);
    }
    naru.stop().await;
}

#[tokio::test]
async fn the_list_of_rooms_is_by_activity() {
    let naru = Naru::start(&[]).await;
    let (ada, ben) = (naru.http("A"), naru.http("B"));
    let (mut adas, mut bens) = (naru.phone("A").await, naru.phone("B").await);
    for number in 0..7 {
        ada.create_room(&["A", &format!("friend-{number}")]).await;
    }
    ada.create_room(&["A", "B"]).await;
    let group = ada.create_room(&["A", "B", "C"]).await;
    // The first of them are now the latest again.
    for number in [3, 0] {
        send_many(&mut adas, &format!("A_friend-{number}"), 1, 1).await;
    }
    send_many(&mut bens, "A_B", 1, 4).await;
    let wanted = json!([
        "A_B",
        "A_friend-0",
        "A_friend-3",
        group,
        "A_friend-6",
        "A_friend-5",
        "A_friend-4",
        "A_friend-2",
        "A_friend-1",
    ]);
    let whole = done(ada.get("/api/rooms").await);
    assert_eq!(
        (json!(all("id", whole["rooms"].as_array().expect("a list"))), &whole["nextCursor"]),
        (wanted.clone(), &Value::Null)
    );
    for limit in [1, 2, 4, 8, 9, 100] {
        let (mut paged, mut query) = (Vec::new(), format!("limit={limit}"));
        for page_number in 1.. {
            let page = done(ada.get(&format!("/api/rooms?{query}")).await);
            let rooms = page["rooms"].as_array().expect("a list");
            assert!(rooms.len() <= limit && page_number <= 10, "{page}");
            paged.extend(rooms.iter().cloned());
            match page["nextCursor"].as_str() {
                Some(cursor) => query = format!("limit={limit}&cursor={}", escaped(cursor)),
                None => break,
            }
        }
        assert_eq!(json!(paged), whole["rooms"], "by {limit}");
    }

    let top = &whole["rooms"][0];
    let message = &top["lastMessage"];
    assert_eq!((&top["lastSeq"], &top["unreadCount"]), (&json!(4), &json!(4)));
    assert_eq!(
        (&message["content"], &message["senderName"], &message["seq"]),
        (&json!("message 4"), &json!("Ben"), &json!(4))
    );
    assert!(is_time(&message["timestamp"]), "{message}");
    assert_eq!(room(&ada, "A_B").await, *top);
    // Sending reads, up to one's own message; so does saying so; and the others' counts are their own.
    assert_eq!(room(&ben, "A_B").await["unreadCount"], 0);
    adas.send_json(&json!({"type": "READ", "chatRoomId": "A_B", "seq": 3})).await;
    assert_eq!(bens.expect("READ").await["seq"], 3);
    assert_eq!(room(&ada, "A_B").await["unreadCount"], 1);
    send_many(&mut adas, "A_B", 5, 6).await;
    assert_eq!(room(&ada, "A_B").await["unreadCount"], 0);
    assert_eq!(room(&ben, "A_B").await["unreadCount"], 2);
    assert_eq!(ben.send("A_B", "over HTTP", "b-http").await.1["seq"], 7);
    assert_eq!(room(&ben, "A_B").await["unreadCount"], 0);
    assert_eq!(room(&ada, "A_B").await["unreadCount"], 1);
    // A resend reads nothing that came after the message.
    done(ada.send("A_B", "message 5", "A_B 5").await);
    assert_eq!(room(&ada, "A_B").await["unreadCount"], 1);
    assert_eq!(room(&ada, &group).await["unreadCount"], 0);

    for query in
        ["limit=x", "limit=-1", "cursor=x", "cursor=.", "cursor=99999999999999999999.A_B", "limit=1&limit=2"]
    {
        println!("{query}");
        refused(ada.get(&format!("/api/rooms?{query}")).await, 400, "INVALID_FRAME");
    }
    naru.stop().await;
}

#[tokio::test]
async fn settings_are_ones_own() {
    let mut naru = Naru::start(&[]).await;
    let (ada, ben) = (naru.http("A"), naru.http("B"));
    let id = ada.create_room(&["A", "B", "C"]).await;
    let settings = format!("{}/settings", path_of(&id));
    let mut adas = naru.phone("A").await;
    for (body, muted) in [
        (json!({"muted": true}), true),
        (json!({"muted": false}), false),
        (json!({"muted": true, "mutedUntil": "2999-01-01T00:00:00.000Z"}), true),
        (json!({"muted": true, "mutedUntil": "2001-01-01T00:00:00.000Z"}), false),
        (json!({"muted": true, "mutedUntil": null}), true),
    ] {
        done(ben.put(&settings, body.clone()).await);
        assert_eq!(room(&ben, &id).await["muted"], muted, "{body}");
        assert_eq!(done(ben.get("/api/rooms").await)["rooms"][0]["muted"], muted, "{body}");
        assert_eq!(room(&ada, &id).await["muted"], false);
    }
    // Ben is muted: Cleo's phone buzzes, his does not; he misses nothing else.
    for number in 1..=3 {
        adas.chat(&id, "hello", &format!("a-{number}")).await;
        assert_eq!(naru.backend.next().await.json["userId"], "C");
    }
    naru.backend.none_waiting();
    let seen = room(&ben, &id).await;
    assert_eq!((&seen["unreadCount"], &seen["muted"]), (&json!(3), &json!(true)));
    let mut bens = naru.phone("B").await;
    adas.chat(&id, "hello", "a-4").await;
    assert_eq!(bens.expect("CHAT").await["seq"], 4);
    assert_eq!(naru.backend.next().await.json["userId"], "C");
    naru.backend.none_waiting();

    for body in [
        json!({}),
        json!({"muted": "yes"}),
        json!({"muted": 1}),
        json!({"muted": null}),
        json!({"muted": true, "mutedUntil": 5}),
        json!({"muted": true, "mutedUntil": "tomorrow"}),
        json!({"muted": true, "mutedUntil": ""}),
        json!("muted"),
    ] {
        println!("{body}");
        refused(ben.put(&settings, body).await, 400, "INVALID_FRAME");
    }
    naru.stop().await;
}

#[tokio::test]
async fn history_opens_in_windows() {
    let naru = Naru::start(&[]).await;
    let ada = naru.http("A");
    ada.create_room(&["A", "B"]).await;
    let messages = format!("{}/messages", path_of("A_B"));
    assert_eq!(done(ada.get(&messages).await), json!({"messages": [], "hasMore": false, "epoch": 1}));
    let mut adas = naru.phone("A").await;
    send_many(&mut adas, "A_B", 1, 10).await;
    let down = |from: u64, to: u64| (to..=from).rev().collect::<Vec<_>>();
    let up = |from: u64, to: u64| (from..=to).collect::<Vec<_>>();
    for (query, seqs, has_more) in [
        ("", down(10, 1), false),
        ("?limit=10", down(10, 1), false),
        ("?limit=9", down(10, 2), true),
        ("?limit=1", vec![10], true),
        ("?limit=200", down(10, 1), false),
        ("?beforeSeq=4", down(3, 1), false),
        ("?beforeSeq=4&limit=3", down(3, 1), false),
        ("?beforeSeq=4&limit=2", vec![3, 2], true),
        ("?beforeSeq=11&limit=2", vec![10, 9], true),
        ("?beforeSeq=1", vec![], false),
        ("?beforeSeq=0", vec![], false),
        ("?beforeSeq=9223372036854775807&limit=2", vec![10, 9], true),
        ("?beforeSeq=9223372036854775808&limit=2", vec![10, 9], true),
        ("?beforeSeq=18446744073709551615&limit=2", vec![10, 9], true),
        ("?afterSeq=0", up(1, 10), false),
        ("?afterSeq=0&limit=3", up(1, 3), true),
        ("?afterSeq=7&limit=3", up(8, 10), false),
        ("?afterSeq=7&limit=2", up(8, 9), true),
        ("?afterSeq=10", vec![], false),
        ("?afterSeq=11", vec![], false),
        ("?afterSeq=9223372036854775808", vec![], false),
        ("?afterSeq=18446744073709551615", vec![], false),
        ("?unknown=1&limit=1", vec![10], true),
    ] {
        let page = done(ada.get(&format!("{messages}{query}")).await);
        let found = json!(all("seq", page["messages"].as_array().expect("a list")));
        assert_eq!((found, &page["hasMore"]), (json!(seqs), &json!(has_more)), "{query}");
    }
    for query in [
        "beforeSeq=4&afterSeq=2",
        "limit=0",
        "limit=201",
        "limit=-1",
        "limit=1.5",
        "limit=x",
        "limit=99999999999999999999",
        "limit=1&limit=2",
        "afterSeq=-1",
        "afterSeq=x",
        "beforeSeq=1e3",
        "beforeSeq=18446744073709551616",
    ] {
        println!("{query}");
        refused(ada.get(&format!("{messages}?{query}")).await, 400, "INVALID_FRAME");
    }
    // 50 if nothing is said; and a stored message has the fields of a CHAT.
    send_many(&mut adas, "A_B", 11, 51).await;
    let page = done(ada.get(&messages).await);
    assert_eq!((page["messages"].as_array().map(Vec::len), &page["hasMore"]), (Some(50), &json!(true)));
    let message = ada.history("A_B", "afterSeq=0&limit=7").await.swap_remove(0);
    assert!(is_time(&message["timestamp"]), "{message}");
    assert_eq!(
        message,
        json!({
            "id": message["id"], "timestamp": message["timestamp"],
            "chatRoomId": "A_B", "seq": 1, "senderId": "A", "senderName": "Ada",
            "content": "message 1", "clientMessageId": "A_B 1",
        })
    );
    assert_eq!(all("seq", &ada.history("A_B", "limit=7").await), down(51, 1));
    // The app's backend may read without being a member.
    assert_eq!(backend(&naru).history("A_B", "").await.len(), 51);
    naru.stop().await;
}

#[tokio::test]
async fn messages_are_sent_over_http() {
    let naru = Naru::start(&["--max-content-bytes", "100"]).await;
    let (ada, backend) = (naru.http("A"), backend(&naru));
    ada.create_room(&["A", "B"]).await;
    let messages = format!("{}/messages", path_of("A_B"));
    let (mut phone, mut tablet, mut bens) =
        (naru.phone("A").await, naru.phone("A").await, naru.phone("B").await);

    // As often as it is sent, also at the same time, it is one message.
    let send = || ada.send("A_B", "안녕\0", "a-1");
    let first = send().await;
    let ack = &first.1;
    assert_eq!(
        *ack,
        json!({
            "clientMessageId": "a-1", "id": ack["id"], "chatRoomId": "A_B", "seq": 1, "timestamp": ack["timestamp"],
        })
    );
    assert_eq!(first.0, 200);
    assert!(ack["id"].as_str().is_some_and(|id| id.len() == 24) && is_time(&ack["timestamp"]), "{ack}");
    for again in <[_; 4]>::from(tokio::join!(send(), send(), send(), send())) {
        assert_eq!(again, first);
    }
    refused(ada.send("A_B", "other", "a-1").await, 409, "CONFLICT");
    let together = || ada.send("A_B", "together", "a-2");
    let answers = <[_; 4]>::from(tokio::join!(together(), together(), together(), together()));
    assert!(answers.iter().all(|answer| answer.0 == 200 && *answer == answers[0]), "{answers:?}");
    // Whichever way it comes again.
    phone.chat("A_B", "together", "a-2").await;
    assert_eq!(phone.expect("ACK").await["id"], answers[0].1["id"]);
    for session in [&mut phone, &mut tablet, &mut bens] {
        for (seq, content) in [(1, "안녕\0"), (2, "together")] {
            let arrived = session.expect("CHAT").await;
            assert_eq!((&arrived["seq"], &arrived["content"]), (&json!(seq), &json!(content)));
            assert_eq!((&arrived["senderId"], &arrived["senderName"]), (&json!("A"), &json!("Ada")));
        }
    }

    // A service speaks for a member, by any name; no other caller does.
    let body = |extra: Value| {
        let mut body = json!({"content": "beep", "clientMessageId": "bot-1"});
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        body
    };
    for extra in [
        json!({"senderId": "B"}),
        json!({"senderId": "B", "senderName": "Ben"}),
        json!({"senderName": "Root"}),
        json!({"senderId": "A", "senderName": "Root"}),
    ] {
        refused(ada.post(&messages, body(extra)).await, 403, "FORBIDDEN");
    }
    refused(backend.post(&messages, body(json!({}))).await, 404, "ROOM_NOT_FOUND");
    refused(backend.post(&messages, body(json!({"senderId": "C"}))).await, 404, "ROOM_NOT_FOUND");
    let sent = done(backend.post(&messages, body(json!({"senderId": "B", "senderName": "Ben's bot"}))).await);
    for session in [&mut phone, &mut tablet, &mut bens] {
        let arrived = session.expect("CHAT").await;
        assert_eq!((&arrived["id"], &arrived["senderId"]), (&sent["id"], &json!("B")));
        assert_eq!(arrived["senderName"], "Ben's bot");
    }
    let own =
        done(ada.post(&messages, json!({"content": "me", "clientMessageId": "a-3", "senderId": "A"})).await);
    assert_eq!(own["seq"], 4);

    let name = |length| "n".repeat(length);
    for (body, status, code) in [
        (json!({"content": "x"}), 400, "INVALID_FRAME"),
        (json!({"clientMessageId": "c"}), 400, "INVALID_FRAME"),
        (json!({"content": "", "clientMessageId": "c"}), 400, "INVALID_FRAME"),
        (json!({"content": 5, "clientMessageId": "c"}), 400, "INVALID_FRAME"),
        (json!({"content": null, "clientMessageId": "c"}), 400, "INVALID_FRAME"),
        (json!({"content": "x", "clientMessageId": ""}), 400, "INVALID_FRAME"),
        (json!({"content": "x", "clientMessageId": name(65)}), 400, "INVALID_FRAME"),
        (json!({"content": "x", "clientMessageId": 5}), 400, "INVALID_FRAME"),
        (json!({"content": "x", "clientMessageId": "c", "senderId": 5}), 400, "INVALID_FRAME"),
        (json!({"content": name(101), "clientMessageId": "c"}), 413, "TOO_LARGE"),
        (json!({"content": "가".repeat(34), "clientMessageId": "c"}), 413, "TOO_LARGE"),
        (json!("x"), 400, "INVALID_FRAME"),
        (json!(null), 400, "INVALID_FRAME"),
    ] {
        println!("{body}");
        refused(ada.post(&messages, body).await, status, code);
    }
    let (_, limit) = ada.send("A_B", &("가".repeat(33) + "x"), &name(64)).await;
    assert_eq!(limit["seq"], 5);
    assert_eq!(ada.history("A_B", "").await.len(), 5);
    naru.stop().await;
}

#[tokio::test]
async fn devices_are_registered() {
    let naru = Naru::start(&[]).await;
    let (ada, ben) = (naru.http("A"), naru.http("B"));
    let listed = async |http: &Http| {
        let mut devices = done(http.get("/api/devices").await)["devices"].as_array().expect("a list").clone();
        devices.sort_by_key(|device| device["deviceId"].to_string());
        json!(devices)
    };
    assert_eq!(listed(&ada).await, json!([]));
    done(ada.put("/api/devices/phone", json!({"platform": "fcm", "token": "T1"})).await);
    let body = json!({
        "platform": "apns", "token": "a2", "environment": "sandbox", "locale": "ko-KR", "hideContent": true,
    });
    done(ada.put("/api/devices/my%20tablet%2F2", body).await);
    let phone = |platform| {
        json!({
            "deviceId": "phone", "platform": platform, "environment": "production", "locale": null,
            "hideContent": false,
        })
    };
    let tablet = json!({
        "deviceId": "my tablet/2", "platform": "apns", "environment": "sandbox", "locale": "ko-KR",
        "hideContent": true,
    });
    assert_eq!(listed(&ada).await, json!([tablet, phone("fcm")]), "and never the tokens");

    // Again, with another token or platform, it is the same device; Ben's phone is another one.
    let body = json!({"platform": "apns", "token": "a3", "environment": "production"});
    assert_eq!(done(ada.put("/api/devices/phone", body).await), phone("apns"));
    assert_eq!(listed(&ada).await, json!([tablet, phone("apns")]));
    done(ben.put("/api/devices/phone", json!({"platform": "fcm", "token": "T4"})).await);
    assert_eq!(
        (listed(&ada).await, listed(&ben).await[0]["platform"].clone()),
        (json!([tablet, phone("apns")]), json!("fcm"))
    );

    // Ben signs in on Ada's phone: its token is his now, and she is not disturbed by his messages. His app writes it in capitals.
    done(ben.put("/api/devices/from-ada", json!({"platform": "apns", "token": "A3"})).await);
    assert_eq!(
        (listed(&ada).await, all("deviceId", listed(&ben).await.as_array().expect("a list"))),
        (json!([tablet]), vec![json!("from-ada"), json!("phone")])
    );

    assert_eq!(ben.delete("/api/devices/my%20tablet%2F2").await.1["deviceId"], Value::Null);
    assert_eq!(listed(&ada).await, json!([tablet]), "it is not Ben's to remove");
    assert_eq!(ada.delete("/api/devices/my%20tablet%2F2").await, (204, Value::Null));
    assert_eq!(listed(&ada).await, json!([]));

    for body in [
        json!({}),
        json!({"platform": "fcm"}),
        json!({"token": "T"}),
        json!({"platform": "FCM", "token": "T"}),
        json!({"platform": "web", "token": "T"}),
        json!({"platform": "fcm", "token": ""}),
        json!({"platform": "fcm", "token": 5}),
        json!({"platform": "fcm", "token": "T\n"}),
        json!({"platform": "fcm", "token": "T 1"}),
        json!({"platform": "apns", "token": " a1"}),
        json!({"platform": "apns", "token": "<a1b2 c3d4>"}),
        json!({"platform": "apns", "token": "a1", "environment": "test"}),
        json!({"platform": "apns", "token": "a1", "locale": 5}),
        json!({"platform": "apns", "token": "a1", "hideContent": "yes"}),
        json!("fcm"),
    ] {
        println!("{body}");
        refused(ada.put("/api/devices/phone", body).await, 400, "INVALID_FRAME");
    }
    assert_eq!(listed(&ada).await, json!([]));
    naru.stop().await;
}

#[tokio::test]
async fn presence_is_for_users_with_a_room_in_common() {
    let naru = Naru::start(&[]).await;
    let ada = naru.http("A");
    ada.create_room(&["A", "B"]).await;
    ada.create_room(&["A", "friend_1"]).await;
    let group = ada.create_room(&["A", "C", "D"]).await;
    let bens = naru.phone("B").await;
    let stranger = naru.phone("X").await;
    let ask = async |users: &str| done(ada.get(&format!("/api/presence?userIds={users}")).await);
    let seen = ask("B,C,friend_1,X,Nobody").await;
    assert_eq!(all("userId", seen.as_array().expect("a list")), ["B", "C", "friend_1"]);
    assert_eq!(seen[0]["online"], true);
    for never in [&seen[1], &seen[2]] {
        assert_eq!(*never, json!({"userId": never["userId"], "online": false, "lastSeenAt": null}));
    }
    assert_eq!(ask("X,Nobody").await, json!([]));
    assert_eq!(done(naru.http("X").get("/api/presence?userIds=A,B,C").await), json!([]));
    bens.close().await;
    stranger.close().await;
    let mut gone = Value::Null;
    for _ in 0..2_000 {
        gone = ask("B").await;
        if gone[0]["online"] == false {
            break;
        }
    }
    assert_eq!(gone[0]["online"], false);
    assert!(is_time(&gone[0]["lastSeenAt"]), "{gone}");
    // A user without a room in common any more is seen no more.
    assert_eq!(all("userId", ask("D").await.as_array().expect("a list")), ["D"]);
    done(ada.delete(&format!("{}/members/D", path_of(&group))).await);
    assert_eq!(ask("D").await, json!([]));

    for query in ["", "?userIds=B%20C", "?userIds=B&userIds=C"] {
        println!("{query}");
        refused(ada.get(&format!("/api/presence{query}")).await, 400, "INVALID_FRAME");
    }
    naru.stop().await;
}

#[tokio::test]
async fn it_tells_how_it_is() {
    let naru = Naru::start(&[]).await;
    let anonymous = Http::without_token(&naru.url);
    assert_eq!(anonymous.get("/healthz").await.0, 200);
    assert_eq!(anonymous.get("/readyz").await.0, 200);
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    send_many(&mut ada, "A_B", 1, 1).await;
    let (status, metrics) = anonymous.get("/metrics").await;
    let metrics = metrics.as_str().expect("a text");
    assert_eq!(status, 200);
    for line in metrics.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let value = line.rsplit_once(' ').map(|(_, value)| value);
        assert!(value.is_some_and(|value| value.parse::<f64>().is_ok()), "{line}");
    }
    assert!(metrics.contains("# TYPE ") && !metrics.contains("A_B"), "{metrics}");
    let (_, head, _) = raw(&naru, "GET /metrics", b"").await;
    assert!(head.contains("content-type: ") && head.contains("text"), "{head}");
    naru.stop().await;
}

#[tokio::test]
async fn whatever_is_asked_is_answered_as_json() {
    let naru = Naru::start(&[]).await;
    let ada = naru.http("A");
    ada.create_room(&["A", "B"]).await;
    for path in [
        "/nothing",
        "/api",
        "/api/",
        "/api/nothing",
        "/api/rooms/A_B/nothing",
        "/api/rooms/A_B/messages/1",
        "/ws/x",
        "//",
        "/api/v2/rooms",
    ] {
        let (status, body) = ada.get(path).await;
        assert_eq!(status, 404, "{path}: {body}");
        refused((status, body.clone()), 404, body["code"].as_str().unwrap_or_default());
    }
    for (method, path) in
        [("DELETE", "/api/rooms"), ("PATCH", "/api/rooms/A_B"), ("POST", "/ws"), ("PUT", "/api/presence")]
    {
        let (status, head, body) = raw(&naru, &format!("{method} {path}"), b"{}").await;
        assert!(matches!(status, 404 | 405), "{method} {path}: {status}");
        assert!(head.contains("content-type: application/json"), "{head}");
        refused((status, body.clone()), status, body["code"].as_str().unwrap_or_default());
    }
    // Malformed addresses. A stray percent sign may be read as itself: then there is no such room.
    for (target, wanted) in [
        ("/api/rooms/%ff", &[400][..]),
        ("/api/rooms/%c3%28/messages", &[400]),
        ("/api/rooms/%zz", &[400, 404]),
        ("/api/rooms/%", &[400, 404]),
        ("/api/rooms/%00", &[400, 404]),
        ("/api/rooms//messages", &[400, 404]),
        ("/api/rooms/A_B/messages?limit=%ff", &[400]),
        ("/api/rooms/A_B/messages?limit=%zz", &[400]),
        ("/api/presence?userIds=%ff", &[400]),
        ("/api/rooms/A_B%2Fmessages", &[404]),
    ] {
        let (status, _, body) = raw(&naru, &format!("GET {target}"), b"").await;
        assert!(wanted.contains(&status), "{target}: {status} {body}");
        refused((status, body.clone()), status, body["code"].as_str().unwrap_or_default());
    }
    for (target, wanted) in [
        ("/api/rooms/A%5FB/messages?&&", 200),
        ("/api/rooms/A_B/messages?", 200),
        ("/api/rooms/A_B/messages?limit", 200),
        ("/api/rooms?limit=50&unknown=%zz", 200),
    ] {
        assert_eq!(raw(&naru, &format!("GET {target}"), b"").await.0, wanted, "{target}");
    }

    // Bodies that can't be read.
    let deep = format!(r#"{{"memberIds":{}{}}}"#, "[".repeat(30_000), "]".repeat(30_000));
    let bodies: [&[u8]; 12] = [
        b"",
        b" ",
        b"{",
        b"memberIds=A",
        b"[]",
        b"5",
        br#"{"memberIds":["A","C"]}}"#,
        br#"{"memberIds":["A","C"]} x"#,
        br#"{"memberIds":["A","C"],"memberIds":["A","D"]}"#,
        br#"{"memberIds":["A","C\ud800"]}"#,
        b"{\"memberIds\":[\"A\",\"C\xff\"]}",
        deep.as_bytes(),
    ];
    for body in bodies {
        println!("{}", String::from_utf8_lossy(&body[..body.len().min(80)]));
        let (status, _, answer) = raw(&naru, "POST /api/rooms", body).await;
        refused((status, answer), 400, "INVALID_FRAME");
    }
    // The frame limit counts for bodies.
    let room = |length: usize| {
        let body = json!({"memberIds": ["A", "C"], "pad": ""}).to_string();
        body.replace(r#""pad":"""#, &format!(r#""pad":"{}""#, "x".repeat(length - body.len()))).into_bytes()
    };
    assert_eq!(raw(&naru, "POST /api/rooms", &room(65_536)).await.0, 201);
    let (status, _, body) = raw(&naru, "POST /api/rooms", &room(65_537)).await;
    refused((status, body), 413, "TOO_LARGE");
    for length in [70_000, 1_000_000, 20_000_000] {
        refused(ada.post("/api/rooms", json!({"pad": "x".repeat(length)})).await, 413, "TOO_LARGE");
    }
    assert_eq!(done(ada.get("/api/rooms").await)["rooms"].as_array().map(Vec::len), Some(2));
    naru.stop().await;
}

/// A body is an object: the fields of a list have no names.
#[tokio::test]
async fn a_list_is_no_body() {
    let naru = Naru::start(&[]).await;
    let ada = naru.http("A");
    let path = path_of(&ada.create_room(&["A", "B", "C"]).await);
    let answers = [
        ada.post("/api/rooms", json!([["A", "D"], null, null])).await,
        ada.post(&format!("{path}/members"), json!(["E"])).await,
        ada.put(&format!("{path}/settings"), json!([true, null])).await,
        ada.post(&format!("{path}/messages"), json!(["x", "c", null, null])).await,
        ada.put("/api/devices/phone", json!(["fcm", "T", null, null])).await,
    ];
    for answer in answers {
        refused(answer, 400, "INVALID_FRAME");
    }
    naru.stop().await;
}

/// RECEIVED and READ are told to the others, go only forward, and no further than there are messages.
#[tokio::test]
async fn positions_only_go_forward() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let group = naru.http("A").create_room(&["A", "B", "C"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, device(&naru, "B", "phone").await);
    send_many(&mut ada, "A_B", 1, 6).await;
    send_many(&mut ada, &group, 1, 1).await;
    let step = |step: &str, seq: u64| json!({"type": step, "chatRoomId": "A_B", "seq": seq});
    for (what, seq) in [("RECEIVED", 2), ("RECEIVED", 1), ("RECEIVED", 2), ("RECEIVED", 3)] {
        ben.send_json(&step(what, seq)).await;
    }
    for seq in [2, 3] {
        let told = ada.expect("RECEIVED").await;
        assert_eq!(
            (&told["userId"], &told["chatRoomId"], &told["seq"]),
            (&json!("B"), &json!("A_B"), &json!(seq))
        );
        assert!(is_time(&told["timestamp"]), "{told}");
    }
    for seq in [4, 0, 3, 4, 5] {
        ben.send_json(&step("READ", seq)).await;
    }
    for seq in [4, 5] {
        let told = ada.expect("READ").await;
        assert_eq!(
            (&told["userId"], &told["chatRoomId"], &told["seq"]),
            (&json!("B"), &json!("A_B"), &json!(seq))
        );
        assert!(is_time(&told["timestamp"]), "{told}");
    }
    // What was read was received: this goes nowhere.
    ben.send_json(&step("RECEIVED", 4)).await;
    let http = naru.http("B");
    assert_eq!(room(&http, "A_B").await["unreadCount"], 1);
    // Cut to the last message, however far it reaches.
    ben.send_json(&step("READ", u64::MAX)).await;
    assert_eq!(ada.expect("READ").await["seq"], 6);
    assert_eq!(room(&http, "A_B").await["unreadCount"], 0);
    // Nothing is left of what reached too far, neither there nor where there is no message yet. Steps are taken in
    // their order: a client that is told of the last one knows that those before were taken.
    naru.http("B").create_room(&["B", "C"]).await;
    ben.send_json(&step("READ", 1 << 63)).await;
    ben.send_json(&json!({"type": "READ", "chatRoomId": "B_C", "seq": 5})).await;
    ben.send_json(&json!({"type": "READ", "chatRoomId": group, "seq": 1})).await;
    ada.expect_where("READ", |read| read["chatRoomId"] == group).await;
    send_many(&mut ada, "A_B", 7, 8).await;
    naru.http("C").send("B_C", "hello", "c-1").await;
    assert_eq!(room(&http, "A_B").await["unreadCount"], 2);
    assert_eq!(room(&http, "B_C").await["unreadCount"], 1);
    for (seq, told) in [(7, 7), (1_000_000, 8)] {
        ben.send_json(&step("READ", seq)).await;
        assert_eq!(ada.expect("READ").await["seq"], told);
    }
    // Nothing came twice or backwards, and the session that made the steps is not told of them.
    for phone in [&mut ada, &mut ben] {
        for frame_type in ["READ", "RECEIVED"] {
            phone.quiet(frame_type).await;
        }
    }
    naru.stop().await;
}

/// Devices have their own positions, but other users are told of the furthest.
#[tokio::test]
async fn a_slower_device_takes_nothing_back() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    let [mut phone, mut tablet] = [device(&naru, "B", "phone").await, device(&naru, "B", "tablet").await];
    send_many(&mut ada, "A_B", 1, 6).await;
    let step = |step: &str, seq: u64| json!({"type": step, "chatRoomId": "A_B", "seq": seq});
    phone.send_json(&step("RECEIVED", 5)).await;
    assert_eq!(ada.expect("RECEIVED").await["seq"], 5);
    tablet.send_json(&step("RECEIVED", 2)).await;
    tablet.send_json(&step("RECEIVED", 6)).await;
    assert_eq!(ada.expect("RECEIVED").await["seq"], 6);
    naru.stop().await;
}

/// In a large room positions are kept, but not published.
#[tokio::test]
async fn positions_are_not_told_in_a_crowd() {
    let naru = Naru::start(&[]).await;
    let people: Vec<String> = ["A", "B"]
        .map(str::to_owned)
        .into_iter()
        .chain((3..=33).map(|number| format!("u{number}")))
        .collect();
    let people: Vec<&str> = people.iter().map(String::as_str).collect();
    let (ada, ben) = (naru.http("A"), naru.http("B"));
    let (few, crowd) = (ada.create_room(&people[..32]).await, ada.create_room(&people).await);
    let (mut adas, mut bens) = (naru.phone("A").await, naru.phone("B").await);
    for id in [&crowd, &few] {
        send_many(&mut adas, id, 1, 3).await;
        bens.send_json(&json!({"type": "RECEIVED", "chatRoomId": id, "seq": 1})).await;
        bens.send_json(&json!({"type": "READ", "chatRoomId": id, "seq": 2})).await;
    }
    // Steps are taken in their order: told of the few, she would have been told of the crowd before.
    let told = adas.expect("READ").await;
    assert_eq!((&told["chatRoomId"], &told["seq"]), (&json!(few), &json!(2)));
    assert_eq!(adas.expect("RECEIVED").await["chatRoomId"], json!(few));
    for id in [&crowd, &few] {
        assert_eq!(room(&ben, id).await["unreadCount"], 1);
    }
    // With one more, the few are a crowd as well.
    done(ada.post(&format!("{}/members", path_of(&few)), json!({"userId": "u33"})).await);
    ada.create_room(&["A", "B"]).await;
    send_many(&mut adas, "A_B", 1, 1).await;
    for (id, seq) in [(few.as_str(), 3), ("A_B", 1)] {
        bens.send_json(&json!({"type": "READ", "chatRoomId": id, "seq": seq})).await;
    }
    assert_eq!(adas.expect("READ").await["chatRoomId"], "A_B");
    assert_eq!(room(&ben, &few).await["unreadCount"], 0);
    for frame_type in ["READ", "RECEIVED"] {
        adas.quiet(frame_type).await;
    }
    naru.stop().await;
}

#[tokio::test]
async fn typing_reaches_the_others() {
    let naru = Naru::start(&[]).await;
    let id = naru.http("A").create_room(&["A", "B", "C"]).await;
    let (mut ada, mut ben, mut cleo) = (naru.phone("A").await, naru.phone("B").await, naru.phone("C").await);
    let mut stranger = naru.phone("X").await;
    ada.send_json(&json!({"type": "TYPING", "chatRoomId": id})).await;
    for other in [&mut ben, &mut cleo] {
        let told = other.expect("TYPING").await;
        assert_eq!((&told["chatRoomId"], &told["userId"]), (&json!(id), &json!("A")));
    }
    for other in [&mut ada, &mut stranger] {
        other.quiet("TYPING").await;
    }
    assert_eq!(naru.http("A").history(&id, "").await.len(), 0);
    naru.stop().await;
}

/// Asks for a room until it is complete: what came, and in how many answers.
async fn sync_all(phone: &mut Client, id: &str, after: u64) -> (Vec<Value>, usize) {
    let (mut after, mut messages) = (json!(after), Vec::new());
    for answers in 1..=20 {
        phone.send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": id, "afterSeq": after}]})).await;
        let synced = phone.expect("SYNCED").await;
        let part = phone.until_pong().await;
        assert!(part.iter().all(|frame| frame["type"] == "CHAT"), "{part:?}");
        let last = part.last().map_or(after.clone(), |message| message["seq"].clone());
        let room = &synced["rooms"][0];
        assert_eq!((&room["chatRoomId"], &room["seq"]), (&json!(id), &last), "{synced}");
        messages.extend(part);
        if room["complete"] == true {
            return (messages, answers);
        }
        assert!(last.as_u64() > after.as_u64(), "no progress: {synced}");
        after = last;
    }
    panic!("it never ends");
}

#[tokio::test]
async fn a_sync_brings_what_is_missed_page_by_page() {
    let naru = Naru::start(&["--rate-messages-per-second", "0"]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    naru.http("A").create_room(&["A", "C"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    send_many(&mut ada, "A_B", 1, 225).await;
    send_many(&mut ben, "A_B", 226, 450).await;
    send_many(&mut ada, "A_C", 1, 3).await;
    let history = naru.http("A").history("A_B", "afterSeq=0&limit=200").await;
    // Both get all, one's own as well, the same as the history holds.
    for (person, after) in [("A", 0), ("B", 0), ("B", 100), ("A", 449), ("A", 450)] {
        let mut phone = naru.phone(person).await;
        let (messages, answers) = sync_all(&mut phone, "A_B", after).await;
        let bare: Vec<Value> = messages
            .into_iter()
            .map(|mut message| {
                message.as_object_mut().expect("an object").remove("type");
                message
            })
            .collect();
        assert_eq!(bare, history[usize::try_from(after).expect("small")..], "{person} after {after}");
        println!("{person} after {after}: {answers} answers");
    }

    // Several rooms in one answer; a position ahead of the room is not believed; none is none.
    let mut phone = naru.phone("A").await;
    let rooms = json!([
        {"chatRoomId": "A_C", "afterSeq": 1}, {"chatRoomId": "A_B", "afterSeq": 448},
    ]);
    phone.send_json(&json!({"type": "SYNC", "rooms": rooms})).await;
    for (id, seq) in [("A_C", 2), ("A_C", 3), ("A_B", 449), ("A_B", 450)] {
        assert_eq!(phone.expect_where("CHAT", |chat| chat["chatRoomId"] == id).await["seq"], seq);
    }
    assert_eq!(
        phone.expect("SYNCED").await["rooms"],
        json!([{"chatRoomId": "A_C", "seq": 3, "complete": true, "epoch": 1}, {"chatRoomId": "A_B", "seq": 450, "complete": true, "epoch": 1}])
    );
    for (after, seq) in [(3, 3), (4, 3), (u64::MAX, 3)] {
        phone.send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": "A_C", "afterSeq": after}]})).await;
        let synced = phone.expect("SYNCED").await;
        assert_eq!(
            synced["rooms"],
            json!([{"chatRoomId": "A_C", "seq": seq, "complete": true, "epoch": 1}]),
            "after {after}"
        );
    }
    phone.send_json(&json!({"type": "SYNC", "rooms": []})).await;
    assert_eq!(phone.expect("SYNCED").await["rooms"], json!([]));
    phone.quiet("CHAT").await;
    naru.stop().await;
}

/// A device that doesn't know what it has goes on from what it said it had.
#[tokio::test]
async fn a_device_resumes_where_it_was() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let group = naru.http("A").create_room(&["A", "B", "C"]).await;
    naru.http("C").create_room(&["A", "C"]).await;
    let mut ada = naru.phone("A").await;
    // Another's device of the same name is another device.
    let mut adas_phone = device(&naru, "A", "phone").await;
    send_many(&mut ada, "A_B", 1, 5).await;
    send_many(&mut ada, &group, 1, 4).await;
    send_many(&mut ada, "A_C", 1, 1).await;
    let ben = device(&naru, "B", "phone").await;
    let mut bens = [ben, device(&naru, "B", "tablet").await];
    let steps = [(0, "RECEIVED", "A_B", 2), (0, "READ", group.as_str(), 3), (1, "RECEIVED", "A_B", 4)];
    for (phone, step, id, seq) in steps {
        bens[phone].send_json(&json!({"type": step, "chatRoomId": id, "seq": seq})).await;
        ada.expect_where(step, |told| told["chatRoomId"] == id && told["seq"] == seq).await;
    }
    let [phone, tablet] = bens;
    phone.abort().await;
    tablet.close().await;
    // READ says that the user has seen it, RECEIVED that this device has it: the tablet's own position in the group is
    // still the beginning.
    for (name, direct, in_group) in [
        ("phone", vec![3, 4, 5], vec![4]),
        ("tablet", vec![5], vec![1, 2, 3, 4]),
        ("new", vec![1, 2, 3, 4, 5], vec![1, 2, 3, 4]),
    ] {
        for _ in 0..2 {
            let mut again = device(&naru, "B", name).await;
            again.send_json(&json!({"type": "SYNC"})).await;
            let synced = again.expect("SYNCED").await;
            let came = again.until_pong().await;
            let of = |id: &str| all("seq", came.iter().filter(|chat| chat["chatRoomId"] == id));
            assert_eq!((json!(of("A_B")), json!(of(&group))), (json!(direct), json!(in_group)), "{name}");
            assert_eq!(came.len(), direct.len() + in_group.len(), "{name}: {came:?}");
            let mut rooms = synced["rooms"].as_array().expect("a list").clone();
            rooms.sort_by_key(|room| room["seq"].as_u64());
            let complete =
                |id: &str, seq: u64| json!({"chatRoomId": id, "seq": seq, "complete": true, "epoch": 1});
            assert_eq!(rooms, [complete(&group, 4), complete("A_B", 5)], "{name}");
        }
    }
    adas_phone.until_pong().await;
    adas_phone.send_json(&json!({"type": "SYNC"})).await;
    adas_phone.expect("SYNCED").await;
    assert_eq!(adas_phone.until_pong().await.len(), 10, "Ada's phone has said nothing yet");
    naru.stop().await;
}

fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}
