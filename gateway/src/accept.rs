//! A message is taken: checked, written to the intake, and only then acted on.
//!
//! Writes are grouped: a few lanes, chosen by sender so that a sender's messages stay in order, each with one batch on
//! its way to the intake while the next one forms. A lone message waits for nobody.
//!
//! What if the process dies here? Before the append: the client resends. After it: the intake holds the message open,
//! and the persister's sweep finds it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use naru_engines::store::{Appended, IntakeRecord};
use naru_engines::{EngineError, Engines};
use naru_model::frame::{Ack, Chat};
use naru_model::hops::Accepted;
use naru_model::{ClientMessageId, Event, MessageId, Origin, RoomId, Timestamp, Trace, UserId};
use naru_runtime::backoff::Backoff;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::Gateway;
use crate::pending::{Asker, Pending, Waiter, waiter};
use crate::refusal::Refusal;
use crate::sessions::Session;
use crate::telemetry::Telemetry;

/// How many lanes write to the intake at the same time.
const LANES: u32 = 4;
/// How many messages one write holds at most. At 8 KiB each that is 2 MiB.
const BATCH: usize = 256;
/// For how long a write that fails is tried again before its senders are told that its fate is unknown. Clients wait
/// 10 s.
const APPEND_WITHIN: Duration = Duration::from_secs(5);
/// How long a hand-over to the persister may take before it is left to the sweep. (A broker short of memory makes
/// publishers wait in silence.)
const PUBLISH_WITHIN: Duration = Duration::from_secs(5);
/// For how long a lane remembers what became of messages that later ones may be `after`.
const REMEMBER_FATES: Duration = Duration::from_secs(60);

/// A message that passed all checks, and who waits for its answer.
pub(crate) struct Submission {
    accepted: Accepted,
    waiter: Waiter,
}

/// The way into the lanes. They are unbounded only by type: each submission holds a permit of the pending table.
pub(crate) struct Lanes(Vec<mpsc::UnboundedSender<Submission>>);

/// The far ends of the lanes, for their tasks.
pub(crate) type LaneEnds = Vec<mpsc::UnboundedReceiver<Submission>>;

impl Lanes {
    pub(crate) fn new() -> (Self, LaneEnds) {
        let (starts, ends) = (0..LANES).map(|_| mpsc::unbounded_channel()).unzip();
        (Self(starts), ends)
    }

    fn submit(&self, submission: Submission) {
        let sender = &submission.accepted.sender_id;
        let hash =
            sender.as_str().bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31) ^ usize::from(byte));
        let lane = &self.0[hash % self.0.len()];
        if let Err(mpsc::error::SendError(submission)) = lane.send(submission) {
            // Only after shutdown: nothing was stored.
            submission.waiter.refuse(Refusal::Overloaded);
        }
    }
}

/// Takes a `CHAT` frame of a session. The answer goes to the session, sooner or later.
pub(crate) async fn from_session(gateway: &Gateway, session: &Arc<Session>, chat: Chat) {
    let ticket = chat.client_message_id.is_none().then(|| session.ticket());
    let named = chat.client_message_id.clone();
    let refuse = |refusal: Refusal| {
        gateway.telemetry.refused(&refusal);
        session.answer(ticket, refusal.frame(named.as_ref()));
    };
    let identity = &session.identity;
    if chat.sender_id.as_deref().is_some_and(|sender| sender != identity.user.as_str()) {
        return refuse(Refusal::Forbidden("senderId must be the token's sub"));
    }
    let admitted =
        match admit(gateway, &chat.chat_room_id, &identity.user, &chat.content, !identity.is_service).await {
            Ok(permit) => permit,
            Err(refusal) => return refuse(refusal),
        };
    let id = MessageId::generate();
    let accepted = Accepted {
        id,
        after: session.sent(&chat.chat_room_id, id),
        chat_room_id: chat.chat_room_id,
        sender_id: identity.user.clone(),
        sender_name: identity.name.clone(),
        content: chat.content,
        timestamp: Timestamp::now(),
        client_message_id: chat.client_message_id.unwrap_or_else(|| id.into()),
        origin: Some(Origin { gateway: gateway.id.clone(), session: Some(session.id.clone()) }),
        trace: Trace::start(),
    };
    let asker = Asker::Session { session: session.clone(), ticket };
    let waiter = waiter(&accepted, asker, admitted);
    gateway.lanes.submit(Submission { accepted, waiter });
}

