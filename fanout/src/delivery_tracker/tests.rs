use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use naru_embedded::{Embedded, Options};
use naru_engines::store::{Appended, Intake, IntakePlace, IntakeRecord, OpenPage, Walked};
use naru_engines::{Applied, EngineError};
use naru_faults::{Call, Counted, Interceptor, Only, Outage, intercepted};
use naru_model::hops::Accepted;
use naru_model::message::Outcome;
use naru_model::{ClientMessageId, MemberVersion, Message, RoomId, Seq, Timestamp, Trace};
use naru_runtime::telemetry::Metrics;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;
use crate::pending_proofs::BYTES_EACH;

/// A tracker on an embedded engine, and the intake entries of published messages.
struct Fixture {
    engines: Engines,
    outage: Arc<Outage>,
    counted: Arc<Counted>,
    published: mpsc::Sender<Vec<Published>>,
    tracked: Tracked,
    running: JoinHandle<EngineResult<()>>,
    no_more_proofs: CancellationToken,
    _directory: tempfile::TempDir,
}

/// Every call fails for good.
struct Refused;

#[async_trait]
impl Interceptor for Refused {
    async fn before(&self, call: &Call) -> EngineResult<()> {
        Err(EngineError::permanent("the test", format!("{call} is refused")))
    }
}

fn user(name: &str) -> UserId {
    UserId::new(name).expect("a user")
}

fn accepted() -> Accepted {
    let id = MessageId::generate();
    Accepted {
        id,
        chat_room_id: RoomId::new("ada_ben").expect("a room"),
        sender_id: user("ada"),
        sender_name: "Ada".into(),
        content: "x".into(),
        timestamp: Timestamp::now(),
        client_message_id: ClientMessageId::from(id),
        after: None,
        origin: None,
        trace: Trace::start(),
    }
}

impl Fixture {
    /// `cut` names the calls that fail while the outage lasts.
    fn open(grace: Duration, max_bytes: usize, cut: &'static [&'static str]) -> Self {
        Self::refusing(grace, max_bytes, cut, &[])
    }

    /// `refused` names those that fail for good.
    fn refusing(
        grace: Duration,
        max_bytes: usize,
        cut: &'static [&'static str],
        refused: &'static [&'static str],
    ) -> Self {
        let directory = tempfile::tempdir().expect("a folder");
        let embedded = Embedded::open(directory.path(), Options::default()).expect("it opens");
        let outage = Arc::new(Outage::default());
        let counted = Arc::new(Counted::default());
        let engines = intercepted(embedded.engines(), Arc::new(Only(cut, outage.clone())));
        let engines = intercepted(engines, Arc::new(Only(refused, Refused)));
        let engines = intercepted(engines, counted.clone());
        let no_more_proofs = CancellationToken::new();
        let telemetry = Telemetry::new(&Metrics::new());
        let (mut tracker, published) =
            DeliveryTracker::new(engines.clone(), Some(grace), no_more_proofs.clone(), telemetry);
        tracker.max_bytes = max_bytes;
        let tracked = tracker.tracked.clone();
        let running = tokio::spawn(tracker.run(CancellationToken::new()));
        Self { engines, outage, counted, published, tracked, running, no_more_proofs, _directory: directory }
    }

    /// Publishes a message to these recipients; returns its id.
    async fn publish(&self, seq: u64, unproven: &[&str]) -> MessageId {
        let published = self.save(seq, unproven).await;
        let id = published.message.id;
        self.published.send(vec![published]).await.expect("the tracker runs");
        id
    }

    /// Saves a message, which is still to be published to these recipients.
    async fn save(&self, seq: u64, unproven: &[&str]) -> Published {
        let accepted = accepted();
        self.engines.store.intake.append(std::slice::from_ref(&accepted)).await.expect("it is appended");
        let message = accepted.at(Seq(seq));
        self.engines.store.messages.append_run(std::slice::from_ref(&message)).await.expect("it is saved");
        let unproven = unproven.iter().map(|name| user(name)).collect();
        Published::new(message, accepted.trace, unproven)
    }

    async fn open_entries(&self) -> Vec<MessageId> {
        let open = self.engines.store.intake.open(None, None, 100).await.expect("a list");
        open.entries.into_iter().map(|entry| entry.accepted.id).collect()
    }

    /// Waits until only these entries are open.
    async fn opens(&self, expected: &[MessageId]) {
        let looking = async {
            while self.open_entries().await != expected {
                tokio::task::yield_now().await;
            }
        };
        let late = tokio::time::timeout(Duration::from_secs(20), looking).await;
        late.unwrap_or_else(|_| panic!("never just {expected:?}"));
    }

    /// The next offline events: the message and its recipients.
    async fn offline(&self, count: usize) -> Vec<(MessageId, Vec<UserId>)> {
        let mut queue = self.engines.bus.offline.receiver().await.expect("a receiver");
        let mut events = Vec::new();
        while events.len() < count {
            for delivery in queue.receive(count).await.expect("a batch") {
                events.push((delivery.event.payload.message.id, delivery.event.payload.recipients.clone()));
                naru_engines::bus::ack([delivery.ack_handle]).await.expect("it is acknowledged");
            }
        }
        events
    }

    /// Ends the fanout; returns the entries that it leaves open.
    async fn end(self) -> Vec<MessageId> {
        let Self { published, running, engines, _directory, .. } = self;
        drop(published);
        running.await.expect("it does not panic").expect("it ends in order");
        let open = engines.store.intake.open(None, None, 100).await.expect("a list");
        open.entries.into_iter().map(|entry| entry.accepted.id).collect()
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(400);

#[tokio::test]
async fn a_message_is_closed_when_every_recipient_is_accounted_for() {
    let fixture = Fixture::open(SHORT, MAX_BYTES, &[]);
    let _to_people_offline = fixture.publish(1, &[]).await;
    let unproven = fixture.publish(2, &["ben", "cleo"]).await;
    let proven = fixture.publish(3, &["ben"]).await;
    let proofs = [(proven, user("ben")), (unproven, user("ben"))];
    fixture.engines.proofs.record(&proofs, HOUR).await.expect("it is recorded");
    assert_eq!(fixture.offline(1).await, [(unproven, vec![user("cleo")])]);
    fixture.opens(&[]).await;
}

#[tokio::test]
async fn an_entry_stays_open_while_its_offline_event_is_not_confirmed() {
    let fixture = Fixture::open(SHORT, MAX_BYTES, &["offline.send", "proofs.proven"]);
    fixture.outage.cut(true);
    let unproven = fixture.publish(1, &["ben"]).await;
    let accounted_for = fixture.publish(2, &[]).await;
    fixture.opens(&[unproven]).await;
    assert_ne!(unproven, accounted_for);
    fixture.outage.cut(false);
    assert_eq!(fixture.offline(1).await, [(unproven, vec![user("ben")])]);
    fixture.opens(&[]).await;
}

/// A room that could not be moved up keeps its entries open: after a crash both are done again.
#[tokio::test]
async fn entries_are_closed_after_their_rooms_were_moved_up() {
    let fixture = Fixture::open(SHORT, MAX_BYTES, &["messages.bump"]);
    fixture.outage.cut(true);
    let id = fixture.publish(1, &[]).await;
    while fixture.counted.count("messages.bump") < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.open_entries().await, [id]);
    fixture.outage.cut(false);
    fixture.opens(&[]).await;
}

