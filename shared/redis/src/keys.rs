//! Commands on keys, on one server or on a cluster. On a cluster every command touches one key, so that it has one node.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use naru_engines::{Applied, EngineError, EngineResult};
use redis::aio::ConnectionLike;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{
    Arg, Cmd, ErrorKind, FromRedisValue, ProtocolVersion, RedisError, RedisResult, Script, ServerErrorKind,
    ToRedisArgs, Value,
};
use tokio::time::timeout;

use crate::error::{ENGINE, engine_error, unreadable};
use crate::link::Link;
use crate::servers::{CONNECT_TIMEOUT, Servers};

/// How many commands of one batch are in flight to a cluster.
const AT_ONCE: usize = 512;

/// A script. It is sent once; from then on the server finds it by its hash.
pub(crate) struct Lua {
    code: &'static str,
    hash: OnceLock<String>,
}

impl Lua {
    pub(crate) const fn new(code: &'static str) -> Self {
        Self { code, hash: OnceLock::new() }
    }

    fn hash(&self) -> &str {
        self.hash.get_or_init(|| Script::new(self.code).get_hash().to_owned())
    }
}

/// One command: on one key, or on one server on several.
pub(crate) struct Request {
    command: Cmd,
    script: Option<&'static Lua>,
}

impl Request {
    /// A command of Redis, on one key or on one server on several.
    pub(crate) fn command(name: &'static str, keys: &[String]) -> Self {
        let mut command = Cmd::new();
        command.arg(name).arg(keys);
        Self { command, script: None }
    }

    /// A script of Naru, on one key.
    pub(crate) fn script(script: &'static Lua, key: String) -> Self {
        Self::script_on_all(script, &[key])
    }

    /// A script of Naru, on one server on several keys.
    pub(crate) fn script_on_all(script: &'static Lua, keys: &[String]) -> Self {
        let mut command = Cmd::new();
        command.arg("EVALSHA").arg(script.hash()).arg(keys.len()).arg(keys);
        Self { command, script: Some(script) }
    }

    /// Adds an argument, or one for each element of a slice.
    pub(crate) fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        self.command.arg(argument);
        self
    }
}

/// The same command for a server that does not have the script: with its code in place of its hash.
fn in_full(script: &Lua, command: &Cmd) -> Cmd {
    let mut full = Cmd::new();
    full.arg("EVAL").arg(script.code);
    for argument in command.args_iter().skip(2) {
        if let Arg::Simple(argument) = argument {
            full.arg(argument);
        }
    }
    full
}

/// The server or cluster of the keys.
pub(crate) enum Keys {
    Server(Box<Link>),
    /// A cluster, whose client finds a key's node, and the new one when the key moves or a node dies.
    Cluster {
        /// Clones share their connections.
        connection: ClusterConnection,
        /// How long the answers to one batch may take.
        answer_within: Duration,
    },
}

impl Keys {
    /// The keys of a cluster.
    ///
    /// # Errors
    /// When it can't be reached, or does not answer in time.
    pub(crate) async fn of_cluster(servers: &Arc<Servers>, answer_within: Duration) -> EngineResult<Self> {
        let client = ClusterClient::builder(servers.infos())
            .use_protocol(ProtocolVersion::RESP3)
            .connection_timeout(CONNECT_TIMEOUT)
            .response_timeout(answer_within)
            .build()
            .map_err(|error| engine_error(error, Applied::No))?;
        let connection = timeout(CONNECT_TIMEOUT, client.get_async_connection()).await;
        let connection = connection.map_err(|_| {
            let why = format!("the cluster did not answer within {CONNECT_TIMEOUT:?}");
            EngineError::unavailable(ENGINE, Applied::No, why)
        })?;
        Ok(Self::Cluster {
            connection: connection.map_err(|error| engine_error(error, Applied::No))?,
            answer_within,
        })
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster { .. })
    }

    /// How many keys one command may name.
    pub(crate) fn per_command(&self) -> usize {
        if self.is_cluster() { 1 } else { 5_000 }
    }

    /// Sends one request.
    pub(crate) async fn one<T: FromRedisValue>(&self, request: Request) -> EngineResult<T> {
        let mut answers = self.all(vec![request]).await?;
        answers.pop().ok_or_else(|| EngineError::poison(ENGINE, "an answer is missing"))
    }

    /// Sends all of these; the answers are in their order. They are in flight at the same time, so a thousand take about
    /// as long as one; the order in which they are executed is undefined.
    ///
    /// # Errors
    /// When one of them fails: the others may have been executed.
    pub(crate) async fn all<T: FromRedisValue>(&self, requests: Vec<Request>) -> EngineResult<Vec<T>> {
        let scripts: Vec<(usize, &Lua, Cmd)> = requests
            .iter()
            .enumerate()
            .filter_map(|(place, request)| Some((place, request.script?, request.command.clone())))
            .collect();
        let mut answers = self.send(requests.into_iter().map(|request| request.command)).await?;
        // A server that was started, emptied or promoted since does not have the script.
        let (places, unknown): (Vec<usize>, Vec<Cmd>) = scripts
            .iter()
            .filter(|(place, ..)| {
                answers.get(*place).is_some_and(|answer| answer.as_ref().is_err_and(is_unknown_script))
            })
            .map(|(place, script, command)| (*place, in_full(script, command)))
            .unzip();
        for (place, answer) in places.into_iter().zip(self.send(unknown).await?) {
            answers[place] = answer;
        }
        let answers = answers.into_iter().map(|answer| {
            let value = answer.map_err(|error| engine_error(error, Applied::Unknown))?;
            T::from_redis_value(value).map_err(unreadable)
        });
        answers.collect()
    }

    async fn send(&self, commands: impl IntoIterator<Item = Cmd>) -> EngineResult<Vec<RedisResult<Value>>> {
        match self {
            Self::Server(link) => link.send(commands).await,
            Self::Cluster { connection, answer_within } => {
                // A pipeline would have to stay within one node.
                let answers = stream::iter(commands).map(|command| {
                    let mut connection = connection.clone();
                    async move { connection.req_packed_command(&command).await?.extract_error() }
                });
                let answers = timeout(*answer_within, answers.buffered(AT_ONCE).collect()).await;
                answers.map_err(|_| {
                    let why = format!("no answer within {answer_within:?}");
                    EngineError::unavailable(ENGINE, Applied::Unknown, why)
                })
            }
        }
    }
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Milliseconds, as scripts take them: at least one.
pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1)
}
