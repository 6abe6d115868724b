//! Clients that ask for as much as they can, and read nothing of it.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::{SinkExt as _, StreamExt as _, stream};
use naru_client::{Connect, Http};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    overload::peak_mib,
    process,
    session::{Server, new_run},
};

/// The rooms whose messages are asked for, and what is in each: as much as one answer to a `SYNC` holds in all.
const ROOMS: usize = 5;
const MESSAGES: usize = 200;
const BYTES: usize = 8_000;
/// A client's buffer for what comes, in bytes: what the system takes for it is not the server's memory.
const RECEIVE_BUFFER: usize = 4_096;
/// One in so many clients asks over HTTP.
const OVER_HTTP: usize = 4;
/// Sessions opened at a time.
const AT_ONCE: usize = 16;
/// How long the server may take to free what was for those who have gone.
const FREE_WITHIN: Duration = Duration::from_secs(40);

#[derive(Debug)]
pub struct Options {
    pub server: Server,
    /// Clients at first; a tenth more come each second.
    pub sessions: u32,
    pub duration: Duration,
    pub max_memory_mib: u32,
    pub pids: Vec<u32>,
}

pub struct Report {
    before_mib: u64,
    peak_mib: u64,
    after_mib: u64,
    /// The most bytes that waited for clients, by the server's own count.
    queued_mib: u64,
    clients: usize,
    refused: usize,
    pub broken: Vec<String>,
}

/// A client that reads nothing; it is there until it is dropped.
enum Unread {
    Session(Box<tokio_tungstenite::WebSocketStream<TcpStream>>),
    Call(TcpStream),
}

/// Fills rooms, has clients ask for them, and watches memory.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let (server, run) = (&options.server, new_run());
    let users: Vec<String> = (0..options.sessions).map(|number| format!("memory-{run}-{number}")).collect();
    let rooms = fill(server, &users, &run).await?;
    let resident = || {
        let of_each = options.pids.iter().map(|pid| process::resident_kib(*pid));
        anyhow::Ok(of_each.sum::<anyhow::Result<u64>>()? / 1024)
    };
    let (before_mib, start) = (resident()?, Instant::now());
    let (mut clients, mut refused, mut queued_mib, mut next) = (Vec::new(), 0, 0, users.len());
    let mut numbers: Vec<usize> = (0..users.len()).collect();
    while start.elapsed() < options.duration {
        let opening =
            numbers.iter().map(|number| open(server, &users[number % users.len()], *number, &rooms));
        let opened: Vec<_> = stream::iter(opening).buffer_unordered(AT_ONCE).collect().await;
        // Beyond the budget, new ones are refused.
        refused += opened.iter().filter(|opened| opened.is_err()).count();
        clients.extend(opened.into_iter().flatten());
        for _ in 0..10 {
            queued_mib = queued_mib.max(queued_bytes(server).await? >> 20);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        numbers = (next..next + users.len().div_ceil(10)).collect();
        next += numbers.len();
    }
    let (peak_mib, count) = (peak_mib(&options.pids)?, clients.len());
    for client in &mut clients {
        // So that the connections end now, and not in the order of their tasks.
        match client {
            Unread::Session(session) => drop(session.get_mut().shutdown().await),
            Unread::Call(call) => drop(call.shutdown().await),
        }
    }
    drop(clients);
    let ended = Instant::now();
    while queued_bytes(server).await? > 0 {
        ensure!(ended.elapsed() < FREE_WITHIN, "bytes still wait for clients that have gone");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut broken = Vec::new();
    if peak_mib > options.max_memory_mib.into() {
        broken.push(format!("{peak_mib} MiB of memory, {} are the bound", options.max_memory_mib));
    }
    Ok(Report { before_mib, peak_mib, after_mib: resident()?, queued_mib, clients: count, refused, broken })
}

/// Rooms of all users, full of large messages.
async fn fill(server: &Server, users: &[String], run: &str) -> anyhow::Result<Vec<String>> {
    let writer = format!("memory-{run}-writer");
    let http = Http::new(server.url(0), &server.token(&writer));
    let members: Vec<&String> = users.iter().chain([&writer]).collect();
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        let room = http.create_room(&members.iter().map(|user| user.as_str()).collect::<Vec<_>>()).await;
        for number in 0..MESSAGES {
            while http.send(&room, &"x".repeat(BYTES), &number.to_string()).await.0 != 200 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        rooms.push(room);
    }
    Ok(rooms)
}

async fn open(server: &Server, user: &str, number: usize, rooms: &[String]) -> anyhow::Result<Unread> {
    let (url, token) = (server.url(number), server.token(user));
    if number.is_multiple_of(OVER_HTTP) {
        let authority = url.strip_prefix("http://").context("a base URL starts with http://")?;
        let mut call = TcpStream::connect(authority).await?;
        set_socket_recv_buffer_size(&call, RECEIVE_BUFFER)?;
        let room = &rooms[number / OVER_HTTP % rooms.len()];
        let request = format!(
            "GET /api/rooms/{room}/messages?limit=200 HTTP/1.1\r\nHost: {authority}\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        call.write_all(request.as_bytes()).await?;
        return Ok(Unread::Call(call));
    }
    let mut session = Connect::to(url, &token).stream().await?;
    set_socket_recv_buffer_size(session.get_ref(), RECEIVE_BUFFER)?;
    let from: Vec<Value> = rooms.iter().map(|room| json!({"chatRoomId": room, "afterSeq": 0})).collect();
    for _ in 0..2 {
        session.send(Message::text(json!({"type": "SYNC", "rooms": from}).to_string())).await?;
    }
    Ok(Unread::Session(session.into()))
}

async fn queued_bytes(server: &Server) -> anyhow::Result<u64> {
    let mut sum = 0;
    for url in &server.urls {
        let (_, page) = Http::without_token(url).get("/metrics").await;
        let page = page.as_str().context("metrics are text")?;
        let line = page.lines().find_map(|line| line.strip_prefix("naru_gateway_queued_bytes "));
        sum += line.context("a gateway counts the bytes that wait")?.parse::<u64>()?;
    }
    Ok(sum)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} clients that read nothing, {} refused: {} MiB waited for them at most\n\
             memory: {} MiB before, {} MiB at most, {} MiB when they had gone",
            self.clients, self.refused, self.queued_mib, self.before_mib, self.peak_mib, self.after_mib
        )
    }
}
