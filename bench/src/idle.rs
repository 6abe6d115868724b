//! What an idle connection costs the server in memory.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    process,
    session::{Server, Session, new_run},
};

/// Connections from one address: below the 28,232 ports that Linux gives out by default.
const PORTS_PER_ADDRESS: u32 = 25_000;

/// What to open.
#[derive(Debug)]
pub struct Options {
    /// The server.
    pub server: Server,
    /// How many sessions.
    pub connections: u32,
    /// New sessions per second.
    pub connect_rate: u32,
    /// How long to hold them before the memory is read.
    pub hold: Duration,
    /// The server's process.
    pub pid: Option<u32>,
}

/// What it cost.
#[derive(Debug)]
pub struct Report {
    opened: u32,
    connecting: Duration,
    ended_early: usize,
    /// Resident before and after, in KiB.
    memory: Option<(u64, u64)>,
}

/// Opens them all, holds them, looks at the server.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let memory = || options.pid.map(process::resident_kib).transpose();
    let before = memory()?;
    let start = Instant::now();
    let mut held = open_all(options).await?;
    let connecting = start.elapsed();
    tokio::time::sleep(options.hold).await;
    let after = memory()?;
    let mut ended_early = 0;
    while held.try_join_next().is_some() {
        ended_early += 1;
    }
    Ok(Report { opened: options.connections, connecting, ended_early, memory: before.zip(after) })
}

/// A task per session, which answers its pings. A session that can't be opened ends the run: the figure would be
/// wrong without it.
async fn open_all(options: &Options) -> anyhow::Result<JoinSet<()>> {
    let run = new_run();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.connect_rate);
    let mut opening = JoinSet::new();
    let mut held = JoinSet::new();
    for number in 0..options.connections {
        ticks.tick().await;
        let (server, user) = (options.server.clone(), format!("idle-{run}-{number}"));
        let source = source_address(number, options.connections);
        opening.spawn(async move {
            let opened = server.open(number as usize, &user, source).await;
            opened.with_context(|| format!("session {number} could not be opened"))
        });
        while let Some(opened) = opening.try_join_next() {
            held.spawn(hold(opened??));
        }
    }
    while let Some(opened) = opening.join_next().await {
        held.spawn(hold(opened??));
    }
    Ok(held)
}

async fn hold(mut session: Session) {
    while let Some(Ok(_)) = session.next().await {}
}

/// None while the ports of one address suffice, since this works on loopback only.
fn source_address(number: u32, connections: u32) -> Option<IpAddr> {
    let address = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + number / PORTS_PER_ADDRESS);
    (connections > PORTS_PER_ADDRESS).then_some(address.into())
}

impl Report {
    /// Server memory per connection in KiB.
    fn kib_per_connection(&self) -> Option<f64> {
        self.memory.map(|(before, after)| (after as f64 - before as f64) / f64::from(self.opened))
    }

    /// One line.
    pub fn to_json(&self) -> String {
        json!({
            "connections": self.opened,
            "connectSeconds": self.connecting.as_secs_f64(),
            "endedEarly": self.ended_early,
            "residentBeforeKib": self.memory.map(|(before, _)| before),
            "residentAfterKib": self.memory.map(|(_, after)| after),
            "kibPerConnection": self.kib_per_connection(),
        })
        .to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sessions in {:.1} s", self.opened, self.connecting.as_secs_f64())?;
        if self.ended_early > 0 {
            write!(f, "; {} ENDED EARLY: the memory below is of fewer", self.ended_early)?;
        }
        if let (Some((before, after)), Some(each)) = (self.memory, self.kib_per_connection()) {
            write!(f, "\nserver: {before} KiB before, {after} KiB after: {each:.1} KiB per connection")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::{Sin, serve};

    #[tokio::test]
    async fn all_sessions_are_opened_and_held() {
        let options = Options {
            server: Server { urls: vec![serve(|_| Sin::None).await], secret: "secret".to_owned() },
            connections: 50,
            connect_rate: 1000,
            hold: Duration::from_millis(1),
            pid: Some(std::process::id()),
        };
        let report = run(&options).await.expect("runs");
        assert_eq!((report.opened, report.ended_early), (50, 0));
        assert!(report.kib_per_connection().is_some());
    }

    #[test]
    fn many_connections_come_from_several_addresses() {
        assert_eq!(source_address(24_999, 25_000), None);
        assert_eq!(source_address(24_999, 60_000), Some([127, 0, 0, 1].into()));
        assert_eq!(source_address(50_000, 60_000), Some([127, 0, 0, 3].into()));
    }
}
