//! Forwards live events to the sessions of this gateway; other events are ignored.
//!
//! A room's messages go out in order. A message that skips another waits a moment for it (a reassignment between fanouts
//! may reorder), then the missing messages are fetched from the store. This task never waits: neither for a session nor
//! for the store.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::FuturesUnordered;
use naru_engines::EngineResult;
use naru_engines::live::{Signal, Subscription};
use naru_engines::store::{Messages, Window};
use naru_model::live::{LiveEvent, News};
use naru_model::{Message, RoomId, Seq, UserId};
use tokio::sync::{Semaphore, watch};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::budget::Budget;
use crate::gap::{Early, GapId, Gaps, HeldBack};
use crate::pending::Pending;
use crate::presence::Presence;
use crate::proof::Proofs;
use crate::recover::ask_to_sync;
use crate::refusal::to_text;
use crate::registry::SessionRegistry;
use crate::room_heads::{Arrival, RoomHeads};
use crate::telemetry::Telemetry;
use crate::users::Users;

/// How long a message that skips another waits for it.
const GAP_WAIT: Duration = Duration::from_millis(50);
/// How many missing messages are fetched; a session that misses more is asked to `SYNC`.
const MAX_FETCHED: usize = 200;
/// How many fetches may run at a time.
const FETCHES: usize = 16;
/// A session that is asked to `SYNC` one room is asked to do so within this.
const MAX_SYNC_DELAY: Duration = Duration::from_millis(500);

/// The parts of a gateway that live events concern.
pub(crate) struct Deliver<'a> {
    pub(crate) sessions: &'a SessionRegistry,
    pub(crate) pending: &'a Pending,
    pub(crate) users: &'a Users,
    pub(crate) presence: &'a Presence,
    pub(crate) proofs: &'a Proofs,
    pub(crate) room_heads: &'a RoomHeads,
    pub(crate) messages: &'a Arc<dyn Messages>,
    pub(crate) interruptions: &'a watch::Sender<u64>,
    pub(crate) budget: &'a Arc<Budget>,
    pub(crate) telemetry: &'a Telemetry,
}

struct Listener<'a> {
    to: Deliver<'a>,
    gaps: Gaps,
    /// The waits and fetches for the gaps.
    gap_events: FuturesUnordered<BoxFuture<'static, GapEvent>>,
    fetches: Arc<Semaphore>,
}

/// A step that was taken for a gap.
enum GapEvent {
    /// The wait for the missing messages is over.
    Waited(RoomId, GapId),
    /// The missing messages were requested from the store.
    Fetched(RoomId, GapId, EngineResult<Vec<Message>>),
}

impl Deliver<'_> {
    /// Listens until the live layer closes.
    pub(crate) async fn run(self, subscription: &mut dyn Subscription) {
        let mut listener = Listener {
            to: self,
            gaps: Gaps::default(),
            gap_events: FuturesUnordered::new(),
            fetches: Arc::new(Semaphore::new(FETCHES)),
        };
        loop {
            tokio::select! {
                signal = subscription.next() => match signal {
                    Some(signal) => listener.take(signal),
                    None => return,
                },
                Some(event_of_gap) = listener.gap_events.next() => listener.fill_gap(event_of_gap),
            }
        }
    }

    fn forward_early(&self, event: &Early) -> u64 {
        event.as_ref().map_or(0, |event| self.forward(event))
    }

    /// Writes an event to the sessions of its recipients, serialised once for all; returns how many got a message.
    fn forward(&self, event: &LiveEvent) -> u64 {
        let (mut frame, mut to_prove, mut key) = (None::<Utf8Bytes>, None, None);
        let (mut delivered, mut dropped) = (0, 0);
        for recipient in event.recipients.iter() {
            self.sessions.each_of(recipient, |session| {
                let mut frame =
                    || frame.get_or_insert_with(|| self.budget.frame(to_text(&event.news))).clone();
                match &event.news {
                    News::Chat(message) if message.sender_id == session.identity.user => {
                        if !session.has_sent(message.id, event.origin.as_ref()) {
                            session.send_message(frame(), None);
                            delivered += 1;
                        }
                    }
                    News::Chat(message) => {
                        let to_prove = to_prove.get_or_insert_with(|| self.proofs.to_prove(message));
                        session.send_message(frame(), to_prove.clone());
                        delivered += 1;
                    }
                    _ if event.origin.as_ref() == Some(&session.id) => {}
                    News::Typing { user_id, .. } if session.blocks(user_id) => {}
                    news => {
                        let key = *key.get_or_insert_with(|| signal_key(news));
                        dropped += u64::from(!session.send_signal(key, frame()));
                    }
                }
            });
        }
        self.telemetry.dropped_signals.inc_by(dropped);
        self.telemetry.delivered.inc_by(delivered);
        delivered
    }
}

