//! People who write as fast as they are answered, and remember everything that they sent and were told.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use naru_client::{Client, Incoming, TEST_TIMEOUT};
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

/// How often something is looked at while it is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// "Slow consumer": the client reconnects, and asks for what it missed.
const SLOW_CONSUMER: u16 = 4408;

/// One person, over all of their sessions.
pub struct Person {
    pub user: &'static str,
    /// Everything sent, in the order in which it was sent first. A message's `clientMessageId` is its place here.
    pub sent: Vec<Sent>,
    /// Everything that came as a `CHAT`, by id.
    pub received: HashMap<String, Received>,
    /// The jumps in what came live, in all connections that have ended, for which no `RESYNC` came.
    pub jumps: Vec<Jump>,
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
    live: Live,
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
pub struct Received {
    pub room: String,
    pub seq: u64,
    pub content: String,
}

/// A `CHAT` skipped places of its room: those between these two.
#[derive(Debug)]
pub struct Jump {
    pub room: String,
    pub after: u64,
    pub before: u64,
}

/// What came live in one connection.
#[derive(Default)]
struct Live {
    newest: HashMap<String, u64>,
    /// The jumps for which no `RESYNC` has come.
    jumps: Vec<Jump>,
    /// A `SYNC` was not answered yet: what comes live meanwhile may jump.
    is_syncing: bool,
}

impl Live {
    fn receive(&mut self, room: &str, seq: u64) {
        let newest = self.newest.entry(room.to_owned()).or_insert(seq);
        if seq > *newest + 1 && !self.is_syncing {
            self.jumps.push(Jump { room: room.to_owned(), after: *newest, before: seq });
        }
        *newest = seq.max(*newest);
    }
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
pub struct Progress {
    frames: Semaphore,
    acks: Semaphore,
    over: Cell<bool>,
    /// Who is welcomed, and who of them was asked to `SYNC`, or was answered a `SYNC`, in their connection.
    welcomed: RefCell<HashSet<&'static str>>,
    synced: RefCell<HashSet<&'static str>>,
}

/// A moment: when that many have happened.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    FramesSent(u32),
    AcksReceived(u32),
}

impl Progress {
    pub fn new() -> Self {
        let (frames, acks) = (Semaphore::new(0), Semaphore::new(0));
        let (welcomed, synced) = (RefCell::default(), RefCell::default());
        Self { frames, acks, over: Cell::new(false), welcomed, synced }
    }

    pub async fn wait_for(&self, moment: Moment) {
        let (progress, count) = match moment {
            Moment::FramesSent(count) => (&self.frames, count),
            Moment::AcksReceived(count) => (&self.acks, count),
        };
        let waited = timeout(TEST_TIMEOUT, progress.acquire_many(count)).await;
        drop(waited.unwrap_or_else(|_| panic!("waited {TEST_TIMEOUT:?} for {moment:?}")));
    }

    /// The moment when so many more are acknowledged.
    pub fn acks_from_now(&self, more: u32) -> Moment {
        Moment::AcksReceived(more + u32::try_from(self.acks.available_permits()).expect("not that many"))
    }

    /// Waits until all users are connected.
    pub async fn all_welcomed(&self) {
        all_in(&self.welcomed, "welcomed").await;
    }

    /// Waits until all users were asked to `SYNC`, or have done so by themselves.
    pub async fn all_synced(&self) {
        all_in(&self.synced, "asked to SYNC").await;
    }

