//! One connection to one server, made when it is needed and made anew when it is lost.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use naru_engines::{Applied, EngineError, EngineResult};
use naru_runtime::backoff::Backoff;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisResult, Value};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::error::{ENGINE, engine_error, is_demoted};
use crate::servers::Servers;

/// After a failed attempt to connect, calls fail at once for up to this long, doubling up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A longer batch is written in parts, which are answered while later ones are still on their way.
const PART: usize = 1_000;

/// A connection that all callers share. What one call sends goes out in one piece and is answered in its order; calls
/// don't wait for each other's answers.
///
/// A connection on which an answer did not come in time is thrown away. So a server that hangs can't collect requests:
/// those that were not yet written die with the connection.
pub(crate) struct Link {
    servers: Arc<Servers>,
    answer_within: Duration,
    state: Mutex<State>,
}

struct State {
    connection: Option<MultiplexedConnection>,
    /// Which connection this is: one that was replaced meanwhile is not thrown away a second time.
    number: u64,
    backoff: Backoff,
    /// Until when no request is tried, and why.
    pause: Option<(Instant, String)>,
}

impl Link {
    /// `answer_within`: how long the server may take to answer what one call sends.
    pub(crate) fn new(servers: Arc<Servers>, answer_within: Duration) -> Self {
        let backoff = Backoff::new(PAUSE.0, PAUSE.1);
        let state = State { connection: None, number: 0, backoff, pause: None };
        Self { servers, answer_within, state: Mutex::new(state) }
    }

    /// Sends commands and answers what the server said to each, in their order. One round trip, however many they
    /// are.
    ///
    /// # Errors
    /// When there is no connection, or it breaks, or the answers don't come in time. That the server refuses a
    /// command is an answer.
    pub(crate) async fn send(
        &self,
        commands: impl IntoIterator<Item = Cmd>,
    ) -> EngineResult<Vec<RedisResult<Value>>> {
        let mut commands = commands.into_iter().peekable();
        let mut parts = Vec::new();
        while commands.peek().is_some() {
            let mut part = Pipeline::with_capacity(PART);
            for command in commands.by_ref().take(PART) {
                part.add_command(command);
            }
            part.ignore_errors();
            parts.push(part);
        }
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let (number, connection) = self.connection().await?;
        let answers = try_join_all(parts.iter().map(|part| {
            let mut connection = connection.clone();
            async move { part.query_async::<Vec<RedisResult<Value>>>(&mut connection).await }
        }));
        let failure = match timeout(self.answer_within, answers).await {
            Ok(Ok(answers)) => {
                let answers: Vec<_> = answers.into_iter().flatten().collect();
                if answers.iter().any(|answer| answer.as_ref().is_err_and(is_demoted)) {
                    self.give_up(number).await;
                }
                return Ok(answers);
            }
            Ok(Err(error)) => engine_error(error, Applied::Unknown),
            Err(_) => {
                let why = format!("no answer within {:?}", self.answer_within);
                EngineError::unavailable(ENGINE, Applied::Unknown, why)
            }
        };
        self.give_up(number).await;
        Err(failure)
    }

    /// The connection. A request that comes while one is being made waits for it, and shares its failure.
    async fn connection(&self) -> EngineResult<(u64, MultiplexedConnection)> {
        let mut state = self.state.lock().await;
        if let Some(connection) = &state.connection {
            return Ok((state.number, connection.clone()));
        }
        if let Some((until, why)) = &state.pause
            && Instant::now() < *until
        {
            return Err(EngineError::unavailable(ENGINE, Applied::No, why.clone()));
        }
        // The time limit of a call is this link's own: it covers all that the call sends.
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        match self.servers.connect(&config).await {
            Ok(connection) => {
                state.backoff.reset();
                state.pause = None;
                state.number += 1;
                state.connection = Some(connection.clone());
                Ok((state.number, connection))
            }
            Err(error) => {
                if let EngineError::Unavailable { source, .. } = &error {
                    let until = Instant::now() + state.backoff.next_delay();
                    state.pause = Some((until, source.to_string()));
                }
                Err(error)
            }
        }
    }

    /// Throws a connection away; calls that are still on it may finish.
    async fn give_up(&self, number: u64) {
        let mut state = self.state.lock().await;
        if state.number == number {
            state.connection = None;
        }
    }
}
