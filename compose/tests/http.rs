//! What load balancers and uptime monitors expect of HTTP, on the bytes of the connection.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use naru_client::{Connect, ServerProcess, TEST_TIMEOUT};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::authorisation::raw;
use crate::programs::unused_address;
use crate::support::{Naru, SECRET, token_of};

/// A request without a body, on a connection of its own; the answer, head and body.
async fn ask(url: &str, request_line: &str, headers: &[(&str, &str)]) -> (String, String) {
    let mut stream = connect(url).await;
    send(&mut stream, request_line, headers, "close").await;
    let mut answer = String::new();
    timeout(TEST_TIMEOUT, stream.read_to_string(&mut answer)).await.expect("an answer").expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_ascii_lowercase(), body.to_owned())
}

async fn connect(url: &str) -> TcpStream {
    let address: SocketAddr = url.trim_start_matches("http://").parse().expect("an address");
    TcpStream::connect(address).await.expect("it listens")
}

async fn send(stream: &mut TcpStream, request_line: &str, headers: &[(&str, &str)], connection: &str) {
    let mut head = format!("{request_line} HTTP/1.1\r\nconnection: {connection}\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        head += "host: naru\r\n";
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await.expect("it reads");
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let admin = unused_address().to_string();
    let naru = Naru::start(&[]).await;
    let with_admin = Naru::start(&["--admin-listen", &admin]).await;
    let admin = format!("http://{admin}");
    let bearer = format!("Bearer {}", token_of("A"));
    for (url, path) in [
        (&naru.url, "/healthz"),
        (&naru.url, "/readyz"),
        (&naru.url, "/metrics"),
        (&naru.url, "/api/rooms"),
        (&admin, "/healthz"),
        (&admin, "/readyz"),
        (&admin, "/metrics"),
    ] {
        let headers = [("authorization", &*bearer)];
        let (head, body) = ask(url, &format!("HEAD {path}"), &headers).await;
        assert!(head.starts_with("http/1.1 200 "), "{path}: {head}");
        assert!(head.contains("content-length: ") && !head.contains("content-length: 0"), "{path}: {head}");
        assert_eq!(body, "", "{path}");
        let (_, body) = ask(url, &format!("GET {path}"), &headers).await;
        assert_ne!(body, "", "{path}");
    }
    assert!(ask(&naru.url, "HEAD /api/rooms", &[]).await.0.starts_with("http/1.1 401 "));
    assert!(ask(&naru.url, "HEAD /nothing", &[]).await.0.starts_with("http/1.1 404 "));
    naru.stop().await;
    with_admin.stop().await;
}

#[tokio::test]
async fn with_an_admin_address_clients_see_neither_health_nor_metrics() {
    let admin = unused_address().to_string();
    let naru = Naru::start(&["--admin-listen", &admin]).await;
    let admin = format!("http://{admin}");
    for path in ["/healthz", "/readyz", "/metrics"] {
        let request = format!("GET {path}");
        assert!(ask(&admin, &request, &[]).await.0.starts_with("http/1.1 200 "), "{path}");
        assert!(ask(&naru.url, &request, &[]).await.0.starts_with("http/1.1 404 "), "{path}");
    }
    assert!(ask(&admin, "GET /api/rooms", &[]).await.0.starts_with("http/1.1 404 "));
    naru.stop().await;
}

#[tokio::test]
async fn an_idle_connection_is_kept_as_long_as_configured() {
    let naru = Naru::start(&["--http-keep-alive", "1s"]).await;
    let mut stream = connect(&naru.url).await;
    for _ in 0..2 {
        send(&mut stream, "GET /healthz", &[], "keep-alive").await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            assert_ne!(
                timeout(TEST_TIMEOUT, stream.read_buf(&mut answer)).await.expect("an answer").expect("open"),
                0
            );
        }
    }
    let idle = Instant::now();
    assert_eq!(
        timeout(TEST_TIMEOUT, stream.read(&mut [0])).await.expect("it is closed").expect("in order"),
        0
    );
    // Read on the way: the answer was written a moment before it arrived here.
    assert!(idle.elapsed() > Duration::from_millis(900), "{:?}", idle.elapsed());
    naru.stop().await;
}

