//! Pairs of users writing to each other at a fixed rate.

use std::{
    fmt,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::{
    SinkExt as _, StreamExt as _, TryStreamExt as _,
    stream::{self, SplitSink, SplitStream},
};
use naru_client::Http;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    ledger::{Latency, Ledger, Schedule, Totals},
    process,
    session::{Server, Session, new_run},
};

/// Rooms and sessions made at a time.
const SETUP_CONCURRENCY: usize = 16;

/// What to send.
#[derive(Debug)]
pub struct Options {
    /// The server.
    pub server: Server,
    /// Messages per second, over all senders.
    pub rate: u32,
    /// How long to measure.
    pub duration: Duration,
    /// How long to send before that.
    pub warmup: Duration,
    /// How long stragglers are waited for after the last message was due.
    pub settle: Duration,
    /// Direct rooms; both members send.
    pub pairs: u32,
    /// Content size.
    pub bytes: u32,
    /// The server's processes.
    pub pids: Vec<u32>,
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    rate: u32,
    pairs: u32,
    bytes: u32,
    seconds: f64,
    #[serde(flatten)]
    totals: Totals,
    server: Vec<Cost>,
    tool: Cost,
}

/// What a process spent on the measured part.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cost {
    pid: u32,
    program: String,
    cpu_seconds: f64,
    cpu_seconds_per_thousand: f64,
    peak_resident_kib: u64,
}

/// One member of a pair. Members 2n and 2n + 1 share a room; message m is sent by member m modulo their number.
struct Member {
    number: usize,
    members: usize,
    run: Arc<str>,
    /// A `CHAT` of this member up to and including the opening quote of its `clientMessageId`.
    chat: String,
    ledger: Arc<Ledger>,
}

/// The parts of a frame that matter here, not copied.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Frame<'a> {
    r#type: &'a str,
    client_message_id: Option<&'a str>,
    code: Option<&'a str>,
}

/// Makes the rooms, connects everybody, sends all messages when they are due, waits for the stragglers.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let run: Arc<str> = new_run().into();
    let members = options.pairs as usize * 2;
    let user = |number: usize| format!("flow-{run}-{number}");
    let http = Http::without_token(options.server.url(0));
    let rooms: Vec<String> = stream::iter(0..members / 2)
        .map(|pair| make_room(&options.server, &http, [user(2 * pair), user(2 * pair + 1)]))
        .buffered(SETUP_CONCURRENCY)
        .try_collect()
        .await?;
    let sessions: Vec<Session> = stream::iter(0..members)
        .map(|number| {
            let user = user(number);
            async move { options.server.open(number, &user, None).await }
        })
        .buffered(SETUP_CONCURRENCY)
        .try_collect()
        .await?;

    let messages = |time: Duration| (time.as_secs_f64() * f64::from(options.rate)).round() as usize;
    let warmup = messages(options.warmup);
    let schedule = Schedule {
        start: Instant::now() + Duration::from_millis(200),
        rate: options.rate,
        warmup,
        total: warmup + messages(options.duration),
    };
    let ledger = Arc::new(Ledger::new(schedule));
    let content = "x".repeat(options.bytes as usize);
    let mut tasks = JoinSet::new();
    let mut outboxes = Vec::with_capacity(members);
    for (number, session) in sessions.into_iter().enumerate() {
        let chat = json!({"type": "CHAT", "chatRoomId": rooms[number / 2], "content": content}).to_string();
        let chat = format!("{},\"clientMessageId\":\"", chat.trim_end_matches('}'));
        let member = Member { number, members, run: run.clone(), chat, ledger: ledger.clone() };
        let (outbox, due) = mpsc::unbounded_channel();
        outboxes.push(outbox);
        tasks.spawn(member.take_part(session, due));
    }
    // A thread of its own, because the runtime's timers are only as fine as a millisecond.
    thread::spawn(move || keep_schedule(schedule, &outboxes));

    tokio::time::sleep_until(schedule.due(schedule.warmup).into()).await;
    let pids = || options.pids.iter().copied().chain([std::process::id()]);
    let cpu_before = pids().map(process::cpu_time).collect::<anyhow::Result<Vec<_>>>()?;
    tokio::time::sleep_until(schedule.due(schedule.total).into()).await;
    let deadline = Instant::now() + options.settle;
    while !ledger.is_settled() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let totals = ledger.close();
    let costs = pids().zip(cpu_before).map(|(pid, before)| Cost::since(before, pid, totals.measured));
    let mut server = costs.collect::<anyhow::Result<Vec<_>>>()?;
    let tool = server.pop().expect("the tool's own pid is the last");
    let Options { rate, pairs, bytes, .. } = *options;
    Ok(Report { rate, pairs, bytes, seconds: options.duration.as_secs_f64(), totals, server, tool })
}

