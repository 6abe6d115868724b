//! The record of a comparison: every measurement, as JSON, from which table and page are made.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::{fill, flow};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// When the comparison began, in UTC.
    pub started: String,
    pub command: String,
    pub machine: Machine,
    /// The peers' components, with versions.
    pub versions: Vec<String>,
    /// In the order of tables.
    pub systems: Vec<Name>,
    pub rounds: Vec<Round>,
    pub fills: Vec<Filled>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_mib: u64,
    pub kernel: String,
}

/// A system's key and its label.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Name {
    pub key: String,
    pub label: String,
}

/// Whether a system was filled before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// It holds only the run's own messages.
    Empty,
    Full,
}

/// The measurements of one turn of one system.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Round {
    /// From 1.
    pub number: u32,
    pub system: String,
    pub state: State,
    /// Of the first round only.
    pub memory: Vec<Memory>,
    pub lone: flow::Report,
    /// One for each rate.
    pub flows: Vec<flow::Report>,
}

/// The memory that idle connections take.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Memory {
    pub connections: u32,
    /// Of each group of processes: its name, KiB before and after the connections were opened.
    pub groups: Vec<(String, u64, u64)>,
}

/// How a system was filled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Filled {
    pub system: String,
    #[serde(flatten)]
    pub report: fill::Report,
}

impl Memory {
    /// Of the whole system with its connections.
    fn after_mib(&self) -> f64 {
        self.groups.iter().map(|(_, _, after)| after).sum::<u64>() as f64 / 1024.0
    }

    /// Of the whole system before its first connection.
    fn before_kib(&self) -> u64 {
        self.groups.iter().map(|(_, before, _)| before).sum()
    }
}

impl Round {
    /// For each number of connections: MiB of the whole system with them, and KiB that it has grown by for each since
    /// before the first.
    pub fn memory(&self) -> impl Iterator<Item = (u32, f64, f64)> {
        let before = self.memory.first().map_or(0.0, |first| first.before_kib() as f64);
        self.memory.iter().map(move |memory| {
            let grown = memory.after_mib() * 1024.0 - before;
            (memory.connections, memory.after_mib(), grown / f64::from(memory.connections))
        })
    }
}

impl State {
    /// Its name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Full => "full",
        }
    }
}

impl Machine {
    pub fn current() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        Self {
            processor: value(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}
