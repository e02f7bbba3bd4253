//! Finds processes by the command id in their environment, wherever they went, and ends them.

use std::fs;
use std::io::Read;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::{info, warn};
use viworks_common::id::CommandId;

use super::COMMAND_ID_VARIABLE;

/// How often the process table is read: what forks while it is being read shows up in the next round.
const ROUNDS_MAX: usize = 5;
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
    let mut ended = 0;
    for _round in 0..ROUNDS_MAX {
        let found = end_once(&wanted);
        if found == 0 {
            break;
        }
        ended += found;
    }
    if ended > 0 {
        info!(ended, "ended processes that a command left behind");
    }
    ended
}

fn end_once(wanted: &[Vec<u8>]) -> usize {
    let entries = match fs::read_dir("/proc") {
        Ok(entries) => entries,
        Err(error) => {
            warn!(%error, "cannot read /proc to look for processes that a command left behind");
            return 0;
        }
    };
    let own = std::process::id();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| end_if_marked(*pid, wanted))
        .count()
}

/// The handle is taken before the environment is read, so the signal cannot meet a successor with the same number.
fn end_if_marked(number: u32, wanted: &[Vec<u8>]) -> bool {
    let Some(pid) = i32::try_from(number).ok().and_then(Pid::from_raw) else {
        return false;
    };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    // Other users' processes cannot be read; they are not ours to end either.
    let Ok(file) = fs::File::open(format!("/proc/{number}/environ")) else {
        return false;
    };
    let mut environment = Vec::new();
    if file
        .take(ENVIRONMENT_BYTES_MAX)
        .read_to_end(&mut environment)
        .is_err()
    {
        return false;
    }
    let marked = environment
        .split(|byte| *byte == 0)
        .any(|variable| wanted.iter().any(|id| id == variable));
    // A zombie has an empty environment, so what was killed in one round does not count again in the next.
    marked && pidfd_send_signal(&handle, Signal::KILL).is_ok()
}
