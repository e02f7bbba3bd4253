//! One running command: its session, and a handle that tells of the leader's death without reaping it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tracing::warn;

use super::{COMMAND_ID_VARIABLE, COMMAND_PATH, Launch};
use crate::launcher::{self, Instructions};

/// The leader of a session. Dropped before it is reaped, the whole process group is killed.
pub(super) struct Process {
    child: Child,
    group: Pid,
    /// Readable once the leader is dead; it stays a zombie until it is reaped, which keeps the group's number taken.
    alive: AsyncFd<OwnedFd>,
    reaped: bool,
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
}

/// What the launcher is told, and says of the command's start.
pub(super) struct Report {
    socket: UnixStream,
    instructions: Vec<u8>,
    /// Bytes of them that are written.
    told: usize,
    said: Vec<u8>,
    ended: bool,
}

impl Report {
    /// Tells the launcher what to become, and reads until the program has taken over, or until it is known why not. Can
    /// be dropped and called again.
    pub(super) async fn read(&mut self) {
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

    /// Why the program did not start, if it did not.
    pub(super) fn failure(&self) -> Option<String> {
        match self.said.split_first() {
            Some((&launcher::READY, [])) if self.ended => None,
            Some((&launcher::READY, [])) => Some("the operating system did not answer".to_owned()),
            Some((&launcher::READY, reason)) => Some(String::from_utf8_lossy(reason).into_owned()),
            Some(_) | None => Some("it ended before its program began".to_owned()),
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
        };
        let report = Report {
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
        let watched = watch(&child);
        match watched {
            Ok((group, alive)) => {
                let process = Self {
                    child,
                    group,
                    alive,
                    reaped: false,
                };
                Ok((process, report))
            }
            Err(error) => {
                // Unwatched it must not run. What it did until here is a start all the same, and reported as failed.
                child.start_kill()?;
                Err(error)
            }
        }
    }

    pub(super) fn take_pipes(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }

    /// The session that it leads, which has its number.
    pub(super) const fn session(&self) -> Pid {
        self.group
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

    /// Kills what is left of the group and collects the leader.
    pub(super) async fn reap(mut self, limit: Duration) -> Exit {
        self.kill_group();
        match tokio::time::timeout(limit, self.child.wait()).await {
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
        }
    }

    fn signal(&self, signal: Signal) {
        if self.reaped {
            return;
        }
        let sent = match kill_process_group(self.group, signal) {
            // A launcher that has not come to open its session is alone, and has no group of its own yet.
            Err(Errno::SRCH) => kill_process(self.group, signal),
            sent => sent,
        };
        match sent {
            // Gone already, or nothing left in it that may be signalled.
            Ok(()) | Err(Errno::SRCH | Errno::PERM) => {}
            Err(error) => warn!(%error, group = %self.group, "cannot signal a process group"),
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
    let handle = pidfd_open(group, PidfdFlags::NONBLOCK)?;
    #[expect(
        deprecated,
        reason = "an OwnedFd keeps the promise that the successor asks for in unsafe code, which is forbidden here"
    )]
    let alive = AsyncFd::with_interest(handle, tokio::io::Interest::READABLE)?;
    Ok((group, alive))
}
