//! People who talk and listen through whatever happens, as a good client does, and remember all of it.
//!
//! Each talk is a direct room: a writer who says 0, 1, 2 … and goes on when a message was acknowledged, and a listener. A
//! message whose answer does not come, or is an error, is sent again under the same name; but every eighth writer is
//! forgetful, and never speaks of it again. Now and then a message is sent twice without need.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use naru_client::{Client, Http, Incoming, ServerProcess, TEST_TIMEOUT, Webhook};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cluster::{until, within};
use crate::support::token_of;

/// A message without an answer is sent again after this.
const RESEND_AFTER: Duration = Duration::from_secs(3);
/// A client that could not connect, or was told to wait without a time, tries again after this.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A client that misses a message and stays connected has it, or was told to ask for it, within this: a renewal of its
/// gateway's lease and the spread of `RESYNC`s, two seconds each, and time for a busy machine.
pub const TOLD_WITHIN: Duration = Duration::from_secs(15);

/// Talks under way.
pub struct Traffic {
    writers: JoinSet<Writer>,
    /// The writers that have nothing to say any more.
    done: Vec<Writer>,
    listeners: JoinSet<Listener>,
    /// Cancelled when nothing new is to be said.
    hush: CancellationToken,
    /// Cancelled when all has been said: every second listener leaves.
    said: CancellationToken,
    /// Cancelled when no listener is left.
    over: CancellationToken,
    acknowledged: Arc<AtomicU64>,
    /// When each writer was acknowledged last.
    served: Vec<watch::Receiver<Option<Instant>>>,
    /// Each listener that stays, its room, and how many of the room's messages it has received, up to the first that it has not.
    received: Vec<(String, String, watch::Receiver<u64>)>,
}

/// Where clients find gateways: writers at the first, listeners at the last. It may change.
pub type Gateways = watch::Receiver<Vec<String>>;

/// The addresses of these gateways.
pub fn at(gateways: &[&ServerProcess]) -> Vec<String> {
    gateways.iter().map(|gateway| gateway.url().to_owned()).collect()
}

/// What a writer tells while it writes.
struct Progress {
    acknowledged: Arc<AtomicU64>,
    served: watch::Sender<Option<Instant>>,
}

/// A user who writes.
pub struct Writer {
    user: String,
    room: String,
    thinks_for: Duration,
    /// Whether what was not acknowledged is forgotten, instead of sent again.
    forgets: bool,
    /// The id and place of each message, by its number; none where it was forgotten.
    acknowledged: Vec<Option<(String, u64)>>,
    /// When each was sent first, and when it was acknowledged.
    times: Vec<(Instant, Instant)>,
    /// In which session each was sent first.
    sessions: Vec<usize>,
    session: usize,
    /// What errors and closes came, and how often.
    troubles: BTreeMap<String, usize>,
}

/// A wait for an acknowledgement, from first sending the message, resends included.
#[derive(Debug)]
pub struct Wait {
    pub room: String,
    /// Of the message, as its writer counts.
    pub number: usize,
    pub sent: Instant,
    pub lasted: Duration,
}

/// A user who listens.
struct Listener {
    user: String,
    room: String,
    received: HashSet<u64>,
    /// How many of them have no gap before them.
    without_gap: watch::Sender<u64>,
    /// Since when there is a gap in the session for which no `RESYNC` has come.
    gap: Option<Instant>,
    /// How long one was there, at the longest.
    longest_gap: Duration,
    troubles: BTreeMap<String, usize>,
}

/// What all users remember.
pub struct Memories {
    pub writers: Vec<Writer>,
    listeners: Vec<Listener>,
}

