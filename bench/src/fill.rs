//! Stores many messages in many rooms through the server's own interface, as fast as it takes them, so that a full server
//! can be compared with an empty one.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use crate::{
    load::{Driver, Room},
    record::Schedule,
    session::{Protocol, Server, new_run},
};

/// Messages that are under way at a time.
const WINDOW: usize = 512;
/// How long no message may be answered before the run gives up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct Amount {
    pub messages: u32,
    /// The rooms over which the messages are spread evenly.
    pub rooms: u32,
    /// Content size.
    pub bytes: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub messages: u32,
    pub rooms: u32,
    /// 0 if pairs of users need no rooms.
    pub rooms_seconds: f64,
    pub messages_seconds: f64,
}

/// Makes the rooms, then sends the messages.
///
/// # Errors
/// When a room is refused, or a message has not arrived in the end.
pub async fn run(server: &Server, amount: &Amount) -> anyhow::Result<Report> {
    let run: Arc<str> = new_run().into();
    let users: Arc<[String]> =
        (0..users_for(amount.rooms)).map(|number| format!("fill-{run}-{number}")).collect();
    let pairs = pairs(users.len(), amount.rooms as usize);
    let start = Instant::now();
    let members = pairs.iter().map(|pair| pair.map(|user| users[user].clone())).collect();
    let ids = server.make_rooms(members).await?;
    let has_rooms = server.protocol != Protocol::Xmpp;
    let rooms_seconds = if has_rooms { start.elapsed().as_secs_f64() } else { 0.0 };
    let rooms = ids.into_iter().zip(pairs).map(|(id, members)| Room { id, members }).collect();
    let (server, total, content) =
        (server.clone(), amount.messages as usize, "x".repeat(amount.bytes as usize));
    let filling = spawn_blocking(move || -> anyhow::Result<_> {
        let schedule = Schedule { start: Instant::now(), rate: u32::MAX, warmup: 0, total };
        let mut driver = Driver::new(schedule)?;
        server.open_all(&users, &run, &mut driver)?;
        driver.rooms(rooms, users, content);
        let start = Instant::now();
        let record = driver.fill(WINDOW, IDLE_TIMEOUT)?;
        Ok((record.finished(), record.totals().errors, start.elapsed()))
    });
    let (finished, errors, took) = filling.await??;
    ensure!(finished == total && errors.is_empty(), "{finished} of {total} messages arrived: {errors:?}");
    let Amount { messages, rooms, .. } = *amount;
    Ok(Report { messages, rooms, rooms_seconds, messages_seconds: took.as_secs_f64() })
}

/// How many users have as many pairs among them.
fn users_for(rooms: u32) -> usize {
    (2..).find(|users| users * (users - 1) / 2 >= rooms as usize).expect("the integers don't end")
}

/// Different pairs, in an order in which each user is in one as rarely as can be.
fn pairs(users: usize, count: usize) -> Vec<[usize; 2]> {
    let apart = 1..users;
    let all = apart.flat_map(|apart| (0..users - apart).map(move |user| [user, user + apart]));
    all.take(count).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages, rooms, rooms_seconds, messages_seconds } = self;
        let per_second = |count: u32, seconds: f64| f64::from(count) / seconds;
        match rooms_seconds {
            0.0 => write!(f, "{rooms} pairs of users")?,
            _ => write!(
                f,
                "{rooms} rooms in {rooms_seconds:.1} s ({:.0}/s)",
                per_second(*rooms, *rooms_seconds)
            )?,
        }
        let rate = per_second(*messages, *messages_seconds);
        write!(f, ", {messages} messages in {messages_seconds:.1} s ({rate:.0}/s)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::{Defect, serve};

    #[test]
    fn each_room_has_another_pair() {
        let (users, rooms) = (users_for(100_000), 100_000);
        assert_eq!(users, 448);
        let mut pairs = pairs(users, rooms);
        assert_eq!(pairs[..2], [[0, 1], [1, 2]]);
        assert!(pairs.iter().all(|[first, second]| first < second && *second < users));
        pairs.sort_unstable();
        pairs.dedup();
        assert_eq!(pairs.len(), rooms);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_is_filled() {
        let server = serve(|_| Defect::None).await;
        let amount = Amount { messages: 1000, rooms: 10, bytes: 10 };
        let report = run(&server, &amount).await.expect("fills");
        assert_eq!((report.messages, report.rooms), (1000, 10));
    }
}
