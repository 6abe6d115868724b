//! A connection that is made again whenever it is lost.
//!
//! lapin's own recovery of connections is not used. Delivery tags, unacknowledged batches and unconfirmed messages of the old
//! connection mean nothing on the new one, and only their owners can handle that. So each connection is a [`Session`] with a
//! number of its own, and its users are notified when it ends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, ErrorKind, Event};
use naru_engines::{Applied, EngineError, EngineResult};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::ENGINE;
use crate::declare::{DeclareLock, Declared, code};
use crate::outage::Outage;

/// How long a broker may take for the handshake. A frozen broker accepts connections and sends nothing; when it resumes, so
/// does the handshake. Each abandoned connection costs a thread of lapin's, which can't be stopped, until the broker closes
/// it, so this is not short.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a broker may take to close a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a connection's state is checked, beside the events that report it.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// The broker's codes for "wrong user or password" and "no such virtual host".
const REFUSALS: [u16; 2] = [403, 530];

/// A connection in use.
#[derive(Clone)]
pub(crate) struct Session {
    /// Unique among the connections of a link.
    pub(crate) number: u64,
    pub(crate) connection: Arc<Connection>,
    pub(crate) declared: Arc<Declared>,
}

impl Session {
    pub(crate) fn is_up(&self) -> bool {
        self.connection.status().connected()
    }
}

/// A connection that is made again whenever it is lost. Dropped, it closes its connection.
pub(crate) struct Link {
    sessions: watch::Receiver<Option<Session>>,
    stop: DropGuard,
}

impl Link {
    /// Connects. A broker that can't be reached is waited for after this returns; one that refuses is an error.
    pub(crate) async fn open(
        uri: AMQPUri,
        purpose: &'static str,
        declare_lock: DeclareLock,
    ) -> EngineResult<Self> {
        let stop = CancellationToken::new();
        let (sender, sessions) = watch::channel(None);
        let mut keeper = Keeper { uri, purpose, declare_lock, sessions: sender, number: 0 };
        let first = keeper.connect().await;
        if let Err(error) = &first
            && code(error).is_some_and(|code| REFUSALS.contains(&code))
        {
            return Err(EngineError::permanent(ENGINE, error.clone()));
        }
        if let Ok(connection) = &first {
            keeper.begin(connection.clone());
        }
        tokio::spawn(keeper.keep_up(first, stop.clone()));
        Ok(Self { sessions, stop: stop.drop_guard() })
    }

    /// The connection, if there is one now.
    pub(crate) fn now(&self) -> EngineResult<Session> {
        let session = self.sessions.borrow().clone().filter(Session::is_up);
        session.ok_or_else(|| EngineError::unavailable(ENGINE, Applied::No, "there is no connection"))
    }

    /// The connection, as soon as there is one. After [`Link::close`] there never is.
    pub(crate) async fn up(&self) -> Session {
        let mut sessions = self.sessions.clone();
        let is_up = |session: &Option<Session>| session.as_ref().is_some_and(Session::is_up);
        match sessions.wait_for(is_up).await.map(|session| session.clone()) {
            Ok(Some(session)) => session,
            _ => std::future::pending().await,
        }
    }

    /// Closes the connection and makes no other.
    pub(crate) async fn close(&self) {
        self.stop.token().cancel();
        let mut sessions = self.sessions.clone();
        while sessions.changed().await.is_ok() {}
    }
}

struct Keeper {
    uri: AMQPUri,
    purpose: &'static str,
    declare_lock: DeclareLock,
    sessions: watch::Sender<Option<Session>>,
    number: u64,
}

impl Keeper {
    async fn keep_up(mut self, mut attempt: lapin::Result<Arc<Connection>>, stop: CancellationToken) {
        let authority = &self.uri.authority;
        let what = format!("the connection to {}:{} ({})", authority.host, authority.port, self.purpose);
        let mut outage = Outage::new(what);
        loop {
            match attempt {
                Ok(connection) => {
                    outage.ended();
                    let Some(reason) = stop.run_until_cancelled(ended(&connection)).await else {
                        self.sessions.send_replace(None);
                        // A broker that does not answer detects the connection's end.
                        let _late = timeout(CLOSE_TIMEOUT, connection.close(200, "done".into())).await;
                        return;
                    };
                    self.sessions.send_replace(None);
                    outage.began(&reason);
                }
                Err(error) => outage.began(&error),
            }
            let again = async {
                outage.wait().await;
                self.connect().await
            };
            let Some(again) = stop.run_until_cancelled(again).await else { return };
            attempt = again.inspect(|connection| self.begin(connection.clone()));
        }
    }

    fn begin(&mut self, connection: Arc<Connection>) {
        self.number += 1;
        let declared = Arc::new(Declared::new(self.declare_lock.clone()));
        let session = Session { number: self.number, connection, declared };
        self.sessions.send_replace(Some(session));
    }

    async fn connect(&self) -> lapin::Result<Arc<Connection>> {
        let name = format!("naru {}", self.purpose);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        match timeout(HANDSHAKE_TIMEOUT, Connection::connect_uri(self.uri.clone(), properties)).await {
            Ok(connection) => connection.map(Arc::new),
            Err(_late) => {
                let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "the broker does not answer");
                Err(ErrorKind::IOError(Arc::new(late)).into())
            }
        }
    }
}

/// Waits for the end of a connection; returns the reason. Meanwhile it logs when the broker takes no messages for want of
/// memory or disk.
async fn ended(connection: &Connection) -> String {
    let mut events = connection.events_listener();
    let mut check = tokio::time::interval(CHECK_INTERVAL);
    let mut reason = None;
    loop {
        tokio::select! {
            Some(event) = events.next() => match event {
                Event::ConnectionBlocked(why) => {
                    tracing::warn!(why, "the broker takes no messages for now; sends wait");
                }
                Event::ConnectionUnblocked => tracing::info!("the broker takes messages again"),
                // A channel's errors are reported here, too.
                Event::Error(error) => reason = Some(error.to_string()),
                _ => {}
            },
            _ = check.tick() => {}
        }
        if !connection.status().connected() {
            return reason.unwrap_or_else(|| "it was closed".to_owned());
        }
    }
}
