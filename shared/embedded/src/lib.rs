//! Naru's engines in one process: SQLite for durable data, memory for the rest.
//!
//! | part | where | after a crash |
//! |---|---|---|
//! | store | SQLite (WAL), lately read rooms also in memory | as it was answered |
//! | hops `offline`, `push.*` | the table `queue` | unacknowledged events are delivered again |
//! | hops `accepted`, `saved` | memory | empty: the intake's open entries fill them again |
//! | live, presence, proofs, leases | memory | empty, as the sessions end, too |
//!
//! One thread writes; the commands that wait for it share one transaction and one sync of the disk (group commit). The intake
//! is synced with the run that saves its messages, not by itself: `database.rs` explains why that is enough at every crash
//! point. Two threads read, each read on one consistent state, and never wait for the writer. What clients ask for is of
//! bounded cost, whatever is stored: the list of rooms of a user in many is kept in its order (`store/lists.rs`). A message that is accepted,
//! saved and passed on to connected sessions needs no reader thread.
//!
//! The data directory holds `naru.db` (with `-wal` and `-shm`), which any SQLite tool can read while Naru runs, and
//! `naru.lock`, which keeps a second process out, and `naru.marker`, which says that there was data (`open.rs`). The directory and its files are their owner's only ([`directory`]).

mod bus;
mod column;
mod condition;
mod database;
pub mod directory;
mod leases;
mod live;
mod lock;
mod open;
mod presence;
mod proofs;
mod rooms;
mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use naru_engines::{EngineResult, Engines};

pub use crate::database::Counts;
use crate::database::Database;
use crate::live::PubSub;

/// The limits of buffers, and of what is kept of users.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many unacknowledged events each hop in memory holds before `send` waits.
    pub buffered_events: u32,
    /// How many signals a gateway may fall behind before it receives `Interrupted`.
    pub live_backlog: usize,
    /// How long it is kept when a user was last seen.
    pub last_seen_keep: Duration,
    /// How many places of rooms in a user's list are computed when it is asked for; of a user who is in more rooms they
    /// are kept.
    pub computed_places: usize,
}

impl Default for Options {
    fn default() -> Self {
        let last_seen_keep = Duration::from_secs(365 * 24 * 60 * 60);
        let computed_places = store::lists::COMPUTED;
        Self { buffered_events: 8_192, live_backlog: 16_384, last_seen_keep, computed_places }
    }
}

/// The engines on one data directory, which is released when this and every engine are closed or dropped.
pub struct Embedded {
    database: Arc<Database>,
    pubsub: Arc<PubSub>,
    engines: Engines,
}

/// The disk that the data is on.
#[derive(Clone)]
pub struct Disk(Arc<Database>);

impl Disk {
    /// Whether what is written reaches the disk. Where it did not lately, this tries; so it must be asked again and again for
    /// the fault to be over without a message.
    ///
    /// # Errors
    /// A sentence about the fault.
    pub async fn check(&self) -> Result<(), &'static str> {
        self.0.check().await
    }
}

impl Embedded {
    /// The database's file name in the data directory.
    pub const DATABASE: &str = "naru.db";

    /// Opens the data in `dir`, which is made if it is absent.
    ///
    /// # Errors
    /// `Unavailable` when another process has it open or the disk can't be used; `Permanent` when the data is damaged, lost, or
    /// of another layout than this version's.
    pub fn open(dir: &Path, options: Options) -> EngineResult<Self> {
        let mut database = open::open(dir)?;
        database.lists.computed = options.computed_places;
        let database = Arc::new(database);
        let pubsub = Arc::new(PubSub::new(options.live_backlog));
        let engines = Engines {
            store: store::store(&database),
            bus: bus::bus(&database, &options),
            live: pubsub.clone(),
            presence: Arc::new(presence::MemoryPresence::new(database.clone(), options.last_seen_keep)),
            proofs: Arc::new(proofs::MemoryProofs::default()),
            leases: Arc::new(leases::MemoryLeases::default()),
        };
        Ok(Self { database, pubsub, engines })
    }

    /// The disk, for readiness.
    pub fn disk(&self) -> Disk {
        Disk(self.database.clone())
    }

    /// The engines; all clones are the same.
    pub fn engines(&self) -> Engines {
        self.engines.clone()
    }

    /// The counters since the start; they go on counting.
    pub fn counts(&self) -> Arc<Counts> {
        self.database.counts.clone()
    }

    /// Finishes the queued commands, writes the whole log into the database and releases the directory. Engines that are
    /// still held answer `Unavailable` from then on, and live subscriptions end.
    pub async fn close(self) {
        self.pubsub.close();
        let database = self.database.clone();
        // Waits for the disk. It can't panic: it only joins threads.
        drop(tokio::task::spawn_blocking(move || database.close()).await);
    }
}
