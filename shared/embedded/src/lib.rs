//! Naru's engines in one process: SQLite for what must last, memory for what need not.
//!
//! | part | where | after a crash |
//! |---|---|---|
//! | store | SQLite (WAL), rooms that were looked at lately in memory, too | as it was answered |
//! | hops `offline`, `push.*` | the table `queue` | what is not acknowledged comes again |
//! | hops `accepted`, `saved` | memory | empty: the intake's open entries fill them again |
//! | live, presence, proofs, leases | memory | empty, as the sessions they tell of |
//!
//! One thread writes; what it finds waiting shares one transaction and one sync of the disk (group commit). The intake is
//! synced with the run that saves its messages, not by itself: `database.rs` says why that is enough at every crash
//! point. Two threads read, each read on one consistent state, and never wait for the writer. A message that is
//! accepted, saved and passed on to those who are connected asks no reader anything.
//!
//! In the data directory lie `naru.db` (with `-wal` and `-shm`), which any SQLite tool can look into while Naru runs,
//! and `naru.lock`, which keeps a second process out.

mod bus;
mod column;
mod database;
mod leases;
mod live;
mod open;
mod presence;
mod proofs;
mod rooms;
mod store;

use std::path::Path;
use std::sync::Arc;

use naru_engines::{EngineResult, Engines};

pub use crate::database::Counts;
use crate::database::Database;
use crate::live::PubSub;

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many events that are not acknowledged each hop in memory holds before `send` waits.
    pub buffered_events: u32,
    /// How many signals a gateway may fall behind before it is answered `Interrupted`.
    pub live_backlog: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { buffered_events: 65_536, live_backlog: 16_384 }
    }
}

/// The engines on one data directory. It is released when this and every engine are closed or dropped.
pub struct Embedded {
    database: Arc<Database>,
    pubsub: Arc<PubSub>,
    engines: Engines,
}

impl Embedded {
    /// The name of the database in the data directory.
    pub const DATABASE: &str = "naru.db";

    /// Opens the data in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// `Unavailable` when another process has it open or the disk can't be used; `Permanent` when the data is of
    /// another layout than this version's.
    pub fn open(dir: &Path, options: Options) -> EngineResult<Self> {
        let database = Arc::new(open::open(dir)?);
        let pubsub = Arc::new(PubSub::new(options.live_backlog));
        let engines = Engines {
            store: store::store(&database),
            bus: bus::bus(&database, &options),
            live: pubsub.clone(),
            presence: Arc::new(presence::MemoryPresence::new(database.clone())),
            proofs: Arc::new(proofs::MemoryProofs::default()),
            leases: Arc::new(leases::MemoryLeases::default()),
        };
        Ok(Self { database, pubsub, engines })
    }

    /// The engines; clones are the same ones.
    pub fn engines(&self) -> Engines {
        self.engines.clone()
    }

    /// What was done since the start; it goes on counting.
    pub fn counts(&self) -> Arc<Counts> {
        self.database.counts.clone()
    }

    /// Finishes what was taken, writes the whole log into the database and releases the directory. Engines that are still
    /// held answer `Unavailable` from then on, and live subscriptions end.
    pub async fn close(self) {
        self.pubsub.close();
        let database = self.database.clone();
        // Waits for the disk. It can't panic: it only joins threads.
        drop(tokio::task::spawn_blocking(move || database.close()).await);
    }
}
