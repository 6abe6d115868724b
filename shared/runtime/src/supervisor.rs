//! Every task has a name, an owner and a failure policy.
//!
//! **Shutdown: stop taking work, finish the batch in flight, close, end by the deadline.** A task is notified by its
//! [`CancellationToken`]. It then takes no new work, finishes what it holds, closes what it opened and returns; it is not
//! interrupted until the deadline has passed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::fmt::Write;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::Backoff;
use crate::telemetry::Metrics;

/// The delay before a failed task runs again: up to this after its first failure, doubling with each further one …
const RESTART_BASE: Duration = Duration::from_millis(100);
/// … up to this. A task that ran for longer than this before it failed starts over with `RESTART_BASE`.
const RESTART_CAP: Duration = Duration::from_secs(2);

/// What a task's failure means to the process. An error and a panic are both failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The task runs again after a [`Backoff`]. Each restart is counted in `naru_task_restarts_total{owner,task}`.
    Restart,
    /// All tasks are stopped, and the process exits with an error.
    StopAll,
}

/// Starts, restarts and stops the tasks of one process. Clones are the same supervisor.
#[derive(Debug, Clone)]
pub struct Supervisor {
    owner: &'static str,
    /// Cancelled when the process is to stop.
    shutdown: CancellationToken,
    /// Cancelled when the tasks spawned here are to stop.
    stop: CancellationToken,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    tracker: TaskTracker,
    /// Cancelled when the deadline has passed: the remaining tasks are dropped.
    abandon: CancellationToken,
    /// How many tasks of each name are running.
    running: Mutex<BTreeMap<TaskName, usize>>,
    /// The first failure of a [`Policy::StopAll`] task.
    failure: Mutex<Option<Failure>>,
    restarts: Family<TaskName, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct TaskName {
    owner: &'static str,
    task: &'static str,
}

impl std::fmt::Display for TaskName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.owner, self.task)
    }
}

/// A [`Policy::StopAll`] task's failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{task} failed: {reason}")]
pub struct Failure {
    /// The task, as `owner/name`.
    pub task: String,
    /// Its error with all causes, or its panic.
    pub reason: String,
}

/// Why the process did not end cleanly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unclean {
    /// A [`Policy::StopAll`] task failed; all other tasks finished.
    #[error(transparent)]
    Failed(Failure),
    /// Tasks did not finish by the deadline and were dropped.
    #[error("not finished within {deadline:?}: {}{}", tasks.join(", "), after(failure.as_ref()))]
    Overdue {
        /// How long they had.
        deadline: Duration,
        /// Their names, as `owner/name`.
        tasks: Vec<String>,
        /// Why the process was stopping, if not because it was asked to.
        failure: Option<Failure>,
    },
}

fn after(failure: Option<&Failure>) -> String {
    failure.map(|failure| format!("; {failure}")).unwrap_or_default()
}

impl Supervisor {
    /// The supervisor of a process; `shutdown` tells all tasks to stop, as a rule
    /// [`signal::shutdown`](crate::signal::shutdown). One per process: others are [derived](Self::for_owner).
    pub fn new(owner: &'static str, shutdown: CancellationToken, metrics: &Metrics) -> Self {
        let shared = Shared::default();
        metrics.register("task", |registry| {
            registry.register("restarts", "Tasks that failed and ran again", shared.restarts.clone());
        });
        Self { owner, stop: shutdown.clone(), shutdown, shared: Arc::new(shared) }
    }

    /// The same supervisor under another name: its tasks are reported as `owner`'s. So four workers in one process stop
    /// together under names of their own.
    pub fn for_owner(&self, owner: &'static str) -> Self {
        Self { owner, ..self.clone() }
    }

    /// The same supervisor for tasks that are stopped by `stop` and not by the process's shutdown: for workers that
    /// other workers still need while those drain. The caller must cancel `stop` after shutdown.
    pub fn stopped_by(&self, stop: CancellationToken) -> Self {
        Self { stop, ..self.clone() }
    }

    /// Cancelled when the process is to stop.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Runs a task that can't be made a second time, because it owns the end of a channel: its failure stops the process,
    /// which starts again whole.
    pub fn spawn_once(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let task = Mutex::new(Some(Box::pin(task)));
        self.spawn(name, Policy::StopAll, move |_| {
            let task = task.lock().unwrap_or_else(PoisonError::into_inner).take();
            async move {
                if let Some(task) = task {
                    task.await;
                }
                Ok::<_, Infallible>(())
            }
        });
    }

