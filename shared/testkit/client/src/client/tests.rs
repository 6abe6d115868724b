//! The client against a minimal server that each test scripts.

use std::{future::Future, time::Duration};

use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::handshake::server::{ErrorResponse, Request, Response},
};

use super::*;

type Server = WebSocketStream<TcpStream>;

/// Accepts one session from `A` and hands it to `server`; returns the base URL.
async fn serve<F>(
    server: impl FnOnce(Server) -> F + Send + 'static,
) -> (String, tokio::task::JoinHandle<F::Output>)
where
    F: Future<Output: Send> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let task = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.expect("accepts");
            if let Ok(session) = accept_hdr_async(tcp, authorize).await {
                return server(session).await;
            }
        }
    });
    (url, task)
}

#[expect(clippy::result_large_err, reason = "the library's signature")]
fn authorize(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let header = |name| request.headers().get(name).map(|value| value.to_str().expect("ASCII"));
    match (header("authorization"), header("sec-websocket-protocol"), header("origin")) {
        (Some("Bearer good"), None, None) => Ok(response),
        (None, Some("naru.v1, bearer.good"), Some("https://app.example")) => {
            response.headers_mut().insert("sec-websocket-protocol", "naru.v1".parse().expect("ASCII"));
            Ok(response)
        }
        _ => Err(Response::builder().status(401).body(Some("who are you?".to_owned())).expect("legal")),
    }
}

async fn say(server: &mut Server, frame: Value) {
    server.send(Message::text(frame.to_string())).await.expect("the client reads");
}

/// Answers each `PING`, and each other text with an `ERROR`, until the session ends; returns what ended it.
async fn answer_all(mut server: Server) -> Option<tokio_tungstenite::tungstenite::Result<Message>> {
    loop {
        match server.next().await {
            Some(Ok(Message::Text(text))) if text.contains("PING") => {
                say(&mut server, json!({"type": "PONG"})).await
            }
            Some(Ok(Message::Text(_) | Message::Binary(_))) => {
                say(&mut server, json!({"type": "ERROR"})).await
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            end => return end,
        }
    }
}

#[tokio::test]
async fn a_refusal_carries_its_status() {
    let (url, _server) = serve(answer_all).await;
    let error = Client::connect(&url, "bad").await.expect_err("refused");
    assert_eq!(
        (error.status(), error.to_string()),
        (Some(401), "refused with HTTP 401: who are you?".to_owned())
    );
    assert_eq!(Connect::without_token(&url).client().await.expect_err("refused").status(), Some(401));
}

#[tokio::test]
async fn a_browser_puts_its_token_into_the_subprotocol() {
    let (url, _server) = serve(answer_all).await;
    let connect = Connect::to(&url, "good").as_browser().header("origin", "https://app.example");
    let client = connect.source([127, 0, 0, 2].into()).client().await.expect("accepted");
    client.close().await;
}

#[tokio::test]
async fn frames_that_are_skipped_are_not_lost() {
    let (url, _server) = serve(async |mut server: Server| {
        for (kind, seq) in [("WELCOME", 0), ("CHAT", 1), ("ACK", 2), ("CHAT", 3)] {
            say(&mut server, json!({"type": kind, "seq": seq})).await;
        }
        answer_all(server).await
    })
    .await;
    let mut client = Client::connect(&url, "good").await.expect("accepted");
    client.welcome().await;
    assert_eq!(client.expect_where("CHAT", |chat| chat["seq"] == 3).await["seq"], 3);
    assert_eq!(client.expect("ACK").await["seq"], 2);
    client.quiet("ACK").await;
    assert_eq!(client.next().await, Some(Incoming::Frame(json!({"type": "CHAT", "seq": 1}))));
    client.quiet("CHAT").await;
    assert!(client.until_pong().await.is_empty());
}

#[tokio::test]
#[should_panic(expected = "wanted no ERROR, got {\"type\":\"ERROR\"}")]
async fn quiet_hears_what_came_before_the_pong() {
    let (url, _server) = serve(answer_all).await;
    let mut client = Client::connect(&url, "good").await.expect("accepted");
    client.send_binary(b"{}").await;
    client.quiet("ERROR").await;
}

#[tokio::test]
#[should_panic(
    expected = "waited for ACK: the session is over; instead came\n  closed with 4409 \"replaced\""
)]
async fn an_end_while_waiting_says_what_was_waited_for() {
    let (url, _server) = serve(async |mut server: Server| {
        let frame = CloseFrame { code: 4409.into(), reason: "replaced".into() };
        server.close(Some(frame)).await
    })
    .await;
    Client::connect(&url, "good").await.expect("accepted").expect("ACK").await;
}

