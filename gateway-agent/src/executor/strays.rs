//! Finds processes that a command left behind, by its session or by the command id in their environment, and ends them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::{info, warn};
use viworks_common::id::CommandId;
use viworks_runtime::clock::{Clock as _, SystemClock};

use super::COMMAND_ID_VARIABLE;
use crate::host::printable;

/// How long a search may take. What forks while the process table is being read shows up when it is read again, so a
/// command that forks for ever would be searched for ever.
const SEARCH_TIME: Duration = Duration::from_secs(5);
/// How long those that were killed may take to end, all of them together.
const END_TIME: Duration = Duration::from_secs(1);
/// How long those may take that are about to end by themselves, as the rest of a pipeline, all of them together.
const OWN_END_TIME: Duration = Duration::from_millis(100);
/// Processes that are held at once; each takes a descriptor. More are found when the table is read again.
const HELD_MAX: usize = 256;
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

/// What was found and ended, or why something of it may be left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ended {
    /// The processes that were ended, by number, with their names.
    ended: BTreeMap<i32, String>,
    /// Those that hang in the operating system.
    hanging: BTreeMap<i32, String>,
    /// Those that this agent may not end.
    foreign: BTreeMap<i32, String>,
    /// Why the search did not come to its end.
    unfinished: Option<String>,
}

impl Ended {
    /// A search that did not come to its end.
    pub(super) fn unfinished(reason: String) -> Self {
        Self {
            unfinished: Some(reason),
            ..Self::default()
        }
    }

    /// In words, unless there is nothing to say.
    pub(super) fn said(&self) -> Option<String> {
        let ended = named(&self.ended).map(|who| {
            format!("what it left running in its session or with its output was ended: {who}")
        });
        let hanging = named(&self.hanging).map(|who| {
            format!(
                "what it left running was killed and still hangs in the operating system: {who}"
            )
        });
        let unfinished = self
            .unfinished
            .as_ref()
            .map(|reason| format!("something that it left running may still be there: {reason}"));
        let foreign = named(&self.foreign)
            .map(|who| format!("what it left running may not be ended by this agent: {who}"));
        let said: Vec<String> = [ended, unfinished, hanging, foreign]
            .into_iter()
            .flatten()
            .collect();
        (!said.is_empty()).then(|| said.join("; "))
    }
}

/// Some of them by name, and how many more.
fn named(processes: &BTreeMap<i32, String>) -> Option<String> {
    let named: Vec<String> = processes
        .iter()
        .take(NAMED_MAX)
        .map(|(number, name)| format!("{name} (process {number})"))
        .collect();
    let more = match processes.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!named.is_empty()).then(|| named.join(", ") + &more)
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
    end(&wanted).ended.len()
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

/// Ends what is left in the session of a leader that is dead and not yet reaped; in words, if that was anybody. Blocks.
pub fn end_session(session: Pid) -> Option<String> {
    let wanted = Wanted {
        variables: Vec::new(),
        session: Some(session.as_raw_nonzero().get()),
    };
    end(&wanted).said()
}

fn variable(id: &CommandId) -> Vec<u8> {
    format!("{COMMAND_ID_VARIABLE}={id}").into_bytes()
}

