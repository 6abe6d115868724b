//! The users of one run, and how they connect.

use std::{net::IpAddr, sync::Arc, thread, time::Duration};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use naru_client::{Claims, Http, token};
use reqwest::Method;
use serde_json::json;

use crate::{
    load::{Driver, Session},
    peers::{naru, socketio, xmpp},
};

/// Longer than any run.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Rooms and sessions made at a time.
const SETUP_CONCURRENCY: usize = 16;

/// A server's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Naru's contract.
    Naru,
    /// Socket.IO, with the events of `bench/peers/socketio`.
    SocketIo,
    /// XMPP over TCP.
    Xmpp,
}

/// The server under test.
#[derive(Debug, Clone)]
pub struct Server {
    pub protocol: Protocol,
    /// `http://host:port` of each of its endpoints (of XMPP `host:port`); sessions are spread over them in turn.
    pub urls: Vec<String>,
    /// The HS256 secret of its tokens.
    pub secret: String,
}

impl Server {
    /// A token for a user.
    pub fn token(&self, user: &str) -> String {
        let subject = match self.protocol {
            Protocol::Naru | Protocol::SocketIo => user.to_owned(),
            Protocol::Xmpp => format!("{user}@{}", xmpp::HOST),
        };
        token(self.secret.as_bytes(), &Claims::user(&subject).expires_in(TOKEN_LIFE))
    }

    /// Where session number `number` is opened.
    pub fn url(&self, number: usize) -> &str {
        &self.urls[number % self.urls.len()]
    }

    /// Opens session number `number` for a user, from this address if one is given, and waits until it is ready.
    pub fn open(
        &self,
        number: usize,
        user: &str,
        run: &Arc<str>,
        source: Option<IpAddr>,
    ) -> anyhow::Result<Session> {
        let (url, token) = (self.url(number), self.token(user));
        let opened = match self.protocol {
            Protocol::Naru => naru::open(url, &token, run, source),
            Protocol::SocketIo => socketio::open(url, &token, run, source),
            Protocol::Xmpp => xmpp::open(url, user, &token, run, source),
        };
        opened.with_context(|| format!("session {number} could not be opened"))
    }

    /// Opens a session for each user, several at a time, in their order.
    pub fn open_all(&self, users: &[String], run: &Arc<str>, driver: &mut Driver) -> anyhow::Result<()> {
        for (start, users) in users.chunks(SETUP_CONCURRENCY).enumerate() {
            let open = |(place, user): (usize, &String)| {
                self.open(start * SETUP_CONCURRENCY + place, user, run, None)
            };
            let sessions: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> =
                    users.iter().enumerate().map(|user| scope.spawn(move || open(user))).collect();
                threads.into_iter().map(|thread| thread.join().expect("opening does not panic")).collect()
            });
            for session in sessions {
                driver.add(session?)?;
            }
        }
        Ok(())
    }

    /// Makes a room of each pair of users: their ids in order.
    pub async fn make_rooms(&self, pairs: Vec<[String; 2]>) -> anyhow::Result<Vec<String>> {
        if self.protocol == Protocol::Xmpp {
            // Two users that write to each other need no room.
            return Ok(vec![String::new(); pairs.len()]);
        }
        let http = Http::without_token(self.url(0));
        let rooms = pairs.into_iter().map(|members| self.make_room(&http, members));
        stream::iter(rooms).buffered(SETUP_CONCURRENCY).try_collect().await
    }

    async fn make_room(&self, http: &Http, members: [String; 2]) -> anyhow::Result<String> {
        let http = http.with_token(&self.token(&members[0]));
        let (status, room) =
            http.request(Method::POST, "/api/rooms", Some(json!({"memberIds": members}))).await?;
        let id = room["id"].as_str().with_context(|| format!("a room was refused with {status}: {room}"))?;
        Ok(id.to_owned())
    }
}

/// Eight hex digits that make this run's users and messages unlike those of any other.
pub fn new_run() -> String {
    uuid::Uuid::new_v4().simple().to_string()[..8].to_owned()
}
