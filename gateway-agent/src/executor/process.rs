//! One running command: its process group, and a handle that tells of the leader's death without reaping it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tracing::warn;

use super::{COMMAND_ID_VARIABLE, COMMAND_PATH, Launch};

/// The leader of a process group. Dropped before it is reaped, the whole group is killed.
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

impl Process {
    pub(super) fn spawn(launch: &Launch) -> io::Result<Self> {
        let mut child = Command::new(&launch.program)
            .args(&launch.arguments)
            .env_clear()
            .env("PATH", COMMAND_PATH)
            .env("LANG", "C.UTF-8")
            .envs(&launch.environment)
            .env(COMMAND_ID_VARIABLE, launch.command_id.to_string())
            .current_dir(&launch.working_directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let watched = watch(&child);
        match watched {
            Ok((group, alive)) => Ok(Self {
                child,
                group,
                alive,
                reaped: false,
            }),
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
        match kill_process_group(self.group, signal) {
            // Gone already, or nothing left in it that may be signalled.
            Ok(()) | Err(rustix::io::Errno::SRCH | rustix::io::Errno::PERM) => {}
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
