//! Declares queues: a hop's when it is first used on a connection, and again on the next connection, because the broker may
//! have lost its disk in between. An existing queue costs some 60 µs, a new one some 3 ms.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::ShortString;
use lapin::{Channel, Connection, ErrorKind};
use naru_engines::{Applied, EngineError};
use naru_model::hops::Hop;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

use crate::ENGINE;
use crate::layout::{Declaration, LAYOUT, Layout};

/// How long all queues of a hop may take: a broker that is not frozen needs a fraction of it.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a missing queue stays missing before it is declared again. A queue that is declared within milliseconds of its
/// deletion inherits the deleted one's consumers: it pushes messages to them that they never receive (checked on 3.10.8).
const REDECLARE_DELAY: Duration = Duration::from_secs(1);

/// The broker's codes for "access refused", "locked by another connection" and "declared with other arguments".
const REFUSALS: [u16; 3] = [403, 405, 406];

/// Why the broker did not do what was requested.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Permanent.
    #[error(
        "the queue {queue} is there with other arguments than those of layout {LAYOUT} ({source}): let the version of \
             Naru that declared it work it off, then stop all and delete it"
    )]
    Refused { queue: ShortString, source: lapin::Error },
    /// The connection, or its channel, is broken.
    #[error(transparent)]
    Broken(#[from] lapin::Error),
    /// The broker cancelled a subscription: the queue was deleted, or moved to another node.
    #[error("the broker cancelled the subscription")]
    Cancelled,
    /// The broker does not answer.
    #[error("no answer within {0:?}")]
    Silent(Duration),
}

impl From<Failure> for EngineError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused { .. } => EngineError::permanent(ENGINE, failure),
            _ => EngineError::unavailable(ENGINE, Applied::No, failure),
        }
    }
}

/// Locked while queues are declared. A queue that another connection is declaring exists before it works, and a subscriber to
/// it then has its connection closed (3.10.8: "541 INTERNAL_ERROR", `noproc` in the broker's log). So the two connections of
/// a process don't declare concurrently; two processes that meet on a new broker recover by themselves.
pub(crate) type DeclareLock = Arc<Mutex<()>>;

/// Which hops' queues are known to exist, on one connection.
#[derive(Debug)]
pub(crate) struct Declared {
    hops: Mutex<HashMap<&'static str, Known>>,
    declare_lock: DeclareLock,
}

#[derive(Clone, Copy, Debug)]
enum Known {
    There,
    MissedAt(Instant),
}

impl Declared {
    pub(crate) fn new(declare_lock: DeclareLock) -> Self {
        Self { hops: Mutex::default(), declare_lock }
    }

    /// Makes sure that a hop's queues exist. The first send of a hop waits for this and has its own time afterwards: many new
    /// queues may take a busy broker longer than a send.
    pub(crate) async fn ensure(
        &self,
        connection: &Connection,
        layout: &Layout,
        hop: &Hop,
    ) -> Result<(), Failure> {
        let ensuring = async {
            let mut hops = self.hops.lock().await;
            match hops.get(hop.name) {
                Some(Known::There) => return Ok(()),
                Some(Known::MissedAt(since)) => sleep_until(*since + REDECLARE_DELAY).await,
                None => {}
            }
            let _declaring = self.declare_lock.lock().await;
            declare(connection, layout.declarations(hop)).await?;
            hops.insert(hop.name, Known::There);
            Ok(())
        };
        timeout(DECLARE_TIMEOUT, ensuring).await.map_err(|_late| Failure::Silent(DECLARE_TIMEOUT))?
    }

    /// One of the hop's queues is missing: they are declared again before the next use.
    pub(crate) async fn missed(&self, hop: &Hop) {
        self.hops.lock().await.insert(hop.name, Known::MissedAt(Instant::now()));
    }
}

async fn declare(connection: &Connection, declarations: Vec<Declaration>) -> Result<(), Failure> {
    let channel = connection.create_channel().await?;
    for declaration in declarations {
        declare_one(&channel, declaration).await?;
    }
    Ok(channel.close(200, "declared".into()).await?)
}

pub(crate) async fn declare_one(channel: &Channel, declaration: Declaration) -> Result<(), Failure> {
    let Declaration { queue, arguments } = declaration;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    match channel.queue_declare(queue.clone(), options, arguments).await {
        Ok(_) => Ok(()),
        Err(source) if code(&source).is_some_and(|code| REFUSALS.contains(&code)) => {
            Err(Failure::Refused { queue, source })
        }
        Err(source) => Err(source.into()),
    }
}

/// The broker's own code for an error, if it is one of the broker's.
pub(crate) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}