impl Traffic {
    /// So many talks of people of this name, each in a room of its own. A writer thinks for that long between an answer and
    /// the next message: people do, and the stand-in for MongoDB takes a few hundred messages a second.
    pub async fn start(
        name: &str,
        talks: impl IntoIterator<Item = usize>,
        thinks_for: Duration,
        gateways: &Gateways,
    ) -> Self {
        let mut traffic = Self {
            writers: JoinSet::new(),
            done: Vec::new(),
            listeners: JoinSet::new(),
            hush: CancellationToken::new(),
            said: CancellationToken::new(),
            over: CancellationToken::new(),
            acknowledged: Arc::default(),
            served: Vec::new(),
            received: Vec::new(),
        };
        for talk in talks {
            let [user, other] = [format!("{name}-writer{talk}"), format!("{name}-listener{talk}")];
            let first = gateways.borrow()[0].clone();
            let room = Http::new(&first, &token_of(&user)).create_room(&[&user, &other]).await;
            let (without_gap, received) = watch::channel(0);
            let leave = if talk % 2 == 0 { &traffic.said } else { &traffic.over }.clone();
            if talk % 2 == 1 {
                traffic.received.push((other.clone(), room.clone(), received));
            }
            let listener = Listener {
                user: other,
                room: room.clone(),
                received: HashSet::new(),
                without_gap,
                gap: None,
                longest_gap: Duration::ZERO,
                troubles: BTreeMap::new(),
            };
            traffic.listeners.spawn(listener.listen(gateways.clone(), leave));
            let writer = Writer {
                user,
                room,
                thinks_for,
                forgets: talk % 8 == 7,
                acknowledged: Vec::new(),
                times: Vec::new(),
                sessions: Vec::new(),
                session: 0,
                troubles: BTreeMap::new(),
            };
            let (tell, served) = watch::channel(None);
            traffic.served.push(served);
            let progress = Progress { acknowledged: traffic.acknowledged.clone(), served: tell };
            traffic.writers.spawn(writer.write(gateways.clone(), traffic.hush.clone(), progress));
        }
        traffic
    }

    /// How many messages were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Whether every writer has had an acknowledgement since then.
    pub fn all_served_since(&self, moment: Instant) -> bool {
        self.served.iter().all(|served| served.borrow().is_some_and(|served| served > moment))
    }

    /// Waits until so many more are acknowledged.
    pub async fn goes_on(&self, more: u64) {
        let wanted = self.acknowledged() + more;
        until("more messages are acknowledged", async || self.acknowledged() >= wanted).await;
    }

    /// Lets all users finish what they are saying. Then half of the listeners leave: what they have not received is pushed.
    pub async fn hush(&mut self) {
        self.hush.cancel();
        while let Some(writer) = self.writers.join_next().await {
            self.done.push(writer.expect("no writer panics"));
        }
        self.said.cancel();
    }

    /// Waits until every listener that stays has all that is in its room, as one who asks for what it misses only when it connects and
    /// when it is told to.
    pub async fn all_received(&self, gateway: &ServerProcess) {
        for (listener, room, received) in &self.received {
            let there =
                Http::new(gateway.url(), &token_of(listener)).history(room, "afterSeq=0&limit=200").await;
            let what = format!("{listener} has no gap in {} messages", there.len());
            within(TOLD_WITHIN, &what, async || *received.borrow() >= there.len() as u64).await;
        }
    }

    /// Lets all users finish what they are saying, then receive what there is.
    pub async fn end(mut self) -> Memories {
        self.hush().await;
        self.over.cancel();
        Memories { writers: self.done, listeners: self.listeners.join_all().await }
    }
}

impl Writer {
    async fn write(mut self, mut gateways: Gateways, hush: CancellationToken, progress: Progress) -> Self {
        while !hush.is_cancelled() || self.has_begun() {
            let url = gateways.borrow_and_update()[0].clone();
            let Ok(mut client) = Client::connect(&url, &token_of(&self.user)).await else {
                self.trouble("could not connect");
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            };
            self.talk(&mut client, &hush, &progress).await;
            self.session += 1;
        }
        self
    }

    /// Whether a message was begun whose end is not known.
    fn has_begun(&self) -> bool {
        self.times.len() > self.acknowledged.len()
    }

    /// Writes until the session ends or nothing new is to be said.
    async fn talk(&mut self, client: &mut Client, hush: &CancellationToken, progress: &Progress) {
        loop {
            if !self.has_begun() {
                if hush.is_cancelled() {
                    return;
                }
                let now = Instant::now();
                self.times.push((now, now));
                self.sessions.push(self.session);
            }
            let number = self.acknowledged.len();
            for _ in 0..if number % 16 == 5 { 2 } else { 1 } {
                client.chat(&self.room, &number.to_string(), &number.to_string()).await;
            }
            let answer = self.answer(client, number).await;
            let now = Instant::now();
            match &answer {
                Answer::Saved(id, seq) => {
                    self.times[number].1 = now;
                    self.acknowledged.push(Some((id.clone(), *seq)));
                    progress.acknowledged.fetch_add(1, Ordering::Relaxed);
                    progress.served.send_replace(Some(now));
                    let _told_to_hush = hush.run_until_cancelled(tokio::time::sleep(self.thinks_for)).await;
                }
                Answer::Again(after) => tokio::time::sleep(*after).await,
                Answer::Closed => {}
            }
            if self.forgets && self.has_begun() {
                self.acknowledged.push(None);
            }
            if matches!(answer, Answer::Closed) {
                return;
            }
        }
    }

