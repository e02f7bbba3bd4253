//! What the agent and the helper say to each other about a command that runs as another user: one connection for each
//! command, whole messages, each with the descriptors that it is about.
//!
//! The connection is the lease of the command: whichever end goes, the command goes with it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, recvmsg, sendmsg, socket_with,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use viworks_common::command::Arguments;
use viworks_common::id::{CommandId, CommandName};

/// Bytes of one message. The arguments of a command fit, however they are written; what is longer is refused.
pub const MESSAGE_BYTES_MAX: usize = 192 * 1024;

/// Descriptors of one message.
const DESCRIPTORS_MAX: usize = 3;

/// How long a question may take; the caller gives up before.
const ASK_TIME: Duration = Duration::from_secs(5);

/// A command of the helper's list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name.
    pub name: CommandName,
    /// Everything that decides what runs, as the agent's catalogue has it: [`super::catalogue`] makes it.
    pub fingerprint: String,
}

/// What the agent wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// To know which of them the helper would run.
    Ask(Vec<Entry>),
    /// It made ready to run, with standard output and standard error as the two descriptors of the message: the
    /// writing ends of pipes.
    Run {
        /// Which command.
        entry: Entry,
        /// What marks it and its descendants.
        command_id: CommandId,
        /// The values of its arguments; the helper checks them by its own list.
        arguments: Arguments,
    },
    /// It run, now that there is a process for it: the agent has looked again whether it may still start.
    Begin,
    /// SIGTERM to its process group.
    Terminate,
    /// SIGKILL to its process group.
    Kill,
}

/// What the helper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// Of each that was asked about, in that order, why it would not run it, if it would not.
    Objections(Vec<Option<String>>),
    /// It does not run it, and why.
    Refused(String),
    /// There is a process that is to become the program, and waits for [`Request::Begin`]: its number, with a handle
    /// of it as descriptor.
    Started(i32),
    /// The program has taken over.
    Begun,
    /// The program could not take over, and why.
    Failed(String),
    /// Its leader has ended, and everything in its session.
    Ended {
        /// What it exited with.
        code: Option<i32>,
        /// What ended it.
        signal: Option<i32>,
        /// What had to be ended beside it.
        note: Option<String>,
    },
}

/// How to have a command run by the helper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Where the helper is.
    pub socket: PathBuf,
    /// Which command.
    pub entry: Entry,
    /// The values of its arguments.
    pub arguments: Arguments,
}

/// Connects without waiting.
///
/// # Errors
///
/// When nobody listens there, or this user may not.
pub fn dial(socket: &Path) -> io::Result<OwnedFd> {
    let connection = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    connect(&connection, &SocketAddrUnix::new(socket)?)?;
    Ok(connection)
}

/// Sends one message, whole or not at all.
///
/// # Errors
///
/// When it is too long, or the other end is gone.
pub fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    with: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the message is too long",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fit = with.is_empty() || control.push(SendAncillaryMessage::ScmRights(with));
    if !fit || with.len() > DESCRIPTORS_MAX {
        let why = "the message has too many descriptors";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one message with its descriptors; `None` when the other end is gone.
///
/// # Errors
///
/// When there is none yet and the socket does not wait, or what came is no message of this kind.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let buffers = &mut [IoSliceMut::new(&mut bytes)];
        match recvmsg(&socket, buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(got) => break got,
            // Told once, when the other end has closed without reading all: what it had said before comes after that.
            Err(Errno::CONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            descriptors.extend(some);
        }
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(invalid("the message is too long"));
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(invalid(
            "its descriptors are lost: there are too many, or this process has as many open as it may",
        ));
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    let text = bytes.get(..got.bytes).unwrap_or_default();
    let message = serde_json::from_slice(text)
        .map_err(|error| invalid(&format!("the message is none: {error}")))?;
    Ok(Some((message, descriptors)))
}

/// Why the helper would not run each of these commands at this moment, in their order; nothing where it would. All on
/// one connection: it takes the service manager a service. Blocks, for a few seconds at the most.
#[must_use]
pub fn objections(socket: &Path, entries: &[Entry]) -> Vec<Option<String>> {
    let asked = || {
        let connection = dial(socket)?;
        rustix::io::ioctl_fionbio(&connection, false)?;
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&connection, timeout, Some(ASK_TIME))?;
        }
        send(&connection, &Request::Ask(entries.to_vec()), &[])?;
        receive::<Answer>(&connection)
    };
    let reason = match asked() {
        Ok(Some((Answer::Objections(all), _none))) if all.len() == entries.len() => return all,
        Ok(Some((Answer::Refused(reason), _none))) => reason,
        Ok(Some((other, _))) => format!("the helper answered {other:?}"),
        Ok(None) => closed().to_owned(),
        Err(error) => unreached(socket, &error),
    };
    vec![Some(reason); entries.len()]
}

