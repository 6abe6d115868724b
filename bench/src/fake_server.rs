//! The smallest server that the tool can run against, which breaks each guarantee on request.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use futures_util::{SinkExt as _, StreamExt as _};
use jsonwebtoken::dangerous::insecure_decode_claims;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
    },
};

use crate::session::{Protocol, Server};

/// The server's defect, by the message's number.
pub type Defects = fn(usize) -> Defect;

/// One broken guarantee.
#[derive(Clone, Copy)]
pub enum Defect {
    /// Relayed and confirmed.
    None,
    /// `RATE_LIMITED`, which breaks no guarantee.
    Refuse,
    /// No answer at all.
    Ignore,
    /// Confirmed, but never delivered.
    Lose,
    /// Delivered twice.
    Repeat,
    /// Delivered to its sender too.
    Echo,
}

/// User → the frames to send to their session.
type Users = Arc<Mutex<HashMap<String, mpsc::UnboundedSender<Value>>>>;

/// Starts the server.
pub async fn serve(defects: Defects) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        let users = Users::default();
        while let Ok((tcp, _)) = listener.accept().await {
            tcp.set_nodelay(true).expect("connected");
            let mut method = [0];
            tcp.peek(&mut method).await.expect("a request");
            match method {
                [b'P'] => drop(tokio::spawn(make_room(tcp))),
                _ => drop(tokio::spawn(relay(tcp, users.clone(), defects))),
            }
        }
    });
    Server { protocol: Protocol::Naru, urls: vec![url], secret: "secret".to_owned() }
}

/// The room's id is its members' ids in order, joined with `_`.
async fn make_room(mut tcp: TcpStream) {
    let mut request = Vec::new();
    let members: Value = loop {
        tcp.read_buf(&mut request).await.expect("a request");
        let text = String::from_utf8_lossy(&request);
        let body = text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str::<Value>(body).ok());
        if let Some(mut body) = body {
            break body["memberIds"].take();
        }
    };
    let body = json!({"id": format!("{}_{}", members[0].as_str().unwrap(), members[1].as_str().unwrap())})
        .to_string();
    let head = format!("HTTP/1.1 201 Created\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    tcp.write_all((head + &body).as_bytes()).await.expect("sent");
}

async fn relay(tcp: TcpStream, users: Users, defects: Defects) {
    let mut user = String::new();
    #[expect(clippy::result_large_err, reason = "the library's signature")]
    let read_user = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        let token = request.headers()["authorization"].to_str().expect("ASCII").trim_start_matches("Bearer ");
        let claims: Value = insecure_decode_claims(token).expect("a token");
        user = claims["sub"].as_str().expect("a subject").to_owned();
        Ok(response)
    };
    let (mut sink, mut stream) = accept_hdr_async(tcp, read_user).await.expect("a handshake").split();
    let (outbox, mut inbox) = mpsc::unbounded_channel();
    outbox.send(json!({"type": "WELCOME"})).expect("open");
    users.lock().expect("healthy").insert(user.clone(), outbox);
    tokio::spawn(async move {
        while let Some(frame) = inbox.recv().await {
            let _ = sink.send(Message::text(frame.to_string())).await;
        }
    });
    while let Some(Ok(message)) = stream.next().await {
        let Ok(mut frame) = serde_json::from_slice::<Value>(&message.into_data()) else {
            continue;
        };
        if frame["type"] != "CHAT" {
            continue;
        }
        let id = frame["clientMessageId"].as_str().expect("an id").to_owned();
        let number = id.rsplit_once('-').and_then(|(_, number)| number.parse().ok()).expect("a number");
        let room = frame["chatRoomId"].as_str().expect("a room").to_owned();
        let other = room.split('_').find(|member| *member != user).expect("two members");
        let users = users.lock().expect("healthy");
        let send = |user: &str, frame: &Value| users[user].send(frame.clone()).expect("open");
        frame["senderId"] = user.clone().into();
        match defects(number) {
            Defect::Refuse => {
                send(&user, &json!({"type": "ERROR", "code": "RATE_LIMITED", "clientMessageId": id}));
                continue;
            }
            Defect::Ignore => continue,
            Defect::Lose => {}
            Defect::Repeat => [other, other].iter().for_each(|user| send(user, &frame)),
            Defect::Echo => [other, &user].iter().for_each(|user| send(user, &frame)),
            Defect::None => send(other, &frame),
        }
        send(&user, &json!({"type": "ACK", "clientMessageId": id}));
    }
}