    fn waits(&self) -> impl Iterator<Item = Wait> {
        self.times.iter().enumerate().map(|(number, (sent, acknowledged))| Wait {
            room: self.room.clone(),
            number,
            sent: *sent,
            lasted: acknowledged.duration_since(*sent),
        })
    }

    async fn answer(&mut self, client: &mut Client, number: usize) -> Answer {
        let (name, deadline) = (number.to_string(), Instant::now() + RESEND_AFTER);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(incoming) = tokio::time::timeout(left, client.next()).await else {
                self.trouble("no answer in 3 s");
                return Answer::Again(Duration::ZERO);
            };
            let frame = match incoming {
                Some(Incoming::Frame(frame)) => frame,
                Some(Incoming::Closed { code, .. }) => {
                    self.trouble(&format!("closed with {code}"));
                    return Answer::Closed;
                }
                None => return Answer::Closed,
            };
            // An answer to an earlier try of the same message is an answer; one to an earlier message is old.
            let is_ours = frame["clientMessageId"] == *name;
            match frame["type"].as_str() {
                Some("ACK") => {
                    let id = frame["id"].as_str().expect("an id").to_owned();
                    let saved = (id, frame["seq"].as_u64().expect("a place"));
                    if is_ours {
                        return Answer::Saved(saved.0, saved.1);
                    }
                    self.told_again(&frame, saved);
                }
                Some("ERROR") if is_ours => {
                    self.trouble(frame["code"].as_str().expect("a code"));
                    let wait = frame["retryAfterMs"].as_u64().map_or(AGAIN_AFTER, Duration::from_millis);
                    return Answer::Again(wait);
                }
                _ => {}
            }
        }
    }

    /// P2: a client that is told twice of a message is told the same.
    fn told_again(&mut self, frame: &Value, saved: (String, u64)) {
        let number = frame["clientMessageId"].as_str().and_then(|name| name.parse::<usize>().ok());
        let before = number.and_then(|number| self.acknowledged.get(number));
        let before = before.unwrap_or_else(|| panic!("{} never sent what {frame} is about", self.user));
        assert!(before.as_ref().is_none_or(|before| *before == saved), "P2: {before:?} before, now {frame}");
    }

    fn trouble(&mut self, what: &str) {
        *self.troubles.entry(what.to_owned()).or_default() += 1;
    }
}

enum Answer {
    Saved(String, u64),
    Again(Duration),
    Closed,
}

impl Listener {
    async fn listen(mut self, mut gateways: Gateways, over: CancellationToken) -> Self {
        while !over.is_cancelled() {
            let url = gateways.borrow_and_update().last().expect("a gateway").clone();
            let Ok(mut client) = Client::connect(&url, &token_of(&self.user)).await else {
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            };
            self.gap = None;
            loop {
                let incoming = tokio::select! {
                    incoming = next(&mut client) => incoming,
                    () = over.cancelled() => break,
                };
                let Some(Incoming::Frame(frame)) = incoming else {
                    if let Some(Incoming::Closed { code, .. }) = incoming {
                        *self.troubles.entry(format!("closed with {code}")).or_default() += 1;
                    }
                    break;
                };
                match frame["type"].as_str() {
                    Some("CHAT") => {
                        self.receive(frame["seq"].as_u64().expect("a place"));
                    }
                    Some("WELCOME") => self.sync(&mut client).await,
                    Some("RESYNC") => {
                        *self.troubles.entry("RESYNC".to_owned()).or_default() += 1;
                        self.gap = None;
                        self.sync(&mut client).await;
                    }
                    Some("SYNCED") if frame["rooms"][0]["complete"] == false => self.sync(&mut client).await,
                    _ => {}
                }
            }
        }
        self
    }

    fn receive(&mut self, seq: u64) {
        self.received.insert(seq);
        let mut without_gap = *self.without_gap.borrow();
        while self.received.contains(&(without_gap + 1)) {
            without_gap += 1;
        }
        self.without_gap.send_replace(without_gap);
        if let Some(since) = self.gap {
            self.longest_gap = self.longest_gap.max(since.elapsed());
        }
        let has_gap = self.received.len() as u64 > without_gap;
        self.gap = if has_gap { self.gap.or_else(|| Some(Instant::now())) } else { None };
    }

    /// Asks for everything after the first place that was not received.
    async fn sync(&self, client: &mut Client) {
        let after = *self.without_gap.borrow();
        client
            .send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": self.room, "afterSeq": after}]}))
            .await;
    }
}

/// Whatever comes next, however long it takes.
async fn next(client: &mut Client) -> Option<Incoming> {
    loop {
        if let Ok(incoming) = tokio::time::timeout(RESEND_AFTER, client.next()).await {
            return incoming;
        }
    }
}

