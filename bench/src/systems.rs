//! The systems that are compared, each started on ports and in directories of its own, and stopped when its turn is over.
//!
//! Ports stay the same over restarts, because stored data refers to them (RabbitMQ's node is named by its port).

mod child;
mod start;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

use anyhow::{Context as _, ensure};

use crate::{process::Group, session::Server};
use child::Child;

/// Taken by each system in a row; more than any needs.
const PORTS_EACH: u16 = 24;
/// Below the range from which Linux gives ports to clients.
const PORTS: std::ops::Range<u16> = 21_000..31_000;

/// Every system's key, in the order of reports.
pub const KEYS: [&str; 6] = ["naru", "naru-services", "against", "against-services", "socketio", "ejabberd"];

#[derive(Debug, Clone)]
pub enum Kind {
    /// `naru`: one process, embedded engine.
    Embedded { binaries: PathBuf },
    /// Two gateways and one of each other worker, on RabbitMQ, Redis and SecantusDB.
    Services { binaries: PathBuf },
    /// Two node processes on Redis and PostgreSQL.
    SocketIo,
    /// ejabberd on PostgreSQL.
    Ejabberd,
    /// A server that runs already.
    #[cfg(test)]
    Running(Server),
}

/// A system that can be started.
#[derive(Debug, Clone)]
pub struct System {
    /// Its name in options and records.
    pub key: String,
    /// Its name in tables.
    pub label: String,
    pub kind: Kind,
    data: PathBuf,
    ports: u16,
    variables: Vec<(String, String)>,
}

/// A system that runs. Dropping it kills it.
pub struct Running {
    /// How to reach it.
    pub server: Server,
    /// Its processes.
    pub groups: Vec<Group>,
    /// In the order of their start.
    children: Vec<Child>,
}

/// The directories of programs and data.
#[derive(Debug, Clone)]
pub struct Directories {
    /// Naru's programs.
    pub naru: PathBuf,
    /// The programs of another version, if that is to be measured, too.
    pub against: Option<PathBuf>,
    /// Where all data goes.
    pub data: PathBuf,
    /// Set for Naru's programs besides what [`start`] sets.
    pub variables: Vec<(String, String)>,
}

impl Directories {
    /// The systems with these keys, or all there are.
    ///
    /// # Errors
    /// When there is no such system, or a program of it is missing.
    pub fn systems(&self, keys: &[String]) -> anyhow::Result<Vec<System>> {
        let embedded = |binaries: &Path| Kind::Embedded { binaries: binaries.to_owned() };
        let services = |binaries: &Path| Kind::Services { binaries: binaries.to_owned() };
        let mut all = vec![
            ("naru", "Naru embedded", embedded(&self.naru)),
            ("naru-services", "Naru as services", services(&self.naru)),
        ];
        if let Some(against) = &self.against {
            all.push(("against", "other Naru embedded", embedded(against)));
            all.push(("against-services", "other Naru as services", services(against)));
        }
        all.push(("socketio", "Socket.IO + PostgreSQL", Kind::SocketIo));
        all.push(("ejabberd", "ejabberd + PostgreSQL", Kind::Ejabberd));
        for key in keys {
            ensure!(all.iter().any(|(known, ..)| known == key), "there is no system {key:?}");
        }
        all.retain(|(key, ..)| keys.is_empty() || keys.iter().any(|wanted| wanted == key));
        let systems = all.into_iter().map(|(key, label, kind)| {
            let mut system = System::new(key, label, kind, &self.data)?;
            system.variables.clone_from(&self.variables);
            system.check()?;
            Ok(system)
        });
        systems.collect()
    }
}

impl System {
    /// A system with its data below `data`.
    pub fn new(key: &str, label: &str, kind: Kind, data: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            key: key.to_owned(),
            label: label.to_owned(),
            kind,
            data: data.join(key),
            ports: free_ports()?,
            variables: Vec::new(),
        })
    }

    /// Whether Naru's programs are where they should be.
    fn check(&self) -> anyhow::Result<()> {
        let (binaries, programs): (_, &[_]) = match &self.kind {
            Kind::Embedded { binaries } => (binaries, &["naru"]),
            Kind::Services { binaries } => (binaries, &["gateway", "persister", "fanout", "notifier"]),
            _ => return Ok(()),
        };
        for program in programs {
            let path = binaries.join(program);
            ensure!(path.is_file(), "{} is missing: cargo build --release --workspace", path.display());
        }
        Ok(())
    }

    fn port(&self, number: u16) -> u16 {
        self.ports + number
    }
}

impl Running {
    /// Stops its programs, the last started first; returns when they have ended.
    pub fn stop(mut self) -> anyhow::Result<()> {
        while let Some(child) = self.children.pop() {
            child.stop()?;
        }
        Ok(())
    }
}

/// The first of some free ports in a row that no other system of this process has.
fn free_ports() -> anyhow::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(PORTS.start);
    loop {
        let first = NEXT.fetch_add(PORTS_EACH, Relaxed);
        ensure!(first < PORTS.end, "no free ports");
        if (first..first + PORTS_EACH).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return Ok(first);
        }
    }
}

/// Installs the programs of the peers and Naru's services, unless they are there.
///
/// # Errors
/// When it can't be installed.
pub fn install(systems: &[System]) -> anyhow::Result<()> {
    let needs = |wanted: fn(&Kind) -> bool| systems.iter().any(|system| wanted(&system.kind));
    let services = needs(|kind| matches!(kind, Kind::Services { .. })).then_some("scripts/services");
    let peers = needs(|kind| matches!(kind, Kind::SocketIo | Kind::Ejabberd)).then_some("bench/peers/run");
    for script in services.into_iter().chain(peers) {
        let mut command = std::process::Command::new(start::root().join(script));
        let status = command.arg("install").status().with_context(|| format!("{script} can't be run"))?;
        ensure!(status.success(), "{script} install failed");
    }
    Ok(())
}

/// The peers' components and their versions.
///
/// # Errors
/// When the script that reports them can't be run.
pub fn versions() -> anyhow::Result<Vec<String>> {
    let output =
        std::process::Command::new(start::root().join("bench/peers/run")).arg("versions").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_are_chosen_by_key_and_must_be_there() {
        let directories = Directories {
            naru: "/nowhere".into(),
            against: None,
            data: "/nowhere".into(),
            variables: Vec::new(),
        };
        let keys = |keys: &[&str]| {
            let keys: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
            let systems = directories.systems(&keys)?;
            anyhow::Ok(systems.into_iter().map(|system| system.key).collect::<Vec<_>>())
        };
        assert_eq!(keys(&["ejabberd", "socketio"]).expect("known"), ["socketio", "ejabberd"]);
        let missing = keys(&["naru"]).expect_err("no such program").to_string();
        assert!(missing.starts_with("/nowhere/naru is missing"), "{missing}");
        assert_eq!(keys(&["matrix"]).expect_err("unknown").to_string(), "there is no system \"matrix\"");
    }
}
