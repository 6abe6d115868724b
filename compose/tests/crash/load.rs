//! People who write as fast as they are answered, and remember everything that they sent and were told.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};

use naru_client::{Client, Incoming, PATIENCE};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::support::token_of;

/// The users. Six write; the listener is connected whenever there is a server, and never writes; the absent one
/// never connects.
pub const WRITERS: [&str; 6] = ["u0", "u1", "u2", "u3", "u4", "u5"];
pub const LISTENER: &str = "listener";
pub const ABSENT: &str = "absent";

/// The rooms: six direct ones and two groups.
pub const ROOMS: [&[&str]; 8] = [
    &["u0", "u1"],
    &["u2", "u3"],
    &["u4", "u5"],
    &["u1", ABSENT],
    &["u3", LISTENER],
    &["u5", ABSENT],
    &["u0", "u1", "u2", "u3", "u4", "u5", ABSENT],
    &["u0", "u1", "u2", "u3", "u4", "u5", LISTENER],
];

/// "Slow consumer": the client reconnects, and asks for what it missed.
const SLOW_CONSUMER: u16 = 4408;

/// One person, over all of their sessions.
pub struct Person {
    pub user: &'static str,
    /// Everything sent, in the order in which it was sent first. A message's `clientMessageId` is its place here.
    pub sent: Vec<Sent>,
    /// Everything that came as a `CHAT`, by id.
    pub heard: HashMap<String, Heard>,
    /// What came before the `WELCOME` of its session.
    pub before_welcome: Vec<Value>,
    /// How often the server found this person too slow.
    pub slow: usize,
    /// The `ERROR`s that came.
    pub errors: Vec<Value>,
    /// How many `ACK`s came, and how many of them for the second time.
    pub acks: usize,
    pub repeated_acks: usize,
    /// The places of what was acknowledged since the last look.
    pub fresh: Vec<usize>,
    rooms: Vec<String>,
    /// The places of what may still be acknowledged, in the order sent.
    unacknowledged: VecDeque<usize>,
    /// Counts up whenever something is forgotten: within a chain everything is resent until it is acknowledged.
    chain: usize,
    rng: StdRng,
}

/// A message as its sender knows it.
pub struct Sent {
    pub room: String,
    pub content: String,
    pub chain: usize,
    pub saved: Option<Saved>,
}

/// What an `ACK` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    pub id: String,
    pub seq: u64,
}

/// What a `CHAT` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub room: String,
    pub seq: u64,
    pub content: String,
}

/// What a person does about messages that were not acknowledged when the connection broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Resends them, in order, before anything new.
    Resends,
    /// Never speaks of them again.
    Forgets,
}

/// How a person behaves in one session.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    pub memory: Memory,
    /// How many messages may be unacknowledged before new ones have to wait.
    pub window: usize,
}

/// What happens while they write, to choose a moment by.
pub struct Happenings {
    frames: Semaphore,
    acks: Semaphore,
    over: Cell<bool>,
}

/// A moment: when that many have happened.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    FramesSent(u32),
    AcksReceived(u32),
}

impl Happenings {
    pub fn new() -> Self {
        Self { frames: Semaphore::new(0), acks: Semaphore::new(0), over: Cell::new(false) }
    }

