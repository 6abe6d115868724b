//! What the server says at the end, held against what all clients remember.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures_util::FutureExt;
use naru_client::{Http, Post, Webhook};
use serde_json::Value;
use tokio::task::unconstrained;

use super::load::{ABSENT, Jump, Person, ROOMS, Saved};
use super::stored::Stored;
use crate::support::{WEBHOOK_SECRET, token_of};

pub struct History(Vec<Message>);

/// One message of a room's history.
pub struct Message {
    pub id: String,
    pub room: String,
    pub seq: u64,
    pub sender: String,
    pub content: String,
    pub client_message_id: String,
}

/// What the backend was told, in total.
#[derive(Debug, Default)]
pub struct Pushes {
    pub posts: usize,
    /// How many said what an earlier one had said.
    pub repeated: usize,
    event_ids: HashMap<(String, String), String>,
}

impl History {
    /// Reads it over HTTP, each room as one of its members, and checks each by itself: dense, and nothing twice.
    pub async fn read(url: &str, rooms: &[String]) -> Self {
        let mut all = Vec::new();
        let (mut ids, mut names) = (HashSet::new(), HashSet::new());
        for (members, room) in ROOMS.iter().zip(rooms) {
            let messages = Http::new(url, &token_of(members[0])).history(room, "afterSeq=0&limit=200").await;
            for (message, place) in messages.iter().zip(1..) {
                let text = |field: &str| message[field].as_str().expect("a text").to_owned();
                let message = Message {
                    id: text("id"),
                    room: text("chatRoomId"),
                    seq: message["seq"].as_u64().expect("a place"),
                    sender: text("senderId"),
                    content: text("content"),
                    client_message_id: text("clientMessageId"),
                };
                assert_eq!((&message.room, message.seq), (room, place), "P3: the places are not dense");
                assert!(ids.insert(message.id.clone()), "P2: the id {} is there twice", message.id);
                let name = (room, message.sender.clone(), message.client_message_id.clone());
                assert!(!names.contains(&name), "P2: {name:?} is there twice");
                names.insert(name);
                all.push(message);
            }
        }
        Self(all)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Each person's messages, by their places in [`Person::sent`].
    pub fn of(&self, person: &Person) -> BTreeMap<usize, &Message> {
        let own = self.0.iter().filter(|message| message.sender == person.user);
        own.map(|message| (message.client_message_id.parse().expect("a place"), message)).collect()
    }

    /// What a sender sent and was told against what is there. Every message must be one of those sent, every
    /// acknowledged one must be there as acknowledged, and in each room those of one chain must be a beginning of what
    /// was sent, in the order in which it was sent.
    pub fn check_sender(&self, person: &Person) {
        let user = person.user;
        let there = self.of(person);
        for (place, message) in &there {
            let sent = person.sent.get(*place).unwrap_or_else(|| panic!("{user} never sent {place}"));
            assert_eq!((&message.room, &message.content), (&sent.room, &sent.content), "{user} {place}");
        }
        // By room and chain: the place in the room of the last one, and whether one is missing since.
        let mut runs: HashMap<(&str, usize), (u64, Option<usize>)> = HashMap::new();
        for (place, sent) in person.sent.iter().enumerate() {
            let message = there.get(&place);
            if let Some(saved) = &sent.saved {
                let found = message.map(|message| Saved { id: message.id.clone(), seq: message.seq });
                assert_eq!(found.as_ref(), Some(saved), "P1: {user}'s message {place} was acknowledged");
            }
            let (last, missing) = runs.entry((&sent.room, sent.chain)).or_default();
            match message {
                Some(message) => {
                    assert!(missing.is_none(), "P3: {user}'s {place} is there without {missing:?} before it");
                    assert!(*last < message.seq, "P3: {user}'s {place} is before what was sent before it");
                    *last = message.seq;
                }
                None => *missing = missing.or(Some(place)),
            }
        }
    }

    /// Each message that a client got is there, as it got it.
    pub fn check_received(&self, person: &Person) {
        let by_id: HashMap<&str, &Message> =
            self.0.iter().map(|message| (message.id.as_str(), message)).collect();
        for (id, received) in &person.received {
            let there = by_id.get(id.as_str()).unwrap_or_else(|| {
                panic!("{} received {received:?}, which is not in the history", person.user)
            });
            assert_eq!(
                (&there.room, there.seq, &there.content),
                (&received.room, received.seq, &received.content),
                "{} received it otherwise",
                person.user
            );
        }
    }

    /// What a client did not get in its turn, and was not asked to `SYNC`, it had sent itself.
    pub fn check_jumps(&self, person: &Person) {
        let senders: HashMap<(&str, u64), &str> =
            self.0.iter().map(|message| ((&*message.room, message.seq), &*message.sender)).collect();
        for Jump { room, after, before } in &person.jumps {
            for seq in after + 1..*before {
                let sender = senders.get(&(room.as_str(), seq)).copied();
                assert_eq!(
                    sender,
                    Some(person.user),
                    "{} missed {seq} in {room}, without RESYNC",
                    person.user
                );
            }
        }
    }

    /// Everything that was ever accepted is saved and says so, and nothing was saved that was not accepted.
    pub fn check_stored(&self, stored: &Stored) {
        let (intake, messages) = (stored.intake(), stored.messages());
        let shown: HashMap<&str, &Message> =
            self.0.iter().map(|message| (message.id.as_str(), message)).collect();
        for entry in &intake {
            let is_closed = !entry.is_open && entry.outcome.as_deref() == Some("saved");
            assert!(is_closed, "P4: not closed: {entry:?}");
            let saved = messages.get(&entry.id).unwrap_or_else(|| panic!("P4: not saved: {entry:?}"));
            assert_eq!((&entry.room, entry.seq), (&saved.0, Some(saved.1)), "saved otherwise: {entry:?}");
            let shown = shown.get(&*entry.id).unwrap_or_else(|| panic!("not in the history: {entry:?}"));
            assert_eq!(
                (&entry.room, &entry.sender, &entry.client_message_id),
                (&shown.room, &shown.sender, &shown.client_message_id),
                "shown otherwise: {entry:?}"
            );
        }
        let counts = (intake.len(), messages.len());
        assert_eq!(counts, (self.len(), self.len()), "accepted, saved, and in the history");
    }

    /// P5: a user who was never there was pushed everything, and a user who came and went got it live or by push, however
    /// their sessions ended. (A user who writes in a room has thereby read what was said before, and is not pushed it any more: of
    /// writers this checks what came after their last word.)
    pub fn check_recipients(&self, people: &[&Person], pushes: &Pushes, rooms: &[String]) {
        let of = |user: &str| {
            let own = ROOMS.iter().zip(rooms).filter(move |(members, _)| members.contains(&user));
            own.map(|(_, room)| room.as_str()).collect::<HashSet<_>>()
        };
        let absent = of(ABSENT);
        let in_rooms = |rooms: &HashSet<&str>| {
            let messages = self.0.iter().filter(|message| rooms.contains(message.room.as_str()));
            messages.collect::<Vec<_>>()
        };
        let unpushed = in_rooms(&absent).into_iter().filter(|message| !pushes.has(ABSENT, &message.id));
        let unpushed: Vec<&Message> = unpushed.collect();
        assert!(unpushed.is_empty(), "P5: {} were never pushed: {}", unpushed.len(), places(&unpushed));
        for Person { user, received, .. } in people {
            let own = self.0.iter().filter(|message| message.sender == *user);
            // A room's messages come in order, so its last one stays.
            let last_words: HashMap<&str, u64> =
                own.map(|message| (message.room.as_str(), message.seq)).collect();
            let untold = in_rooms(&of(user)).into_iter().filter(|message| {
                let is_read = last_words.get(message.room.as_str()).is_some_and(|last| message.seq <= *last);
                !is_read && !received.contains_key(&message.id) && !pushes.has(user, &message.id)
            });
            let untold: Vec<&Message> = untold.collect();
            assert!(
                untold.is_empty(),
                "P5: {} were neither delivered to {user} nor pushed: {}",
                untold.len(),
                places(&untold)
            );
        }
    }
}

/// Rooms and places, for people to read.
fn places(messages: &[&Message]) -> String {
    messages.iter().map(|Message { room, seq, .. }| format!("{room} {seq}")).collect::<Vec<_>>().join(", ")
}

impl Pushes {
    /// Everything that the backend was told so far.
    pub fn taken_by(backend: &mut Webhook) -> Self {
        let mut pushes = Self::default();
        // Unconstrained: what lies there already is taken without tokio's asking others to have a turn.
        while let Some(post) = unconstrained(backend.next()).now_or_never() {
            pushes.note(&post);
        }
        pushes
    }

    /// Notes what the backend was told. The same push may come again, but only as the same event.
    fn note(&mut self, post: &Post) {
        assert!(post.is_signed_with(WEBHOOK_SECRET.as_bytes()), "not signed: {}", post.json);
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let key = (text(&post.json["userId"]), text(&post.json["data"]["messageId"]));
        let event_id = post.header("x-naru-event-id").to_owned();
        self.posts += 1;
        match self.event_ids.get(&key) {
            Some(before) => {
                assert_eq!(*before, event_id, "{key:?} was pushed as two events");
                self.repeated += 1;
            }
            None => drop(self.event_ids.insert(key, event_id)),
        }
    }

    /// Whether this message was pushed to this user.
    pub fn has(&self, user: &str, message_id: &str) -> bool {
        self.event_ids.contains_key(&(user.to_owned(), message_id.to_owned()))
    }

    /// How many events there are, which is how many different pushes there are.
    pub fn check_events(&self) -> usize {
        let events: HashSet<&String> = self.event_ids.values().collect();
        assert_eq!(events.len(), self.event_ids.len(), "two pushes are the same event");
        events.len()
    }
}
