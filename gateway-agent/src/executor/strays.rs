//! Finds processes that a command left behind, by its session or by the command id in their environment, and ends them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::{info, warn};
use viworks_common::id::CommandId;

use super::COMMAND_ID_VARIABLE;
use crate::host::printable;

/// How often the process table is read: what forks while it is being read shows up in the next round.
const ROUNDS_MAX: usize = 5;
/// How long one process may take to end once it was killed.
const END_TIME: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// How long one may take that is about to end by itself, as the rest of a pipeline.
const OWN_END_TIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// Bytes of a process's environment that are searched.
const ENVIRONMENT_BYTES_MAX: u64 = 256 * 1024;
/// How many of the processes that were ended are named.
const NAMED_MAX: usize = 8;

/// What is looked for.
#[derive(Debug, Default)]
struct Wanted {
    /// Variables that name a command.
    variables: Vec<Vec<u8>>,
    /// A session, or a process group, of this number.
    session: Option<i32>,
}

/// The processes that were ended, by number, with their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ended(BTreeMap<i32, String>);

impl Ended {
    /// In words, unless there are none.
    pub(super) fn said(&self) -> Option<String> {
        let named: Vec<String> = self
            .0
            .iter()
            .take(NAMED_MAX)
            .map(|(number, name)| format!("{name} (process {number})"))
            .collect();
        let more = match self.0.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (!named.is_empty()).then(|| named.join(", ") + &more)
    }
}

/// Kills every process of this user whose environment names one of `commands`; returns how many.
///
/// Called at start for the commands that the journal knows as unfinished, so that a command which outlived its agent
/// cannot go on beside its successor.
///
/// It reads the process table and blocks for as long as that takes.
pub fn end_strays(commands: &[CommandId]) -> usize {
    let wanted = Wanted {
        variables: commands.iter().map(variable).collect(),
        session: None,
    };
    if wanted.variables.is_empty() {
        return 0;
    }
    end(&wanted).0.len()
}

/// Ends what is left of a command whose leader is dead and not yet reaped, so that its session's number is still its
/// own; `everywhere` also finds what left the session and kept the environment. Blocks.
pub(super) fn end_left_behind(session: Pid, command: &CommandId, everywhere: bool) -> Ended {
    let mut wanted = Wanted {
        variables: Vec::new(),
        session: Some(session.as_raw_nonzero().get()),
    };
    if everywhere {
        wanted.variables.push(variable(command));
    }
    end(&wanted)
}

fn variable(id: &CommandId) -> Vec<u8> {
    format!("{COMMAND_ID_VARIABLE}={id}").into_bytes()
}

fn end(wanted: &Wanted) -> Ended {
    let mut ended = Ended::default();
    // Found once, and perhaps only late with its own end.
    for (_number, _name, handle) in find(wanted) {
        let _ended: bool = await_end(&handle, OWN_END_TIME);
    }
    // Those in the hands of the kernel end when they leave them, and are not waited for twice.
    let mut hanging = BTreeSet::new();
    for _round in 0..ROUNDS_MAX {
        let mut found = find(wanted);
        found.retain(|(number, _name, _handle)| !hanging.contains(number));
        if found.is_empty() {
            break;
        }
        for (number, name, handle) in found {
            // Until it is gone it would be found again.
            if pidfd_send_signal(&handle, Signal::KILL).is_ok() && await_end(&handle, END_TIME) {
                ended.0.insert(number, name);
            } else {
                hanging.insert(number);
            }
        }
    }
    if !hanging.is_empty() {
        warn!(processes = ?hanging, "what a command left behind hangs in the operating system");
    }
    if let Some(said) = ended.said() {
        info!(
            ended = ended.0.len(),
            "ended what a command left behind: {said}"
        );
    }
    ended
}

fn find(wanted: &Wanted) -> Vec<(i32, String, OwnedFd)> {
    let entries = match fs::read_dir("/proc") {
        Ok(entries) => entries,
        Err(error) => {
            warn!(%error, "cannot read /proc to look for processes that a command left behind");
            return Vec::new();
        }
    };
    let own = i32::try_from(std::process::id()).ok();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|number| Some(*number) != own && Some(*number) != wanted.session)
        .filter_map(|number| find_one(number, wanted))
        .collect()
}

/// The process, if it is one of them. The handle is taken before anything is read, so that a signal cannot meet a
/// successor with the same number.
fn find_one(number: i32, wanted: &Wanted) -> Option<(i32, String, OwnedFd)> {
    let handle = pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()?;
    let stat = Stat::parse(&fs::read(format!("/proc/{number}/stat")).ok()?)?;
    if stat.dead {
        return None;
    }
    let of_session = wanted
        .session
        .is_some_and(|session| stat.session == session || stat.group == session);
    (of_session || is_marked(number, wanted)).then_some((number, stat.name, handle))
}

fn is_marked(number: i32, wanted: &Wanted) -> bool {
    if wanted.variables.is_empty() {
        return false;
    }
    let mut environment = Vec::new();
    // Other users' processes cannot be read; they are not ours to end either.
    let read = fs::File::open(format!("/proc/{number}/environ")).and_then(|file| {
        file.take(ENVIRONMENT_BYTES_MAX)
            .read_to_end(&mut environment)
    });
    read.is_ok()
        && environment
            .split(|byte| *byte == 0)
            .any(|variable| wanted.variables.iter().any(|id| id == variable))
}

/// Waits for a process to end, for a bounded time, and says whether it did.
fn await_end(handle: &OwnedFd, limit: Timespec) -> bool {
    let mut ready = [PollFd::new(handle, PollFlags::IN)];
    match poll(&mut ready, Some(&limit)) {
        Ok(ended) => ended > 0,
        Err(error) => {
            warn!(%error, "cannot wait for the end of a process that a command left behind");
            false
        }
    }
}

/// What `/proc/N/stat` says of a process.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    dead: bool,
    group: i32,
    session: i32,
}

impl Stat {
    fn parse(line: &[u8]) -> Option<Self> {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        // A name may hold anything, brackets included.
        let open = line.iter().position(|byte| *byte == b'(')?;
        let close = line.iter().rposition(|byte| *byte == b')')?;
        let name = line.get(open + 1..close)?;
        let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        let _parent = fields.next()?;
        Some(Self {
            name: printable(OsStr::from_bytes(name)),
            dead: matches!(state, "Z" | "X" | "x"),
            group: fields.next()?.parse().ok()?,
            session: fields.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_hides_nothing() {
        let stat = Stat::parse(b"42 (a) Z 1 (b\xff) S 1 77 78 0 -1 4194560 0\n").unwrap();
        let expected = Stat {
            name: r"a) Z 1 (b\xff".to_owned(),
            dead: false,
            group: 77,
            session: 78,
        };
        assert_eq!(stat, expected);
        for text in ["", "42", "42 (a)", "42 (a) S", "42 (a) S 1 x 5"] {
            assert_eq!(Stat::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn some_are_named_and_the_rest_is_counted() {
        assert_eq!(Ended::default().said(), None);
        let many: BTreeMap<i32, String> = (1..=10).map(|n| (n, "sleep".to_owned())).collect();
        let said = Ended(many).said().unwrap();
        assert!(
            said.starts_with("sleep (process 1), sleep (process 2), "),
            "{said}"
        );
        assert!(said.ends_with("sleep (process 8) and 2 more"), "{said}");
    }
}
