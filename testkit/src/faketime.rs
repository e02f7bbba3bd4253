//! What libfaketime keeps in shared memory for a program, and a killed program leaves there.
//!
//! A file and a semaphore, named after the process. A later process that gets the same number finds them, and one that
//! was killed while it held the semaphore would have that one wait for ever.

use std::path::{Path, PathBuf};
use std::process::Command;

use viworks_runtime::config::environment;

/// Where Linux has what is named for shared memory.
const SHARED: &str = "/dev/shm";

/// Where Debian's package `faketime` has its library; another place is named by `VIWORKS_FAKETIME`. `None`, said
/// loudly, where it is not installed.
#[must_use]
#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
pub fn library() -> Option<PathBuf> {
    if let Some(named) = environment().get("VIWORKS_FAKETIME") {
        return Some(PathBuf::from(named));
    }
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten();
    let mut libraries = folders
        .flatten()
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let found = libraries.find(|library| library.exists());
    if found.is_none() {
        eprintln!(
            "SKIPPED: programs whose wall clock is set: the library of the package faketime is not installed"
        );
    }
    found
}

/// Whether a command is told another time than the machine's.
pub(crate) fn tells(command: &Command) -> bool {
    let mut set = command.get_envs();
    set.any(|(name, value)| {
        let value = value.unwrap_or_default().to_string_lossy();
        name == "LD_PRELOAD" && value.contains("libfaketime")
    })
}

/// Takes away what a process that has ended left behind.
pub(crate) fn forget(pid: u32) {
    for name in names(pid) {
        // One that ended by itself has taken it away.
        let _gone = std::fs::remove_file(Path::new(SHARED).join(name));
    }
}

fn names(pid: u32) -> [String; 2] {
    [
        format!("sem.faketime_sem_{pid}"),
        format!("faketime_shm_{pid}"),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::process::{Process, eventually};

    #[tokio::test]
    async fn nothing_is_left_of_a_killed_program_that_was_told_another_time() {
        let Some(library) = library() else { return };
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("600").env("LD_PRELOAD", library);
        let mut process = Process::start(&mut command, &folder.path().join("log")).unwrap();
        let kept = names(process.pid()).map(|name| Path::new(SHARED).join(name));
        eventually(
            "the library has begun",
            Duration::from_secs(30),
            async || kept.iter().all(|file| file.exists()).then_some(()),
        )
        .await;
        process.kill();
        assert_eq!(kept.each_ref().map(|file| file.exists()), [false; 2]);
    }
}
