//! Takes messages: each is checked, written to the intake, and only then acted on.
//!
//! There are two tasks, each with one batch in flight while its next one forms: one writes messages to the intake, the
//! other hands written messages over to the persister, in the same order. So batches grow with the load, and a lone
//! message waits for no other.
//!
//! If the process dies before the append, the client resends. If it dies after the append, the intake holds the message
//! open, and the persister's sweep finds it.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use naru_engines::bus::Queue;
use naru_engines::store::{self, Appended, IntakeRecord, Messages};
use naru_engines::{EngineError, Engines};
use naru_model::frame::{Ack, Chat};
use naru_model::hops::Accepted;
use naru_model::message::Outcome;
use naru_model::{
    ClientMessageId, Event, GatewayId, Message, MessageId, Origin, RoomId, Timestamp, Trace, UserId,
};
use naru_runtime::backoff::Backoff;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::batches::{Batches, Limits, Linger, WINDOW};
use crate::budget::Budget;
use crate::limit::{Limiter, cost_beyond_one};
use crate::pending::{Asker, Pending, Permit, Waiter, waiter};
use crate::refusal::Refusal;
use crate::rooms::RoomCache;
use crate::sending::Taken;
use crate::session_state::Session;
use crate::telemetry::Telemetry;

/// How many messages one write, and one send to the persister, holds at most …
const MAX_BATCH: usize = 256;
/// … and how many bytes of content, beyond which it takes no more.
const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// A write that holds this many messages waits for no more: it is worth a round trip of its own.
const ENOUGH: usize = 32;
/// How many written batches may wait to be enqueued; beyond that, the intake waits too.
const HAND_OVER_QUEUE: usize = 2;
/// For how long a write that fails is tried again before its senders are answered that its fate is unknown. Clients
/// wait 10 s.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long enqueueing for the persister may take before it is left to the sweep. (A broker that is short of memory
/// blocks publishers without an error.)
const ENQUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// For how long the gateway remembers the messages that later ones may be `after`.
const REMEMBER_FOR: Duration = Duration::from_secs(60);
const OTHER_CONTENT: Refusal =
    Refusal::Conflict("this clientMessageId was used in this room for other content");

/// A message, and the waiter for its answer.
pub(crate) struct Submission {
    accepted: Accepted,
    waiter: Waiter,
    since: Instant,
    /// Set when it did not pass all checks: it is refused, unless it is a resend of a message that was accepted.
    unless_resend: Option<Doubt>,
}

/// The refusal of a message that may be a resend.
struct Doubt {
    refusal: Refusal,
    /// Dropped when the message is answered, or waits for the first try's outcome.
    _decided: oneshot::Sender<Infallible>,
}

/// The sending end of the intake's channel.
pub(crate) struct Submissions(mpsc::Sender<Submission>);

impl Submissions {
    /// `max_pending`: how many messages can be in flight, and as many again to be looked up. Each message in the channel is
    /// one of them, so it is never full.
    pub(crate) fn new(max_pending: usize) -> (Self, mpsc::Receiver<Submission>) {
        let places = max_pending.saturating_mul(2).clamp(1, Semaphore::MAX_PERMITS);
        let (sender, receiver) = mpsc::channel(places);
        (Self(sender), receiver)
    }

    fn submit(&self, submission: Submission) {
        if let Err(TrySendError::Full(submission) | TrySendError::Closed(submission)) =
            self.0.try_send(submission)
        {
            // Only after shutdown: the message was not stored.
            submission.waiter.refuse(Refusal::Overloaded);
        }
    }
}

/// Takes messages from sessions and HTTP requests: checks them, and submits them to the [`Intake`].
pub(crate) struct Acceptor {
    pub(crate) gateway: GatewayId,
    pub(crate) max_content_bytes: usize,
    pub(crate) limiter: Limiter<UserId>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) rooms: Arc<RoomCache>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) submissions: Submissions,
    pub(crate) telemetry: Arc<Telemetry>,
}