/// A message sent over HTTP, by its author or by a service in their name.
pub(crate) struct Draft {
    pub(crate) chat_room_id: RoomId,
    pub(crate) sender_id: UserId,
    pub(crate) sender_name: Arc<str>,
    pub(crate) content: Arc<str>,
    pub(crate) client_message_id: ClientMessageId,
    /// Whether the sender's rate counts: an app's backend speaks for many.
    pub(crate) is_limited: bool,
}

/// Takes a message sent over HTTP and waits for what became of it.
///
/// # Errors
/// The refusal; `UNAVAILABLE` when its fate is unknown.
pub(crate) async fn from_http(gateway: &Gateway, draft: Draft) -> Result<Ack, Refusal> {
    let admitted =
        admit(gateway, &draft.chat_room_id, &draft.sender_id, &draft.content, draft.is_limited).await?;
    let accepted = Accepted {
        id: MessageId::generate(),
        chat_room_id: draft.chat_room_id,
        sender_id: draft.sender_id,
        sender_name: draft.sender_name,
        content: draft.content,
        timestamp: Timestamp::now(),
        client_message_id: draft.client_message_id,
        after: None,
        origin: Some(Origin { gateway: gateway.id.clone(), session: None }),
        trace: Trace::start(),
    };
    let (answer, answered) = oneshot::channel();
    let waiter = waiter(&accepted, Asker::Http(answer), admitted);
    gateway.lanes.submit(Submission { accepted, waiter });
    answered.await.unwrap_or(Err(Refusal::Unavailable))
}

async fn admit(
    gateway: &Gateway,
    room: &RoomId,
    sender: &UserId,
    content: &str,
    is_limited: bool,
) -> Result<crate::pending::Permit, Refusal> {
    if content.is_empty() {
        return Err(Refusal::Invalid("content must not be empty".to_owned()));
    }
    let limit = gateway.config.max_content_bytes;
    if content.len() > limit {
        return Err(Refusal::TooLarge { limit });
    }
    if is_limited {
        gateway.limiter.take(sender)?;
    }
    if gateway.rooms.of_member(room, sender).await?.is_none() {
        return Err(Refusal::RoomNotFound);
    }
    gateway.pending.admit()
}

/// One lane: writes what has come, hands it to the persister, and looks for what has come meanwhile.
pub(crate) struct Lane {
    pub(crate) engines: Engines,
    pub(crate) pending: Arc<Pending>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) fates: Fates,
}

impl Lane {
    /// Runs until all senders of the lane are gone.
    pub(crate) async fn run(mut self, end: &mut mpsc::UnboundedReceiver<Submission>) {
        let mut batch = Vec::with_capacity(BATCH);
        while end.recv_many(&mut batch, BATCH).await > 0 {
            self.accept(batch.drain(..)).await;
        }
    }

    async fn accept(&mut self, batch: impl Iterator<Item = Submission>) {
        let (mut entries, mut waiters) = (Vec::new(), Vec::new());
        for Submission { mut accepted, waiter } in batch {
            match self.fates.of(&mut accepted) {
                Ok(()) => {
                    entries.push(accepted);
                    waiters.push(waiter);
                }
                // The one before it failed: taken alone, it would overtake the resend of that one.
                Err(refusal) => self.refuse(waiter, refusal),
            }
        }
        if entries.is_empty() {
            return;
        }
        self.telemetry.intake_batch.observe(entries.len() as f64);
        let answers = match self.append(&entries).await {
            Ok(answers) => answers,
            Err(error) => {
                tracing::error!(%error, messages = entries.len(), "the intake failed; their fate is unknown");
                return waiters.into_iter().for_each(|waiter| self.refuse(waiter, Refusal::Unavailable));
            }
        };
        let mut events = Vec::with_capacity(entries.len());
        let mut resends = Vec::new();
        for ((accepted, waiter), answer) in entries.into_iter().zip(waiters).zip(answers) {
            match answer {
                Appended::New => {
                    self.pending.wait(accepted.id, accepted.timestamp, waiter);
                    events.push(accepted);
                }
                Appended::Resend(first) => resends.push((*first, accepted, waiter)),
                Appended::Conflict => self.refuse(
                    waiter,
                    Refusal::Conflict("this clientMessageId was used in this room for other content"),
                ),
            }
        }
        self.telemetry.accepted.inc_by(events.len() as u64);
        if !resends.is_empty() {
            self.resend(resends, &mut events).await;
        }
        self.publish(events).await;
    }