    /// Runs the future that `task` makes, and makes it again if the policy requires it.
    ///
    /// The future gets the token that tells it to stop. `Ok` means that the task is done for good, before or after
    /// shutdown, so a loop that ends without having been stopped must return an error. A failure after shutdown is not
    /// followed by a restart.
    ///
    /// Call it inside a tokio runtime.
    pub fn spawn<F, Fut, E>(&self, name: &'static str, policy: Policy, mut task: F)
    where
        F: FnMut(CancellationToken) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let (shared, shutdown, stop) = (self.shared.clone(), self.shutdown.clone(), self.stop.clone());
        let running = Running::enter(&shared, TaskName { owner: self.owner, task: name });
        self.shared.tracker.spawn(async move {
            let supervised = async {
                let mut backoff = Backoff::new(RESTART_BASE, RESTART_CAP);
                loop {
                    let started = Instant::now();
                    let Err(reason) = outcome(|| task(stop.clone())).await else { return };
                    if started.elapsed() > RESTART_CAP {
                        backoff.reset();
                    }
                    match policy {
                        Policy::StopAll => return shared.stop_all(&running.name, reason, &shutdown),
                        Policy::Restart if stop.is_cancelled() => {
                            tracing::error!(task = %running.name, %reason, "task failed while stopping");
                            return;
                        }
                        Policy::Restart => {
                            let delay = backoff.next_delay();
                            tracing::error!(task = %running.name, %reason, ?delay, "task failed; running it again");
                            if stop.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                                return;
                            }
                            shared.restarts.get_or_create(&running.name).inc();
                        }
                    }
                }
            };
            let finished = shared.abandon.run_until_cancelled(supervised).await;
            if finished.is_none() {
                tracing::debug!(task = %running.name, "dropped");
            }
        });
    }

    /// Waits for shutdown, asked for or forced by a [`Policy::StopAll`] failure, then gives all tasks `deadline` to
    /// finish. A task that is not finished by then is dropped at its next await.
    ///
    /// # Errors
    /// When a [`Policy::StopAll`] task failed, or tasks were not finished by the deadline: the process should exit with a
    /// failure code.
    pub async fn run(self, deadline: Duration) -> Result<(), Unclean> {
        self.shutdown.cancelled().await;
        self.shared.tracker.close();
        let in_time = tokio::time::timeout(deadline, self.shared.tracker.wait()).await.is_ok();
        let tasks: Vec<String> = self.shared.running().keys().map(ToString::to_string).collect();
        self.shared.abandon.cancel();
        let failure = lock(&self.shared.failure).clone();
        if in_time {
            return failure.map_or(Ok(()), |failure| Err(Unclean::Failed(failure)));
        }
        tracing::error!(tasks = tasks.join(", "), ?deadline, "tasks did not finish by the deadline");
        Err(Unclean::Overdue { deadline, tasks, failure })
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, BTreeMap<TaskName, usize>> {
        lock(&self.running)
    }

    fn stop_all(&self, name: &TaskName, reason: String, shutdown: &CancellationToken) {
        tracing::error!(task = %name, %reason, "task failed; the process stops");
        lock(&self.failure).get_or_insert(Failure { task: name.to_string(), reason });
        shutdown.cancel();
    }
}

/// Neither locked value can be seen half changed, so a panic of another holder does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One running task, in the list of running tasks. It is removed however the task ends.
struct Running {
    name: TaskName,
    shared: Arc<Shared>,
}

impl Running {
    fn enter(shared: &Arc<Shared>, name: TaskName) -> Self {
        *shared.running().entry(name.clone()).or_default() += 1;
        Self { name, shared: shared.clone() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.shared.running();
        if let Some(count) = running.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.name);
            }
        }
    }
}

/// One run of a task, with its error or panic in words.
///
/// `AssertUnwindSafe` holds, because the future is dropped with the state that a panic left in it, and tasks share data
/// only through locks and channels that handle panics.
async fn outcome<Fut, E>(task: impl FnOnce() -> Fut) -> Result<(), String>
where
    Fut: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    match AssertUnwindSafe(async { task().await }).catch_unwind().await {
        Ok(result) => result.map_err(|error| with_causes(&*error.into())),
        Err(panic) => {
            let message = panic.downcast_ref::<&str>().copied();
            let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            Err(format!("panicked: {}", message.unwrap_or("with a value that is not text")))
        }
    }
}