/// A message sent over HTTP, by its author or by a service in their name.
pub(crate) struct SendRequest {
    pub(crate) chat_room_id: RoomId,
    pub(crate) sender_id: UserId,
    pub(crate) sender_name: Arc<str>,
    pub(crate) content: Arc<str>,
    pub(crate) client_message_id: ClientMessageId,
    /// Whether the sender's rate counts: an app's backend sends for many users.
    pub(crate) is_limited: bool,
}

impl Acceptor {
    /// Takes a `CHAT` frame of a session. The answer goes to the session later. A refused message is answered when this
    /// returns, so that it holds back the session's next one.
    pub(crate) async fn accept_frame(&self, session: &Arc<Session>, chat: Chat) {
        let named = chat.client_message_id.clone();
        let ticket = named.is_none().then(|| session.ticket());
        let refuse = |refusal: Refusal| {
            self.telemetry.count_refused(&refusal);
            session.refused(&refusal);
            session.answer(ticket, refusal.frame(named.as_ref()));
            session.wake();
        };
        let identity = &session.identity;
        let id = MessageId::generate();
        let Taken { after, held_by } = session.sent(&chat.chat_room_id, named.as_ref(), id);
        let refuse = |refusal: Refusal| {
            session.answered(id, Some(&refusal));
            refuse(refusal);
        };
        if chat.sender_id.as_deref().is_some_and(|sender| sender != identity.user.as_str()) {
            return refuse(Refusal::Forbidden("senderId must be the token's sub"));
        }
        if let Err(refusal) = self.check(&chat.content) {
            return refuse(refusal);
        }
        let admitted = match held_by {
            Some(refusal) => Err(refusal),
            None => {
                let bytes = chat.content.len();
                self.admit(&chat.chat_room_id, &identity.user, bytes, !identity.is_service).await
            }
        };
        // Without a name of its own it can't be a resend.
        let admitted = match admitted {
            Err(refusal) if named.is_none() => return refuse(refusal),
            admitted => admitted,
        };
        let accepted = Accepted {
            id,
            after,
            chat_room_id: chat.chat_room_id,
            sender_id: identity.user.clone(),
            sender_name: identity.name.clone(),
            content: chat.content,
            timestamp: Timestamp::now(),
            client_message_id: chat.client_message_id.unwrap_or_else(|| id.into()),
            origin: Some(Origin { gateway: self.gateway.clone(), session: Some(session.id.clone()) }),
            trace: Trace::start(),
        };
        let asker = Asker::Session { session: session.clone(), ticket };
        match self.submit(accepted, asker, admitted) {
            Ok(decided) => decided.await,
            Err(refusal) => refuse(refusal),
        }
    }

    /// Takes a message sent over HTTP and waits for its outcome.
    ///
    /// # Errors
    /// The refusal; `UNAVAILABLE` when its fate is unknown.
    pub(crate) async fn accept_request(&self, request: SendRequest) -> Result<Ack, Refusal> {
        self.check(&request.content)?;
        let (room, bytes) = (&request.chat_room_id, request.content.len());
        let admitted = self.admit(room, &request.sender_id, bytes, request.is_limited).await;
        let accepted = Accepted {
            id: MessageId::generate(),
            chat_room_id: request.chat_room_id,
            sender_id: request.sender_id,
            sender_name: request.sender_name,
            content: request.content,
            timestamp: Timestamp::now(),
            client_message_id: request.client_message_id,
            after: None,
            origin: Some(Origin { gateway: self.gateway.clone(), session: None }),
            trace: Trace::start(),
        };
        let (answer, answered) = oneshot::channel();
        self.submit(accepted, Asker::Http(answer), admitted)?.await;
        answered.await.unwrap_or(Err(Refusal::Unavailable))
    }

    fn check(&self, content: &str) -> Result<(), Refusal> {
        if content.is_empty() {
            return Err(Refusal::Invalid("content must not be empty".to_owned()));
        }
        let limit = self.max_content_bytes;
        if content.len() > limit { Err(Refusal::TooLarge { limit }) } else { Ok(()) }
    }

