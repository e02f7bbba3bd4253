//! Tasks with an owner: spawning, graceful shutdown, and what ends the process.
//!
//! The only place that starts tasks. Shutdown has two steps: *stopping* asks every task to finish what it holds,
//! *aborting* drops what has not finished when the grace period is over (or a second signal comes).

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::exit::ExitCode;

pub mod init;
pub mod notify;
mod pulse;
mod signal;
mod task;

pub use signal::{Hangups, Signal, Signals};
pub use task::Task;

use pulse::Pulses;

/// How long aborted tasks get to be dropped. They are dropped at their next await, so only a task that blocks its
/// thread needs longer, and nothing can be done about that one.
const ABORT_TIME: Duration = Duration::from_secs(2);

/// How long calls that block a thread get once everything else has ended.
const THREADS_TIME: Duration = Duration::from_millis(500);

/// Runs `work` to its end on `runtime`, and then ends without waiting for threads that hang in the operating system: a
/// process that said it has stopped is gone.
pub fn run_to_end<F: Future>(runtime: tokio::runtime::Runtime, work: F) -> F::Output {
    let output = runtime.block_on(work);
    runtime.shutdown_timeout(THREADS_TIME);
    output
}

/// The tasks of a process. Clones share them.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    scope: Arc<Scope>,
}

#[derive(Debug)]
struct Scope {
    stopping: CancellationToken,
    aborting: CancellationToken,
    tasks: TaskTracker,
    running: Mutex<BTreeMap<&'static str, usize>>,
    failure: Mutex<Option<Failure>>,
    pulses: Pulses,
}

/// Why a process must end although nobody asked it to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the process ends with.
    pub code: ExitCode,
    /// In words for the log.
    pub reason: String,
}

/// Why a running process begins to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopCause {
    /// It was told to.
    Signal(Signal),
    /// Something it cannot do without has failed.
    Failure(Failure),
    /// A part of it asked for the shutdown.
    Requested,
}

/// How a shutdown went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The tasks that had to be dropped, by name, with their number.
    pub aborted: BTreeMap<&'static str, usize>,
    /// What had failed before or during the shutdown.
    pub failure: Option<Failure>,
}

impl Outcome {
    /// What the process should end with. Dropping tasks after the grace period is not a failure: everything durable
    /// survives it by design.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        self.failure
            .as_ref()
            .map_or(ExitCode::Ok, |failure| failure.code)
    }
}

impl Lifecycle {
    /// That of a process.
    #[must_use]
    pub fn new() -> Self {
        let scope = Scope {
            stopping: CancellationToken::new(),
            aborting: CancellationToken::new(),
            tasks: TaskTracker::new(),
            running: Mutex::default(),
            failure: Mutex::default(),
            pulses: Pulses::default(),
        };
        Self {
            scope: Arc::new(scope),
        }
    }