#[tokio::test]
async fn a_room_that_can_never_be_moved_up_keeps_no_entry_open() {
    let fixture = Fixture::refusing(SHORT, MAX_BYTES, &[], &["messages.bump"]);
    fixture.publish(1, &[]).await;
    fixture.opens(&[]).await;
}

/// The sweep resends them; meanwhile the tracker drops them.
#[tokio::test]
async fn entries_that_can_never_be_closed_are_not_kept_in_memory() {
    let fixture = Fixture::refusing(SHORT, MAX_BYTES, &[], &["intake.close"]);
    let ids = [fixture.publish(1, &[]).await, fixture.publish(2, &[]).await];
    while fixture.counted.count("intake.close") < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.end().await, ids);
}

#[tokio::test]
async fn beyond_its_budget_the_oldest_get_their_offline_events_early() {
    let fixture = Fixture::open(HOUR, 5 * (BYTES_EACH + 20), &[]);
    let mut saved = Vec::new();
    for seq in 1..=8 {
        saved.push(fixture.save(seq, &["ben"]).await);
    }
    let ids: Vec<MessageId> = saved.iter().map(|published| published.message.id).collect();
    // Six exceed the budget, and half of them get their offline events; then there is capacity for the other two.
    for published in saved {
        fixture.published.send(vec![published]).await.expect("the tracker runs");
    }
    let offline = fixture.offline(3).await;
    assert_eq!(offline.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids[..3]);
}

#[tokio::test]
async fn when_no_proof_can_come_any_more_none_is_waited_for() {
    let fixture = Fixture::open(HOUR, MAX_BYTES, &[]);
    let before = fixture.publish(1, &["ben"]).await;
    fixture.no_more_proofs.cancel();
    assert_eq!(fixture.offline(1).await, [(before, vec![user("ben")])]);
    let after = fixture.publish(2, &["ben"]).await;
    assert_eq!(fixture.offline(1).await, [(after, vec![user("ben")])]);
    fixture.opens(&[]).await;
}

