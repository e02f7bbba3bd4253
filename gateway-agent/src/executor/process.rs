//! One running command: its session, and a handle that tells of the leader's death without reaping it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tracing::warn;
use viworks_common::id::CommandId;

use super::lease::Lease;
use super::{COMMAND_ID_VARIABLE, COMMAND_PATH, Launch, STRAYS_TIME};
use crate::launcher::{self, Instructions};
use crate::spawner::Order;

/// The leader of a session. Dropped before it is reaped, the whole process group is killed.
pub(super) struct Process {
    leader: Leader,
    /// Readable once the leader is dead; it stays a zombie until it is reaped, which keeps the group's number taken.
    alive: AsyncFd<OwnedFd>,
    reaped: bool,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

/// Whose child the leader is.
enum Leader {
    /// This agent's, which leads a group of its number.
    Own(Child, Pid),
    /// The helper's, as another user, for as long as the connection to it is held.
    Helper(Arc<Lease>),
}

/// How the leader ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exit {
    /// It exited.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It could not be reaped.
    Unknown(String),
    /// Whoever could have told is gone: it may have come to any end.
    Untold(String),
}

/// How the command's start goes.
pub(super) enum Report {
    /// By its launcher.
    Launcher(LauncherReport),
    /// By the helper.
    Helper(Arc<Lease>),
}

impl Report {
    /// Reads until the program has taken over, or until it is known why not. Can be dropped and called again.
    pub(super) async fn read(&mut self) {
        match self {
            Self::Launcher(report) => report.read().await,
            Self::Helper(lease) => lease.begun().await,
        }
    }

    /// Why the program did not start, if it did not.
    pub(super) fn failure(&self) -> Option<String> {
        match self {
            Self::Launcher(report) => launcher::failure(&report.said, report.ended),
            Self::Helper(lease) => lease.failure(),
        }
    }
}

/// What the launcher is told, and says of the command's start.
pub(super) struct LauncherReport {
    socket: UnixStream,
    instructions: Vec<u8>,
    /// Bytes of them that are written.
    told: usize,
    said: Vec<u8>,
    ended: bool,
}

impl LauncherReport {
    /// Tells the launcher what to become, and reads until the program has taken over, or until it is known why not.
    async fn read(&mut self) {
        self.tell().await;
        let mut buffer = [0; 512];
        while !self.ended {
            match self.socket.read(&mut buffer).await {
                Ok(0) | Err(_) => self.ended = true,
                Ok(read) => self
                    .said
                    .extend_from_slice(buffer.get(..read).unwrap_or_default()),
            }
            // Nothing that a launcher says is so long.
            self.ended |= self.said.len() > 4_096;
        }
    }

    async fn tell(&mut self) {
        while self.told < self.instructions.len() {
            let rest = self.instructions.get(self.told..).unwrap_or_default();
            match self.socket.write(rest).await {
                Ok(written) if written > 0 => self.told += written,
                // It is gone; what it said, if anything, can still be read.
                Ok(_) | Err(_) => return,
            }
        }
        if !self.instructions.is_empty() {
            // The end of the instructions; without it the launcher goes on waiting, until its time is up.
            drop(self.socket.shutdown().await);
            self.instructions = Vec::new();
        }
    }
}

