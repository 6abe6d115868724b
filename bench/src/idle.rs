//! The server's memory per idle connection.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    load::{Driver, Session},
    process::Group,
    record::Schedule,
    session::{Server, new_run},
};

/// Sessions opened at a time.
const OPENERS: usize = 8;
/// Connections from one address: below the 28,232 ports that Linux gives out by default.
const PORTS_PER_ADDRESS: u32 = 25_000;

#[derive(Debug)]
pub struct Options {
    pub server: Server,
    /// How many sessions.
    pub connections: u32,
    /// New sessions per second.
    pub connect_rate: u32,
    /// How long to hold them before the memory is read.
    pub hold: Duration,
    /// The server's processes.
    pub groups: Vec<Group>,
}

#[derive(Debug)]
pub struct Report {
    opened: u32,
    connecting: Duration,
    ended_early: usize,
    /// Of each group: its name, its memory before and after, in KiB.
    pub memory: Vec<(String, u64, u64)>,
}

/// Opens all sessions, holds them, reads the server's memory. A session that can't be opened ends the run: the figure
/// would be wrong without it.
///
/// # Errors
/// When a session can't be opened, or a process of the server has ended.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let memory = || options.groups.iter().map(Group::memory_kib).collect::<anyhow::Result<Vec<_>>>();
    let before = memory()?;
    let start = Instant::now();
    let mut driver = Driver::new(Schedule { start, rate: 1, warmup: 0, total: 0 })?;
    open_all(options, &mut driver)?;
    let connecting = start.elapsed();
    let held = Instant::now();
    while held.elapsed() < options.hold {
        driver.poll(options.hold.saturating_sub(held.elapsed()))?;
    }
    let names = options.groups.iter().map(|group| group.name.clone());
    let memory = names.zip(before).zip(memory()?).map(|((name, before), after)| (name, before, after));
    Ok(Report {
        opened: options.connections,
        connecting,
        ended_early: driver.ended(),
        memory: memory.collect(),
    })
}

/// Several threads open sessions, each at its time; the open sessions are polled meanwhile.
fn open_all(options: &Options, driver: &mut Driver) -> anyhow::Result<()> {
    let (run, start, next): (Arc<str>, _, _) = (new_run().into(), Instant::now(), AtomicU32::new(0));
    let open_next = || -> Option<anyhow::Result<Session>> {
        let number = next.fetch_add(1, Relaxed);
        if number >= options.connections {
            return None;
        }
        let due = start + Duration::from_secs(1) * number / options.connect_rate;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let source = source_address(number, options.connections);
        Some(options.server.open(number as usize, &format!("idle-{run}-{number}"), &run, source))
    };
    thread::scope(|scope| {
        let (opened, sessions) = mpsc::sync_channel(OPENERS);
        for _ in 0..OPENERS {
            let opened = opened.clone();
            scope.spawn(move || {
                while let Some(session) = open_next() {
                    if opened.send(session).is_err() {
                        return;
                    }
                }
            });
        }
        drop(opened);
        for session in sessions {
            driver.add(session?)?;
            driver.poll(Duration::ZERO)?;
        }
        Ok(())
    })
}

/// `None` while the ports of one address suffice, since this works on loopback only.
fn source_address(number: u32, connections: u32) -> Option<IpAddr> {
    let address = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + number / PORTS_PER_ADDRESS);
    (connections > PORTS_PER_ADDRESS).then_some(address.into())
}

impl Report {
    /// Server memory per connection in KiB.
    pub fn kib_per_connection(&self) -> f64 {
        let (before, after) =
            self.memory.iter().fold((0, 0), |sums, (_, before, after)| (sums.0 + before, sums.1 + after));
        (after as f64 - before as f64) / f64::from(self.opened)
    }

    pub fn to_json(&self) -> String {
        let memory = self.memory.iter().map(
            |(name, before, after)| json!({"name": name, "memoryBeforeKib": before, "memoryAfterKib": after}),
        );
        json!({
            "connections": self.opened,
            "connectSeconds": self.connecting.as_secs_f64(),
            "endedEarly": self.ended_early,
            "memory": memory.collect::<Vec<_>>(),
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
        for (name, before, after) in &self.memory {
            let each = (*after as f64 - *before as f64) / f64::from(self.opened);
            write!(f, "\n{name}: {before} KiB before, {after} KiB after: {each:.1} KiB per connection")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::{Defect, serve};

    #[tokio::test(flavor = "multi_thread")]
    async fn all_sessions_are_opened_and_held() {
        let options = Options {
            server: serve(|_| Defect::None).await,
            connections: 50,
            connect_rate: 1000,
            hold: Duration::from_millis(1),
            groups: vec![Group::of_process(std::process::id()).expect("alive")],
        };
        let report = run(&options).expect("runs");
        assert_eq!((report.opened, report.ended_early, report.memory.len()), (50, 0, 1));
    }

    #[test]
    fn many_connections_come_from_several_addresses() {
        assert_eq!(source_address(24_999, 25_000), None);
        assert_eq!(source_address(24_999, 60_000), Some([127, 0, 0, 1].into()));
        assert_eq!(source_address(50_000, 60_000), Some([127, 0, 0, 3].into()));
    }
}