#[tokio::test]
async fn an_orderly_end_closes_what_is_proven_and_leaves_the_rest_open() {
    let fixture = Fixture::open(HOUR, MAX_BYTES, &[]);
    let (proven, unproven) = (fixture.publish(1, &["ben"]).await, fixture.publish(2, &["ben"]).await);
    fixture.engines.proofs.record(&[(proven, user("ben"))], HOUR).await.expect("it is recorded");
    assert_eq!(fixture.end().await, [unproven]);
}

/// An intake that only closes, by this function.
struct Closes<F>(F);

#[async_trait]
impl<F, Closed> Intake for Closes<F>
where
    F: Fn(Vec<Closing>) -> Closed + Send + Sync,
    Closed: Future<Output = EngineResult<()>> + Send,
{
    async fn append(&self, _: &[Accepted]) -> EngineResult<Vec<Appended>> {
        unreachable!("it only closes")
    }

    async fn find(&self, _: &[Accepted]) -> EngineResult<Vec<Option<IntakeRecord>>> {
        unreachable!("it only closes")
    }

    async fn get(&self, _: &[MessageId]) -> EngineResult<Vec<Option<IntakeRecord>>> {
        unreachable!("it only closes")
    }

    async fn open(&self, _: Option<IntakePlace>, _: Option<IntakePlace>, _: usize) -> EngineResult<OpenPage> {
        unreachable!("it only closes")
    }

    async fn newest_open(&self) -> EngineResult<Option<IntakePlace>> {
        unreachable!("it only closes")
    }

    async fn drop_contents(&self, _: &[MessageId]) -> EngineResult<()> {
        unreachable!("it only closes")
    }

    async fn forget_contents(&self, _: Option<MessageId>, _: Timestamp, _: usize) -> EngineResult<Walked> {
        unreachable!("it only closes")
    }

    async fn of_sender(
        &self,
        _: &RoomId,
        _: &UserId,
        _: Option<&ClientMessageId>,
        _: usize,
    ) -> EngineResult<Vec<IntakeRecord>> {
        unreachable!("it only closes")
    }

    async fn close(&self, closings: &[Closing]) -> EngineResult<()> {
        (self.0)(closings.to_vec()).await
    }
}

/// A tracker on this intake, with engines that answer without a thread.
fn on(intake: impl Intake + 'static) -> (DeliveryTracker, mpsc::Sender<Vec<Published>>, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a folder");
    let embedded = Embedded::open(directory.path(), Options::default()).expect("it opens");
    let mut engines = intercepted(embedded.engines(), Arc::new(Only(&["messages.bump"], Refused)));
    engines.store.intake = Arc::new(intake);
    let telemetry = Telemetry::new(&Metrics::new());
    let (tracker, published) =
        DeliveryTracker::new(engines, Some(SHORT), CancellationToken::new(), telemetry);
    (tracker, published, directory)
}

/// An overloaded fanout comes to messages, and closes entries, so late that the sweep resends them.
#[tokio::test]
async fn what_is_tracked_or_was_closed_lately_is_not_published_again() {
    let fixture = Fixture::open(SHORT, MAX_BYTES, &["intake.close"]);
    let published = fixture.save(1, &["ben"]).await;
    let resent = || {
        let saved =
            Saved { message: published.message.clone(), member_version: MemberVersion::FIRST, origin: None };
        vec![Event::new(saved, Trace::start())]
    };
    let is_left_out = || {
        let mut events = resent();
        fixture.tracked.leave_out(&mut events);
        events.is_empty()
    };
    assert!(!is_left_out());
    fixture.outage.cut(true);
    let message = published.message.clone();
    let again = Published::new(message, Trace::start(), vec![user("ben")]);
    fixture.tracked.add(std::slice::from_ref(&again));
    fixture.published.send(vec![again]).await.expect("the tracker runs");
    fixture.offline(1).await;
    assert!(is_left_out(), "its entry is open");
    fixture.outage.cut(false);
    fixture.opens(&[]).await;
    assert!(is_left_out(), "it was sent before its entry was closed");
    let closing = |id| Closing { id, outcome: Outcome::Saved { seq: Seq(1) } };
    let later: Vec<_> = (0..MAX_CLOSED_KNOWN - 1).map(|_| closing(MessageId::generate())).collect();
    fixture.tracked.closed(&later);
    assert!(is_left_out(), "as many are known");
    fixture.tracked.closed(&[closing(MessageId::generate())]);
    assert!(!is_left_out(), "and no more");
}