    pub async fn wait_for(&self, moment: Moment) {
        let (happenings, count) = match moment {
            Moment::FramesSent(count) => (&self.frames, count),
            Moment::AcksReceived(count) => (&self.acks, count),
        };
        let waited = timeout(PATIENCE, happenings.acquire_many(count)).await;
        drop(waited.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {moment:?}")));
    }

    /// From now on connections may end.
    pub fn end(&self) {
        self.over.set(true);
    }
}

impl Person {
    /// `rooms` are the ids of [`ROOMS`].
    pub fn new(user: &'static str, rooms: &[String], seed: u64) -> Self {
        let own = ROOMS.iter().zip(rooms).filter(|(members, _)| members.contains(&user));
        Self {
            user,
            sent: Vec::new(),
            heard: HashMap::new(),
            before_welcome: Vec::new(),
            slow: 0,
            errors: Vec::new(),
            acks: 0,
            repeated_acks: 0,
            fresh: Vec::new(),
            rooms: own.map(|(_, room)| room.clone()).collect(),
            unacknowledged: VecDeque::new(),
            chain: 0,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Connects, catches up on what is owed, and writes until the connection ends: its close code, or none when there
    /// was no connection. It must not end before `happenings` says so, but as a slow consumer's: then it comes back.
    pub async fn session(&mut self, url: &str, habits: Habits, happenings: &Happenings) -> Option<u16> {
        let mut missed = false;
        loop {
            let code = self.connection(url, habits, happenings, missed).await;
            if code != Some(SLOW_CONSUMER) || happenings.over.get() {
                return code;
            }
            self.slow += 1;
            missed = true;
        }
    }

    async fn connection(
        &mut self,
        url: &str,
        habits: Habits,
        happenings: &Happenings,
        missed: bool,
    ) -> Option<u16> {
        if habits.memory == Memory::Forgets {
            self.unacknowledged.clear();
            self.chain += 1;
        }
        let mut client = match Client::connect(url, &token_of(self.user)).await {
            Ok(client) => client,
            Err(_) if happenings.over.get() => return None,
            Err(error) => panic!("{} can't connect: {error:?}", self.user),
        };
        loop {
            match client.next().await.expect("nothing is asked for after the end") {
                Incoming::Frame(frame) if frame["type"] == "WELCOME" => break,
                Incoming::Frame(frame) => {
                    self.read(&frame, happenings);
                    self.before_welcome.push(frame);
                }
                Incoming::Closed { code, .. } if happenings.over.get() => return Some(code),
                closed => panic!("{} waited for WELCOME: {closed}", self.user),
            }
        }
        if missed {
            self.sync(&mut client).await;
        }
        for place in self.again() {
            self.send(&mut client, place, happenings).await;
        }
        loop {
            while self.unacknowledged.len() < habits.window {
                let place = self.write();
                self.unacknowledged.push_back(place);
                self.send(&mut client, place, happenings).await;
                if self.rng.random_ratio(1, 16) {
                    self.send(&mut client, place, happenings).await;
                }
            }
            match client.next().await.expect("nothing is asked for after the end") {
                Incoming::Frame(frame) => {
                    self.read(&frame, happenings);
                    let rooms = frame["rooms"].as_array().into_iter().flatten();
                    if rooms.into_iter().any(|room| room["complete"] == false) {
                        self.sync(&mut client).await;
                    }
                }
                Incoming::Closed { code, .. } if happenings.over.get() || code == SLOW_CONSUMER => {
                    return Some(code);
                }
                closed => panic!("{}: {closed}, and it was not killed", self.user),
            }
        }
    }

    /// Asks for what came after the last that was heard in each room.
    async fn sync(&self, client: &mut Client) {
        let mut last: HashMap<&str, u64> = self.rooms.iter().map(|room| (room.as_str(), 0)).collect();
        for Heard { room, seq, .. } in self.heard.values() {
            last.entry(room).and_modify(|last| *last = (*last).max(*seq));
        }
        let rooms = last.iter().map(|(room, seq)| json!({"chatRoomId": room, "afterSeq": seq}));
        client.send_json(&json!({"type": "SYNC", "rooms": rooms.collect::<Vec<_>>()})).await;
    }

    /// What is sent again at the start of a session: a few that were acknowledged long ago, which must make no
    /// difference, then everything that was not, in order.
    fn again(&mut self) -> Vec<usize> {
        let mut again = Vec::new();
        if !self.sent.is_empty() {
            let places = (0..3).map(|_| self.rng.random_range(0..self.sent.len()));
            again.extend(places.filter(|place| self.sent[*place].saved.is_some()));
        }
        again.extend(&self.unacknowledged);
        again
    }

    fn write(&mut self) -> usize {
        let place = self.sent.len();
        let room = self.rooms[self.rng.random_range(0..self.rooms.len())].clone();
        let filler = "나루".repeat(self.rng.random_range(0..40));
        let content = format!("{} {place} {filler}", self.user);
        self.sent.push(Sent { room, content, chain: self.chain, saved: None });
        place
    }

    async fn send(&self, client: &mut Client, place: usize, happenings: &Happenings) {
        let Sent { room, content, .. } = &self.sent[place];
        client.chat(room, content, &place.to_string()).await;
        happenings.frames.add_permits(1);
    }

    fn read(&mut self, frame: &Value, happenings: &Happenings) {
        let text = |field: &str| frame[field].as_str().unwrap_or_else(|| panic!("no {field} in {frame}"));
        let seq = || frame["seq"].as_u64().unwrap_or_else(|| panic!("no seq in {frame}"));
        match text("type") {
            "ACK" => {
                let place: usize = text("clientMessageId").parse().expect("one of ours");
                let sent = &mut self.sent[place];
                assert_eq!(sent.room, text("chatRoomId"), "acknowledged in another room: {frame}");
                let saved = Saved { id: text("id").to_owned(), seq: seq() };
                match &sent.saved {
                    Some(before) => {
                        assert_eq!(*before, saved, "P2: {} was told otherwise before: {frame}", self.user);
                        self.repeated_acks += 1;
                    }
                    None => {
                        sent.saved = Some(saved);
                        self.unacknowledged.retain(|waiting| *waiting != place);
                        self.fresh.push(place);
                    }
                }
                self.acks += 1;
                happenings.acks.add_permits(1);
            }
            "CHAT" => {
                let heard =
                    Heard { room: text("chatRoomId").into(), seq: seq(), content: text("content").into() };
                let before = self.heard.insert(text("id").to_owned(), heard.clone());
                assert!(
                    before.is_none_or(|before| before == heard),
                    "{} heard otherwise: {frame}",
                    self.user
                );
            }
            "ERROR" => {
                assert!(happenings.over.get(), "{} was refused: {frame}", self.user);
                self.errors.push(frame.clone());
            }
            _ => {}
        }
    }
}
