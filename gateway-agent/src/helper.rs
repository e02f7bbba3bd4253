//! The helper that runs commands as other users: a program of root's with a list of its own, which serves one
//! connection of the agent and ends with it.
//!
//! It decides by itself: the agent names a command and gives values, and program, user, folder and environment come
//! from the helper's list, by the same rules as the catalogue's. Time limit, output and journal stay the agent's. The
//! connection is the lease: once it ends, whatever its command left running is ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred, socket_type};
use viworks_common::command::Arguments;
use viworks_common::id::CommandId;
use viworks_runtime::logging;

use crate::catalogue::{self, Catalogue, OtherUsers, Owners};
use crate::executor::Launch;
use crate::launcher::Account;
use crate::program;
use crate::spawner::{self, Answer, Entry, Request};

mod lease;

use lease::Lease;

/// How long the agent may take for its first message, and to take an answer.
const MESSAGE_TIME: Duration = Duration::from_secs(10);

/// The file system of pipes without a name: `PIPEFS_MAGIC` of the kernel's `linux/magic.h`.
const PIPES: rustix::fs::FsWord = 0x5049_5045;

/// Where the helper's list is, and whom it serves.
#[derive(Debug, Clone)]
pub struct Service<'a> {
    /// The list: files of root's, as the catalogue's are.
    pub list: &'a Path,
    /// The user that the agent runs as.
    pub agent: &'a str,
}

/// What a request comes to.
enum Work {
    Answered(Answer),
    Started(Lease),
}

impl Service<'_> {
    /// Serves the connection that is standard input, to its end.
    ///
    /// # Errors
    ///
    /// When it is none, not the agent's, or breaks off.
    pub fn serve(&self) -> io::Result<()> {
        let connection = take_connection()?;
        self.admit(&connection)?;
        let said = within(&connection, MESSAGE_TIME)?;
        if !said {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the agent asked for nothing",
            ));
        }
        // What is no request ends the connection, and says so in the log.
        let Some((request, descriptors)) = spawner::receive::<Request>(&connection)? else {
            return Ok(());
        };
        match self.work(request, descriptors, &connection)? {
            Work::Answered(answer) => spawner::send(&connection, &answer, &[]),
            Work::Started(lease) => lease.watch(&connection),
        }
    }

    /// Refuses whoever is not the agent, before anything is read of it.
    fn admit(&self, connection: &OwnedFd) -> io::Result<()> {
        let denied = |why: String| io::Error::new(io::ErrorKind::PermissionDenied, why);
        if socket_type(connection)? != SocketType::SEQPACKET {
            return Err(denied(
                "standard input is no connection of the agent".to_owned(),
            ));
        }
        let peer = socket_peercred(connection)?;
        let agent = Account::find(self.agent).map_err(denied)?;
        if peer.uid.as_raw() == agent.user {
            return Ok(());
        }
        let (user, process) = (peer.uid.as_raw(), peer.pid);
        Err(denied(format!(
            "refused the user {user} (process {process}): only {} may have commands run",
            self.agent
        )))
    }

    fn work(
        &self,
        request: Request,
        descriptors: Vec<OwnedFd>,
        connection: &OwnedFd,
    ) -> io::Result<Work> {
        let refused = |reason| Ok(Work::Answered(Answer::Refused(reason)));
        let (entry, id, arguments) = match request {
            Request::Ask(entries) => {
                let list = match self.list() {
                    Ok(list) => list,
                    Err(reason) => return refused(reason),
                };
                let objections = entries.iter().map(|entry| self.objection(&list, entry));
                return Ok(Work::Answered(Answer::Objections(objections.collect())));
            }
            Request::Run {
                entry,
                command_id,
                arguments,
            } => (entry, command_id, arguments),
            Request::Begin | Request::Terminate | Request::Kill => {
                return refused("nothing runs here yet".to_owned());
            }
        };
        let list = match self.list() {
            Ok(list) => list,
            Err(reason) => return refused(reason),
        };
        if let Some(reason) = self.objection(&list, &entry) {
            return refused(reason);
        }
        let (launch, account) = match prepare(&list, &entry, id, &arguments) {
            Ok(prepared) => prepared,
            Err(reason) => return refused(reason),
        };
        let Ok(output) = <[OwnedFd; 2]>::try_from(descriptors) else {
            return refused("a command needs two descriptors for its output".to_owned());
        };
        for end in &output {
            if !is_writing_end(end)? {
                return refused("a command's output goes to the writing ends of pipes".to_owned());
            }
        }
        logging::say(&format!(
            "runs {} as {} ({id}): {} {:?}",
            entry.name,
            account.name,
            launch.program.display(),
            launch.arguments
        ));
        match Lease::start(&program::own(), &launch, account, output, connection) {
            Ok(lease) => Ok(Work::Started(lease)),
            Err(error) => refused(format!("no process can be started: {error}")),
        }
    }

    fn list(&self) -> Result<Catalogue, String> {
        let loaded = catalogue::load(self.list, Owners::Root, program::own(), OtherUsers::Itself);
        loaded.map_err(|problems| {
            format!(
                "the helper's list cannot be used: {}",
                problems.in_one_line()
            )
        })
    }

    /// Why the list does not allow what the agent's catalogue has under that name.
    fn objection(&self, list: &Catalogue, entry: &Entry) -> Option<String> {
        let shown = self.list.display();
        match list.fingerprint(&entry.name) {
            Some(ours) if ours == entry.fingerprint => None,
            Some(_) => Some(format!(
                "{} is not the same in {shown} and in the agent's catalogue; fix: make user, argv, arguments, \
                 environment and working_directory alike in both",
                entry.name
            )),
            None => Some(format!(
                "{} is not on the helper's list; fix: copy its entry into a file of root's in {shown}, if it may run",
                entry.name
            )),
        }
    }
}

/// What is to be run, and as whom.
fn prepare(
    list: &Catalogue,
    entry: &Entry,
    id: CommandId,
    arguments: &Arguments,
) -> Result<(Launch, Account), String> {
    let allowed = list
        .check(&entry.name, arguments)
        .map_err(|refusal| refusal.detail)?;
    if let Some(reason) = &allowed.entry().unavailable {
        return Err(reason.clone());
    }
    let user = allowed.user().ok_or("the list names no user for it")?;
    let account = Account::find(user)?;
    Ok((allowed.launch(id), account))
}

/// Standard input, which becomes empty for whatever is started.
fn take_connection() -> io::Result<OwnedFd> {
    let connection = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    // It may be shared with nobody, so it may be made to wait.
    rustix::io::ioctl_fionbio(&connection, false)?;
    set_socket_timeout(&connection, Timeout::Send, Some(MESSAGE_TIME))?;
    Ok(connection)
}

/// Whether that is the end of a pipe that can be written and nothing else. A program may open what it writes to once
/// more, by `/dev/stdout`, and does so as its own user: what the agent may only read must not be written that way, nor
/// anything that has a name.
fn is_writing_end(descriptor: &OwnedFd) -> io::Result<bool> {
    let mode = rustix::fs::fcntl_getfl(descriptor)? & rustix::fs::OFlags::ACCMODE;
    let of = rustix::fs::fstatfs(descriptor)?.f_type;
    Ok(mode == rustix::fs::OFlags::WRONLY && of == PIPES)
}

/// Whether there is something to read before the time is up.
fn within(descriptor: &impl AsFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut ready = [PollFd::new(descriptor, PollFlags::IN)];
    loop {
        match poll(&mut ready, Some(&limit)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
