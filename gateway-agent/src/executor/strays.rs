//! Finds processes by the command id in their environment, wherever they went, and ends them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::{info, warn};
use viworks_common::id::CommandId;

use super::COMMAND_ID_VARIABLE;

/// How often the process table is read: what forks while it is being read shows up in the next round.
const ROUNDS_MAX: usize = 5;
/// How long one process may take to end.
const END_TIME: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// Bytes of a process's environment that are searched.
const ENVIRONMENT_BYTES_MAX: u64 = 256 * 1024;

/// Kills every process of this user whose environment names one of `commands`; returns how many.
///
/// Called at start for the commands that the journal knows as unfinished, so that a command which outlived its agent
/// cannot go on beside its successor; and after a time limit, for descendants that left their process group.
///
/// It reads the process table and blocks for as long as that takes.
pub fn end_strays(commands: &[CommandId]) -> usize {
    let wanted: Vec<Vec<u8>> = commands
        .iter()
        .map(|id| format!("{COMMAND_ID_VARIABLE}={id}").into_bytes())
        .collect();
    if wanted.is_empty() {
        return 0;
    }
    let mut ended = BTreeSet::new();
    for _round in 0..ROUNDS_MAX {
        let found = end_once(&wanted);
        if found.is_empty() {
            break;
        }
        for (number, handle) in found {
            // Until it is gone it still has its environment, and would be found again.
            await_end(&handle);
            ended.insert(number);
        }
    }
    if !ended.is_empty() {
        info!(
            ended = ended.len(),
            "ended processes that a command left behind"
        );
    }
    ended.len()
}

fn end_once(wanted: &[Vec<u8>]) -> Vec<(u32, OwnedFd)> {
    let entries = match fs::read_dir("/proc") {
        Ok(entries) => entries,
        Err(error) => {
            warn!(%error, "cannot read /proc to look for processes that a command left behind");
            return Vec::new();
        }
    };
    let own = std::process::id();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own)
        .filter_map(|pid| Some((pid, end_if_marked(pid, wanted)?)))
        .collect()
}

/// Waits until a process that was sent SIGKILL has ended, for a bounded time: one in the kernel's hands ends when it leaves them.
fn await_end(handle: &OwnedFd) {
    let mut ready = [PollFd::new(handle, PollFlags::IN)];
    if let Err(error) = poll(&mut ready, Some(&END_TIME)) {
        warn!(%error, "cannot wait for the end of a process that a command left behind");
    }
}

/// Ends the process if it is one of them. The handle is taken before the environment is read, so the signal cannot meet
/// a successor with the same number.
fn end_if_marked(number: u32, wanted: &[Vec<u8>]) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(number).ok()?)?;
    let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // Other users' processes cannot be read; they are not ours to end either.
    let file = fs::File::open(format!("/proc/{number}/environ")).ok()?;
    let mut environment = Vec::new();
    file.take(ENVIRONMENT_BYTES_MAX)
        .read_to_end(&mut environment)
        .ok()?;
    // A zombie has an empty environment.
    let marked = environment
        .split(|byte| *byte == 0)
        .any(|variable| wanted.iter().any(|id| id == variable));
    (marked && pidfd_send_signal(&handle, Signal::KILL).is_ok()).then_some(handle)
}
