//! How fast pushes leave, and what they cost: one room, many offline members with a device each, and the provider emulator
//! (`naru phones`) as FCM and APNs.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::{
    process,
    session::{Server, new_run},
};

/// How often the emulator is asked how many pushes it has taken.
const ASK_EVERY: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct Options {
    /// The server. It pushes to the emulator.
    pub server: Server,
    /// The emulator's admin address.
    pub phones: String,
    /// `fcm` or `apns`.
    pub platform: String,
    /// How many members are offline.
    pub recipients: u32,
    /// How many messages each of them misses.
    pub messages: u32,
    /// How long all of it may take.
    pub timeout: Duration,
    /// The process that pushes.
    pub pid: Option<u32>,
}

#[derive(Debug)]
pub struct Report {
    pushes: u64,
    /// From the first message to the last push taken.
    took: Duration,
    connections: u64,
    repeated: u64,
    /// Of the process that pushes: its most resident memory in KiB, and its processor time.
    cost: Option<(u64, Duration)>,
}

/// Sends the messages, and waits until every push was taken.
///
/// # Errors
/// When the server or the emulator does not do its part in time.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let (run, url) = (new_run(), options.server.url(0));
    let writer = format!("push-{run}-writer");
    let recipients: Vec<_> = (0..options.recipients).map(|number| format!("push-{run}-{number}")).collect();
    for (number, user) in recipients.iter().enumerate() {
        // 64 hexadecimal digits, as APNs has them; FCM takes any text.
        let token = format!("{run}{number:056x}");
        let body = json!({ "platform": options.platform, "token": token });
        let request = client.put(format!("{url}/api/devices/phone")).bearer_auth(options.server.token(user));
        answer(request.json(&body)).await.context("a device can't be registered")?;
    }
    let members: Vec<_> = recipients.iter().chain([&writer]).collect();
    let as_writer =
        |path: &str| client.post(format!("{url}{path}")).bearer_auth(options.server.token(&writer));
    let room = answer(as_writer("/api/rooms").json(&json!({ "memberIds": members }))).await?;
    let room = room["id"].as_str().context("a room has an id")?;

    let before = counts(&client, options).await?;
    let cpu = || options.pid.map(process::cpu_time).transpose();
    let (cpu_before, start) = (cpu()?, Instant::now());
    for number in 0..options.messages {
        let body = json!({ "content": format!("message {number}"), "clientMessageId": number.to_string() });
        answer(as_writer(&format!("/api/rooms/{room}/messages")).json(&body)).await?;
    }
    let pushes = u64::from(options.recipients) * u64::from(options.messages);
    let after = loop {
        let now = counts(&client, options).await?;
        if now.taken >= before.taken + pushes {
            break now;
        }
        ensure!(start.elapsed() < options.timeout, "{} of {pushes} pushes came", now.taken - before.taken);
        tokio::time::sleep(ASK_EVERY).await;
    };
    let took = start.elapsed();
    let cost = match (options.pid, cpu()?.zip(cpu_before)) {
        (Some(pid), Some((after, before))) => Some((process::peak_resident_kib(pid)?, after - before)),
        _ => None,
    };
    let (connections, repeated) = (after.connections - before.connections, after.repeated - before.repeated);
    Ok(Report { pushes, took, connections, repeated, cost })
}

struct Counts {
    taken: u64,
    connections: u64,
    repeated: u64,
}

async fn counts(client: &reqwest::Client, options: &Options) -> anyhow::Result<Counts> {
    let counts = answer(client.get(format!("{}/counts", options.phones))).await.context("no emulator")?;
    let of = |name: &str| {
        counts[&options.platform][name].as_u64().with_context(|| format!("the emulator counts no {name}"))
    };
    Ok(Counts { taken: of("taken")?, connections: of("connections")?, repeated: of("repeated")? })
}

async fn answer(request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
    Ok(request.send().await?.error_for_status()?.json().await?)
}

impl Report {
    fn per_second(&self) -> f64 {
        self.pushes as f64 / self.took.as_secs_f64()
    }

    pub fn to_json(&self) -> String {
        json!({
            "pushes": self.pushes,
            "seconds": self.took.as_secs_f64(),
            "perSecond": self.per_second(),
            "connections": self.connections,
            "repeated": self.repeated,
            "peakResidentKib": self.cost.map(|(memory, _)| memory),
            "cpuSeconds": self.cost.map(|(_, cpu)| cpu.as_secs_f64()),
        })
        .to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} pushes in {:.2} s: {:.0} per second, over {} new connections; {} came twice",
            self.pushes,
            self.took.as_secs_f64(),
            self.per_second(),
            self.connections,
            self.repeated
        )?;
        if let Some((memory, cpu)) = self.cost {
            write!(f, "\nserver: {memory} KiB at most, {:.2} s of processor time", cpu.as_secs_f64())?;
        }
        Ok(())
    }
}
