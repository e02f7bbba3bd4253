//! Programs that may have few files and sockets open.

use std::path::Path;
use std::process::Command;

/// A command that runs `program` with so many at first, and so many at most.
#[must_use]
pub fn command(program: &Path, soft: u32, hard: u32) -> Command {
    let script = format!("ulimit -Sn {soft}; ulimit -Hn {hard}; exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).arg(program);
    command
}