    /// From now on connections may end.
    pub fn end(&self) {
        self.over.set(true);
    }
}

async fn all_in(users: &RefCell<HashSet<&'static str>>, what: &str) {
    let waiting = async {
        while users.borrow().len() < WRITERS.len() + 1 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let waited = timeout(TEST_TIMEOUT, waiting).await;
    waited.unwrap_or_else(|_| panic!("only {:?} were {what}", users.borrow()));
}

impl Person {
    /// `rooms` are the ids of [`ROOMS`].
    pub fn new(user: &'static str, rooms: &[String], seed: u64) -> Self {
        let own = ROOMS.iter().zip(rooms).filter(|(members, _)| members.contains(&user));
        Self {
            user,
            sent: Vec::new(),
            received: HashMap::new(),
            jumps: Vec::new(),
            before_welcome: Vec::new(),
            slow: 0,
            errors: Vec::new(),
            acks: 0,
            repeated_acks: 0,
            fresh: Vec::new(),
            rooms: own.map(|(_, room)| room.clone()).collect(),
            live: Live::default(),
            unacknowledged: VecDeque::new(),
            chain: 0,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Connects, catches up on what is owed, and writes until the connection ends: its close code, or none when there
    /// was no connection. It must not end before `progress` says so, but as a slow consumer's: then it comes back.
    pub async fn session(&mut self, url: &str, habits: Habits, progress: &Progress) -> Option<u16> {
        let mut missed = false;
        loop {
            for users in [&progress.welcomed, &progress.synced] {
                users.borrow_mut().remove(self.user);
            }
            let code = self.connection(url, habits, progress, missed).await;
            self.jumps.extend(std::mem::take(&mut self.live).jumps);
            if code != Some(SLOW_CONSUMER) || progress.over.get() {
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
        progress: &Progress,
        missed: bool,
    ) -> Option<u16> {
        if habits.memory == Memory::Forgets {
            self.unacknowledged.clear();
            self.chain += 1;
        }
        let mut client = match Client::connect(url, &token_of(self.user)).await {
            Ok(client) => client,
            Err(_) if progress.over.get() => return None,
            Err(error) => panic!("{} can't connect: {error:?}", self.user),
        };
        loop {
            match client.next().await.expect("nothing is asked for after the end") {
                Incoming::Frame(frame) if frame["type"] == "WELCOME" => break,
                Incoming::Frame(frame) => {
                    self.read(&frame, progress);
                    self.before_welcome.push(frame);
                }
                Incoming::Closed { code, .. } if progress.over.get() => return Some(code),
                closed => panic!("{} waited for WELCOME: {closed}", self.user),
            }
        }
        progress.welcomed.borrow_mut().insert(self.user);
        if missed {
            self.sync(&mut client).await;
        }
        for place in self.again() {
            self.send(&mut client, place, progress).await;
        }
        loop {
            while self.unacknowledged.len() < habits.window {
                let place = self.write();
                self.unacknowledged.push_back(place);
                self.send(&mut client, place, progress).await;
                if self.rng.random_ratio(1, 16) {
                    self.send(&mut client, place, progress).await;
                }
            }
            match client.next().await.expect("nothing is asked for after the end") {
                Incoming::Frame(frame) => {
                    self.read(&frame, progress);
                    let mut rooms = frame["rooms"].as_array().into_iter().flatten();
                    if frame["type"] == "RESYNC" || rooms.any(|room| room["complete"] == false) {
                        self.sync(&mut client).await;
                    }
                    if frame["type"] == "RESYNC" {
                        self.live.jumps.retain(|jump| {
                            let named = frame["rooms"].as_array();
                            named.is_some_and(|named| !named.iter().any(|room| *room == *jump.room))
                        });
                    }
                }
                Incoming::Closed { code, .. } if progress.over.get() || code == SLOW_CONSUMER => {
                    return Some(code);
                }
                closed => panic!("{}: {closed}, and it was not killed", self.user),
            }
        }
    }

    /// Asks for what came after the last that was received in each room, or after the first jump.
    async fn sync(&mut self, client: &mut Client) {
        let mut last: HashMap<&str, u64> = self.rooms.iter().map(|room| (room.as_str(), 0)).collect();
        for Received { room, seq, .. } in self.received.values() {
            last.entry(room).and_modify(|last| *last = (*last).max(*seq));
        }
        for Jump { room, after, .. } in &self.live.jumps {
            last.entry(room).and_modify(|last| *last = (*last).min(*after));
        }
        self.live.is_syncing = true;
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

    async fn send(&self, client: &mut Client, place: usize, progress: &Progress) {
        let Sent { room, content, .. } = &self.sent[place];
        client.chat(room, content, &place.to_string()).await;
        progress.frames.add_permits(1);
    }

    fn read(&mut self, frame: &Value, progress: &Progress) {
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
                progress.acks.add_permits(1);
            }
            "CHAT" => {
                let received =
                    Received { room: text("chatRoomId").into(), seq: seq(), content: text("content").into() };
                self.live.receive(&received.room, received.seq);
                let before = self.received.insert(text("id").to_owned(), received.clone());
                assert!(
                    before.is_none_or(|before| before == received),
                    "{} received otherwise: {frame}",
                    self.user
                );
            }
            "RESYNC" | "SYNCED" => {
                progress.synced.borrow_mut().insert(self.user);
                self.live.is_syncing = false;
            }
            "ERROR" => {
                assert!(progress.over.get(), "{} was refused: {frame}", self.user);
                self.errors.push(frame.clone());
            }
            _ => {}
        }
    }
}
