//! Child processes of a test: logged, waited for by condition, and always ended.

use std::fs::File;
use std::io::{self, PipeReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::faketime;

/// A running program; killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    unread: Option<PipeReader>,
    /// Whether it is told another time than the machine's.
    is_told: bool,
}

impl Process {
    /// Starts `command` with its output in `log`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Self {
            child,
            log: log.to_owned(),
            unread: None,
            is_told: faketime::tells(command),
        })
    }

    /// Starts `command` with its standard error output in a pipe that is held open and not read, and the rest in `log`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_unread(command: &mut Command, log: &Path) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(writer)
            .spawn()?;
        // The command keeps its end of the pipe, which would then never be at its end.
        command.stderr(Stdio::null());
        Ok(Self {
            child,
            log: log.to_owned(),
            unread: Some(reader),
            is_told: faketime::tells(command),
        })
    }

    /// One that was started with inputs and outputs of its own.
    pub(crate) const fn unlogged(child: Child) -> Self {
        Self {
            child,
            log: PathBuf::new(),
            unread: None,
            is_told: false,
        }
    }

    /// The end of the pipe that nobody has read so far.
    pub const fn take_unread(&mut self) -> Option<PipeReader> {
        self.unread.take()
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it has ended, and how.
    ///
    /// # Panics
    /// When the system cannot tell.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().expect("a child can be waited for")?;
        self.forget(status);
        Some(status)
    }

    /// Takes away what the process could not, because a signal ended it.
    fn forget(&self, status: ExitStatus) {
        if self.is_told && status.signal().is_some() {
            faketime::forget(self.child.id());
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // A process that is already gone needs no signal.
            let _sent = kill_process(pid, signal);
        }
    }

    /// kill -9, and reaps it.
    ///
    /// # Panics
    /// When the system cannot reap it.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        let status = self.child.wait().expect("a killed child can be reaped");
        self.forget(status);
        status
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it does not end within `limit`; the message holds its log.
    pub async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the process did not end in {limit:?}; its log:\n{}",
                self.log()
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks it to stop and waits.
    ///
    /// # Panics
    /// When it does not stop within `limit`, or says that it had to drop a task that did not end.
    pub async fn stop(&mut self, limit: Duration) -> ExitStatus {
        let status = self.end(limit).await;
        let log = self.log();
        assert!(!log.contains("the grace period is over"), "{log}");
        status
    }

    /// The same for a program of an earlier version, which may have had to drop a task that did not end.
    ///
    /// # Panics
    /// When it does not stop within `limit`.
    pub async fn end(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(limit).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
    }
}

/// How a program ended and what it said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Said {
    /// Its standard output as JSON.
    ///
    /// # Panics
    /// When that is not JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        parse(&self.stdout, self)
    }

    /// Its standard error as one JSON document.
    ///
    /// # Panics
    /// When that is not JSON.
    #[must_use]
    pub fn error(&self) -> serde_json::Value {
        parse(&self.stderr, self)
    }

    /// Itself, when it ended with `code`.
    ///
    /// # Panics
    /// When it did not, with everything it said.
    #[must_use]
    pub fn ended_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }
}

fn parse(text: &str, said: &Said) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {said:#?}"))
}

/// Runs a program to its end, without a terminal.
///
/// # Panics
/// When it cannot be started or does not end within `limit`; it is killed then.
pub async fn finish(command: Command, limit: Duration) -> Said {
    let named = format!("{command:?}");
    let started = Instant::now();
    let running = tokio::process::Command::from(command)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(limit, running)
        .await
        .unwrap_or_else(|_elapsed| panic!("{named} did not end in {limit:?}"))
        .unwrap_or_else(|error| panic!("{named} could not be started: {error}"));
    Said {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: started.elapsed(),
    }
}

/// Waits until `condition` holds, trying every few milliseconds.
///
/// # Panics
/// When it does not hold within `limit`.
pub async fn eventually<F, T>(what: &str, limit: Duration, mut condition: F) -> T
where
    F: AsyncFnMut() -> Option<T>,
{
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(15)).await;
    }
}
