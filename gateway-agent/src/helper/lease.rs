//! A command that runs as another user, for as long as the agent holds the connection.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::logging;

use super::within;
use crate::executor::{COMMAND_ID_VARIABLE, COMMAND_PATH, Launch, end_session};
use crate::launcher::{self, Account, Instructions, Role};
use crate::spawner::{self, Answer, Request};

/// How long a leader that was killed may take to be gone; longer only when the kernel itself is stuck.
const REAP_TIME: Duration = Duration::from_secs(2);

/// Nothing that a launcher says of its start is longer.
const SAID_BYTES_MAX: usize = 4_096;

/// How much longer than its list allows the helper lets a command run: the agent, which ends it in a better way, comes
/// first, with a `kill_grace` of at most 8 seconds.
const GRACE: Duration = Duration::from_secs(10);

/// How it was with a command to the end.
enum Held {
    /// Its leader is dead.
    ToItsEnd,
    /// It runs on beyond its time.
    Overrun,
}

/// One command.
pub(super) struct Lease {
    child: Child,
    leader: Pid,
    /// Readable once the leader is dead; it stays a zombie until it is reaped, which keeps its number taken.
    alive: OwnedFd,
    /// What the launcher says, until the program has taken over.
    report: Option<UnixStream>,
    said: Vec<u8>,
    /// What the launcher is told, once the agent says that it may begin.
    instructions: Option<Vec<u8>>,
    /// What the list gives it, and when that is over.
    timeout: Duration,
    time_up: Monotonic,
}

impl Lease {
    /// Starts a launcher of `program`, which is to become the user and then the command, and waits; the agent hears of
    /// its process.
    pub(super) fn start(
        program: &Path,
        launch: &Launch,
        account: Account,
        [stdout, stderr]: [OwnedFd; 2],
        connection: &OwnedFd,
    ) -> io::Result<Self> {
        let (report, theirs) = UnixStream::pair()?;
        let environment = account.environment().into_iter();
        let instructions = Instructions {
            folder: launch.working_directory.clone(),
            environment: environment.chain(launch.environment.clone()).collect(),
            program: launch.program.clone(),
            arguments: launch.arguments.clone(),
            role: Some(Role {
                account,
                starter: std::process::id(),
            }),
        };
        let instructions = instructions.to_bytes()?;
        let child = Command::new(program)
            .arg(launcher::SUBCOMMAND)
            .env_clear()
            .env("PATH", COMMAND_PATH)
            .env("LANG", "C.UTF-8")
            .env(COMMAND_ID_VARIABLE, launch.command_id.to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(stdout))
            .stderr(Stdio::from(stderr))
            .spawn()?;
        let leader = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let leader = leader.ok_or_else(|| io::Error::other("it has no process id"))?;
        let watched = pidfd_open(leader, PidfdFlags::NONBLOCK);
        let lease = Self {
            child,
            leader,
            // Unwatched it must not run: it has no instructions yet, and ends without them.
            alive: watched?,
            report: Some(report),
            said: Vec::new(),
            instructions: Some(instructions),
            timeout: launch.timeout,
            time_up: SystemClock
                .now()
                .saturating_add(launch.timeout)
                .saturating_add(GRACE),
        };
        let started = Answer::Started(leader.as_raw_nonzero().get());
        spawner::send(connection, &started, &[lease.alive.as_fd()])?;
        Ok(lease)
    }

