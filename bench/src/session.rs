//! Who connects, and how: the users of one run.

use std::{net::IpAddr, time::Duration};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use naru_client::{Claims, Connect, PATIENCE, token};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

/// Longer than any run.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

/// One session's connection.
pub type Session = WebSocketStream<TcpStream>;

/// The server under test.
#[derive(Debug, Clone)]
pub struct Server {
    /// `http://host:port` of each gateway; sessions are spread over them in turn.
    pub urls: Vec<String>,
    /// Its HS256 secret.
    pub secret: String,
}

impl Server {
    /// A token for a user.
    pub fn token(&self, user: &str) -> String {
        token(self.secret.as_bytes(), &Claims::user(user).expires_in(TOKEN_LIFE))
    }

    /// Where session number `number` is opened.
    pub fn url(&self, number: usize) -> &str {
        &self.urls[number % self.urls.len()]
    }

    /// Opens session number `number` for a user, from this address if one is given, and waits for its `WELCOME`.
    pub async fn open(&self, number: usize, user: &str, source: Option<IpAddr>) -> anyhow::Result<Session> {
        let connect = Connect::to(self.url(number), &self.token(user));
        let connect = source.into_iter().fold(connect, Connect::source);
        let mut session = connect.stream().await?;
        let first = timeout(PATIENCE, session.next()).await.context("no WELCOME in time")?;
        match first.context("the session ended before its WELCOME")?? {
            Message::Text(text) if text.contains("\"WELCOME\"") => Ok(session),
            other => anyhow::bail!("wanted a WELCOME, got {other}"),
        }
    }
}

/// Eight hex digits that make this run's users and messages unlike those of any other.
pub fn new_run() -> String {
    uuid::Uuid::new_v4().simple().to_string()[..8].to_owned()
}