    async fn admit(
        &self,
        room: &RoomId,
        sender: &UserId,
        bytes: usize,
        is_limited: bool,
    ) -> Result<Permit, Refusal> {
        if is_limited {
            self.limiter.take(sender, 1.0)?;
        }
        self.budget.admit()?;
        let room = self.rooms.of_member(room, sender).await?.ok_or(Refusal::RoomNotFound)?;
        if is_limited {
            self.limiter.charge(sender, cost_beyond_one(bytes, room.member_ids.len() - 1));
        }
        self.pending.admit().await
    }

    /// Submits a message to the intake. One that was not admitted is refused there, unless it is a resend: the returned
    /// future waits until that is known. It does not wait for a message that was admitted.
    fn submit(
        &self,
        accepted: Accepted,
        asker: Asker,
        admitted: Result<Permit, Refusal>,
    ) -> Result<impl Future<Output = ()> + use<>, Refusal> {
        let (permit, unless_resend, decided) = match admitted {
            Ok(permit) => (permit, None, None),
            Err(refusal) => {
                let (_decided, decided) = oneshot::channel();
                (self.pending.admit_look_up()?, Some(Doubt { refusal, _decided }), Some(decided))
            }
        };
        let waiter = waiter(&accepted, asker, permit);
        self.submissions.submit(Submission { accepted, waiter, since: Instant::now(), unless_resend });
        Ok(async {
            if let Some(decided) = decided {
                let Err(_decided) = decided.await;
            }
        })
    }
}

/// Writes submitted messages to the intake, and passes on those that were written.
pub(crate) struct Intake {
    intake: Arc<dyn store::Intake>,
    linger: store::Linger,
    messages: Arc<dyn Messages>,
    pending: Arc<Pending>,
    telemetry: Arc<Telemetry>,
    written: mpsc::Sender<Vec<Accepted>>,
    predecessors: Predecessors,
}

/// Hands written messages over to the persister.
pub(crate) struct EnqueueTask {
    accepted: Arc<dyn Queue<Accepted>>,
    clock: store::StoreClock,
    telemetry: Arc<Telemetry>,
    written: mpsc::Receiver<Vec<Accepted>>,
}

/// Both steps; the output of the first is the input of the second.
pub(crate) fn steps(
    engines: &Engines,
    pending: &Arc<Pending>,
    telemetry: &Arc<Telemetry>,
) -> (Intake, EnqueueTask) {
    let (sender, written) = mpsc::channel(HAND_OVER_QUEUE);
    let (accepted, telemetry) = (engines.bus.accepted.clone(), telemetry.clone());
    let clock = engines.store.clock.clone();
    let enqueue = EnqueueTask { accepted, clock, telemetry: telemetry.clone(), written };
    let (intake, messages) = (engines.store.intake.clone(), engines.store.messages.clone());
    let (pending, predecessors) = (pending.clone(), Predecessors::default());
    let linger = engines.store.linger;
    (Intake { intake, linger, messages, pending, telemetry, written: sender, predecessors }, enqueue)
}

/// A store's configured linger for appends, as a limit of batches.
fn linger(store::Linger { span, from_per_second }: store::Linger) -> Linger {
    Linger { span, enough: ENOUGH, busy_from: from_per_second * WINDOW.as_millis() as usize / 1_000 }
}

impl Intake {
    /// Runs until no message can be submitted any more.
    pub(crate) async fn run(mut self, submissions: mpsc::Receiver<Submission>) {
        let size = |submission: &Submission| submission.accepted.content.len();
        let linger = linger(self.linger);
        let limits = Limits { max: MAX_BATCH, max_size: MAX_BATCH_BYTES, size, linger };
        let mut batches = Batches::new(submissions, limits);
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while batches.next(&mut batch).await {
            let written = self.accept(batch.drain(..)).await;
            if !written.is_empty() && self.written.send(written).await.is_err() {
                tracing::warn!("nothing is enqueued any more; the sweep will find what was written");
                return;
            }
        }
    }