    /// Does what the agent says until the leader is dead, its time is up, or the agent is gone; and ends what is left.
    pub(super) fn watch(mut self, connection: &OwnedFd) -> io::Result<()> {
        let held = self.until_ended(connection);
        let overrun = matches!(held, Ok(Held::Overrun));
        if overrun || held.is_err() {
            // Without anybody to tell, it only has to end.
            self.signal(Signal::KILL);
            let _ended = within(&self.alive, REAP_TIME);
        }
        let left = end_session(self.leader);
        self.signal(Signal::KILL);
        match held {
            Ok(_held) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                // No fault of the helper's: it is what the connection is for.
                logging::say(&error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let status = self.child.wait()?;
        let overrun = overrun.then(|| {
            let seconds = self.timeout.as_secs_f64();
            format!("the helper ended it: its list gives it {seconds} s")
        });
        let notes: Vec<String> = [overrun, left].into_iter().flatten().collect();
        let ended = Answer::Ended {
            code: status.code(),
            signal: status.signal(),
            note: (!notes.is_empty()).then(|| notes.join("; ")),
        };
        spawner::send(connection, &ended, &[])
    }

    fn until_ended(&mut self, connection: &OwnedFd) -> io::Result<Held> {
        loop {
            let mut ready = vec![
                PollFd::new(&self.alive, PollFlags::IN),
                PollFd::new(connection, PollFlags::IN),
            ];
            if let Some(report) = &self.report {
                ready.push(PollFd::new(report, PollFlags::IN));
            }
            let left = self.time_up.saturating_since(SystemClock.now());
            if left.is_zero() {
                return Ok(Held::Overrun);
            }
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut ready, Some(&left)) {
                Ok(_some) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = ready.iter().map(|one| !one.revents().is_empty()).collect();
            let [ended, asked, ..] = ready[..] else {
                return Ok(Held::ToItsEnd);
            };
            if ready.get(2) == Some(&true) {
                self.read_report(connection)?;
            } else if ended && self.report.is_none() {
                // How its start went was told before its end.
                return Ok(Held::ToItsEnd);
            }
            if asked {
                self.obey(connection)?;
            }
        }
    }

    fn read_report(&mut self, connection: &OwnedFd) -> io::Result<()> {
        let Some(report) = &mut self.report else {
            return Ok(());
        };
        let mut buffer = [0; 512];
        // A launcher that died with the socket in its hands has said what it has said.
        let read = report.read(&mut buffer).unwrap_or_default();
        self.said
            .extend_from_slice(buffer.get(..read).unwrap_or_default());
        if read > 0 && self.said.len() <= SAID_BYTES_MAX {
            return Ok(());
        }
        self.report = None;
        let failure = launcher::failure(&self.said, true);
        // One that was ready and ended before it was told what to become has begun nothing.
        let failure = failure.or_else(|| {
            let waits = self.instructions.is_some();
            waits.then(|| "it ended before it was told to begin".to_owned())
        });
        let answer = failure.map_or(Answer::Begun, Answer::Failed);
        spawner::send(connection, &answer, &[])
    }

    fn obey(&mut self, connection: &OwnedFd) -> io::Result<()> {
        match spawner::receive::<Request>(connection)? {
            Some((Request::Begin, _)) => self.begin(),
            Some((Request::Terminate, _)) => self.signal(Signal::TERM),
            Some((Request::Kill, _)) => self.signal(Signal::KILL),
            Some((Request::Ask(_) | Request::Run { .. }, _)) => {
                let why = "the agent asked for a second command on one connection";
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            None => {
                let why = if self.instructions.is_some() {
                    "the agent hung up before its command began; nothing of it ran"
                } else {
                    "the agent hung up while its command ran; it was ended"
                };
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
            }
        }
        Ok(())
    }

    /// Tells the launcher what to become. It reads all of that before it does anything.
    fn begin(&mut self) {
        let told = self.instructions.take().zip(self.report.as_ref());
        if let Some((instructions, mut report)) = told {
            // A launcher that is gone is told of by its report.
            drop(report.write_all(&instructions));
            drop(report.shutdown(Shutdown::Write));
        }
    }

    fn signal(&self, signal: Signal) {
        let sent = match kill_process_group(self.leader, signal) {
            // A launcher that has not come to open its session is alone, and has no group of its own yet.
            Err(Errno::SRCH) => kill_process(self.leader, signal),
            sent => sent,
        };
        if let Err(error) = sent
            && error != Errno::SRCH
        {
            logging::say(&format!(
                "cannot signal the process group {}: {error}",
                self.leader
            ));
        }
    }
}