/// What it means when the helper hangs up before it has said anything.
#[must_use]
pub const fn closed() -> &'static str {
    "the helper hung up: it is for the agent's service alone, and for so many commands at once; its log says why \
     (journalctl --unit 'viworks-gateway-helper@*')"
}

/// Why the helper cannot be asked, and the fix.
#[must_use]
pub fn unreached(socket: &Path, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return closed().to_owned();
    }
    let fix = if error.kind() == io::ErrorKind::PermissionDenied {
        "run the agent as the user that the socket belongs to"
    } else {
        "systemctl enable --now viworks-gateway-helper.socket"
    };
    format!(
        "the helper that runs commands as other users does not answer at {}: {error}; fix: {fix}",
        socket.display()
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use rustix::net::socketpair;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn a_message_arrives_whole_with_what_it_is_about() {
        let (ours, theirs) = pair();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&ours, &Answer::Started(7), &[writer.as_fd()]).unwrap();
        drop(writer);
        let (answer, descriptors) = receive::<Answer>(&theirs).unwrap().unwrap();
        assert_eq!(answer, Answer::Started(7));
        let [writer] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
        io::Write::write_all(&mut File::from(writer), b"x").unwrap();
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "x");
        let nothing = receive::<Answer>(&theirs).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        drop(ours);
        assert!(receive::<Answer>(&theirs).unwrap().is_none());
    }

    #[test]
    fn last_words_are_heard_from_one_who_did_not_listen() {
        let (ours, theirs) = pair();
        send(&theirs, &Request::Kill, &[]).unwrap();
        send(&ours, &Answer::Begun, &[]).unwrap();
        drop(ours);
        let (answer, _none) = receive::<Answer>(&theirs).unwrap().unwrap();
        assert_eq!(answer, Answer::Begun);
        assert!(receive::<Answer>(&theirs).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (ours, theirs) = pair();
        let long = format!("\"{}\"", "x".repeat(MESSAGE_BYTES_MAX));
        for bytes in [
            "{",
            "{\"ask\":{}}",
            "\"sing\"",
            "{\"started\":1,\"also\":2}",
            &*long,
        ] {
            rustix::net::send(&ours, bytes.as_bytes(), SendFlags::empty()).unwrap();
            let refused = receive::<Request>(&theirs).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{bytes:.40}");
        }
        let too_long = send(&ours, &Answer::Refused(long), &[]).unwrap_err();
        assert_eq!(too_long.kind(), io::ErrorKind::InvalidInput);
        let (_reader, writer) = io::pipe().unwrap();
        let many = [writer.as_fd(); DESCRIPTORS_MAX + 1];
        assert!(send(&ours, &Answer::Begun, &many).is_err());
    }

    #[test]
    fn a_helper_that_is_not_there_is_said_with_the_fix() {
        let entry = Entry {
            name: "service.restart".parse().unwrap(),
            fingerprint: String::new(),
        };
        let said = objections(Path::new("/nonexistent/helper.sock"), &[entry]);
        let said = said[0].as_deref().unwrap();
        assert!(said.contains("/nonexistent/helper.sock"), "{said}");
        assert!(said.contains("systemctl enable --now"), "{said}");
    }
}
