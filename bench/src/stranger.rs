//! One user who does what they can to disturb others, beside pairs who write to each other. The stranger is in a room with
//! each of them, since anybody may make one.

use std::{fmt, iter, sync::Arc, thread, time::Duration};

use anyhow::{Context as _, bail};
use futures_util::{SinkExt as _, StreamExt as _, future::pending};
use naru_client::{Claims, Connect, Http};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    flow,
    session::{Server, new_run},
};

/// Rooms of a thousand with none of the others, and rooms with all of them.
const LARGE_ROOMS: usize = 20;
const LARGE: usize = 999;
const CROWDS: usize = 5;
/// A message of the stranger: the longest there is, nearly.
const BYTES: usize = 8_000;
/// Messages in the room that is read over and over: a full page.
const FILLED: usize = 200;
/// After an attempt that failed, so that the tool does not spin where nobody listens.
const PAUSE: Duration = Duration::from_millis(5);
/// The lowest priority.
const NICE: i32 = 19;
/// Below this the quiet server's figure is noise, in milliseconds.
const MIN_QUIET_MS: f64 = 2.0;

#[derive(Debug)]
pub struct Options {
    /// Those whose `ACK`s are measured.
    pub others: flow::Options,
    pub sockets: u32,
    pub duration: Duration,
    pub max_ratio: u32,
}

pub struct Report {
    quiet: flow::Report,
    beside: flow::Report,
    pub broken: Vec<String>,
}

/// What one of the stranger's sockets does.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Typing,
    Positions,
    BadFrames,
    Pings,
    LargeChats,
    UnreadSyncs,
    Syncs,
    ListsOfRooms,
    History,
    Presence,
    NewRooms,
    Members,
    Reconnects,
    HalfHandshakes,
    HalfCalls,
}

/// The kinds, in the order in which sockets take them.
const KINDS: [Kind; 15] = [
    Kind::Typing,
    Kind::Positions,
    Kind::BadFrames,
    Kind::Pings,
    Kind::LargeChats,
    Kind::UnreadSyncs,
    Kind::Syncs,
    Kind::ListsOfRooms,
    Kind::History,
    Kind::Presence,
    Kind::NewRooms,
    Kind::Members,
    Kind::Reconnects,
    Kind::HalfHandshakes,
    Kind::HalfCalls,
];

struct Stranger {
    server: Server,
    user: String,
    token: String,
    others: Vec<String>,
    /// Rooms with one of the others each, then those with all of them.
    rooms: Vec<String>,
    large: Vec<String>,
}

/// Measures the others without the stranger, then beside.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let quiet = flow::run(&options.others).await?;
    let run = new_run();
    let beside = flow::Options { duration: options.duration, ..options.others.clone() };
    let stranger = Stranger::prepare(&options.others.server, flow::users(&beside, &run), &run).await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let sockets = options.sockets;
    let thread = thread::Builder::new().name("stranger".to_owned()).spawn(move || {
        // Of Linux's threads each has its own priority.
        rustix::process::setpriority_process(None, NICE)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let stranger = Arc::new(stranger);
            let sockets = KINDS.iter().cycle().take(sockets as usize).enumerate();
            let tasks: Vec<_> =
                sockets.map(|(number, kind)| tokio::spawn(stranger.clone().go_on(*kind, number))).collect();
            drop(stopped.await);
            tasks.iter().for_each(|task| task.abort());
        });
        anyhow::Ok(())
    })?;
    let beside = flow::run_as(&beside, &run).await;
    drop(stop);
    thread.join().ok().context("the stranger panicked")??;
    let beside = beside?;

    let mut broken = Vec::new();
    let totals = &beside.totals;
    if beside.closed() > 0 {
        broken.push(format!("{} of the others' sessions were closed", beside.closed()));
    }
    // What the stranger writes to the others is no message of theirs.
    if totals.lost > 0 || totals.duplicates > 0 || totals.unanswered > 0 {
        broken.push(format!(
            "{} lost, {} doubled, {} not answered",
            totals.lost, totals.duplicates, totals.unanswered
        ));
    }
    let bound = quiet.totals.ack.p99.max(MIN_QUIET_MS) * f64::from(options.max_ratio);
    if totals.ack.p99 > bound {
        broken.push(format!("the others' ACK p99 is {:.1} ms, {bound:.1} are the bound", totals.ack.p99));
    }
    Ok(Report { quiet, beside, broken })
}