    /// Writes a batch; returns the messages to enqueue for the persister, in the order in which they came.
    async fn accept(&mut self, batch: impl Iterator<Item = Submission>) -> Vec<Accepted> {
        let (mut entries, mut waiters) = (Vec::new(), Vec::new());
        let (mut doubtful, mut doubts) = (Vec::new(), Vec::new());
        let mut first_came = Instant::now();
        for Submission { mut accepted, waiter, since, unless_resend } in batch {
            first_came = first_came.min(since);
            if let Some(doubt) = unless_resend {
                doubtful.push(accepted);
                doubts.push((waiter, doubt));
                continue;
            }
            match self.predecessors.correct(&mut accepted) {
                Ok(()) => {
                    entries.push(accepted);
                    waiters.push(waiter);
                }
                // The message before it failed: taken alone, this one would overtake the resend of that one.
                Err(refusal) => self.refuse(waiter, refusal),
            }
        }
        let written =
            if entries.is_empty() { Vec::new() } else { self.write(entries, waiters, first_came).await };
        // Later than the write, which may hold their first tries.
        if !doubtful.is_empty() {
            self.recognise(doubtful, doubts).await;
        }
        written
    }

    async fn write(&mut self, entries: Vec<Accepted>, waiters: Vec<Waiter>, since: Instant) -> Vec<Accepted> {
        self.telemetry.intake_batch.observe(entries.len() as f64);
        let answers = match self.append(&entries, since + APPEND_TIMEOUT).await {
            Ok(answers) => answers,
            Err(error) => {
                tracing::error!(%error, messages = entries.len(), "the intake failed; their fate is unknown");
                waiters.into_iter().for_each(|waiter| self.refuse(waiter, Refusal::Unavailable));
                return Vec::new();
            }
        };
        let first_tries = answers.iter().filter_map(|answer| match answer {
            Appended::Resend(first) => Some(first.accepted.id),
            _ => None,
        });
        let mut saved = self.saved(first_tries.collect()).await.into_iter();
        let mut written = Vec::with_capacity(entries.len());
        for ((mut accepted, waiter), answer) in entries.into_iter().zip(waiters).zip(answers) {
            match answer {
                Appended::New => {}
                Appended::Reopened(first) => {
                    self.predecessors.note(accepted.id, Predecessor::ResendOf(first));
                    accepted.id = first;
                }
                Appended::Resend(first) => {
                    let outcome = outcome(&first, saved.next().flatten());
                    // An append that was repeated, or that failed before, was not handed over.
                    let is_own = first.accepted.id == accepted.id;
                    if outcome.is_some() || !(is_own || self.predecessors.is_stored(first.accepted.id)) {
                        self.resend(&first.accepted, accepted.id, waiter, outcome);
                        continue;
                    }
                    if !is_own {
                        self.predecessors.note(accepted.id, Predecessor::ResendOf(first.accepted.id));
                    }
                    accepted = Accepted { origin: accepted.origin, ..first.accepted };
                }
                Appended::Conflict => {
                    self.refuse(waiter, OTHER_CONTENT);
                    continue;
                }
            }
            // The message before it may be a resend in the same batch.
            let _is_stored_all_the_same = self.predecessors.correct(&mut accepted);
            self.pending.wait(accepted.id, accepted.timestamp, waiter);
            written.push(accepted);
        }
        self.telemetry.accepted.inc_by(written.len() as u64);
        written
    }