fn end(wanted: &Wanted) -> Ended {
    // It must not go on once its caller has given up: the session's number may be somebody else's by then.
    let deadline = SystemClock.now().saturating_add(SEARCH_TIME);
    let mut result = Ended::default();
    // Found once, and perhaps only late with its own end.
    await_ends(&find(wanted, &result), OWN_END_TIME);
    loop {
        // Those in the hands of the kernel end when they leave them, and are not waited for twice.
        let found = find(wanted, &result);
        if found.is_empty() {
            break;
        }
        if SystemClock.now() >= deadline {
            let reason = format!("there was still more of it after {SEARCH_TIME:?}");
            result.unfinished = Some(reason);
            break;
        }
        let mut killed = Vec::new();
        for stray in found {
            match pidfd_send_signal(&stray.handle, Signal::KILL) {
                Ok(()) => killed.push(stray),
                // It has come to its own end.
                Err(Errno::SRCH) => {}
                Err(_denied) => drop(result.foreign.insert(stray.number, stray.name)),
            }
        }
        // Until they are gone they would be found again.
        await_ends(&killed, END_TIME);
        for stray in killed {
            let place = if has_ended(&stray) {
                &mut result.ended
            } else {
                &mut result.hanging
            };
            place.insert(stray.number, stray.name);
        }
    }
    if let Some(said) = result.said() {
        let (ended, hanging) = (result.ended.len(), result.hanging.len());
        info!(ended, hanging, "{said}");
    }
    result
}

/// A process that a command left behind.
#[derive(Debug)]
struct Stray {
    number: i32,
    name: String,
    handle: OwnedFd,
}

/// Those that are there and about which something can be done yet; at most [`HELD_MAX`].
fn find(wanted: &Wanted, so_far: &Ended) -> Vec<Stray> {
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
        .filter(|number| !so_far.hanging.contains_key(number))
        .filter(|number| !so_far.foreign.contains_key(number))
        .filter_map(|number| find_one(number, wanted))
        .take(HELD_MAX)
        .collect()
}

/// The process, if it is one of them. The handle is taken before anything is read, so that a signal cannot meet a
/// successor with the same number.
fn find_one(number: i32, wanted: &Wanted) -> Option<Stray> {
    let handle = pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()?;
    let stat = Stat::parse(&fs::read(format!("/proc/{number}/stat")).ok()?)?;
    if stat.dead {
        return None;
    }
    let of_session = wanted
        .session
        .is_some_and(|session| stat.session == session || stat.group == session);
    (of_session || is_marked(number, wanted)).then_some(Stray {
        number,
        name: stat.name,
        handle,
    })
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

/// Waits for all of them to end, for a bounded time altogether.
fn await_ends(strays: &[Stray], limit: Duration) {
    let deadline = SystemClock.now().saturating_add(limit);
    let mut waited: Vec<&Stray> = strays.iter().collect();
    while !waited.is_empty() {
        let left = deadline.saturating_since(SystemClock.now());
        let Ok(left) = Timespec::try_from(left) else {
            return;
        };
        let mut ready: Vec<PollFd<'_>> = waited
            .iter()
            .map(|stray| PollFd::new(&stray.handle, PollFlags::IN))
            .collect();
        match poll(&mut ready, Some(&left)) {
            Ok(0) => return,
            Ok(_some) => {}
            Err(Errno::INTR) => continue,
            Err(error) => {
                warn!(%error, "cannot wait for the end of what a command left behind");
                return;
            }
        }
        let ended: Vec<bool> = ready.iter().map(|one| !one.revents().is_empty()).collect();
        let mut ended = ended.into_iter();
        waited.retain(|_stray| !ended.next().unwrap_or(true));
    }
}

fn has_ended(stray: &Stray) -> bool {
    let mut ready = [PollFd::new(&stray.handle, PollFlags::IN)];
    poll(&mut ready, Some(&Timespec::default())).is_ok_and(|ended| ended > 0)
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
        let said = named(&many).unwrap();
        assert!(
            said.starts_with("sleep (process 1), sleep (process 2), "),
            "{said}"
        );
        assert!(said.ends_with("sleep (process 8) and 2 more"), "{said}");
    }

    #[test]
    fn a_search_without_an_end_says_so_beside_what_it_ended() {
        let mut result = Ended::unfinished("it took too long".to_owned());
        result.ended.insert(7, "sleep".to_owned());
        let said = result.said().unwrap();
        assert!(said.contains("was ended: sleep (process 7); "), "{said}");
        assert!(
            said.ends_with("may still be there: it took too long"),
            "{said}"
        );
    }
}