    /// Starts a task that shutdown waits for. If it panics, that is logged and the others go on.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.start(name, future, Panic::Contained)
    }

    /// Starts a task that the process cannot do without: if it panics, the whole process shuts down and ends with
    /// [`ExitCode::Error`]; if it stands still, the service manager's watchdog is not fed any more.
    pub fn spawn_critical<F>(&self, name: &'static str, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let pulse = self.scope.pulses.take(name);
        self.start(name, pulse.over(future), Panic::Fatal)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that starts tasks"
    )]
    fn start<F>(&self, name: &'static str, future: F, panic: Panic) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let running = Running::enter(name, self.clone());
        let aborting = self.scope.aborting.clone();
        let guarded = async move {
            let result = aborting
                .run_until_cancelled(AssertUnwindSafe(future).catch_unwind())
                .await;
            match result {
                Some(Ok(output)) => {
                    running.leave();
                    Some(output)
                }
                Some(Err(payload)) => {
                    running.panicked(payload.as_ref(), panic);
                    None
                }
                None => None,
            }
        };
        Task::new(tokio::spawn(self.scope.tasks.track_future(guarded)))
    }

    /// Completes when tasks should finish what they hold and end.
    pub fn stopping(&self) -> WaitForCancellationFuture<'_> {
        self.scope.stopping.cancelled()
    }

    /// The soft token, for code that wants to hold it.
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.scope.stopping.clone()
    }

    /// Whether tasks should be ending.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.scope.stopping.is_cancelled()
    }

    /// Asks tasks to end, without waiting for them.
    pub fn stop(&self) {
        self.scope.stopping.cancel();
    }

    /// Drops every task at its next await.
    pub fn abort(&self) {
        self.scope.stopping.cancel();
        self.scope.aborting.cancel();
    }

    /// The critical tasks that have not come back from their step since they were asked last; asks all of them again.
    pub(crate) fn silent(&self) -> Vec<&'static str> {
        self.scope.pulses.ask()
    }

    /// Shuts the whole process down because it cannot go on. The first failure decides the exit code.
    pub fn fail(&self, code: ExitCode, reason: impl Into<String>) {
        let failure = Failure {
            code,
            reason: reason.into(),
        };
        error!(code = %failure.code, reason = failure.reason, "shutting down after a failure");
        lock(&self.scope.failure).get_or_insert(failure);
        self.scope.stopping.cancel();
    }

    /// What has made the process shut down, if anything.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        lock(&self.scope.failure).clone()
    }

    /// Waits until there is a reason to stop: a signal, a failure, or [`Lifecycle::stop`].
    pub async fn wait_for_signal(&self, signals: &mut Signals) -> StopCause {
        tokio::select! {
            biased;
            () = self.stopping() => self.failure().map_or(StopCause::Requested, StopCause::Failure),
            signal = signals.next() => StopCause::Signal(signal),
        }
    }

    /// Asks every task to end, waits at most `grace`, and drops the rest.
    pub async fn shutdown(&self, grace: Duration) -> Outcome {
        let scope = &self.scope;
        scope.stopping.cancel();
        scope.tasks.close();
        if timeout(grace, scope.tasks.wait()).await.is_err() {
            warn!(tasks = ?lock(&scope.running), ?grace, "the grace period is over, dropping what still runs");
        }
        scope.aborting.cancel();
        if timeout(ABORT_TIME, scope.tasks.wait()).await.is_err() {
            warn!(tasks = ?lock(&scope.running), "some tasks could not be dropped");
        }
        Outcome {
            aborted: lock(&scope.running).clone(),
            failure: self.failure(),
        }
    }

    /// [`Lifecycle::shutdown`] that a further signal cuts short.
    pub async fn shutdown_unless_signalled(
        &self,
        grace: Duration,
        signals: &mut Signals,
    ) -> Outcome {
        let mut shutdown = std::pin::pin!(self.shutdown(grace));
        tokio::select! {
            outcome = &mut shutdown => return outcome,
            signal = signals.next() => {
                warn!(%signal, "second signal, dropping what still runs");
                self.abort();
            }
        }
        shutdown.await
    }

    /// Runs until there is a reason to stop, then shuts down, keeping the service manager informed.
    pub async fn run(&self, signals: &mut Signals, grace: Duration) -> Outcome {
        let cause = self.wait_for_signal(signals).await;
        info!(?cause, "stopping");
        notify::stopping();
        let outcome = self.shutdown_unless_signalled(grace, signals).await;
        info!(aborted = ?outcome.aborted, code = %outcome.exit_code(), "stopped");
        outcome
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug, Clone, Copy)]
enum Panic {
    Contained,
    Fatal,
}

/// The entry of a task in the books. One that is dropped by the abort of a shutdown stays on the books,
/// so that the outcome names it.
struct Running {
    name: &'static str,
    lifecycle: Lifecycle,
    ended: bool,
}

impl Running {
    fn enter(name: &'static str, lifecycle: Lifecycle) -> Self {
        *lock(&lifecycle.scope.running).entry(name).or_default() += 1;
        Self {
            name,
            lifecycle,
            ended: false,
        }
    }

    fn leave(mut self) {
        self.ended = true;
    }

    fn panicked(self, payload: &(dyn std::any::Any + Send), panic: Panic) {
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        error!(task = self.name, message, "a task panicked");
        match panic {
            Panic::Contained => {}
            Panic::Fatal => {
                let reason = format!("the task {} panicked: {message}", self.name);
                self.lifecycle.fail(ExitCode::Error, reason);
            }
        }
        self.leave();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended && self.lifecycle.scope.aborting.is_cancelled() {
            return;
        }
        let mut running = lock(&self.lifecycle.scope.running);
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