impl Memories {
    /// P1, P2, P3: each room has what was said in it, once, without a gap, and under the ids and at the places that were
    /// acknowledged. Only what was forgotten may be missing, or come after what was said in a later session; everything
    /// else is in the order in which it was said. Answers the id and place of everything that is there, by room.
    pub async fn check(&self, gateway: &ServerProcess) -> HashMap<String, Vec<(String, u64)>> {
        let mut rooms = HashMap::new();
        for writer in &self.writers {
            let api = Http::new(gateway.url(), &token_of(&writer.user));
            let mut there = Vec::new();
            let mut numbers = BTreeMap::new();
            for (message, place) in api.history(&writer.room, "afterSeq=0&limit=200").await.iter().zip(1..) {
                let id = message["id"].as_str().expect("an id").to_owned();
                let seq = message["seq"].as_u64().expect("a place");
                assert_eq!(seq, place, "P3: the places of {} are not dense", writer.room);
                let number: usize =
                    message["content"].as_str().and_then(|text| text.parse().ok()).expect("a number");
                let before = numbers.insert(number, (id.clone(), seq));
                assert_eq!(before, None, "P2: {}'s {number} is there twice", writer.user);
                there.push((id, seq));
            }
            for (number, acknowledged) in writer.acknowledged.iter().enumerate() {
                match acknowledged {
                    Some(_) => assert_eq!(numbers.get(&number), acknowledged.as_ref(), "P1: {}", writer.user),
                    None => assert!(writer.forgets, "{} ended without an answer to {number}", writer.user),
                }
            }
            // By session of a forgetful writer, and of others all in one.
            let mut last = BTreeMap::new();
            for (number, (_, seq)) in &numbers {
                let session = if writer.forgets { writer.sessions[*number] } else { 0 };
                let before = last.insert(session, *seq).unwrap_or_default();
                assert!(before < *seq, "P3: {}'s {number} is before what was said before it", writer.user);
            }
            rooms.insert(writer.room.clone(), there);
        }
        rooms
    }

    /// P5: whatever a listener has not received was pushed. Answers what was not, in words.
    pub fn untold(
        &self,
        there: &HashMap<String, Vec<(String, u64)>>,
        pushed: &HashSet<(String, String)>,
    ) -> Vec<String> {
        let mut untold = Vec::new();
        for listener in &self.listeners {
            let missed = there[&listener.room].iter().filter(|(id, seq)| {
                !listener.received.contains(seq) && !pushed.contains(&(listener.user.clone(), id.clone()))
            });
            untold.extend(missed.map(|(_, seq)| format!("{} {seq}", listener.room)));
        }
        untold
    }

    /// Waits until every user has got, live or by push, all that is there.
    ///
    /// # Panics
    /// When a push that is due does not come.
    pub async fn all_told(
        &self,
        there: &HashMap<String, Vec<(String, u64)>>,
        backend: &mut Webhook,
    ) -> usize {
        let mut pushed = HashSet::new();
        let begun = Instant::now();
        while !self.untold(there, &pushed).is_empty() {
            let untold = self.untold(there, &pushed);
            assert!(
                begun.elapsed() < TEST_TIMEOUT,
                "P5: {} neither received nor pushed: {untold:?}",
                untold.len()
            );
            let push = backend.next().await;
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            pushed.insert((text(&push.json["userId"]), text(&push.json["data"]["messageId"])));
        }
        pushed.len()
    }

    /// The longest wait for an acknowledgement among messages under way in this span.
    pub fn slowest(&self, from: Instant, to: Instant) -> Wait {
        let waits = self.writers.iter().flat_map(Writer::waits);
        let within = waits.filter(|wait| wait.sent < to && wait.sent + wait.lasted > from);
        within.max_by_key(|wait| wait.lasted).expect("a message was written")
    }

    /// How long a listener had a gap that it was not told of, at the longest.
    pub fn longest_gap(&self) -> Duration {
        self.listeners.iter().map(|listener| listener.longest_gap).max().unwrap_or_default()
    }

    /// What went wrong for those who write, and for those who listen.
    pub fn troubles(&self) -> [BTreeMap<String, usize>; 2] {
        let sum = |all: &mut dyn Iterator<Item = &BTreeMap<String, usize>>| {
            let mut sum = BTreeMap::new();
            for (what, count) in all.flatten() {
                *sum.entry(what.clone()).or_default() += count;
            }
            sum
        };
        [
            sum(&mut self.writers.iter().map(|writer| &writer.troubles)),
            sum(&mut self.listeners.iter().map(|listener| &listener.troubles)),
        ]
    }
}