#[tokio::test]
async fn both_sides_can_close() {
    let (url, server) = serve(answer_all).await;
    let client = Client::connect(&url, "good").await.expect("accepted");
    client.close().await;
    assert!(
        matches!(server.await, Ok(Some(Ok(Message::Close(Some(frame))))) if frame.code == CloseCode::Normal)
    );

    let (url, server) = serve(async |mut server: Server| {
        server.close(None).await.expect("sent");
        // The reply, then the end.
        (server.next().await, server.next().await)
    })
    .await;
    let mut client = Client::connect(&url, "good").await.expect("accepted");
    assert_eq!(client.closed().await, (1005, String::new()));
    assert!(matches!(server.await, Ok((Some(Ok(Message::Close(None))), None))));
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn an_abort_sends_no_close_frame() {
    let (url, server) = serve(answer_all).await;
    let mut client = Client::connect(&url, "good").await.expect("accepted");
    client.quiet("CHAT").await;
    client.abort().await;
    assert!(matches!(server.await, Ok(Some(Err(_)))));
}

#[tokio::test]
async fn invalid_utf8_reaches_the_server() {
    let (url, server) = serve(answer_all).await;
    let mut client = Client::connect(&url, "good").await.expect("accepted");
    client.send_raw_bytes(b"\"\xff\"").await;
    assert!(matches!(server.await, Ok(Some(Err(tokio_tungstenite::tungstenite::Error::Utf8(_))))));
    // This server sends no close frame; Naru must, with 1007.
    assert_eq!(client.closed().await.0, 1006);
}

#[tokio::test]
async fn pings_are_answered_unless_told_otherwise() {
    let (url, server) = serve(async |mut server: Server| {
        let mut seen = Vec::new();
        for _ in 0..2 {
            // The client sends a text when it is ready, and another after the ping: a pong comes between them or never.
            let _ready = server.next().await;
            server.send(Message::Ping("proof".into())).await.expect("sent");
            say(&mut server, json!({"type": "PINGED"})).await;
            loop {
                match server.next().await {
                    Some(Ok(Message::Text(_))) => break,
                    other => seen.push(other),
                }
            }
        }
        seen.into_iter().flatten().map(|message| message.expect("no error")).collect::<Vec<_>>()
    })
    .await;
    let mut client = Client::connect(&url, "good").await.expect("accepted");
    for reading in [Reading::Answering, Reading::WithoutPongs] {
        client.reading(reading);
        client.send_text("ready").await;
        client.expect("PINGED").await;
        client.send_text("done").await;
    }
    assert_eq!(server.await.expect("ends"), [Message::Pong("proof".into())]);
}

#[tokio::test]
async fn a_paused_phone_reads_nothing_until_it_is_back() {
    let (url, _server) = serve(answer_all).await;
    let mut client = Client::connect(&url, "good").await.expect("accepted");
    client.reading(Reading::Paused);
    client.send_json(&json!({"type": "PING"})).await;
    assert!(timeout(Duration::from_millis(50), client.incoming.recv()).await.is_err());
    client.reading(Reading::Answering);
    client.expect("PONG").await;
}