impl Process {
    /// Starts a launcher of `program`, an agent, which becomes the command.
    pub(super) fn spawn(program: &Path, launch: &Launch) -> io::Result<(Self, Report)> {
        let (socket, theirs) = std::os::unix::net::UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let instructions = Instructions {
            folder: launch.working_directory.clone(),
            environment: launch.environment.clone().into_iter().collect(),
            program: launch.program.clone(),
            arguments: launch.arguments.clone(),
            role: None,
        };
        let report = LauncherReport {
            socket: UnixStream::from_std(socket)?,
            instructions: instructions.to_bytes()?,
            told: 0,
            said: Vec::new(),
            ended: false,
        };
        // Nothing else in it: everybody on the machine can read a command line.
        let mut child = Command::new(program)
            .arg(launcher::SUBCOMMAND)
            .env_clear()
            .env("PATH", COMMAND_PATH)
            .env("LANG", "C.UTF-8")
            .env(COMMAND_ID_VARIABLE, launch.command_id.to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let watched = watch(&child).and_then(|watched| Ok((watched, pipes(&mut child)?)));
        match watched {
            Ok(((group, alive), [stdout, stderr])) => {
                let process = Self {
                    leader: Leader::Own(child, group),
                    alive,
                    reaped: false,
                    stdout,
                    stderr,
                };
                Ok((process, Report::Launcher(report)))
            }
            Err(error) => {
                // Unwatched it must not run. What it did until here is a start all the same, and reported as failed.
                child.start_kill()?;
                Err(error)
            }
        }
    }

    /// Has the helper prepare the command of another user: nothing of it runs before [`Process::begin`].
    pub(super) async fn ask_for(order: &Order, id: CommandId) -> Result<(Self, Report), String> {
        let unmade = |error: io::Error| format!("no pipes can be made: {error}");
        let (stdout, their_stdout) = io::pipe().map_err(unmade)?;
        let (stderr, their_stderr) = io::pipe().map_err(unmade)?;
        let theirs = [their_stdout.into(), their_stderr.into()];
        let (lease, alive) = Lease::take(order, id, theirs).await?;
        let lease = Arc::new(lease);
        let process = Self {
            leader: Leader::Helper(Arc::clone(&lease)),
            alive: readable(alive).map_err(|error| format!("it cannot be watched: {error}"))?,
            reaped: false,
            stdout: Some(pipe::Receiver::from_owned_fd(stdout.into()).map_err(unmade)?),
            stderr: Some(pipe::Receiver::from_owned_fd(stderr.into()).map_err(unmade)?),
        };
        Ok((process, Report::Helper(lease)))
    }

    /// Lets the helper start what it has prepared; what is anybody's own has started already.
    pub(super) fn begin(&self) -> Result<(), String> {
        match &self.leader {
            Leader::Own(..) => Ok(()),
            Leader::Helper(lease) => lease.begin(),
        }
    }

    pub(super) fn take_pipes(&mut self) -> (Option<pipe::Receiver>, Option<pipe::Receiver>) {
        (self.stdout.take(), self.stderr.take())
    }

    /// The session that it leads, which has its number, where what it leaves behind is this agent's to end.
    pub(super) const fn session(&self) -> Option<Pid> {
        match &self.leader {
            Leader::Own(_child, group) => Some(*group),
            Leader::Helper(_lease) => None,
        }
    }

    /// Completes when the leader is dead.
    pub(super) async fn exited(&self) {
        if let Err(error) = self.alive.readable().await {
            warn!(%error, "cannot watch a command, ending it");
            self.kill_group();
        }
    }

    pub(super) fn terminate_group(&self) {
        self.signal(Signal::TERM);
    }

    pub(super) fn kill_group(&self) {
        self.signal(Signal::KILL);
    }

    /// Kills what is left of the group and collects the leader; with what the helper had to end beside it.
    pub(super) async fn reap(mut self, limit: Duration) -> (Exit, Option<String>) {
        self.kill_group();
        let child = match &mut self.leader {
            Leader::Own(child, _group) => child,
            // It ends the rest of the session first.
            Leader::Helper(lease) if !limit.is_zero() => {
                return lease.ended(limit + STRAYS_TIME).await;
            }
            Leader::Helper(lease) => return lease.ended(limit).await,
        };
        let exit = match tokio::time::timeout(limit, child.wait()).await {
            Ok(Ok(status)) => {
                self.reaped = true;
                match (status.code(), status.signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, Some(signal)) => Exit::Signal(signal),
                    (None, None) => Exit::Unknown(format!("it ended as {status}")),
                }
            }
            Ok(Err(error)) => Exit::Unknown(format!("it could not be waited for: {error}")),
            Err(_elapsed) => {
                Exit::Unknown("it was killed and still hangs in the operating system".to_owned())
            }
        };
        (exit, None)
    }

    fn signal(&self, signal: Signal) {
        if self.reaped {
            return;
        }
        let group = match &self.leader {
            Leader::Own(_child, group) => *group,
            Leader::Helper(lease) => return lease.signal(signal),
        };
        let sent = match kill_process_group(group, signal) {
            // A launcher that has not come to open its session is alone, and has no group of its own yet.
            Err(Errno::SRCH) => kill_process(group, signal),
            sent => sent,
        };
        match sent {
            // Gone already, or nothing left in it that may be signalled.
            Ok(()) | Err(Errno::SRCH | Errno::PERM) => {}
            Err(error) => warn!(%error, %group, "cannot signal a process group"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_group();
    }
}

fn watch(child: &Child) -> io::Result<(Pid, AsyncFd<OwnedFd>)> {
    let number = child.id().and_then(|id| i32::try_from(id).ok());
    let group = number
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("it has no process id"))?;
    Ok((group, readable(pidfd_open(group, PidfdFlags::NONBLOCK)?)?))
}

/// What can be waited for until it can be read.
pub(super) fn readable(handle: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        deprecated,
        reason = "an OwnedFd keeps the promise that the successor asks for in unsafe code, which is forbidden here"
    )]
    AsyncFd::with_interest(handle, tokio::io::Interest::READABLE)
}

/// The ends of a child's output that are read.
fn pipes(child: &mut Child) -> io::Result<[Option<pipe::Receiver>; 2]> {
    let stdout = child.stdout.take().map(|pipe| pipe.into_owned_fd());
    let stderr = child.stderr.take().map(|pipe| pipe.into_owned_fd());
    let receiver = |pipe: Option<io::Result<OwnedFd>>| {
        pipe.map(|pipe| pipe.and_then(pipe::Receiver::from_owned_fd))
            .transpose()
    };
    Ok([receiver(stdout)?, receiver(stderr)?])
}