/// Stands for the kind, room and user of a `TYPING`, `RECEIVED` or `READ`: of two with one key only the later is of use.
fn signal_key(news: &News) -> u64 {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let user = match news {
        News::Chat(message) => &message.sender_id,
        News::Received(position) | News::Read(position) => &position.user_id,
        News::Typing { user_id, .. } => user_id,
    };
    KEYS.hash_one((std::mem::discriminant(news), news.room(), user))
}

impl Listener<'_> {
    fn take(&mut self, signal: Signal) {
        match signal {
            Signal::Event(event) => match &event.news {
                News::Chat(message) => {
                    let (room, seq) = (message.chat_room_id.clone(), message.seq);
                    self.take_message(&room, seq, Some(event));
                }
                _ => drop(self.to.forward(&event)),
            },
            Signal::SeqOnly { room, seq } => self.take_message(&room, seq, None),
            Signal::Confirmed(confirmations) => self.to.pending.resolve(&confirmations),
            Signal::UserChanged(user) => self.to.users.changed(&user),
            Signal::Evict(session) => self.to.presence.evicted(&session),
            Signal::Interrupted => tracing::warn!("the live layer was interrupted"),
            Signal::Restored => {
                self.to.room_heads.interrupted();
                self.to.interruptions.send_modify(|count| *count += 1);
            }
        }
    }

    fn take_message(&mut self, room: &RoomId, seq: Seq, event: Early) {
        let to = &self.to;
        to.telemetry.live_messages.inc();
        match to.room_heads.arrival(room, seq) {
            Arrival::Unknown => {
                if to.forward_early(&event) > 0 {
                    to.room_heads.reached(room, seq);
                }
            }
            Arrival::Next => {
                to.forward_early(&event);
                for (seq, next) in self.gaps.release(room, seq) {
                    self.forward_held(room, seq, &next);
                }
            }
            // Late, or once more: it is never dropped, because some session may not have it.
            Arrival::Again => drop(to.forward_early(&event)),
            Arrival::Skips => {
                if self.gaps.is_in(room)
                    || recipients(&event).iter().any(|user| to.sessions.has(user.as_str()))
                {
                    self.hold(room, seq, event);
                } else {
                    to.room_heads.reached(room, seq);
                }
            }
        }
    }

    fn hold(&mut self, room: &RoomId, seq: Seq, event: Early) {
        match self.gaps.hold(room, seq, event.clone()) {
            HeldBack::Joined => {}
            HeldBack::Opened(id) => {
                let room = room.clone();
                let waiting = tokio::time::sleep(GAP_WAIT).map(move |()| GapEvent::Waited(room, id));
                self.gap_events.push(waiting.boxed());
            }
            HeldBack::Full => {
                let mut concerned = event.clone();
                for (seq, held) in self.gaps.close(room) {
                    self.forward_held(room, seq, &held);
                    concerned = concerned.or(held);
                }
                self.forward_held(room, seq, &event);
                self.ask_to_sync(room, recipients(&concerned));
            }
        }
    }

    fn fill_gap(&mut self, event_of_gap: GapEvent) {
        match event_of_gap {
            GapEvent::Waited(room, id) => {
                let (last, last_held) = (self.to.room_heads.last(&room), self.gaps.last_held(&room, id));
                if let (Some(last), Some(last_held)) = (last, last_held) {
                    let missing = usize::try_from(last_held.0.saturating_sub(last.0)).unwrap_or(usize::MAX);
                    self.fetch(room, id, last, missing.min(MAX_FETCHED));
                }
            }
            GapEvent::Fetched(room, id, fetched) => {
                if self.gaps.last_held(&room, id).is_some() {
                    self.fill(&room, fetched);
                }
            }
        }
    }

    fn fetch(&mut self, room: RoomId, id: GapId, last: Seq, limit: usize) {
        let (messages, fetches) = (self.to.messages.clone(), self.fetches.clone());
        let fetching = async move {
            // The semaphore is never closed: without a permit the fetch would run all the same.
            let _turn = fetches.acquire().await;
            let fetched = messages.range(&room, Window::After(last), limit).await;
            GapEvent::Fetched(room, id, fetched.map(|(messages, _more)| messages))
        };
        self.gap_events.push(fetching.boxed());
    }

    /// Forwards the events that were held back, and between them the missing messages from the store. If some are still
    /// missing, the recipients are asked to `SYNC`.
    fn fill(&mut self, room: &RoomId, fetched: EngineResult<Vec<Message>>) {
        let last = self.to.room_heads.last(room).unwrap_or_default();
        let held = self.gaps.close(room);
        let Some(last_held) = held.keys().next_back().copied() else { return };
        let Some(first) = held.values().flatten().next() else {
            // No held event is for a session here. The members being the same, neither is a missing message.
            return self.to.room_heads.reached(room, last_held);
        };
        let recipients = first.recipients.clone();
        let fetched = fetched.unwrap_or_else(|error| {
            tracing::warn!(%error, "a gap was not filled: those who are concerned are asked to SYNC");
            Vec::new()
        });
        let fetched = fetched.into_iter().filter(|message| message.seq > last && message.seq < last_held);
        let mut all: BTreeMap<Seq, Found> =
            fetched.map(|message| (message.seq, Found::InStore(message))).collect();
        all.extend(held.into_iter().map(|(seq, event)| (seq, Found::Held(event))));
        let is_complete = last_held.0 - last.0 == all.len() as u64;
        for (seq, found) in all {
            match found {
                Found::Held(event) => self.forward_held(room, seq, &event),
                Found::InStore(message) => self.forward_fetched(message, &recipients),
            }
        }
        if !is_complete {
            self.ask_to_sync(room, &recipients);
        }
    }

    fn forward_held(&self, room: &RoomId, seq: Seq, event: &Early) {
        self.to.forward_early(event);
        self.to.room_heads.reached(room, seq);
    }

    /// Forwards a message that the live layer did not bring. The session that sent it is not known any more, and must not
    /// get it as a new one: its user's sessions are asked to `SYNC`.
    fn forward_fetched(&self, message: Message, recipients: &[UserId]) {
        let (room, seq, sender) = (message.chat_room_id.clone(), message.seq, message.sender_id.clone());
        let others = recipients.iter().filter(|user| **user != sender).cloned().collect();
        self.to.forward(&LiveEvent { recipients: others, origin: None, news: News::Chat(message) });
        self.to.telemetry.fetched.inc();
        self.to.room_heads.reached(&room, seq);
        if recipients.contains(&sender) {
            self.ask_to_sync(&room, &[sender]);
        }
    }

    fn ask_to_sync(&self, room: &RoomId, users: &[UserId]) {
        for user in users {
            self.to.sessions.each_of(user, |session| {
                ask_to_sync(session, Some(std::slice::from_ref(room)), MAX_SYNC_DELAY, self.to.telemetry);
            });
        }
    }
}

/// A message behind or in a gap.
enum Found {
    Held(Early),
    InStore(Message),
}

fn recipients(event: &Early) -> &[UserId] {
    event.as_ref().map_or(&[], |event| &event.recipients)
}
