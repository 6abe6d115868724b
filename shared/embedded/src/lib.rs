//! Naru's engines in one process: SQLite for what must last, memory for what need not.
//!
//! | part | where | after a crash |
//! |---|---|---|
//! | store | SQLite (WAL, every commit synced) | as it was answered |
//! | hops `offline`, `owed`, `push.*` | the table `queue` | what is unsettled comes again |
//! | hop `outcome` | the table `newest`, the newest 100,000 | what is unsettled comes again |
//! | hops `accepted`, `saved` | memory | empty: the intake's open entries fill them again |
//! | live, presence, proofs, leases | memory | empty, as the sessions they tell of |
//!
//! One thread writes; what it finds waiting shares one transaction and one sync of the disk (group commit). Two
//! threads read, each read on one consistent state, and never wait for the writer.
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
mod store;

use std::path::Path;
use std::sync::Arc;

use naru_engines::{EngineResult, Engines};

use crate::database::Database;
use crate::live::Air;

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many partitions rooms are spread over. Stored at first start; another number does not open afterwards.
    pub partitions: u32,
    /// How many unsettled events each hop in memory holds before `send` waits.
    pub buffered_events: u32,
    /// How many events each newest-only hop keeps.
    pub newest_events: u32,
    /// How many signals a gateway may fall behind before it hears `Interrupted`.
    pub live_backlog: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { partitions: 32, buffered_events: 65_536, newest_events: 100_000, live_backlog: 16_384 }
    }
}

/// The engines on one data directory. It is released when this and every engine are closed or dropped.
pub struct Embedded {
    database: Arc<Database>,
    air: Arc<Air>,
    engines: Engines,
}

impl Embedded {
    /// The name of the database in the data directory.
    pub const DATABASE: &str = "naru.db";

    /// Opens the data in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// `Unavailable` when another process has it open or the disk can't be used; `Permanent` when the data is of a
    /// later version of Naru, or was made with another number of partitions.
    pub fn open(dir: &Path, options: Options) -> EngineResult<Self> {
        let database = Arc::new(open::open(dir, options.partitions)?);
        let air = Arc::new(Air::new(options.live_backlog));
        let engines = Engines {
            store: store::store(&database, options.partitions),
            bus: bus::bus(&database, &options),
            live: air.clone(),
            presence: Arc::new(presence::Present::new(database.clone())),
            proofs: Arc::new(proofs::Proven::new(database.clone())),
            leases: Arc::new(leases::Held::default()),
        };
        Ok(Self { database, air, engines })
    }

    /// The engines; clones are the same ones.
    pub fn engines(&self) -> Engines {
        self.engines.clone()
    }

    /// How many transactions were committed: with writes from many callers far fewer than writes.
    pub fn commits(&self) -> u64 {
        self.database.commits()
    }

    /// Finishes what was taken, brings the write-ahead log home and releases the directory. Engines that are still
    /// held answer `Unavailable` from then on, and live subscriptions end.
    pub async fn close(self) {
        self.air.close();
        let database = self.database.clone();
        // Waits for the disk. It can't panic: it only joins threads.
        drop(tokio::task::spawn_blocking(move || database.close()).await);
    }
}
