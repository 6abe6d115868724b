//! What must be refused: each time with the code that the contract names, and with nothing stored.

use std::time::{Duration, Instant};

use jsonwebtoken::EncodingKey;
use naru_client::token::Algorithm;
use naru_client::{Claims, Client, Connect, Http, Incoming, TEST_TIMEOUT, token};
use serde_json::{Value, json};

use crate::support::{Naru, SECRET, token_of};

/// Sends a text that must be refused and returns the refusal. The connection answers afterwards, and says nothing else.
async fn refusal(phone: &mut Client, text: &str) -> Value {
    let start: String = text.chars().take(160).collect();
    println!("sending {} bytes: {start}", text.len());
    phone.send_text(text).await;
    let error = phone.expect("ERROR").await;
    assert_eq!(phone.until_pong().await, Vec::<Value>::new(), "after {error}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
    error
}

/// The same for many texts that are all no frames.
async fn all_are_invalid(phone: &mut Client, texts: impl IntoIterator<Item = String>) {
    for text in texts {
        assert_eq!(refusal(phone, &text).await["code"], "INVALID_FRAME");
    }
}

/// Nothing was stored: the next message is the room's first.
async fn nothing_was_stored(naru: &Naru, phone: &mut Client) {
    assert_eq!(naru.http("A").history("A_B", "").await, Vec::<Value>::new());
    phone.chat("A_B", "the first", "first").await;
    assert_eq!(phone.expect_where("ACK", |ack| ack["clientMessageId"] == "first").await["seq"], 1);
}

fn chat(content: &str, client_message_id: &str) -> Value {
    json!({"type": "CHAT", "chatRoomId": "A_B", "content": content, "clientMessageId": client_message_id})
}

/// One good frame of each type that has fields.
fn good_frames() -> [Value; 6] {
    [
        json!({"type": "CHAT", "chatRoomId": "A_B", "content": "x", "clientMessageId": "c", "senderId": "A"}),
        json!({"type": "DROP", "chatRoomId": "A_B", "clientMessageId": "c"}),
        json!({"type": "SYNC", "rooms": [{"chatRoomId": "A_B", "afterSeq": 0}]}),
        json!({"type": "RECEIVED", "chatRoomId": "A_B", "seq": 0}),
        json!({"type": "READ", "chatRoomId": "A_B", "seq": 0}),
        json!({"type": "TYPING", "chatRoomId": "A_B"}),
    ]
}

#[tokio::test]
async fn what_is_no_frame_is_refused() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    let texts = [
        "",
        " ",
        "hello",
        "{",
        "}",
        "[]",
        r#"["PING"]"#,
        r#"[{"type":"PING"}]"#,
        "null",
        "true",
        "5",
        "-1e999",
        r#""PING""#,
        "{}",
        r#"{"type":null}"#,
        r#"{"type":5}"#,
        r#"{"type":["PING"]}"#,
        r#"{"type":""}"#,
        r#"{"type":"ping"}"#,
        r#"{"type":"PING "}"#,
        r#"{"type":"WELCOME"}"#,
        r#"{"type":"ACK"}"#,
        r#"{"type":"NO_SUCH_TYPE"}"#,
        r#"{"TYPE":"PING"}"#,
        r#"{'type':'PING'}"#,
        r#"{"type":"PING",}"#,
        r#"{"type":"PING"}{"type":"PING"}"#,
        r#"{"type":"PING"} x"#,
        r#"{"type":"PING"}]"#,
        "\u{feff}{\"type\":\"PING\"}",
        r#"{"type":"PING","type":"PING"}"#,
        r#"{"type":"CHAT","chatRoomId":"A_B","content":"x","content":"y"}"#,
        r#"{"type":"CHAT","chatRoomId":"A_B","chatRoomId":"A_B","content":"x"}"#,
        r#"{"type":"CHAT","chatRoomId":"A_B","content":"x","clientMessageId":"c","clientMessageId":"d"}"#,
        r#"{"type":"CHAT","chatRoomId":"A_B","content":"x","senderId":"A","senderId":"B"}"#,
        r#"{"type":"CHAT","chatRoomId":"A_B","content":""}"#,
        r#"{"type":"CHAT","chatRoomId":"","content":"x"}"#,
        r#"{"type":"CHAT","chatRoomId":"A_B","content":"a\ud800b"}"#,
        r#"{"type":"CHAT","chatRoomId":"A_B","content":"\udc00\ud800"}"#,
        r#"{"type":"CHAT","chatRoomId":"A_B","content":"x","clientMessageId":"\udfff"}"#,
        r#"{"type":"CHAT","chatRoomId":"A_B\ud800","content":"x"}"#,
        r#"{"type":"CHAT","chatRoomId":"A_B","content":"\x"}"#,
        "{\"type\":\"CHAT\",\"chatRoomId\":\"A_B\",\"content\":\"a\nb\"}",
        r#"{"type":"READ","chatRoomId":"A_B","seq":1e999}"#,
        r#"{"type":"READ","chatRoomId":"A_B","seq":NaN}"#,
    ];
    all_are_invalid(&mut ada, texts.map(str::to_owned)).await;

    // However deep. The frame limit of 64 KiB is what bounds it.
    let deep = |count: usize| "[".repeat(count);
    let closed = |count: usize| deep(count) + &"]".repeat(count);
    let texts = [
        deep(60_000),
        closed(30_000),
        "{\"a\":".repeat(12_000),
        format!(r#"{{"type":{}"#, deep(60_000)),
        format!(r#"{{"type":"PING","unknown":{}"#, deep(60_000)),
        format!(r#"{{"type":{}}}"#, closed(30_000)),
        format!(r#"{{"type":"CHAT","chatRoomId":"A_B","content":{}}}"#, closed(30_000)),
        format!(r#"{{"type":"CHAT","chatRoomId":{},"content":"x"}}"#, closed(30_000)),
        format!(r#"{{"type":"SYNC","rooms":{}}}"#, closed(30_000)),
        format!(r#"{{"type":"READ","chatRoomId":"A_B","seq":{}}}"#, closed(30_000)),
    ];
    all_are_invalid(&mut ada, texts).await;

    // Whatever a good frame loses from its end.
    let whole = chat("안녕", "c").to_string();
    let parts = whole.char_indices().map(|(index, _)| whole[..index].to_owned());
    all_are_invalid(&mut ada, parts).await;

    for bytes in [&b""[..], br#"{"type":"PING"}"#, &[0xff; 100]] {
        ada.send_binary(bytes).await;
        assert_eq!(ada.expect("ERROR").await["code"], "INVALID_FRAME");
        assert_eq!(ada.until_pong().await, Vec::<Value>::new());
    }
    nothing_was_stored(&naru, &mut ada).await;
    naru.stop().await;
}

/// Every field of every frame: absent, and of every other type.
#[tokio::test]
async fn missing_and_wrong_fields_are_refused() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    let not_a_text = json!([true, 5, 1.5, [], ["A_B"], {}, {"chatRoomId": "A_B"}]);
    let not_a_seq = json!([true, "1", "", -1, 1.5, [], [1], {}, i64::MIN, 1e30]);
    let not_rooms = json!([
        true, 5, "A_B", {}, {"chatRoomId": "A_B", "afterSeq": 0},
        [null], [5], ["A_B"], [[]], [{}], [{"chatRoomId": "A_B"}], [{"afterSeq": 0}],
        [{"chatRoomId": "A_B", "afterSeq": "0"}], [{"chatRoomId": "A_B", "afterSeq": -1}],
        [{"chatRoomId": "A_B", "afterSeq": null}], [{"chatRoomId": 5, "afterSeq": 0}],
        [{"chatRoomId": "", "afterSeq": 0}], [{"chatRoomId": "A_B", "afterSeq": 0}, 5],
    ]);
    for frame in good_frames() {
        for (field, value) in frame.as_object().expect("an object") {
            let mut wrong = match value {
                Value::Number(_) => &not_a_seq,
                Value::Array(_) => &not_rooms,
                _ => &not_a_text,
            }
            .as_array()
            .expect("a list")
            .clone();
            let is_optional = matches!(field.as_str(), "clientMessageId" | "senderId");
            if !is_optional && field != "rooms" {
                wrong.push(Value::Null);
            }
            let mut texts: Vec<String> = Vec::new();
            for wrong in wrong {
                let mut bad = frame.clone();
                bad[field] = wrong;
                texts.push(bad.to_string());
            }
            // Without `rooms` this is a SYNC of all rooms, which needs to know the device.
            if !is_optional {
                let mut bad = frame.clone();
                bad.as_object_mut().expect("an object").remove(field);
                texts.push(bad.to_string());
            }
            all_are_invalid(&mut ada, texts).await;
        }
    }
    nothing_was_stored(&naru, &mut ada).await;
    naru.stop().await;
}

/// The rooms of a SYNC are objects: the fields of a list have no names.
#[tokio::test]
async fn a_list_is_no_room_of_a_sync() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    all_are_invalid(&mut ada, [r#"{"type":"SYNC","rooms":[["A_B",0]]}"#.to_owned()]).await;
    naru.stop().await;
}

#[tokio::test]
async fn unknown_fields_are_ignored() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    for field in ["version", "seq", "id", "timestamp", "senderName", "constructor", ""] {
        for value in [json!(null), json!(5), json!("x"), json!([[[]]]), json!({"type": "PING"})] {
            let mut frame = json!({"type": "PING"});
            frame[field] = value;
            ada.send_json(&frame).await;
            ada.expect("PONG").await;
        }
    }
    for text in [
        format!(r#"{{"unknown":{}{},"type":"PING"}}"#, "[".repeat(30_000), "]".repeat(30_000)),
        r#" {  "type" : "\u0050ING" , "a" : 1 , "a" : 2 } "#.to_owned(),
    ] {
        ada.send_text(&text).await;
        ada.expect("PONG").await;
    }

    // What only a server says is not believed.
    let mut frame = chat("x", "c");
    for (field, value) in [("id", "000000000000000000000000"), ("timestamp", "1999"), ("senderName", "Root")]
    {
        frame[field] = json!(value);
    }
    frame["seq"] = json!(99);
    ada.send_json(&frame).await;
    let (ack, arrived) = (ada.expect("ACK").await, ben.expect("CHAT").await);
    assert_eq!((&arrived["seq"], &arrived["senderName"]), (&json!(1), &json!("Ada")));
    assert_eq!(arrived["id"], ack["id"]);
    assert_ne!(arrived["id"], frame["id"]);
    assert_ne!(arrived["timestamp"], "1999");
    naru.stop().await;
}

/// A refused message is refused by its own name, whatever is wrong with it.
#[tokio::test]
async fn an_error_names_its_message() {
    let naru = Naru::start(&["--max-content-bytes", "100"]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    naru.http("B").create_room(&["B", "C"]).await;
    let mut ada = naru.phone("A").await;
    let long = "x".repeat(101);
    for (code, field, value) in [
        ("INVALID_FRAME", "content", json!(5)),
        ("INVALID_FRAME", "content", json!(null)),
        ("INVALID_FRAME", "content", json!("")),
        ("INVALID_FRAME", "chatRoomId", json!({})),
        ("INVALID_FRAME", "senderId", json!(5)),
        ("TOO_LARGE", "content", json!(long)),
        ("FORBIDDEN", "senderId", json!("B")),
        ("FORBIDDEN", "senderId", json!("a")),
        ("FORBIDDEN", "senderId", json!("")),
        ("ROOM_NOT_FOUND", "chatRoomId", json!("B_C")),
        ("ROOM_NOT_FOUND", "chatRoomId", json!("no such room")),
    ] {
        let name = format!("{code} {field} {}", value.to_string().len());
        let mut frame = chat("x", &name);
        frame[field] = value;
        let error = refusal(&mut ada, &frame.to_string()).await;
        assert_eq!((&error["code"], &error["clientMessageId"]), (&json!(code), &json!(name)));
    }
    let text = r#"{"type":"CHAT","clientMessageId":"half","chatRoomId":"A_B","content":"\ud800"}"#;
    assert_eq!(refusal(&mut ada, text).await["clientMessageId"], "half");
    nothing_was_stored(&naru, &mut ada).await;
    naru.stop().await;
}

/// Lengths are bytes of UTF-8, and U+0000 is a character like any other.
#[tokio::test]
async fn contents_and_names_have_their_lengths() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut ada, mut ben) = (naru.phone("A").await, naru.phone("B").await);
    let full = "가".repeat(2730) + "ab";
    assert_eq!(full.len(), 8192);
    for (content, name, code) in [
        (format!("{full}c"), "above".to_owned(), "TOO_LARGE"),
        ("가".repeat(2731), "above, in syllables".to_owned(), "TOO_LARGE"),
        ("x".to_owned(), String::new(), "INVALID_FRAME"),
        ("x".to_owned(), "n".repeat(65), "INVALID_FRAME"),
        ("x".to_owned(), "이".repeat(22), "INVALID_FRAME"),
    ] {
        assert_eq!(refusal(&mut ada, &chat(&content, &name).to_string()).await["code"], code);
    }
    let mut sent = vec![
        (full.clone(), "at the limit".to_owned()),
        ("\0".repeat(8192), "nothing but zeros".to_owned()),
        (" ".to_owned(), "blank".to_owned()),
        ("a\0b".to_owned(), "zero\0zero".to_owned()),
        ("\0".to_owned(), "\0".to_owned()),
        ("x".to_owned(), "n".repeat(64)),
        ("x".to_owned(), "이".repeat(21)),
        ("\u{7f}\u{80}\u{2028}\u{fffe}\u{feff}\u{202e}<script>\\\"'".to_owned(), "special".to_owned()),
        ("👩‍👩‍👧‍👦 e\u{301} \u{10ffff}".to_owned(), "wide".to_owned()),
        ("한글".to_owned(), "decomposed or not".to_owned()),
    ];
    sent.push(("\u{1112}\u{1161}\u{11ab}".to_owned(), "decomposed".to_owned()));
    for (index, (content, name)) in sent.iter().enumerate() {
        ada.chat("A_B", content, name).await;
        let ack = ada.expect("ACK").await;
        assert_eq!((&ack["clientMessageId"], &ack["seq"]), (&json!(name), &json!(index + 1)));
        let arrived = ben.expect("CHAT").await;
        assert_eq!((&arrived["content"], &arrived["clientMessageId"]), (&json!(content), &json!(name)));
    }
    let stored: Vec<_> = naru.http("B").history("A_B", "afterSeq=0").await;
    let stored: Vec<_> =
        stored.iter().map(|message| (&message["content"], &message["clientMessageId"])).collect();
    let sent: Vec<_> = sent.iter().map(|(content, name)| (json!(content), json!(name))).collect();
    assert_eq!(stored, sent.iter().map(|(content, name)| (content, name)).collect::<Vec<_>>());

    // Names that differ behind a zero are different names.
    for name in ["zero\0", "zero\0zer"] {
        ada.chat("A_B", "x", name).await;
        ada.expect_where("ACK", |ack| ack["clientMessageId"] == name).await;
    }
    naru.stop().await;
}

/// A room one is not in and one that is not there can't be told apart.
#[tokio::test]
async fn foreign_rooms_do_not_exist() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    naru.http("B").create_room(&["B", "C"]).await;
    let (mut ada, mut ben, mut cleo) = (naru.phone("A").await, naru.phone("B").await, naru.phone("C").await);
    ben.chat("B_C", "between us", "b-1").await;
    cleo.expect("CHAT").await;
    let frames = |room: &str| {
        [
            json!({"type": "CHAT", "chatRoomId": room, "content": "x"}),
            json!({"type": "RECEIVED", "chatRoomId": room, "seq": 1}),
            json!({"type": "READ", "chatRoomId": room, "seq": 1}),
            json!({"type": "TYPING", "chatRoomId": room}),
            json!({"type": "SYNC", "rooms": [{"chatRoomId": room, "afterSeq": 0}]}),
            json!({"type": "SYNC", "rooms": [
                {"chatRoomId": "A_B", "afterSeq": 0}, {"chatRoomId": room, "afterSeq": 0},
            ]}),
        ]
    };
    for (foreign, missing) in frames("B_C").into_iter().zip(frames("A_Nobody")) {
        let foreign = refusal(&mut ada, &foreign.to_string()).await;
        assert_eq!(foreign["code"], "ROOM_NOT_FOUND");
        assert_eq!(foreign, refusal(&mut ada, &missing.to_string()).await);
    }
    let http = naru.http("A");
    for (path, body) in [
        ("", None),
        ("/messages", None),
        ("/messages", Some(json!({"content": "x", "clientMessageId": "c"}))),
        ("/members", Some(json!({"userId": "A"}))),
    ] {
        let mut answers = Vec::new();
        for room in ["B_C", "A_Nobody"] {
            let path = format!("/api/rooms/{room}{path}");
            answers.push(match &body {
                Some(body) => http.post(&path, body.clone()).await,
                None => http.get(&path).await,
            });
        }
        assert_eq!((answers[0].0, &answers[0].1["code"]), (404, &json!("ROOM_NOT_FOUND")), "{path}");
        assert_eq!(answers[0], answers[1], "{path}");
    }
    for room in ["B_C", "A_Nobody"] {
        let (status, body) = http.put(&format!("/api/rooms/{room}/settings"), json!({"muted": true})).await;
        assert_eq!((status, &body["code"]), (404, &json!("ROOM_NOT_FOUND")));
        let (status, body) = http.delete(&format!("/api/rooms/{room}/members/B")).await;
        assert_eq!((status, &body["code"]), (404, &json!("ROOM_NOT_FOUND")));
    }
    for member in [&mut ben, &mut cleo] {
        for frame_type in ["READ", "RECEIVED", "TYPING", "CHAT"] {
            member.quiet(frame_type).await;
        }
    }
    assert_eq!(naru.http("B").history("B_C", "").await.len(), 1);

    // A SYNC of all rooms needs to know the device.
    assert_eq!(refusal(&mut ada, r#"{"type":"SYNC"}"#).await["code"], "INVALID_FRAME");
    nothing_was_stored(&naru, &mut ada).await;
    naru.stop().await;
}

/// The only bad frames that end a session.
#[tokio::test]
async fn what_breaks_the_websocket_itself_closes() {
    let naru = Naru::start(&["--max-frame-bytes", "20000"]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let padded = |length: usize| {
        let text = json!({"type": "PING", "pad": ""}).to_string();
        text.replace(r#""pad":"""#, &format!(r#""pad":"{}""#, "x".repeat(length - text.len())))
    };
    let mut ada = Client::connect(&naru.url, &token_of("A")).await.expect("a session");
    assert_eq!(ada.welcome().await["maxFrameBytes"], 20_000);
    let (at, above) = (padded(20_000), padded(20_001));
    assert_eq!((at.len(), above.len()), (20_000, 20_001));
    ada.send_text(&at).await;
    ada.expect("PONG").await;
    ada.send_text(&above).await;
    assert_eq!(ada.closed().await.0, 1009);

    let mut ada = naru.phone("A").await;
    ada.send_text(&padded(1024 * 1024)).await;
    assert_eq!(ada.closed().await.0, 1009);

    let mut ada = naru.phone("A").await;
    ada.send_binary(&vec![0; 1024 * 1024]).await;
    assert_eq!(ada.closed().await.0, 1009);

    for bytes in [
        &b"\xff"[..],
        b"{\"type\":\"PING\",\"x\":\"\xed\xa0\x80\"}",
        b"{\"type\":\"PING\"}\xc0\x80",
        b"\xea\xb0",
    ] {
        let mut ada = naru.phone("A").await;
        ada.send_raw_bytes(bytes).await;
        assert_eq!(ada.closed().await.0, 1007, "{bytes:?}");
    }

    // Unanswered messages are answered all the same.
    let mut ada = naru.phone("A").await;
    nothing_was_stored(&naru, &mut ada).await;
    ada.chat("A_B", "before", "before").await;
    ada.send_text(&above).await;
    assert_eq!(ada.closed().await.0, 1009);
    let mut ada = naru.phone("A").await;
    ada.chat("A_B", "before", "before").await;
    assert_eq!(ada.expect("ACK").await["seq"], 2);
    naru.stop().await;
}

/// A user who sends too fast is told when to go on, and then may.
#[tokio::test]
async fn the_rate_is_limited() {
    let naru = Naru::start(&["--rate-messages-per-second", "4", "--rate-burst", "2"]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let (mut phone, mut tablet) = (naru.phone("A").await, naru.phone("A").await);
    let mut ben = naru.phone("B").await;
    phone.chat("A_B", "one", "1").await;
    phone.chat("A_B", "two", "2").await;
    phone.chat("A_B", "three", "3").await;
    let error = phone.expect("ERROR").await;
    assert_eq!((&error["code"], &error["clientMessageId"]), (&json!("RATE_LIMITED"), &json!("3")));
    let retry_after = Duration::from_millis(error["retryAfterMs"].as_u64().expect("a number"));
    assert!(retry_after <= Duration::from_millis(250), "one message in 4 a second: {retry_after:?}");
    let refused_at = Instant::now();

    // The limit is the user's: the tablet and HTTP share it, Ben has his own.
    tablet.chat("A_B", "from the tablet", "4").await;
    assert_eq!(tablet.expect("ERROR").await["code"], "RATE_LIMITED");
    let (status, body) = naru.http("A").send("A_B", "over HTTP", "5").await;
    assert_eq!((status, &body["code"]), (429, &json!("RATE_LIMITED")));
    ben.chat("A_B", "mine", "1").await;
    ben.expect("ACK").await;

    // Nothing but messages counts, and refusals cost nothing: the third is taken when it was promised.
    let mut tries = 0;
    let ack = loop {
        tokio::time::sleep(retry_after).await;
        tries += 1;
        phone.chat("A_B", "three", "3").await;
        let answered = |frame: &Incoming| match frame {
            Incoming::Frame(frame) if frame["clientMessageId"] == "3" => Some(frame.clone()),
            Incoming::Frame(_) => None,
            closed @ Incoming::Closed { .. } => panic!("{closed}"),
        };
        let answer = loop {
            if let Some(answer) = answered(&phone.next().await.expect("an answer")) {
                break answer;
            }
        };
        if answer["type"] == "ACK" {
            break answer;
        }
        assert!(refused_at.elapsed() < TEST_TIMEOUT, "still refused: {answer}");
    };
    assert_eq!(tries, 1, "it was refused again after the wait that was asked for");
    assert_eq!(ack["chatRoomId"], "A_B");
    let history = naru.http("A").history("A_B", "afterSeq=0").await;
    let contents: Vec<_> = history.iter().filter_map(|message| message["content"].as_str()).collect();
    assert_eq!(contents.len(), 4, "{contents:?}");
    naru.stop().await;
}

#[tokio::test]
async fn without_a_rate_no_sender_is_limited() {
    no_sender_is_limited(["--rate-messages-per-second", "0"]).await;
}

#[tokio::test]
async fn without_a_burst_no_sender_is_limited() {
    no_sender_is_limited(["--rate-burst", "0"]).await;
}

/// 0 turns the limit off, by either key.
async fn no_sender_is_limited(flags: [&str; 2]) {
    let naru = Naru::start(&flags).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    for first in (1..700).step_by(100) {
        for number in first..first + 100 {
            ada.chat("A_B", "x", &number.to_string()).await;
        }
        for number in first..first + 100 {
            let Some(Incoming::Frame(answer)) = ada.next().await else { panic!("closed") };
            assert_eq!((&answer["type"], &answer["seq"]), (&json!("ACK"), &json!(number)), "{answer}");
        }
    }
    naru.stop().await;
}

/// A client that waits as long as was asked for has waited long enough: the wait is rounded up.
#[tokio::test]
async fn the_wait_is_never_too_short() {
    let naru = Naru::start(&["--rate-messages-per-second", "1000", "--rate-burst", "1"]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    for number in 0..50 {
        ada.chat("A_B", "x", &number.to_string()).await;
    }
    let refusals = ada.until_pong().await;
    let refusals: Vec<_> = refusals.iter().filter(|frame| frame["code"] == "RATE_LIMITED").collect();
    assert!(!refusals.is_empty(), "50 messages within 50 ms");
    for refusal in refusals {
        assert!(refusal["retryAfterMs"].as_u64().is_some_and(|wait| wait > 0), "{refusal}");
    }
    naru.stop().await;
}

/// A phone that reads is not a slow one, however much it sends at once.
#[tokio::test]
async fn a_burst_does_not_make_a_slow_consumer() {
    let naru = Naru::start(&["--rate-messages-per-second", "0", "--session-queue", "32"]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let mut ada = naru.phone("A").await;
    for number in 1..=1000 {
        ada.chat("A_B", "x", &number.to_string()).await;
    }
    for number in 1..=1000 {
        assert_eq!(ada.expect("ACK").await["seq"], number);
    }
    naru.stop().await;
}

#[tokio::test]
async fn bad_tokens_are_refused_before_the_upgrade() {
    let naru = Naru::start(&[]).await;
    let secret = SECRET.as_bytes();
    let signed = |claims: Claims| token(secret, &claims);
    let hour = Duration::from_secs(3600);
    let ada = || Claims::user("A");
    let good = signed(ada());
    let (head, signature) = good.rsplit_once('.').expect("three parts");
    let (header, _) = head.split_once('.').expect("three parts");
    let elsewhere = signed(Claims::user("B"));
    let other_payload = elsewhere.split('.').nth(1).expect("three parts");
    let tokens = [
        ("empty", String::new()),
        ("garbage", "garbage".to_owned()),
        ("three garbages", "a.b.c".to_owned()),
        ("dots", "..".to_owned()),
        ("no signature", head.to_owned()),
        ("an empty signature", format!("{head}.")),
        ("half a signature", format!("{head}.{}", &signature[..signature.len() / 2])),
        ("another's payload", format!("{header}.{other_payload}.{signature}")),
        ("four parts", format!("{good}.x")),
        ("expired", signed(ada().expired_since(Duration::from_secs(2)))),
        ("expired long ago", signed(ada().with("exp", 0))),
        ("forged", token(b"another secret", &ada())),
        ("signed with nothing", token(b"", &ada())),
        ("unsigned", ada().unsigned()),
        ("HS384", ada().sign(Algorithm::HS384, &EncodingKey::from_secret(secret))),
        ("HS512", ada().sign(Algorithm::HS512, &EncodingKey::from_secret(secret))),
        ("not yet valid", signed(ada().with("nbf", u32::MAX))),
        ("without exp", signed(ada().without("exp"))),
        ("exp is null", signed(ada().with("exp", Value::Null))),
        ("exp is a text", signed(ada().with("exp", "never"))),
        ("exp is before all time", signed(ada().with("exp", -1))),
        ("without sub", signed(ada().without("sub"))),
        ("sub is null", signed(ada().with("sub", Value::Null))),
        ("sub is a number", signed(ada().with("sub", 5))),
        ("sub is a list", signed(ada().with("sub", vec!["A"]))),
        ("sub is empty", signed(Claims::user(""))),
        ("sub has a space", signed(Claims::user("A B"))),
        ("sub has a slash", signed(Claims::user("A/B"))),
        ("sub has a zero", signed(Claims::user("A\0"))),
        ("sub has a line break", signed(Claims::user("A\n"))),
        ("sub is not ASCII", signed(Claims::user("에이다"))),
        ("sub is long", signed(Claims::user(&"A".repeat(129)))),
    ];
    for (what, token) in &tokens {
        println!("{what}");
        let connect = Connect::to(&naru.url, token);
        for connect in [connect.clone(), connect.as_browser()] {
            let refused = connect.client().await.expect_err(what);
            assert_eq!(refused.status(), Some(401), "{what}: {refused}");
        }
        let http = Http::new(&naru.url, token);
        for (status, body) in [
            http.get("/api/rooms").await,
            http.get("/ws").await,
            http.post("/api/rooms", json!({"memberIds": ["A", "B"]})).await,
        ] {
            assert_eq!((status, &body["code"]), (401, &json!("UNAUTHENTICATED")), "{what}: {body}");
        }
    }
    let anonymous = Connect::without_token(&naru.url);
    for connect in [
        anonymous.clone(),
        anonymous.clone().header("authorization", "Basic QTpB"),
        anonymous.clone().header("authorization", &good),
        anonymous.clone().header("authorization", "Bearer"),
        anonymous.clone().header("sec-websocket-protocol", "naru.v1"),
        anonymous.clone().header("sec-websocket-protocol", &format!("naru.v1, {good}")),
        anonymous.header("cookie", &format!("token={good}")),
    ] {
        assert_eq!(connect.client().await.expect_err("no token").status(), Some(401));
    }
    let (status, body) = Http::without_token(&naru.url).get("/api/rooms").await;
    assert_eq!((status, &body["code"]), (401, &json!("UNAUTHENTICATED")));
    // A bad token is no better behind a good connection, and nothing was made by any of them.
    let (_, list) = naru.http("A").get("/api/rooms").await;
    assert_eq!(list, json!({"rooms": [], "nextCursor": null}));

    // The longest user id, each of its characters, unknown claims, and a token that is valid since just now.
    let all = "AZaz09._@:~-".to_owned() + &"x".repeat(116);
    let claims =
        Claims::user(&all).with("aud", "elsewhere").with("iss", "someone").with("nbf", 1).expires_in(hour);
    let mut odd = Client::connect(&naru.url, &signed(claims)).await.expect("a session");
    assert_eq!(odd.welcome().await["userId"], json!(all));
    naru.stop().await;
}

/// A leeway forgives as much as it says, for the end and for the beginning.
#[tokio::test]
async fn a_leeway_forgives() {
    let naru = Naru::start(&["--jwt-leeway", "60s"]).await;
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("past 1970").as_secs();
    for (claims, wanted) in [
        (Claims::user("A").expired_since(Duration::from_secs(30)), 200),
        (Claims::user("A").expired_since(Duration::from_secs(90)), 401),
        (Claims::user("A").with("nbf", now + 30), 200),
        (Claims::user("A").with("nbf", now + 120), 401),
    ] {
        let http = Http::new(&naru.url, &token(SECRET.as_bytes(), &claims));
        assert_eq!(http.get("/api/rooms").await.0, wanted, "{claims:?}");
    }
    naru.stop().await;
}

#[tokio::test]
async fn pages_come_from_their_own_origin() {
    let naru = Naru::start(&[]).await;
    let authority = naru.url.strip_prefix("http://").expect("http").to_owned();
    let token = token_of("A");
    // The client refuses a handshake that does not choose a protocol it offered: these are answered `naru.v1`.
    for connect in [Connect::to(&naru.url, &token), Connect::to(&naru.url, &token).as_browser()] {
        for origin in [
            "http://evil.example".to_owned(),
            "null".to_owned(),
            String::new(),
            format!("http://{authority}.evil.example"),
            format!("http://evil.example/{authority}"),
            format!("http://evil@{authority}"),
            format!("http://{authority}0"),
            "http://127.0.0.1".to_owned(),
        ] {
            let refused = connect.clone().header("origin", &origin).client().await.expect_err(&origin);
            assert_eq!(refused.status(), Some(403), "{origin}: {refused}");
        }
        let own = connect.clone().header("origin", &naru.url);
        assert_eq!(own.client().await.expect("a session").welcome().await["userId"], "A");
        assert_eq!(connect.client().await.expect("a session").welcome().await["userId"], "A");
    }
    // A good token without an upgrade is a mistake of the request; a missing token is told first.
    let (status, body) = naru.http("A").get("/ws").await;
    assert_eq!((status, &body["code"]), (400, &json!("INVALID_FRAME")));
    assert_eq!(Http::without_token(&naru.url).get("/ws").await.0, 401);
    naru.stop().await;

    let naru = Naru::start(&["--allowed-origins", "https://chat.example,https://app.example"]).await;
    for (origin, wanted) in
        [("https://chat.example", None), ("https://app.example", None), ("http://app.example", Some(403))]
    {
        let session = Connect::to(&naru.url, &token).header("origin", origin).client().await;
        assert_eq!(session.err().and_then(|refused| refused.status()), wanted, "{origin}");
    }
    naru.stop().await;
}

#[tokio::test]
async fn a_session_ends_with_its_token() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "B"]).await;
    let claims = Claims::user("A").expires_in(Duration::from_secs(3));
    let token = token(SECRET.as_bytes(), &claims);
    let mut ada = Client::connect(&naru.url, &token).await.expect("a session");
    ada.welcome().await;
    let mut other = naru.phone("A").await;
    ada.chat("A_B", "in time", "a-1").await;
    ada.expect("ACK").await;
    assert_eq!(ada.closed().await.0, 4401);
    let again = Client::connect(&naru.url, &token).await.expect_err("an expired token");
    assert_eq!(again.status(), Some(401));
    assert_eq!(Http::new(&naru.url, &token).get("/api/rooms").await.0, 401);
    // Only that session.
    other.expect("CHAT").await;
    other.quiet("ERROR").await;
    naru.stop().await;
}

/// `WELCOME` names the user, and a message names its sender: by the name in the token it was sent with.
#[tokio::test]
async fn a_name_comes_from_the_token() {
    let naru = Naru::start(&[]).await;
    naru.http("A").create_room(&["A", "C"]).await;
    let named = |name: &str| token(SECRET.as_bytes(), &Claims::user("A").name(name));
    let mut cleo = naru.phone("C").await;
    let mut phone = Client::connect(&naru.url, &named("Ada")).await.expect("a session");
    let mut work = Client::connect(&naru.url, &named("Dr. 에이다\0 <b>")).await.expect("a session");
    let plain = token(SECRET.as_bytes(), &Claims::user("A"));
    let mut plain = Client::connect(&naru.url, &plain).await.expect("a session");
    let mut sessions = Vec::new();
    for (index, (client, name)) in
        [(&mut phone, "Ada"), (&mut work, "Dr. 에이다\0 <b>"), (&mut plain, "A")].into_iter().enumerate()
    {
        let welcome = client.welcome().await;
        assert_eq!(welcome["userId"], "A");
        assert_eq!((&welcome["maxContentBytes"], &welcome["maxFrameBytes"]), (&json!(8192), &json!(65536)));
        assert!(welcome["pingSeconds"].as_u64().is_some_and(|seconds| seconds > 0), "{welcome}");
        let time = welcome["serverTime"].as_str().expect("a time");
        assert!(time.len() == "2026-01-01T00:00:00.000Z".len() && time.ends_with('Z'), "{time}");
        assert!(!sessions.contains(&welcome["sessionId"]), "each session has its own id: {welcome}");
        sessions.push(welcome["sessionId"].clone());
        client.chat("A_C", "hello", &format!("a-{index}")).await;
        assert_eq!(cleo.expect("CHAT").await["senderName"], name);
    }
    naru.stop().await;
}