#[tokio::test]
async fn a_handshake_of_another_version_is_told_the_one_that_is_spoken() {
    let naru = Naru::start(&[]).await;
    let bearer = format!("Bearer {}", token_of("A"));
    let mut stream = connect(&naru.url).await;
    let headers = [
        ("authorization", &*bearer),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "8"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    send(&mut stream, "GET /ws", &headers, "upgrade").await;
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        assert_ne!(
            timeout(TEST_TIMEOUT, stream.read_buf(&mut answer)).await.expect("an answer").expect("open"),
            0
        );
    }
    let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 400 "), "{answer}");
    assert!(answer.contains("\r\nsec-websocket-version: 13\r\n"), "{answer}");
    naru.stop().await;
}

#[tokio::test]
async fn a_parameter_without_a_value_counts_as_absent() {
    let naru = Naru::start(&[]).await;
    let ada = naru.http("A");
    let room = ada.create_room(&["A", "B"]).await;
    let messages = format!("/api/rooms/{room}/messages");
    for (path, query) in [
        ("/api/rooms", "limit="),
        ("/api/rooms", "cursor="),
        ("/api/rooms", "limit=&cursor="),
        ("/api/rooms", "limit"),
        (&messages, "limit="),
        (&messages, "beforeSeq=&afterSeq=&limit=2"),
    ] {
        assert_eq!(ada.get(&format!("{path}?{query}")).await.0, 200, "{path}?{query}");
    }
    assert_eq!(ada.get("/api/rooms?limit=x").await.0, 400);
    naru.stop().await;
}

#[tokio::test]
async fn a_refused_origin_is_in_the_log() {
    let data = tempfile::tempdir().expect("a folder for the data");
    let variables = [("NARU_JWT_SECRET", SECRET), ("NARU_ALLOWED_ORIGINS", "https://Chat.example/")];
    let naru =
        ServerProcess::start(env!("CARGO_BIN_EXE_naru"), data.path(), &variables).await.expect("it starts");
    let connect = Connect::to(naru.url(), &token_of("A"));
    connect.clone().header("origin", "https://chat.example").client().await.expect("it is allowed");
    let refused = connect.header("origin", "https://evil.example").client().await.expect_err("it is not");
    assert_eq!(refused.status(), Some(403));
    let log = naru.log();
    assert!(log.contains("allowed_origins") && log.contains("https://evil.example"), "{log}");
}

/// A request whose body does not come is refused in time; and a stop waits for no client that sends or reads slowly.
#[tokio::test]
async fn slow_requests_end_and_stall_no_stop() {
    let naru = Naru::start(&["--drain-deadline", "8s"]).await;
    let bearer = format!("Bearer {}", token_of("A"));
    let begin = async |started: &str| {
        let mut stream = connect(&naru.url).await;
        stream.write_all(started.as_bytes()).await.expect("it reads");
        stream
    };
    let post = format!(
        "POST /api/rooms HTTP/1.1\r\nhost: naru\r\nauthorization: {bearer}\r\ncontent-length: 100\r\n\r\n{{"
    );
    let mut slow = begin(&post).await;
    let mut answer = String::new();
    let ended = timeout(Duration::from_secs(14), slow.read_to_string(&mut answer)).await;
    ended.expect("it is not waited for").expect("an answer, then the end");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("in time"), "{answer}");

    let _slow = [begin(&post).await, begin("GET /api/rooms HTTP/1.1\r\n").await, begin("").await];
    // The gateway has the unfinished ones by now, because it has this one.
    assert!(ask(&naru.url, "GET /healthz", &[]).await.0.starts_with("http/1.1 200 "));
    naru.stop().await;
}

