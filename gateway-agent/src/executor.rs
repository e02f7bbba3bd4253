//! The single executor: runs one prepared command without a shell, bounded in time and output, and always reaps it.
//!
//! The connection and the local API both come here; there is no second path. A command is the leader of its own
//! session, without a terminal. Whatever happens, its session is ended before the leader is reaped, because until then
//! its number cannot belong to anybody else; and nothing that a descendant holds open can hold the executor.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Pid;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use viworks_common::command::{Outcome, OutcomeState, RetainedOutput};
use viworks_common::engine::CANCELLED_WHILE_RUNNING;
use viworks_common::id::CommandId;
use viworks_common::limits;
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::OutputStream;
use viworks_runtime::blocking;
use viworks_runtime::clock::{Clock, sleep_until};

use crate::spawner::Order;

mod lease;
mod output;
mod process;
mod strays;

use output::Collector;
use process::{Exit, Process, Report};
use strays::Ended;
pub use strays::{end_session, end_strays};

/// The variable that marks a command and all its descendants.
pub const COMMAND_ID_VARIABLE: &str = "VIWORKS_COMMAND_ID";
/// Where commands look for programs.
pub const COMMAND_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long output is still read after the leader has exited.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// How long output is read after everybody who could write was killed.
const LAST_DRAIN_TIME: Duration = Duration::from_millis(100);
/// How long a killed leader may take to be gone; longer only when the kernel itself is stuck. Waited for once.
const REAP_TIME: Duration = Duration::from_secs(2);

/// How long the search for what a command left behind may take.
const STRAYS_TIME: Duration = Duration::from_secs(10);

/// The bounds of an executor.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many commands run at once.
    pub parallel_max: usize,
    /// How long a command has between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            parallel_max: 4,
            kill_grace: Duration::from_secs(5),
        }
    }
}

/// One command, ready to run: nothing in it is interpreted any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Which command.
    pub command_id: CommandId,
    /// The program, by absolute path.
    pub program: PathBuf,
    /// Its arguments, without the program.
    pub arguments: Vec<String>,
    /// Where it runs.
    pub working_directory: PathBuf,
    /// What its environment holds beside the fixed variables.
    pub environment: BTreeMap<String, String>,
    /// Until when it may start, on the executor's clock; `None` when it matters to nobody.
    pub deadline: Option<Monotonic>,
    /// How long it may run.
    pub timeout: Duration,
    /// Bytes of output that are kept, both streams together.
    pub output_bytes_max: usize,
    /// What the helper is told, when it is a command of another user: it knows by itself what to run, and as whom.
    pub order: Option<Order>,
}

/// A piece of output while the command runs. Best effort: a full channel loses pieces, never blocks the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveOutput {
    /// Which command.
    pub command_id: CommandId,
    /// Which stream.
    pub stream: OutputStream,
    /// The position of the first byte in its stream.
    pub offset: u64,
    /// The bytes, at most [`LIVE_BYTES_MAX`].
    pub data: Vec<u8>,
}

/// Pieces of live output that may wait for the session.
pub const LIVE_MAX: usize = 64;

impl LiveOutput {
    /// The way of all live output to the session, on which [`LIVE_MAX`] pieces wait and no more.
    #[must_use]
    pub fn channel() -> (mpsc::Sender<Self>, mpsc::Receiver<Self>) {
        mpsc::channel(LIVE_MAX)
    }
}

/// Bytes of one piece of live output: with Base64 and framing it stays within one bulk message.
pub const LIVE_BYTES_MAX: usize = 8 * 1024;

/// Runs commands, a bounded number at once. Clones share the bound.
#[derive(Clone)]
pub struct Executor {
    limits: Limits,
    slots: Arc<Semaphore>,
    launcher: PathBuf,
    clock: Arc<dyn Clock>,
}

/// The right to run one command. Taken before the deadline is checked, so that waiting cannot make a start late.
pub struct Slot {
    executor: Executor,
    _permit: OwnedSemaphorePermit,
}

impl Executor {
    /// An executor with these bounds. `launcher` is the agent's program, which every command begins as.
    #[must_use]
    pub fn new(limits: Limits, launcher: PathBuf, clock: Arc<dyn Clock>) -> Self {
        let parallel_max = limits.parallel_max.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            limits: Limits {
                parallel_max,
                ..limits
            },
            slots: Arc::new(Semaphore::new(parallel_max)),
            launcher,
            clock,
        }
    }

    /// Waits for a slot.
    pub async fn slot(&self) -> Slot {
        let permit = Arc::clone(&self.slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        Slot {
            executor: self.clone(),
            _permit: permit,
        }
    }

    /// A slot, if one is free right now.
    #[must_use]
    pub fn try_slot(&self) -> Option<Slot> {
        let permit = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        Some(Slot {
            executor: self.clone(),
            _permit: permit,
        })
    }

    /// How many slots are taken.
    #[must_use]
    pub fn running(&self) -> u32 {
        let free = self.slots.available_permits();
        u32::try_from(self.limits.parallel_max.saturating_sub(free)).unwrap_or(u32::MAX)
    }
}

