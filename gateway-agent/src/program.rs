//! The agent's own program, which it starts again for whatever must be a process of its own: built-in commands, and
//! looks at file systems that may not answer.

use std::path::PathBuf;

/// The subcommand that serves built-in commands and looks.
pub const BUILTIN: &str = "builtin";

/// Where the program is; this path survives its replacement by an upgrade.
#[must_use]
pub fn own() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}
