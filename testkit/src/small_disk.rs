//! Programs for which one folder is a small file system of their own, so that a disk can be really full.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
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

/// The same with a file system that turns read-only at its first error.
const MOUNT_EXT4: &str = "\
set -e
folder=$1 size=$2
shift 2
mkdir -p \"$folder\" \"$folder.disk\"
truncate -s \"$size\" \"$folder.fragile.image\"
mkfs.ext4 -q -F \"$folder.fragile.image\"
mount -o loop,errors=remount-ro \"$folder.fragile.image\" \"$folder.disk\"
chmod 0700 \"$folder.disk\"
cp -a \"$folder/.\" \"$folder.disk/\"
mount --bind \"$folder.disk\" \"$folder\"
exec \"$@\"";

/// What the images of such disks end with.
const IMAGE: &str = ".fragile.image";

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

/// A command that runs `program` with `folder` on a disk of `mebibytes` that turns read-only at its first error.
#[must_use]
pub fn fragile(program: &Path, folder: &Path, mebibytes: u32) -> Command {
    let mut command = unshare();
    command
        .args(["sh", "-c", MOUNT_EXT4, "sh"])
        .arg(folder)
        .arg(format!("{mebibytes}M"))
        .arg(program);
    command
}

/// Whether this machine lets a test have such disks.
#[must_use]
pub fn fragile_is_allowed() -> bool {
    let Ok(folder) = tempfile::tempdir() else {
        return false;
    };
    fragile(Path::new("true"), &folder.path().join("state"), 8)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Makes the file system of a folder (as [`seen_by`] names it) meet an error, which must be one that [`fragile`] made.
///
/// # Panics
/// When it is any other: a disk of the machine must never be told that it is broken.
pub fn break_disk(folder: &Path) {
    let device = std::fs::metadata(folder)
        .expect("the folder is there")
        .dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))
        .expect("a block device is beneath it");
    let name = block.file_name().expect("it has a name");
    let image = std::fs::read_to_string(block.join("loop/backing_file"))
        .expect("it is a loop device, and no disk of the machine");
    assert!(
        image.trim_end().ends_with(IMAGE),
        "{image} was not made by a test"
    );
    let switch = Path::new("/sys/fs/ext4")
        .join(name)
        .join("trigger_fs_error");
    std::fs::write(switch, "broken by a test").expect("ext4 lets itself be broken");
}

/// A command that gives what follows file systems of its own to mount.
#[must_use]
pub fn unshare() -> Command {
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
