//! One connection to one server, opened when it is needed and reopened when it is lost.

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

/// After a failed attempt to connect, calls fail at once for up to the first, doubling up to the second one.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A longer batch is written in parts, which are answered while later ones are still in flight.
const PART: usize = 1_000;

/// A connection that all callers share. A call's commands are sent together and answered in their order; calls don't
/// wait for each other's answers.
///
/// A connection with an answer that is late is dropped. So a server that hangs can't collect requests: those that were
/// not yet written are discarded with the connection.
pub(crate) struct Link {
    servers: Arc<Servers>,
    answer_within: Duration,
    state: Mutex<State>,
}

struct State {
    connection: Option<MultiplexedConnection>,
    /// The connection's number: one that was replaced meanwhile is not dropped a second time.
    number: u64,
    backoff: Backoff,
    /// Until when calls fail at once, and why.
    pause: Option<(Instant, String)>,
}

impl Link {
    /// `answer_within`: how long the server may take to answer what one call sends.
    pub(crate) fn new(servers: Arc<Servers>, answer_within: Duration) -> Self {
        let backoff = Backoff::new(PAUSE.0, PAUSE.1);
        let state = State { connection: None, number: 0, backoff, pause: None };
        Self { servers, answer_within, state: Mutex::new(state) }
    }

    /// Sends commands and returns the server's answers, in their order. One round trip, however many they are.
    ///
    /// # Errors
    /// When there is no connection, or it breaks, or the answers don't come in time. The server's refusal of a
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

    /// The connection. A call made while one is being opened waits for it, and shares its failure.
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
        // `send` has a time limit of its own, which covers all commands of a call.
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

    /// Drops a connection; calls that are still on it may finish.
    async fn give_up(&self, number: u64) {
        let mut state = self.state.lock().await;
        if state.number == number {
            state.connection = None;
        }
    }
}
