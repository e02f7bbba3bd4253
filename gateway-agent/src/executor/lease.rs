//! The agent's end of a command that the helper runs as another user.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tracing::warn;
use viworks_common::id::CommandId;

use super::process::{Exit, readable};
use crate::spawner::{self, Answer, Order, Request};

/// A connection to the helper, which ends the command with it.
pub(super) struct Lease {
    connection: AsyncFd<OwnedFd>,
    heard: Mutex<Heard>,
}

/// What the helper has said so far.
#[derive(Debug, Default)]
struct Heard {
    /// How the program's start went.
    start: Option<Result<(), String>>,
    /// How the leader ended.
    end: Option<(Exit, Option<String>)>,
}

impl Heard {
    fn note(&mut self, answer: Answer) {
        match answer {
            Answer::Begun => self.start = Some(Ok(())),
            Answer::Failed(reason) => self.start = Some(Err(reason)),
            Answer::Ended { code, signal, note } => {
                let exit = match (code, signal) {
                    (Some(code), _) => Exit::Code(code),
                    (None, Some(signal)) => Exit::Signal(signal),
                    (None, None) => {
                        Exit::Unknown("the helper does not say how it ended".to_owned())
                    }
                };
                self.end = Some((exit, note));
            }
            Answer::Objections(_) | Answer::Refused(_) | Answer::Started(_) => {
                self.lost("the helper said what it should not");
            }
        }
    }

    /// Nothing more will be heard.
    fn lost(&mut self, why: &str) {
        let why = format!("{why}: the command has ended, and nobody can tell how");
        // It may have begun without a word of it.
        self.start.get_or_insert(Ok(()));
        self.end.get_or_insert((Exit::Untold(why), None));
    }
}

impl Lease {
    /// Has the helper prepare a command whose output goes to two pipes; with a handle of the process. Whatever goes
    /// wrong until [`Lease::begin`], nothing of the command has run.
    pub(super) async fn take(
        order: &Order,
        command_id: CommandId,
        output: [OwnedFd; 2],
    ) -> Result<(Self, OwnedFd), String> {
        let unreached = |error: io::Error| spawner::unreached(&order.socket, &error);
        let connection = spawner::dial(&order.socket)
            .and_then(readable)
            .map_err(unreached)?;
        let request = Request::Run {
            entry: order.entry.clone(),
            command_id,
            arguments: order.arguments.clone(),
        };
        let [stdout, stderr] = &output;
        spawner::send(&connection, &request, &[stdout.as_fd(), stderr.as_fd()])
            .map_err(unreached)?;
        // Held here as well, the pipes would never come to their end.
        drop(output);
        let answer = receive::<Answer>(&connection).await;
        match answer.map_err(|error| format!("the helper cannot be understood: {error}"))? {
            Some((Answer::Started(_), mut handles)) if handles.len() == 1 => {
                let handle = handles.pop().ok_or("the helper sent no handle")?;
                let lease = Self {
                    connection,
                    heard: Mutex::default(),
                };
                Ok((lease, handle))
            }
            Some((Answer::Refused(reason), _)) => Err(reason),
            Some((other, _)) => Err(format!("the helper answered {other:?}")),
            None => Err(spawner::closed().to_owned()),
        }
    }

    /// Lets the command begin. From here on it may have run, whatever is heard of it.
    pub(super) fn begin(&self) -> Result<(), String> {
        spawner::send(&self.connection, &Request::Begin, &[])
            .map_err(|error| format!("the helper went away before it began: {error}"))
    }

    /// Waits until it is known how the program's start went. Can be dropped and called again.
    pub(super) async fn begun(&self) {
        while self.heard().start.is_none() {
            self.hear().await;
        }
    }

    /// Why the program did not start, if it did not.
    pub(super) fn failure(&self) -> Option<String> {
        match &self.heard().start {
            Some(Ok(())) => None,
            Some(Err(reason)) => Some(reason.clone()),
            None => Some("the operating system did not answer".to_owned()),
        }
    }

    /// How the leader ended, and what was ended beside it.
    pub(super) async fn ended(&self, limit: Duration) -> (Exit, Option<String>) {
        let told = async {
            loop {
                if let Some(end) = self.heard().end.take() {
                    return end;
                }
                self.hear().await;
            }
        };
        let hangs = "it was killed and still hangs in the operating system";
        tokio::time::timeout(limit, told)
            .await
            .unwrap_or_else(|_late| (Exit::Unknown(hangs.to_owned()), None))
    }

    /// Has the helper signal the group.
    pub(super) fn signal(&self, signal: Signal) {
        let request = if signal == Signal::TERM {
            Request::Terminate
        } else {
            Request::Kill
        };
        if let Err(error) = spawner::send(&self.connection, &request, &[])
            && !matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            )
        {
            warn!(%error, "cannot have a command of another user signalled");
        }
    }

    /// Waits for the helper's next word.
    async fn hear(&self) {
        let heard = receive::<Answer>(&self.connection).await;
        let mut known = self.heard();
        match heard {
            Ok(Some((answer, _none))) => known.note(answer),
            Ok(None) => known.lost("the helper went away"),
            Err(error) => known.lost(&format!("the helper cannot be understood ({error})")),
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn receive<T: DeserializeOwned>(
    connection: &AsyncFd<OwnedFd>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    loop {
        let mut ready = connection.readable().await?;
        if let Ok(received) = ready.try_io(|socket| spawner::receive(socket.get_ref())) {
            return received;
        }
    }
}
