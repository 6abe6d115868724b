use std::collections::VecDeque;
use std::future::{pending, ready};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::{Notify, Semaphore};
use tokio::task::yield_now;

use super::*;
use crate::bus::fixtures::{Numbered, numbered};
use crate::bus::{Acknowledge, Receiver};
use crate::{Applied, EngineError};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Received(Vec<u64>),
    Worked(Vec<u64>),
    Acked(Vec<u64>),
    Retried(Vec<u64>, Duration),
    Dropped(u64),
}
use Seen::{Acked, Dropped, Received, Retried, Worked};

/// In order, each with the time since the beginning.
#[derive(Debug)]
struct Log {
    started: Instant,
    seen: Mutex<Vec<(Duration, Seen)>>,
    added: Notify,
}

impl Log {
    fn add(&self, seen: Seen) {
        self.seen.lock().unwrap().push((self.started.elapsed(), seen));
        self.added.notify_waiters();
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().map(|(_, seen)| seen.clone()).collect()
    }

    fn at(&self, what: &Seen) -> Duration {
        let log = self.seen.lock().unwrap();
        log.iter().find(|(_, seen)| seen == what).unwrap_or_else(|| panic!("{what:?} is not in {log:?}")).0
    }

    async fn until(&self, what: Seen) {
        loop {
            let added = self.added.notified();
            if self.seen().contains(&what) {
                return;
            }
            added.await;
        }
    }
}

#[async_trait]
impl Acknowledge for Log {
    async fn ack(&self, tags: Vec<u64>) -> EngineResult<()> {
        self.add(Acked(tags));
        Ok(())
    }

    async fn retry(&self, tags: Vec<u64>, after: Duration) -> EngineResult<()> {
        self.add(Retried(tags, after));
        // The worker continues nevertheless.
        Err(unavailable())
    }

    fn dropped(&self, tag: u64) {
        self.add(Dropped(tag));
    }
}

/// Each event's number, which is its tag too, and its attempt.
type Batch = &'static [(u64, u32)];

/// Delivers these batches and then nothing more, or an error.
struct Scripted {
    log: Arc<Log>,
    batches: Mutex<VecDeque<Batch>>,
    ends_in_error: bool,
}

fn scripted(batches: &[Batch]) -> Scripted {
    let log = Arc::new(Log { started: Instant::now(), seen: Mutex::default(), added: Notify::new() });
    Scripted { log, batches: Mutex::new(batches.iter().copied().collect()), ends_in_error: false }
}

#[async_trait]
impl Queue<Numbered> for Scripted {
    async fn send(&self, _: Vec<Event<Numbered>>) -> EngineResult<()> {
        unreachable!("only received from")
    }

    async fn receiver(&self) -> EngineResult<Box<dyn Receiver<Numbered>>> {
        let batches = std::mem::take(&mut *self.batches.lock().unwrap());
        let (log, ends_in_error) = (self.log.clone(), self.ends_in_error);
        Ok(Box::new(ScriptedReceiver { log, batches, ends_in_error }))
    }
}

struct ScriptedReceiver {
    log: Arc<Log>,
    batches: VecDeque<Batch>,
    ends_in_error: bool,
}

#[async_trait]
impl Receiver<Numbered> for ScriptedReceiver {
    async fn receive(&mut self, max: usize) -> EngineResult<Vec<Delivery<Numbered>>> {
        assert_eq!(max, WORK.max_batch);
        // Lets a waiting task run first, as an engine would.
        yield_now().await;
        let Some(batch) = self.batches.pop_front() else {
            return if self.ends_in_error { Err(unavailable()) } else { pending().await };
        };
        self.log.add(Received(batch.iter().map(|(number, _)| *number).collect()));
        let deliver = |(number, attempt): &(u64, u32)| Delivery {
            event: numbered("r", *number),
            attempt: *attempt,
            ack_handle: AckHandle::new(*number, self.log.clone()),
        };
        Ok(batch.iter().map(deliver).collect())
    }
}

fn unavailable() -> EngineError {
    EngineError::unavailable("the test", Applied::No, "it was to fail")
}

fn permanent() -> EngineError {
    EngineError::permanent("the test", "it was to fail")
}

const SECOND: Duration = Duration::from_secs(1);
const WORK: Work = Work {
    name: "test",
    max_batch: 7,
    max_in_flight: 2,
    backoff: |attempt| Duration::from_secs(10 * u64::from(attempt)),
    is_rederivable: false,
};

fn numbers(events: &[Event<Numbered>]) -> Vec<u64> {
    events.iter().map(|event| event.payload.number).collect()
}

/// Works on all of the script, each batch with the result of `answer`, until `last` was done.
async fn work_until(queue: &Scripted, last: Seen, answer: fn(&[u64]) -> EngineResult<()>) {
    work_with(WORK, queue, last, answer).await;
}