async fn make_room(server: &Server, http: &Http, members: [String; 2]) -> anyhow::Result<String> {
    let http = http.with_token(&server.token(&members[0]));
    let (status, room) =
        http.request(Method::POST, "/api/rooms", Some(json!({"memberIds": members}))).await?;
    let id = room["id"].as_str().with_context(|| format!("a room was refused with {status}: {room}"))?;
    Ok(id.to_owned())
}

/// Hands out each message's number when it is due. A member that has left takes no more: its messages stay unsent.
fn keep_schedule(schedule: Schedule, outboxes: &[mpsc::UnboundedSender<usize>]) {
    for number in 0..schedule.total {
        thread::sleep(schedule.due(number).saturating_duration_since(Instant::now()));
        let _ = outboxes[number % outboxes.len()].send(number);
    }
}

impl Member {
    async fn take_part(self, session: Session, due: mpsc::UnboundedReceiver<usize>) {
        let (sink, stream) = session.split();
        tokio::join!(self.write(sink, due), self.read(stream));
    }

    async fn write(&self, mut sink: SplitSink<Session, Message>, mut due: mpsc::UnboundedReceiver<usize>) {
        while let Some(number) = due.recv().await {
            let frame = format!("{}{}-{number}\"}}", self.chat, self.run);
            if sink.send(Message::text(frame)).await.is_err() {
                return;
            }
            self.ledger.sent(number);
        }
    }

    async fn read(&self, mut stream: SplitStream<Session>) {
        loop {
            match stream.next().await {
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                    Ok(frame) => self.take(&frame),
                    Err(_) => self.ledger.error("unreadable frame", None),
                },
                Some(Ok(Message::Close(frame))) => {
                    let code = frame.map_or(1005, |frame| frame.code.into());
                    return self.ledger.error(&format!("session closed with {code}"), None);
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return self.ledger.error("session broken", None),
            }
        }
    }

    fn take(&self, frame: &Frame<'_>) {
        let message = frame.client_message_id.and_then(|id| self.number_in(id));
        match (frame.r#type, message) {
            ("ACK", Some(message)) => self.ledger.acked(message),
            ("CHAT", Some(message)) if message % self.members == self.number ^ 1 => {
                self.ledger.delivered(message)
            }
            ("CHAT", _) => self.ledger.stray(),
            ("ERROR", message) => self.ledger.error(frame.code.unwrap_or("ERROR without code"), message),
            ("RESYNC", _) => self.ledger.resync(),
            _ => {}
        }
    }

    fn number_in(&self, client_message_id: &str) -> Option<usize> {
        client_message_id.strip_prefix(&*self.run)?.strip_prefix('-')?.parse().ok()
    }
}

impl Cost {
    fn since(before: Duration, pid: u32, messages: usize) -> anyhow::Result<Self> {
        let cpu_seconds = (process::cpu_time(pid)?.saturating_sub(before)).as_secs_f64();
        Ok(Self {
            pid,
            program: process::name(pid)?,
            cpu_seconds,
            cpu_seconds_per_thousand: cpu_seconds * 1000.0 / messages.max(1) as f64,
            peak_resident_kib: process::peak_resident_kib(pid)?,
        })
    }
}

impl Report {
    /// Whether everything that was confirmed came, once, to whom it was for.
    pub fn keeps_promises(&self) -> bool {
        self.totals.lost == 0 && self.totals.duplicates == 0 && self.totals.strays == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = &self.totals;
        writeln!(
            f,
            "{} messages/s for {:.0} s, {} pairs, {} bytes: {:.1} delivered/s\n",
            self.rate, self.seconds, self.pairs, self.bytes, totals.delivered_per_second
        )?;
        writeln!(
            f,
            "{:>12} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "ms since due", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for (name, Latency { p50, p90, p99, p99_9, max }) in
            [("sent", totals.send_lag), ("ACK", totals.ack), ("delivery", totals.delivery)]
        {
            writeln!(f, "{name:>12} {p50:>9.2} {p90:>9.2} {p99:>9.2} {p99_9:>9.2} {max:>9.2}")?;
        }
        writeln!(
            f,
            "\n{} scheduled, {} sent, {} acked, {} delivered (warm-up included)",
            totals.scheduled, totals.sent, totals.acked, totals.delivered
        )?;
        writeln!(
            f,
            "{} LOST, {} DUPLICATED, {} STRAY, {} unanswered, {} RESYNC",
            totals.lost, totals.duplicates, totals.strays, totals.unanswered, totals.resyncs
        )?;
        for (kind, count) in &totals.errors {
            writeln!(f, "{count} × {kind}")?;
        }
        for cost in self.server.iter().chain([&self.tool]) {
            write!(
                f,
                "\n{} {}: {:.3} CPU s per 1,000 messages ({:.2} s in all), at most {:.1} MiB resident",
                cost.program,
                cost.pid,
                cost.cpu_seconds_per_thousand,
                cost.cpu_seconds,
                cost.peak_resident_kib as f64 / 1024.0
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