/// Why a running command came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// By itself.
    Exited,
    /// At its time limit.
    TimedOut,
    /// Because somebody asked for it.
    Cancelled,
}

/// What ends a command that does not end by itself.
#[derive(Clone, Copy)]
struct Limit<'a> {
    time_up: Monotonic,
    /// Whether its program has taken over from the launcher.
    begun: &'a AtomicBool,
    cancel: &'a CancellationToken,
}

/// Why a command has no process.
enum Unstarted {
    /// None could be started.
    Failed(String),
    /// Its time was up, or somebody did not want it any more, before there was one.
    Ended(OutcomeState, &'static str),
}

/// A command whose leader is dead, or hangs in the kernel.
struct Supervised {
    ending: Ending,
    hangs: bool,
    /// What had to be ended beside it.
    ended: Ended,
}

impl Slot {
    /// Runs the command to its end and reports how it ended. If the future is dropped, the group is killed.
    pub async fn run(
        self,
        launch: Launch,
        cancel: CancellationToken,
        live: Option<mpsc::Sender<LiveOutput>>,
    ) -> Outcome {
        let clock = Arc::clone(&self.executor.clock);
        if cancel.is_cancelled() {
            return Outcome::without_run(
                OutcomeState::Cancelled,
                "cancelled before it was started",
            );
        }
        let time_up = clock.now().saturating_add(launch.timeout);
        let unstarted = |reason: String| {
            let program = launch.program.display();
            Outcome::without_run(
                OutcomeState::Failed,
                format!("{program} could not be started: {reason}"),
            )
        };
        let (mut process, mut report) = match self.spawn(&launch, time_up, &cancel).await {
            Ok(spawned) => spawned,
            Err(Unstarted::Failed(reason)) => return unstarted(reason),
            Err(Unstarted::Ended(state, reason)) => return Outcome::without_run(state, reason),
        };
        let started = (clock.now(), clock.wall());
        let kept = launch.output_bytes_max;
        let (stdout, stderr) = process.take_pipes();
        let mut stdout = Collector::new(launch.command_id, OutputStream::Stdout, stdout, kept);
        let mut stderr = Collector::new(launch.command_id, OutputStream::Stderr, stderr, kept);
        let begun = AtomicBool::new(false);
        let supervised = {
            let drain = async {
                let begin = async {
                    report.read().await;
                    begun.store(true, Ordering::Relaxed);
                };
                tokio::join!(
                    begin,
                    stdout.drain(live.as_ref()),
                    stderr.drain(live.as_ref())
                );
            };
            let limits = Limit {
                time_up,
                begun: &begun,
                cancel: &cancel,
            };
            self.supervise(&process, launch.command_id, limits, drain)
                .await
        };
        let Supervised {
            ending,
            hangs,
            ended,
        } = supervised;
        let (exit, left) = process
            .reap(if hangs { Duration::ZERO } else { REAP_TIME })
            .await;
        let failure = report.failure();
        if let (Ending::Exited, Some(reason)) = (ending, &failure) {
            return unstarted(reason.clone());
        }
        let output = output::share(kept, stdout, stderr);
        let duration = clock.now().saturating_since(started.0);
        let note = joined([note(ending, failure, &ended), left]);
        outcome(ending, exit, note, started.1, duration, output)
    }