impl Stranger {
    async fn prepare(server: &Server, others: Vec<String>, run: &str) -> anyhow::Result<Self> {
        let user = format!("stranger-{run}");
        // With a device, for a `SYNC` of all rooms.
        let claims = Claims::user(&user).device("phone").expires_in(Duration::from_secs(24 * 3600));
        let token = naru_client::token(server.secret.as_bytes(), &claims);
        let http = Http::new(server.url(0), &token);
        // As if the stranger had made the rooms over a long time: by themself they may not make so many at once.
        let backend = Claims::user("backend").service().expires_in(Duration::from_secs(3600));
        let backend = Http::new(server.url(0), &naru_client::token(server.secret.as_bytes(), &backend));
        let (mut rooms, mut large) = (Vec::new(), Vec::new());
        for other in &others {
            rooms.push(backend.create_room(&[&user, other]).await);
        }
        let all: Vec<&str> = others.iter().chain([&user]).map(String::as_str).collect();
        for _ in 0..CROWDS {
            rooms.push(backend.create_room(&all).await);
        }
        for room in 0..LARGE_ROOMS {
            let strangers: Vec<String> =
                (0..LARGE).map(|number| format!("nobody-{run}-{room}-{number}")).collect();
            let members: Vec<&str> = strangers.iter().chain([&user]).map(String::as_str).collect();
            large.push(backend.create_room(&members).await);
        }
        for number in 0..FILLED {
            while http.send(&large[0], &"x".repeat(BYTES), &format!("{run}-{number}")).await.0 != 200 {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(Self { server: server.clone(), user, token, others, rooms, large })
    }

    /// Does it for ever, whatever the answer.
    async fn go_on(self: Arc<Self>, kind: Kind, socket: usize) {
        for round in 0.. {
            let _refused = self.go(kind, socket, round).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn go(&self, kind: Kind, socket: usize, round: usize) -> anyhow::Result<()> {
        let room = |number: usize| &self.rooms[(socket + number) % self.rooms.len()];
        let crowd = || &self.rooms[self.rooms.len() - 1 - socket % CROWDS];
        match kind {
            Kind::Typing => {
                self.flood(true, |number| json!({"type": "TYPING", "chatRoomId": room(number)})).await
            }
            Kind::Positions => {
                let kind = |number: usize| if number.is_multiple_of(2) { "READ" } else { "RECEIVED" };
                self.flood(
                    true,
                    |number| json!({"type": kind(number), "chatRoomId": room(number), "seq": number}),
                )
                .await
            }
            Kind::BadFrames => {
                let bad = [
                    json!("no object"),
                    json!({"type": "CHAT", "chatRoomId": "nowhere", "content": "x"}),
                    json!({"type": "CHAT", "chatRoomId": crowd(), "content": "x", "senderId": &self.others[0]}),
                    json!({"type": "SYNC", "rooms": [{"chatRoomId": "nowhere", "afterSeq": 0}]}),
                    json!({"type": "READ", "chatRoomId": format!("nowhere-{round}"), "seq": 1}),
                    json!({"type": "UNKNOWN", "padding": "x".repeat(60_000)}),
                ];
                self.flood(true, |number| bad[number % bad.len()].clone()).await
            }
            Kind::Pings => self.flood(false, |_| json!({"type": "PING"})).await,
            Kind::LargeChats => {
                let content = "x".repeat(BYTES);
                let id = |number| format!("{socket}-{round}-{number}");
                self.flood(true, |number| {
                    json!({"type": "CHAT", "chatRoomId": crowd(), "content": content, "clientMessageId": id(number)})
                })
                .await
            }
            Kind::UnreadSyncs => self.flood(false, |_| self.sync()).await,
            Kind::Syncs => {
                let all = json!({"type": "SYNC"});
                self.flood(true, |number| if number.is_multiple_of(2) { all.clone() } else { self.sync() })
                    .await
            }
            Kind::ListsOfRooms => self.call(Method::GET, "/api/rooms?limit=100", None).await,
            Kind::History => {
                let path = format!("/api/rooms/{}/messages?limit=200", self.large[0]);
                self.call(Method::GET, &path, None).await
            }
            Kind::Presence => {
                let nobodies = (0..50).map(|number| format!("nobody-{number}"));
                let users: Vec<String> = self.others.iter().cloned().chain(nobodies).take(100).collect();
                self.call(Method::GET, &format!("/api/presence?userIds={}", users.join(",")), None).await
            }
            Kind::NewRooms => {
                let members = (0..LARGE).map(|number| format!("nobody-{socket}-{round}-{number}"));
                let members: Vec<String> = members.chain([self.user.clone()]).collect();
                self.call(Method::POST, "/api/rooms", Some(json!({"memberIds": members}))).await
            }
            Kind::Members => {
                let path = format!("/api/rooms/{}/members", crowd());
                let guest = format!("guest-{socket}-{round}");
                self.call(Method::POST, &path, Some(json!({"userId": guest}))).await?;
                self.call(Method::DELETE, &format!("{path}/{guest}"), None).await
            }
            Kind::Reconnects => {
                drop(self.connect().stream().await?);
                Ok(())
            }
            Kind::HalfHandshakes => self.half("GET /ws HTTP/1.1\r\nConnection: Upgrade\r\n").await,
            Kind::HalfCalls => {
                let token = &self.token;
                let head = format!(
                    "POST /api/rooms HTTP/1.1\r\nHost: naru\r\nAuthorization: Bearer {token}\r\n\
                     Content-Length: 60000\r\n\r\n{{\"memberIds\": ["
                );
                self.half(&head).await
            }
        }
    }

    fn connect(&self) -> Connect {
        Connect::to(self.server.url(0), &self.token)
    }

    fn sync(&self) -> Value {
        let from = iter::once(&self.large[0]).chain(&self.rooms);
        let from = from.map(|room| json!({"chatRoomId": room, "afterSeq": 0}));
        json!({"type": "SYNC", "rooms": from.collect::<Vec<_>>()})
    }

    /// Sends frames as fast as they are taken, until the session ends.
    async fn flood(&self, is_read: bool, frame: impl Fn(usize) -> Value) -> anyhow::Result<()> {
        let (mut sink, mut stream) = self.connect().stream().await?.split();
        let writing = async {
            for number in 0.. {
                let text = frame(number).to_string();
                // The contract forbids binary frames.
                let is_binary = number % 97 == 96;
                sink.send(if is_binary { Message::binary(text) } else { Message::text(text) }).await?;
                // The others' tasks of this thread have their turns.
                tokio::task::yield_now().await;
            }
            Ok(())
        };
        let reading = async {
            if !is_read {
                pending::<()>().await;
            }
            while let Some(frame) = stream.next().await {
                frame?;
            }
            bail!("the session ended")
        };
        tokio::select! {
            ended = writing => ended,
            ended = reading => ended,
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<()> {
        Http::new(self.server.url(0), &self.token).request(method, path, body).await?;
        Ok(())
    }

    /// Sends a part of a request, and waits for what comes of it.
    async fn half(&self, part: &str) -> anyhow::Result<()> {
        let authority =
            self.server.url(0).strip_prefix("http://").context("a base URL starts with http://")?;
        let mut tcp = TcpStream::connect(authority).await?;
        tcp.write_all(part.as_bytes()).await?;
        tcp.read_to_end(&mut Vec::new()).await?;
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quiet = self.quiet.totals.ack;
        writeln!(f, "{}\n", self.beside)?;
        write!(f, "without the stranger: ACK p50 {:.1} ms, p99 {:.1} ms", quiet.p50, quiet.p99)
    }
}