/// `error: its cause: the cause's cause`.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
        write!(text, ": {cause}").expect("writing to a String does not fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::pending;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    struct Fixture {
        metrics: Metrics,
        shutdown: CancellationToken,
        supervisor: Supervisor,
    }

    fn fixture() -> Fixture {
        let (metrics, shutdown) = (Metrics::new(), CancellationToken::new());
        let supervisor = Supervisor::new("naru", shutdown.clone(), &metrics);
        Fixture { metrics, shutdown, supervisor }
    }

    async fn until_stopped(stop: CancellationToken) -> Result<(), Infallible> {
        stop.cancelled().await;
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_errs_and_panics_runs_again_and_is_counted() {
        let Fixture { metrics, shutdown, supervisor } = fixture();
        let mut run = 0;
        let recovered = shutdown.clone();
        supervisor.for_owner("persister").spawn("save", Policy::Restart, move |_| {
            run += 1;
            let (run, recovered) = (run, recovered.clone());
            async move {
                match run {
                    1 => Err("the store is away"),
                    2 => panic!("run {run}"),
                    _ => {
                        recovered.cancel();
                        Ok(())
                    }
                }
            }
        });
        assert_eq!(supervisor.run(DEADLINE).await, Ok(()));
        let page = metrics.encode();
        assert!(page.contains("naru_task_restarts_total{owner=\"persister\",task=\"save\"} 2\n"), "{page}");
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_back_off_and_a_long_run_starts_over() {
        const LONG: Duration = Duration::from_secs(60);
        let Fixture { supervisor, .. } = fixture();
        let (started, mut starts) = tokio::sync::mpsc::unbounded_channel();
        let mut run = 0;
        supervisor.spawn("flaky", Policy::Restart, move |_| {
            run += 1;
            started.send(Instant::now()).expect("the test listens");
            async move {
                tokio::time::sleep(if run == 20 { LONG } else { Duration::ZERO }).await;
                Err::<(), _>("flaky")
            }
        });
        let mut at = Vec::new();
        while at.len() < 21 {
            starts.recv_many(&mut at, 1).await;
        }
        let waits: Vec<_> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits[..19].iter().any(|wait| *wait > 10 * RESTART_BASE), "no back-off: {waits:?}");
        // Timers have a resolution of a millisecond.
        assert!(
            waits[19] - LONG <= RESTART_BASE + Duration::from_millis(2),
            "it did not start over: {waits:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_all_failure_stops_the_others_and_is_returned_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("can't save")]
        struct Outer(#[source] std::io::Error);

        let Fixture { shutdown, supervisor, .. } = fixture();
        supervisor.spawn("loop", Policy::Restart, until_stopped);
        supervisor
            .for_owner("persister")
            .spawn("save", Policy::StopAll, |_| async { Err(Outer(std::io::Error::other("disk full"))) });
        let failure = Failure { task: "persister/save".into(), reason: "can't save: disk full".into() };
        assert_eq!(supervisor.run(DEADLINE).await, Err(Unclean::Failed(failure)));
        assert!(shutdown.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_finishes_what_it_holds_before_the_process_leaves() {
        let Fixture { shutdown, supervisor, .. } = fixture();
        let settled = Arc::new(Mutex::new(false));
        let batch = settled.clone();
        supervisor.spawn("batch", Policy::StopAll, move |stop| {
            let batch = batch.clone();
            async move {
                stop.cancelled().await;
                tokio::time::sleep(DEADLINE / 2).await;
                *lock(&batch) = true;
                Ok::<_, Infallible>(())
            }
        });
        shutdown.cancel();
        assert_eq!(supervisor.run(DEADLINE).await, Ok(()));
        assert!(*lock(&settled));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_names_the_stuck_tasks_and_drops_them() {
        let Fixture { shutdown, supervisor, .. } = fixture();
        let held = Arc::new(());
        let stuck = Arc::downgrade(&held);
        supervisor.spawn("fine", Policy::Restart, until_stopped);
        for _ in 0..2 {
            let held = held.clone();
            supervisor.for_owner("fanout").spawn("route", Policy::Restart, move |_| {
                let held = held.clone();
                async move {
                    pending::<()>().await;
                    drop(held);
                    Ok::<_, Infallible>(())
                }
            });
        }
        drop(held);
        shutdown.cancel();
        let tracker = supervisor.shared.tracker.clone();
        let started = Instant::now();
        let unclean = supervisor.run(DEADLINE).await.expect_err("two tasks are stuck");
        assert_eq!(unclean.to_string(), "not finished within 20s: fanout/route");
        assert!(started.elapsed().abs_diff(DEADLINE) <= Duration::from_millis(1));
        tracker.wait().await;
        assert_eq!(stuck.strong_count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_while_stopping_is_not_followed_by_a_restart() {
        let Fixture { metrics, shutdown, supervisor } = fixture();
        supervisor.spawn("late", Policy::Restart, |stop| async move {
            stop.cancelled().await;
            Err("could not close")
        });
        shutdown.cancel();
        assert_eq!(supervisor.run(DEADLINE).await, Ok(()));
        assert!(!metrics.encode().contains("task=\"late\""));
    }
}