async fn work_with(options: Work, queue: &Scripted, last: Seen, answer: fn(&[u64]) -> EngineResult<()>) {
    let log = queue.log.clone();
    let work = move |events: Vec<Event<Numbered>>| {
        let numbers = numbers(&events);
        let answer = answer(&numbers);
        log.add(Worked(numbers));
        ready(answer)
    };
    work_on(queue, options, queue.log.until(last), work).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_acknowledged_when_it_is_done() {
    let queue = scripted(&[&[(1, 1), (2, 1)]]);
    work_until(&queue, Acked(vec![1, 2]), |_| Ok(())).await;
    assert_eq!(queue.log.seen(), [Received(vec![1, 2]), Worked(vec![1, 2]), Acked(vec![1, 2])]);
}

#[tokio::test(start_paused = true)]
async fn after_a_transient_failure_nothing_is_read_until_the_backoff_is_over() {
    let queue = scripted(&[&[(1, 1), (2, 3)], &[(3, 1)], &[(4, 1)]]);
    let fails = |numbers: &[u64]| if numbers.contains(&3) { Ok(()) } else { Err(unavailable()) };
    work_until(&queue, Retried(vec![4], SECOND * 10), fails).await;
    let retried = Retried(vec![1, 2], SECOND * 30);
    assert_eq!(queue.log.seen()[..3], [Received(vec![1, 2]), Worked(vec![1, 2]), retried.clone()]);
    assert_eq!(
        queue.log.at(&retried),
        Duration::ZERO,
        "by the attempt of the event that was tried most often"
    );
    // Paused time comes in whole milliseconds.
    let waited = queue.log.at(&Received(vec![3]));
    assert!((SECOND * 30..SECOND * 31).contains(&waited), "{waited:?}");
    assert_eq!(queue.log.at(&Acked(vec![3])), waited);
}

#[tokio::test(start_paused = true)]
async fn after_a_permanent_failure_the_event_at_fault_comes_again_by_itself() {
    let queue = scripted(&[&[(1, 1), (2, 2), (3, 1)], &[(4, 1)]]);
    let fails = |numbers: &[u64]| if numbers.contains(&2) { Err(permanent()) } else { Ok(()) };
    work_until(&queue, Acked(vec![4]), fails).await;
    let seen = queue.log.seen();
    let of_the_first = |seen: &&Seen| !matches!(seen, Received(n) | Worked(n) | Acked(n) if *n == [4]);
    assert_eq!(
        seen.iter().filter(of_the_first).cloned().collect::<Vec<_>>(),
        [
            Received(vec![1, 2, 3]),
            Worked(vec![1, 2, 3]),
            Worked(vec![1]),
            Acked(vec![1]),
            Worked(vec![2, 3]),
            Worked(vec![2]),
            Retried(vec![2], SECOND * 2),
            Worked(vec![3]),
            Acked(vec![3]),
        ]
    );
    assert_eq!(queue.log.at(&Acked(vec![4])), Duration::ZERO, "the queue is read on");
}

#[test]
fn an_event_at_fault_comes_ever_more_seldom() {
    let waits = [1, 2, 3, 11, 12, 99].map(|attempt| wait_at_fault(attempt).as_secs());
    assert_eq!(waits, [1, 2, 4, 1_024, 1_800, 1_800]);
}

#[tokio::test(start_paused = true)]
async fn where_the_store_brings_it_back_an_event_at_fault_holds_up_no_other() {
    let queue = scripted(&[&[(1, 1), (2, 1), (3, 1), (4, 1)], &[(5, 1)]]);
    let fails = |numbers: &[u64]| if numbers.contains(&3) { Err(permanent()) } else { Ok(()) };
    work_with(Work { is_rederivable: true, ..WORK }, &queue, Acked(vec![5]), fails).await;
    let seen = queue.log.seen();
    let acked = |numbers: &[u64]| seen.contains(&Acked(numbers.to_vec()));
    assert!(acked(&[1, 2]) && acked(&[3]) && acked(&[4]), "{seen:?}");
    assert_eq!(queue.log.at(&Acked(vec![5])), Duration::ZERO, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn so_many_batches_are_in_flight_at_most_and_all_are_finished_after_the_stop() {
    let queue = scripted(&[&[(1, 1)], &[(2, 1)], &[(3, 1)], &[(4, 1)]]);
    let (log, permits) = (queue.log.clone(), Arc::new(Semaphore::new(0)));
    let work = {
        let permits = permits.clone();
        move |_| {
            let permits = permits.clone();
            async move {
                permits.acquire().await.unwrap().forget();
                Ok(())
            }
        }
    };
    let stop = async {
        log.until(Received(vec![2])).await;
        // Virtual time: all that can happen without a permit has happened.
        tokio::time::sleep(SECOND).await;
        assert_eq!(log.seen(), [Received(vec![1]), Received(vec![2])]);
        permits.add_permits(1);
        log.until(Received(vec![3])).await;
    };
    let release = async {
        log.until(Received(vec![3])).await;
        tokio::time::sleep(SECOND).await;
        permits.add_permits(9);
    };
    let (worked, ()) = tokio::join!(work_on(&queue, WORK, stop, work), release);
    worked.unwrap();
    let acked: Vec<_> = log.seen().into_iter().filter(|seen| matches!(seen, Acked(_))).collect();
    assert_eq!(acked.len(), 3, "{acked:?}");
    assert!(!log.seen().contains(&Received(vec![4])), "stopped");
    assert!(log.at(&Acked(vec![3])) >= SECOND * 2, "after the stop");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_batch_is_the_workers() {
    let queue = scripted(&[&[(1, 1)]]);
    let log = queue.log.clone();
    let worker =
        tokio::spawn(async move { work_on(&queue, WORK, pending(), |_| async { panic!("a bug") }).await });
    assert!(worker.await.unwrap_err().is_panic());
    assert_eq!(log.seen(), [Received(vec![1]), Dropped(1)]);
}

#[tokio::test(start_paused = true)]
async fn when_it_cannot_be_received_from_what_is_in_flight_is_dropped() {
    let queue = Scripted { ends_in_error: true, ..scripted(&[&[(1, 1)]]) };
    let ended = work_on(&queue, WORK, pending(), |_| pending()).await;
    assert!(ended.unwrap_err().is_transient());
    queue.log.until(Dropped(1)).await;
}