/// A proxy in front may read the end of such a request elsewhere, and take what follows for a request of another
/// client. So each is answered once, the rest is not read as a request, and the connection ends.
#[tokio::test]
async fn a_request_with_two_ends_carries_no_other_one() {
    let naru = Naru::start(&[]).await;
    let ada = naru.http("A");
    let room = ada.create_room(&["A", "B", "C"]).await;
    let bearer = token_of("A");
    let inner = format!(
        "DELETE /api/rooms/{room}/members/C HTTP/1.1\r\nhost: naru\r\nauthorization: Bearer {bearer}\r\n\r\n"
    );
    let (length, chunked) = (inner.len(), format!("0\r\n\r\n{inner}"));
    for (lengths, body) in [
        (format!("content-length: {}\r\ntransfer-encoding: chunked", chunked.len()), &chunked),
        (format!("transfer-encoding: chunked\r\ncontent-length: {}", chunked.len()), &chunked),
        (format!("content-length: 0\r\ncontent-length: {length}"), &inner),
        (format!("content-length: {length}\r\ncontent-length: 0"), &inner),
        (format!("content-length: 0, {length}"), &inner),
        ("content-length: +0".to_owned(), &inner),
        ("content-length: -1".to_owned(), &inner),
        ("content-length: 0x0".to_owned(), &inner),
        ("content-length : 0".to_owned(), &inner),
        ("transfer-encoding: chunked, identity".to_owned(), &chunked),
        ("transfer-encoding: chunked\r\ntransfer-encoding: identity".to_owned(), &chunked),
        ("transfer-encoding: xchunked".to_owned(), &chunked),
        ("transfer-encoding: identity".to_owned(), &inner),
        ("transfer-encoding : chunked".to_owned(), &chunked),
        ("x: y\r\n transfer-encoding: chunked\r\ncontent-length: 5".to_owned(), &chunked),
        ("transfer-encoding: chunked".to_owned(), &format!("0x0\r\n\r\n{inner}")),
        ("transfer-encoding: chunked".to_owned(), &format!("-1\r\n\r\n{inner}")),
    ] {
        let head = format!(
            "POST /api/rooms HTTP/1.1\r\nhost: naru\r\nauthorization: Bearer {bearer}\r\n{lengths}\r\n\r\n"
        );
        let (status, answer) = raw(&naru.url, head + body).await;
        assert_eq!(status, 400, "{lengths}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{lengths}: {answer}");
    }
    let (_, now) = ada.get(&format!("/api/rooms/{room}")).await;
    assert_eq!(now["memberIds"], json!(["A", "B", "C"]));
    naru.stop().await;
}

/// What a client has compressed is not unpacked: a few bytes of it could be as many as one likes.
#[tokio::test]
async fn nothing_is_unpacked() {
    /// `{"memberIds":["A","B"]}`, by gzip.
    const ROOM: &[u8] =
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\xca\x4d\xcd\x4d\x4a\x2d\xf2\x4c\x29\x56\xb2\x8a\
        \x56\x72\x54\xd2\x51\x72\x52\x8a\xad\x05\x00\xe8\x56\xd8\xaa\x17\x00\x00\x00";
    let naru = Naru::start(&[]).await;
    let bearer = token_of("A");
    for header in ["content-encoding: gzip\r\n", "transfer-encoding: gzip\r\n", ""] {
        let length = if header.starts_with("transfer") {
            String::new()
        } else {
            format!("content-length: {}\r\n", ROOM.len())
        };
        let head = format!(
            "POST /api/rooms HTTP/1.1\r\nhost: naru\r\nconnection: close\r\nauthorization: Bearer {bearer}\r\n{header}{length}\r\n"
        );
        let (status, answer) = raw(&naru.url, [head.as_bytes(), ROOM].concat()).await;
        assert_eq!(status, 400, "{header}: {answer}");
    }
    // And no extension of the WebSocket is taken, which compression would be.
    let mut stream = connect(&naru.url).await;
    let bearer = format!("Bearer {bearer}");
    let headers = [
        ("authorization", &*bearer),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits, x-webkit-deflate-frame"),
    ];
    send(&mut stream, "GET /ws", &headers, "upgrade").await;
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        assert_ne!(
            timeout(TEST_TIMEOUT, stream.read_buf(&mut answer)).await.expect("an answer").expect("open"),
            0
        );
    }
    let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101 ") && !answer.contains("sec-websocket-extensions"), "{answer}");
    drop(stream);
    naru.stop().await;
}