    /// Answers messages that did not pass all checks: a resend like any other one, and the others with their refusals.
    async fn recognise(&mut self, doubtful: Vec<Accepted>, doubts: Vec<(Waiter, Doubt)>) {
        let records = match self.intake.find(&doubtful).await {
            Ok(records) => records,
            Err(error) => {
                tracing::warn!(%error, messages = doubtful.len(), "resends can't be recognised; their fate is unknown");
                doubts.into_iter().for_each(|(waiter, _)| self.refuse_doubtful(waiter, Refusal::Unavailable));
                return;
            }
        };
        let first_tries = records.iter().flatten().map(|first| first.accepted.id);
        let mut saved = self.saved(first_tries.collect()).await.into_iter();
        for ((again, (waiter, Doubt { refusal, _decided })), first) in
            doubtful.into_iter().zip(doubts).zip(records)
        {
            let Some(first) = first else {
                self.refuse_doubtful(waiter, refusal);
                continue;
            };
            match outcome(&first, saved.next().flatten()) {
                Some(Outcome::Rejected { .. }) => self.refuse_doubtful(waiter, refusal),
                _ if !first.is_resent_by(&again) => self.refuse_doubtful(waiter, OTHER_CONTENT),
                outcome => self.resend(&first.accepted, again.id, waiter, outcome),
            }
        }
    }

    /// Writes a batch, with the same ids each time, until the intake answers or the time to retry is over.
    async fn append(&self, entries: &[Accepted], give_up: Instant) -> Result<Vec<Appended>, EngineError> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            match self.intake.append(entries).await {
                Err(error) if error.is_transient() && Instant::now() < give_up => {
                    let delay = backoff.next_delay();
                    tracing::warn!(%error, ?delay, "the intake failed; trying again");
                    tokio::time::sleep(delay).await;
                }
                answer => return answer,
            }
        }
    }

    /// The saved ones of these messages, in their order.
    async fn saved(&self, ids: Vec<MessageId>) -> Vec<Option<Message>> {
        if ids.is_empty() {
            return Vec::new();
        }
        self.messages.find(&ids).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "resends can't be looked up; they wait for their first tries");
            Vec::new()
        })
    }

    /// Takes a second try: it is answered if the first one has ended, and waits for that if not. It is not handed over once
    /// more, which could bring the message to its recipients twice: if the first try was lost, the sweep finds it.
    fn resend(&mut self, first: &Accepted, again: MessageId, waiter: Waiter, outcome: Option<Outcome>) {
        if let Asker::Session { session, .. } = &waiter.asker {
            session.sent_again(first.id);
        }
        match outcome {
            Some(outcome) => drop(waiter.resolve(first.id, outcome, first.timestamp)),
            None => {
                self.predecessors.note(again, Predecessor::ResendOf(first.id));
                self.pending.wait(first.id, first.timestamp, waiter);
            }
        }
    }

    fn refuse(&mut self, waiter: Waiter, refusal: Refusal) {
        self.telemetry.count_refused(&refusal);
        self.predecessors.note(waiter.sent_as, Predecessor::Failed);
        waiter.refuse(refusal);
    }

    /// The same for a message whose session has sent none after it.
    fn refuse_doubtful(&self, waiter: Waiter, refusal: Refusal) {
        self.telemetry.count_refused(&refusal);
        waiter.refuse(refusal);
    }
}

/// How a first try has ended, by its record and by its saved message: the record is closed later.
fn outcome(first: &IntakeRecord, saved: Option<Message>) -> Option<Outcome> {
    saved.map(|message| Outcome::Saved { seq: message.seq }).or(first.outcome)
}

impl EnqueueTask {
    /// Runs until no message is written any more. Messages written while one batch is being enqueued are enqueued together.
    pub(crate) async fn run(mut self) {
        while let Some(mut batch) = self.written.recv().await {
            while batch.len() < MAX_BATCH
                && let Ok(more) = self.written.try_recv()
            {
                batch.extend(more);
            }
            let count = batch.len();
            self.telemetry.enqueue_batch.observe(count as f64);
            let store_time = self.clock.latest();
            let events = batch.into_iter().map(|accepted| {
                let trace = accepted.trace;
                Event::new(accepted, trace).stored_at(store_time)
            });
            match timeout(ENQUEUE_TIMEOUT, self.accepted.send(events.collect())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, count, "not enqueued for the persister; the sweep will find them")
                }
                Err(_) => tracing::warn!(count, "handing over takes long; the sweep will find them"),
            }
        }
    }
}

