//! The first moments of a command: a session of its own, its folder, and then its program in place of this one.
//!
//! A command has no terminal: in a session of its own, opening `/dev/tty` fails at once instead of stopping it. And
//! what may hang for ever, a folder or a program behind a dead mount, hangs here, in a process with a time limit that
//! can be given up, and not in the agent. Whoever starts it holds the other end of its standard input, a socket: from
//! there come the instructions, because a command line can be read by everybody on the machine and an environment may
//! hold secrets; and there goes how it went: one byte says that the session is there, the end of the stream that the
//! program has taken over, and anything else why it did not.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};

mod account;

pub use account::Account;

/// The agent's subcommand.
pub const SUBCOMMAND: &str = "launch";

/// The byte that says that the session is there.
pub const READY: u8 = b'+';

/// What a launcher ends with when it could not become the program.
const FAILED: u8 = 127;

/// The largest instructions that are read; the operating system takes no such command line either.
const INSTRUCTIONS_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What a launcher is to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instructions {
    /// Where it runs.
    pub folder: PathBuf,
    /// Names and values that its environment gets beside what the launcher has.
    pub environment: Vec<(String, String)>,
    /// The program, by absolute path.
    pub program: PathBuf,
    /// Its arguments, without the program.
    pub arguments: Vec<String>,
    /// Whom it becomes first, when it is not who started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// Another user that a launcher becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// Who.
    pub account: Account,
    /// The number of the process that started the launcher, with which it ends.
    pub starter: u32,
}

impl Instructions {
    /// What is to be written to the launcher's standard input, and then its end.
    ///
    /// # Errors
    ///
    /// When a path is not text.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads them to their end: whoever writes them may die in the middle, and half of them are none.
    fn read(from: impl Read) -> io::Result<Self> {
        Ok(serde_json::from_reader(io::BufReader::new(
            from.take(INSTRUCTIONS_BYTES_MAX),
        ))?)
    }
}

/// Why the program did not start, if it did not, by what its launcher said; `ended` when that was all of it.
#[must_use]
pub fn failure(said: &[u8], ended: bool) -> Option<String> {
    match said.split_first() {
        Some((&READY, [])) if ended => None,
        Some((&READY, [])) => Some("the operating system did not answer".to_owned()),
        Some((&READY, reason)) => Some(String::from_utf8_lossy(reason).into_owned()),
        Some(_) | None => Some("it ended before its program began".to_owned()),
    }
}

/// Becomes the program. Returns only when that fails, with the exit code to end with.
#[must_use]
pub fn run() -> u8 {
    let mut socket = match prepare() {
        Ok(socket) => socket,
        Err(error) => {
            // Whoever started this reads standard error as the command's own.
            drop(writeln!(io::stderr(), "cannot prepare a session: {error}"));
            return FAILED;
        }
    };
    let reason = match Instructions::read(&socket) {
        Ok(instructions) => become_program(&instructions),
        Err(error) => format!("the launcher was called wrongly: {error}"),
    };
    // If nobody listens, nobody is to be told.
    drop(socket.write_all(reason.as_bytes()));
    FAILED
}

/// Puts the socket aside, empties standard input, and opens a session.
fn prepare() -> io::Result<UnixStream> {
    let socket: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let mut socket = UnixStream::from(socket);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    rustix::process::setsid()?;
    socket.write_all(&[READY])?;
    Ok(socket)
}

/// Why it could not.
fn become_program(instructions: &Instructions) -> String {
    if let Some(Role { account, starter }) = &instructions.role
        && let Err(error) = account.take_on(*starter)
    {
        return format!("it cannot become the user {}: {error}", account.name);
    }
    let folder = &instructions.folder;
    if let Err(error) = std::env::set_current_dir(folder) {
        return format!("{} cannot be entered: {error}", folder.display());
    }
    let environment = instructions.environment.iter();
    let error = Command::new(&instructions.program)
        .args(&instructions.arguments)
        .envs(environment.map(|(name, value)| (name, value)))
        .exec();
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_together_comes_apart_again_and_half_of_it_is_nothing() {
        let instructions = Instructions {
            folder: PathBuf::from("/tmp"),
            environment: vec![
                ("A".to_owned(), "1=2\n\"".to_owned()),
                ("B".to_owned(), String::new()),
            ],
            program: PathBuf::from("/bin/echo"),
            arguments: vec!["x".to_owned(), "--".to_owned(), String::new()],
            role: Some(Role {
                account: Account::find("root").unwrap(),
                starter: 7,
            }),
        };
        let bytes = instructions.to_bytes().unwrap();
        assert_eq!(Instructions::read(&*bytes).unwrap(), instructions);
        for length in 0..bytes.len() {
            assert!(Instructions::read(&bytes[..length]).is_err(), "{length}");
        }
    }
}
