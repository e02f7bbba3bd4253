//! Programs for which one folder is a small file system of their own, so that a disk can be really full.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Makes the folder a file system of that size, with what was in it, for whatever is executed then.
const MOUNT: &str = "\
set -e
folder=$1 size=$2
shift 2
mkdir -p \"$folder\" \"$folder.disk\"
mount -t tmpfs -o size=\"$size\",mode=0700 tmpfs \"$folder.disk\"
cp -a \"$folder/.\" \"$folder.disk/\"
mount --bind \"$folder.disk\" \"$folder\"
exec \"$@\"";

/// Whether this machine lets a test have file systems of its own.
#[must_use]
pub fn is_allowed() -> bool {
    unshare()
        .args(["sh", "-c", "mount -t tmpfs tmpfs /mnt"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A command that runs `program` with `folder` on a disk of `mebibytes`.
#[must_use]
pub fn command(program: &Path, folder: &Path, mebibytes: u32) -> Command {
    let mut command = unshare();
    command
        .args(["sh", "-c", MOUNT, "sh"])
        .arg(folder)
        .arg(format!("{mebibytes}m"))
        .arg(program);
    command
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg("--mount");
    command
}

/// A folder as a process sees it.
#[must_use]
pub fn seen_by(pid: u32, folder: &Path) -> PathBuf {
    let relative = folder.strip_prefix("/").unwrap_or(folder);
    Path::new("/proc")
        .join(pid.to_string())
        .join("root")
        .join(relative)
}

/// Takes all the room that is left in a folder; the file that does so.
///
/// # Panics
/// When the file cannot be made.
#[must_use]
pub fn fill(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let mut file = File::create(&path).expect("a file can be made");
    for size in [1 << 20, 1 << 12, 1] {
        let block = vec![0_u8; size];
        while file.write_all(&block).is_ok() {}
    }
    path
}