/// Recent messages that failed or were resends: a later message of the same session may be `after` one of them.
#[derive(Default)]
pub(crate) struct Predecessors {
    of: HashMap<MessageId, Predecessor>,
    noted: VecDeque<(Instant, MessageId)>,
}

#[derive(Clone, Copy)]
enum Predecessor {
    /// The message was not accepted, or its fate is unknown.
    Failed,
    /// The message was a resend of this one, which is under way.
    ResendOf(MessageId),
}

impl Predecessors {
    /// Corrects the `after` of a message.
    ///
    /// # Errors
    /// When the message before it failed: `UNAVAILABLE`, so that the client resends both in order.
    fn correct(&mut self, accepted: &mut Accepted) -> Result<(), Refusal> {
        self.forget();
        match accepted.after.and_then(|before| self.of.get(&before)) {
            Some(Predecessor::Failed) => Err(Refusal::Unavailable),
            Some(Predecessor::ResendOf(first)) => {
                accepted.after = Some(*first);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn note(&mut self, id: MessageId, predecessor: Predecessor) {
        self.of.insert(id, predecessor);
        self.noted.push_back((Instant::now(), id));
    }

    /// Notes that a message is stored after all. Whether its append had failed here.
    fn is_stored(&mut self, id: MessageId) -> bool {
        let failed = matches!(self.of.get(&id), Some(Predecessor::Failed));
        if failed {
            self.of.remove(&id);
        }
        failed
    }

    fn forget(&mut self) {
        while let Some((noted_at, id)) = self.noted.front().copied() {
            if noted_at.elapsed() < REMEMBER_FOR {
                break;
            }
            self.noted.pop_front();
            self.of.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use futures_util::FutureExt;
    use naru_engines::EngineResult;
    use naru_engines::bus::Receiver;
    use naru_engines::store::{Closing, IntakePlace, OpenPage, RunResult, Walked, Window};
    use naru_model::Seq;
    use naru_runtime::telemetry::Metrics;
    use tokio::sync::Mutex;

    use super::*;

    /// A store and a queue that report each write. The messages in `first_tries` were written before; an enqueueing is over
    /// when it is let through.
    struct Engine {
        first_tries: Vec<Accepted>,
        written: mpsc::UnboundedSender<Vec<MessageId>>,
        enqueued: mpsc::UnboundedSender<Vec<MessageId>>,
        let_through: Semaphore,
    }

    #[async_trait]
    impl store::Intake for Engine {
        async fn append(&self, entries: &[Accepted]) -> EngineResult<Vec<Appended>> {
            self.written.send(entries.iter().map(|entry| entry.id).collect()).unwrap();
            let answer = |entry: &Accepted| {
                let same = |first: &&Accepted| first.client_message_id == entry.client_message_id;
                let first = self.first_tries.iter().find(same).cloned();
                first.map_or(Appended::New, |accepted| {
                    Appended::Resend(Box::new(IntakeRecord { accepted, outcome: None }))
                })
            };
            Ok(entries.iter().map(answer).collect())
        }

        async fn find(&self, entries: &[Accepted]) -> EngineResult<Vec<Option<IntakeRecord>>> {
            let record = |first: &Accepted| IntakeRecord { accepted: first.clone(), outcome: None };
            let first = |entry: &Accepted| {
                self.first_tries.iter().find(|first| first.client_message_id == entry.client_message_id)
            };
            Ok(entries.iter().map(|entry| first(entry).map(record)).collect())
        }

        async fn get(&self, _: &[MessageId]) -> EngineResult<Vec<Option<IntakeRecord>>> {
            unreachable!("the intake only appends")
        }

        async fn open(
            &self,
            _: Option<IntakePlace>,
            _: Option<IntakePlace>,
            _: usize,
        ) -> EngineResult<OpenPage> {
            unreachable!("the intake only appends")
        }

        async fn newest_open(&self) -> EngineResult<Option<IntakePlace>> {
            unreachable!("the intake only appends")
        }

        async fn close(&self, _: &[Closing]) -> EngineResult<()> {
            unreachable!("the intake only appends")
        }

        async fn drop_contents(&self, _: &[MessageId]) -> EngineResult<()> {
            unreachable!("the intake only appends")
        }

        async fn forget_contents(
            &self,
            _: Option<MessageId>,
            _: Timestamp,
            _: usize,
        ) -> EngineResult<Walked> {
            unreachable!("the intake only appends")
        }

        async fn of_sender(
            &self,
            _: &RoomId,
            _: &UserId,
            _: Option<&ClientMessageId>,
            _: usize,
        ) -> EngineResult<Vec<IntakeRecord>> {
            unreachable!("the intake only appends")
        }
    }

    #[async_trait]
    impl Messages for Engine {
        async fn find(&self, ids: &[MessageId]) -> EngineResult<Vec<Option<Message>>> {
            Ok(vec![None; ids.len()])
        }

        async fn heads(&self, _: &[RoomId]) -> EngineResult<Vec<Seq>> {
            unreachable!("resends are only looked up")
        }

        async fn append_run(&self, _: &[Message]) -> EngineResult<RunResult> {
            unreachable!("resends are only looked up")
        }

        async fn bump(&self, _: &[Message]) -> EngineResult<()> {
            unreachable!("resends are only looked up")
        }

        async fn range(&self, _: &RoomId, _: Window, _: usize) -> EngineResult<(Vec<Message>, bool)> {
            unreachable!("resends are only looked up")
        }

        async fn delete(&self, _: &[MessageId], _: Timestamp) -> EngineResult<()> {
            unreachable!("resends are only looked up")
        }

        async fn expire(&self, _: Option<MessageId>, _: Timestamp, _: usize) -> EngineResult<Walked> {
            unreachable!("resends are only looked up")
        }
    }

    #[async_trait]
    impl Queue<Accepted> for Engine {
        async fn send(&self, events: Vec<Event<Accepted>>) -> EngineResult<()> {
            self.enqueued.send(events.iter().map(|event| event.payload.id).collect()).unwrap();
            self.let_through.acquire().await.unwrap().forget();
            Ok(())
        }

        async fn receiver(&self) -> EngineResult<Box<dyn Receiver<Accepted>>> {
            unreachable!("a gateway only sends")
        }
    }

    type Told = Mutex<mpsc::UnboundedReceiver<Vec<MessageId>>>;

    struct Fixture {
        engine: Arc<Engine>,
        pending: Arc<Pending>,
        written: Told,
        enqueued: Told,
        submissions: Submissions,
    }

    impl Fixture {
        fn new(first_tries: Vec<Accepted>) -> (Self, mpsc::Receiver<Submission>) {
            let ((written, was_written), (enqueued, was_handed_over)) =
                (mpsc::unbounded_channel(), mpsc::unbounded_channel());
            let let_through = Semaphore::new(0);
            let engine = Arc::new(Engine { first_tries, written, enqueued, let_through });
            let (submissions, receiver) = Submissions::new(100);
            let (written, enqueued) = (Mutex::new(was_written), Mutex::new(was_handed_over));
            (Self { engine, pending: Pending::new(100), written, enqueued, submissions }, receiver)
        }

        fn steps(&self) -> (Intake, EnqueueTask) {
            let (written, receiver) = mpsc::channel(HAND_OVER_QUEUE);
            let telemetry = Arc::new(Telemetry::new(&Metrics::new()));
            let (intake, messages, pending) =
                (self.engine.clone(), self.engine.clone(), self.pending.clone());
            let enqueue = EnqueueTask {
                accepted: self.engine.clone(),
                clock: store::StoreClock::default(),
                telemetry: telemetry.clone(),
                written: receiver,
            };
            let linger = store::Linger::NONE;
            let predecessors = Predecessors::default();
            (Intake { intake, linger, messages, pending, telemetry, written, predecessors }, enqueue)
        }

        fn submission(&self, accepted: &Accepted) -> Submission {
            let (answer, _) = oneshot::channel();
            let waiter = waiter(
                accepted,
                Asker::Http(answer),
                self.pending.admit().now_or_never().expect("there is a place").unwrap(),
            );
            Submission { accepted: accepted.clone(), waiter, since: Instant::now(), unless_resend: None }
        }

        fn submit(&self, accepted: &Accepted) {
            self.submissions.submit(self.submission(accepted));
        }
    }

    fn accepted(name: &str, after: Option<MessageId>) -> Accepted {
        Accepted {
            id: MessageId::generate(),
            chat_room_id: RoomId::new("r").unwrap(),
            sender_id: UserId::new("ada").unwrap(),
            sender_name: "Ada".into(),
            content: "hello".into(),
            timestamp: Timestamp::now(),
            client_message_id: ClientMessageId::new(name).unwrap(),
            after,
            origin: Some(Origin { gateway: GatewayId::generate(), session: None }),
            trace: Trace::start(),
        }
    }

    #[tokio::test]
    async fn the_next_batch_is_written_while_one_is_handed_over_and_the_order_is_kept() {
        let (fixture, submissions) = Fixture::new(Vec::new());
        let (intake, enqueue) = fixture.steps();
        let messages: Vec<Accepted> = ["a", "b", "c"].map(|name| accepted(name, None)).to_vec();
        let ids: Vec<MessageId> = messages.iter().map(|message| message.id).collect();
        let phone = async {
            fixture.submit(&messages[0]);
            assert_eq!(fixture.enqueued.lock().await.recv().await.unwrap(), ids[..1]);
            for message in &messages[1..] {
                fixture.submit(message);
            }
            let mut written = Vec::new();
            while written.len() < 3 {
                written.extend(fixture.written.lock().await.recv().await.unwrap());
            }
            assert_eq!(written, ids, "though the first batch is not enqueued yet");
            fixture.engine.let_through.add_permits(3);
            let mut enqueued = Vec::new();
            while enqueued.len() < 2 {
                enqueued.extend(fixture.enqueued.lock().await.recv().await.unwrap());
            }
            assert_eq!(enqueued, ids[1..]);
        };
        tokio::select! {
            () = phone => {}
            ((), ()) = async { tokio::join!(intake.run(submissions), enqueue.run()) } => panic!("they go on"),
        }
    }

    #[tokio::test]
    async fn what_was_stored_by_an_append_that_failed_is_handed_over_once_by_its_resend() {
        let first = accepted("a", None);
        let (fixture, _submissions) = Fixture::new(vec![first.clone()]);
        let (mut intake, _enqueue) = fixture.steps();
        intake.refuse(fixture.submission(&first).waiter, Refusal::Unavailable);
        let again = accepted("a", None);
        let written = intake.accept([fixture.submission(&again)].into_iter()).await;
        assert_eq!(written, [Accepted { origin: again.origin, ..first }], "its session is answered");
        assert_eq!(intake.accept([fixture.submission(&accepted("a", None))].into_iter()).await, []);
    }

    #[tokio::test]
    async fn what_follows_a_resend_in_the_same_batch_comes_after_the_first_try() {
        let first = accepted("a", None);
        let again = accepted("a", None);
        let next = accepted("b", Some(again.id));
        let (fixture, _submissions) = Fixture::new(vec![first.clone()]);
        let (mut intake, _enqueue) = fixture.steps();
        let batch = [&again, &next].map(|accepted| fixture.submission(accepted));
        let written = intake.accept(batch.into_iter()).await;
        let order: Vec<_> = written.iter().map(|accepted| (accepted.id, accepted.after)).collect();
        assert_eq!(
            order,
            [(next.id, Some(first.id))],
            "the first try is under way, and not handed over once more"
        );
    }
}