#[test]
fn what_is_twice_in_a_batch_is_published_once() {
    let message = accepted().at(Seq(1));
    let saved = Saved { message, member_version: MemberVersion::FIRST, origin: None };
    let event = Event::new(saved, Trace::start());
    let mut events = vec![event.clone(), event.clone()];
    Tracked::default().leave_out(&mut events);
    assert_eq!(events, [event]);
}

/// Messages whose recipients are all accounted for.
fn finished(count: usize) -> Vec<Published> {
    let message: fn() -> Message = || accepted().at(Seq(1));
    (0..count).map(|_| Published::new(message(), Trace::start(), Vec::new())).collect()
}

/// The sweep resends entries that are open for too long, as messages to publish: a backlog would feed itself.
#[tokio::test(start_paused = true)]
async fn entries_are_closed_as_fast_as_messages_are_published() {
    // The embedded engine's peak, and the time of its commits.
    const PER_SECOND: usize = 24_000;
    const EVERY: Duration = Duration::from_millis(10);
    let published_at: Arc<Mutex<HashMap<MessageId, Instant>>> = Arc::default();
    let oldest: Arc<Mutex<Duration>> = Arc::default();
    let (open, age) = (published_at.clone(), oldest.clone());
    let intake = Closes(move |closings: Vec<Closing>| {
        let (open, age) = (open.clone(), age.clone());
        async move {
            assert!(closings.len() <= MAX_CLOSED, "appends wait for no huge command");
            sleep(Duration::from_millis(20)).await;
            for Closing { id, .. } in closings {
                let at = open.lock().unwrap().remove(&id).expect("it is open");
                let mut age = age.lock().unwrap();
                *age = at.elapsed().max(*age);
            }
            Ok(())
        }
    });
    let (tracker, published, _directory) = on(intake);
    let running = tokio::spawn(tracker.run(CancellationToken::new()));
    for _ in 0..300 {
        let batch = finished(PER_SECOND / 100);
        let now = Instant::now();
        published_at.lock().unwrap().extend(batch.iter().map(|published| (published.message.id, now)));
        published.send(batch).await.expect("the tracker runs");
        sleep(EVERY).await;
    }
    drop(published);
    running.await.expect("it does not panic").expect("it ends in order");
    assert!(published_at.lock().unwrap().is_empty(), "all are closed");
    let oldest = *oldest.lock().unwrap();
    assert!(oldest <= 2 * TICK, "{oldest:?}");
}

#[tokio::test(start_paused = true)]
async fn batches_are_taken_over_while_entries_are_being_closed_until_too_many_are_not() {
    const BATCH: usize = 256;
    let (gate, closed) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (waits, counts) = (gate.clone(), closed.clone());
    let intake = Closes(move |closings: Vec<Closing>| {
        let (waits, counts) = (waits.clone(), counts.clone());
        async move {
            let _open = waits.acquire().await.expect("it stays open");
            counts.fetch_add(closings.len(), Ordering::Relaxed);
            Ok(())
        }
    });
    let (tracker, published, _directory) = on(intake);
    let running = tokio::spawn(tracker.run(CancellationToken::new()));
    let mut sent = 0;
    while let Ok(taken) = timeout(Duration::from_secs(1), published.send(finished(BATCH))).await {
        taken.expect("the tracker runs");
        sent += 1;
    }
    assert_eq!(sent, MAX_UNCLOSED / BATCH + MAX_BATCHES);
    gate.add_permits(1);
    published.send(finished(BATCH)).await.expect("there is capacity again");
    drop(published);
    running.await.expect("it does not panic").expect("it ends in order");
    assert_eq!(closed.load(Ordering::Relaxed), (sent + 1) * BATCH);
}

#[tokio::test]
async fn what_could_not_be_closed_is_repeated_oldest_first() {
    let refused = EngineError::permanent("the test", "one of them is refused");
    let unavailable = EngineError::unavailable("the test", Applied::No, "it is unavailable");
    let answers = Mutex::new(VecDeque::from([Err(refused), Err(unavailable)]));
    let intake = Closes(move |_: Vec<Closing>| {
        let answer = answers.lock().unwrap().pop_front().unwrap_or(Ok(()));
        async move { answer }
    });
    let (tracker, _published, _directory) = on(intake);
    let closing = |seq| Closing { id: MessageId::generate(), outcome: Outcome::Saved { seq: Seq(seq) } };
    let closings: Vec<Closing> = (1..=4).map(closing).collect();
    let left = tracker.write(Writes { newest: Vec::new(), closings: closings.clone() }).await;
    assert_eq!(left.closings, closings);
}