    /// Starts the process that is to become the command.
    async fn spawn(
        &self,
        launch: &Launch,
        time_up: Monotonic,
        cancel: &CancellationToken,
    ) -> Result<(Process, Report), Unstarted> {
        let Some(order) = &launch.order else {
            // What starts here is this very program, which is in memory; what may wait for a disk does so in that
            // process.
            return Process::spawn(&self.executor.launcher, launch)
                .map_err(|error| Unstarted::Failed(error.to_string()));
        };
        let clock = &*self.executor.clock;
        let late = || {
            let reason = "its deadline passed before the helper had started it";
            Err(Unstarted::Ended(OutcomeState::Expired, reason))
        };
        let over = |deadline: Monotonic| deadline <= clock.now();
        let (process, report) = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                return Err(Unstarted::Ended(OutcomeState::Cancelled, "cancelled before the helper had started it"));
            }
            () = sleep_until(clock, launch.deadline.unwrap_or(time_up).min(time_up)) => {
                if launch.deadline.is_some_and(over) {
                    return late();
                }
                let reason = "the helper had not started it within its time limit";
                return Err(Unstarted::Ended(OutcomeState::TimedOut, reason));
            }
            asked = Process::ask_for(order, launch.command_id) => asked.map_err(Unstarted::Failed)?,
        };
        // The service manager may have taken its time, and timers are late where a machine has slept.
        if launch.deadline.is_some_and(over) {
            return late();
        }
        process.begin().map_err(Unstarted::Failed)?;
        Ok((process, report))
    }

    /// Watches over the leader and drains the output until the leader is dead, though not yet reaped, and nobody
    /// writes any more; what had to be ended for that is returned.
    async fn supervise(
        &self,
        process: &Process,
        id: CommandId,
        limit: Limit<'_>,
        drain: impl Future<Output = ()>,
    ) -> Supervised {
        let mut drain = std::pin::pin!(drain);
        let mut drained = false;
        let (ending, hangs) = {
            let mut end = std::pin::pin!(self.end(process, limit));
            loop {
                tokio::select! {
                    biased;
                    ended = &mut end => break ended,
                    () = &mut drain, if !drained => drained = true,
                }
            }
        };
        if !drained {
            drained = tokio::time::timeout(DRAIN_TIME, &mut drain).await.is_ok();
        }
        // A descendant that left the session still carries the command's id in its environment. One that did so and
        // holds no output either is meant to stay.
        let everywhere = !drained || ending != Ending::Exited;
        let ended = match process.session() {
            Some(session) => end_left_behind(session, id, everywhere).await,
            // The helper's to end, which tells of it.
            None => Ended::default(),
        };
        process.kill_group();
        if !drained {
            drop(tokio::time::timeout(LAST_DRAIN_TIME, &mut drain).await);
        }
        Supervised {
            ending,
            hangs,
            ended,
        }
    }

    /// Waits until the leader is dead, and sees to it when its time is up. True when it hangs all the same.
    async fn end(&self, process: &Process, limit: Limit<'_>) -> (Ending, bool) {
        let ending = tokio::select! {
            biased;
            () = process.exited() => return (Ending::Exited, false),
            () = limit.cancel.cancelled() => Ending::Cancelled,
            () = sleep_until(&*self.executor.clock, limit.time_up) => Ending::TimedOut,
        };
        // A program that has not begun has nothing to put in order.
        if limit.begun.load(Ordering::Relaxed) {
            process.terminate_group();
            let grace = self.executor.limits.kill_grace;
            if tokio::time::timeout(grace, process.exited()).await.is_ok() {
                return (ending, false);
            }
        }
        process.kill_group();
        // Only a process that hangs in the kernel survives this; it is reported, not waited for.
        let gone = tokio::time::timeout(REAP_TIME, process.exited()).await;
        (ending, gone.is_err())
    }
}

async fn end_left_behind(session: Pid, id: CommandId, everywhere: bool) -> Ended {
    let search = move || strays::end_left_behind(session, &id, everywhere);
    match blocking::call("strays", STRAYS_TIME, search).await {
        Ok(ended) => ended,
        Err(error) => {
            warn!(command_id = %id, %error, "no search for what a command left behind");
            Ended::unfinished(format!("the search for it has no result: {error}"))
        }
    }
}

/// What is to be said beside how it ended.
fn note(ending: Ending, failure: Option<String>, ended: &Ended) -> Option<String> {
    let unbegun = match ending {
        Ending::Exited => None,
        Ending::TimedOut | Ending::Cancelled => {
            failure.map(|reason| format!("its program had not begun: {reason}"))
        }
    };
    joined([unbegun, ended.said()])
}

fn outcome(
    ending: Ending,
    exit: Exit,
    note: Option<String>,
    started_at: Timestamp,
    duration: Duration,
    (stdout, stderr): (RetainedOutput, RetainedOutput),
) -> Outcome {
    let untold = matches!(exit, Exit::Untold(_));
    let (exit_code, signal, lost) = match exit {
        Exit::Code(code) => (Some(code), None, None),
        Exit::Signal(signal) => (None, Some(signal), None),
        Exit::Unknown(reason) | Exit::Untold(reason) => (None, None, Some(reason)),
    };
    let (state, reason) = match (ending, exit_code, signal) {
        (Ending::Exited, Some(0), _) => (OutcomeState::Succeeded, None),
        (Ending::Exited, Some(_), _) => (OutcomeState::Failed, None),
        (Ending::Exited, None, Some(signal)) => (
            OutcomeState::Failed,
            Some(format!("it was ended by signal {signal}")),
        ),
        (Ending::Exited, None, None) if untold => (OutcomeState::Indeterminate, None),
        (Ending::Exited, None, None) => (OutcomeState::Failed, None),
        (Ending::TimedOut, _, _) => (
            OutcomeState::TimedOut,
            Some("it ran into its time limit".to_owned()),
        ),
        (Ending::Cancelled, _, _) => (
            OutcomeState::Cancelled,
            Some(CANCELLED_WHILE_RUNNING.to_owned()),
        ),
    };
    Outcome {
        state,
        exit_code,
        signal,
        started_at: Some(started_at),
        duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        stdout,
        stderr,
        reason: joined([lost.or(reason), note]),
        reject_code: None,
    }
}

/// Reasons one after another, as far as there are any and a message has room.
fn joined<const N: usize>(reasons: [Option<String>; N]) -> Option<String> {
    let said: Vec<String> = reasons.into_iter().flatten().collect();
    let mut text = said.join("; ");
    text.truncate(text.floor_char_boundary(limits::DETAIL_BYTES_MAX));
    (!text.is_empty()).then_some(text)
}