    /// Writes a batch, with the same ids each time, until the answer is known or the senders have waited enough.
    async fn append(&self, entries: &[Accepted]) -> Result<Vec<Appended>, EngineError> {
        let waited = entries.first().map(|first| Timestamp::now().since(first.timestamp)).unwrap_or_default();
        let give_up = Instant::now() + APPEND_WITHIN.saturating_sub(waited);
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            match self.engines.store.intake.append(entries).await {
                Err(error) if error.is_transient() && Instant::now() < give_up => {
                    let delay = backoff.next_delay();
                    tracing::warn!(%error, ?delay, "the intake failed; trying again");
                    tokio::time::sleep(delay).await;
                }
                answer => return answer,
            }
        }
    }

    /// Second tries: answered if the first one has ended, handed on again if it has not.
    async fn resend(&mut self, resends: Vec<(IntakeRecord, Accepted, Waiter)>, events: &mut Vec<Accepted>) {
        let ids: Vec<_> = resends.iter().map(|(first, ..)| first.accepted.id).collect();
        let saved = match self.engines.store.messages.find(&ids).await {
            Ok(saved) => saved,
            Err(error) => {
                tracing::warn!(%error, "resends can't be looked up; handing them on again");
                vec![None; ids.len()]
            }
        };
        for ((first, again, waiter), saved) in resends.into_iter().zip(saved) {
            let (id, timestamp) = (first.accepted.id, first.accepted.timestamp);
            if let Asker::Session { session, .. } = &waiter.asker {
                session.sent_again(id);
            }
            match (saved, first.outcome) {
                (Some(message), _) => waiter.confirm(id, message.seq, timestamp),
                (None, Some(outcome)) => waiter.settle(id, outcome, timestamp),
                (None, None) => {
                    self.fates.note(again.id, Fate::Is(id));
                    self.pending.wait(id, timestamp, waiter);
                    // Whoever resends is whoever waits now.
                    events.push(Accepted { origin: again.origin, ..first.accepted });
                }
            }
        }
    }

    async fn publish(&self, messages: Vec<Accepted>) {
        if messages.is_empty() {
            return;
        }
        let count = messages.len();
        let events = messages.into_iter().map(|accepted| {
            let trace = accepted.trace;
            Event::new(accepted, trace)
        });
        let sent = self.engines.bus.accepted.send(events.collect());
        match tokio::time::timeout(PUBLISH_WITHIN, sent).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, count, "not handed to the persister; the sweep will find them")
            }
            Err(_) => tracing::warn!(count, "handing over takes long; the sweep will find them"),
        }
    }

    fn refuse(&mut self, waiter: Waiter, refusal: Refusal) {
        self.telemetry.refused(&refusal);
        self.fates.note(waiter.sent_as, Fate::Failed);
        waiter.refuse(refusal);
    }
}

/// What became of recent messages of a lane, as far as later ones depend on it.
#[derive(Default)]
pub(crate) struct Fates {
    of: HashMap<MessageId, Fate>,
    noted: VecDeque<(Instant, MessageId)>,
}

#[derive(Clone, Copy)]
enum Fate {
    /// It was not accepted, or nobody knows.
    Failed,
    /// It was a resend of this one, which is on its way.
    Is(MessageId),
}

impl Fates {
    /// Corrects what a message comes after.
    ///
    /// # Errors
    /// When the one before it failed: `UNAVAILABLE`, so that the client resends both in order.
    fn of(&mut self, accepted: &mut Accepted) -> Result<(), Refusal> {
        self.forget();
        match accepted.after.and_then(|before| self.of.get(&before)) {
            Some(Fate::Failed) => Err(Refusal::Unavailable),
            Some(Fate::Is(first)) => {
                accepted.after = Some(*first);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn note(&mut self, id: MessageId, fate: Fate) {
        self.of.insert(id, fate);
        self.noted.push_back((Instant::now(), id));
    }

    fn forget(&mut self) {
        while let Some((noted_at, id)) = self.noted.front().copied() {
            if noted_at.elapsed() < REMEMBER_FATES {
                break;
            }
            self.noted.pop_front();
            self.of.remove(&id);
        }
    }
}
