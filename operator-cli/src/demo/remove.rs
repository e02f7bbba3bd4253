//! Removes what `up` and the programs that it starts made, by name: whatever else lies beside it stays.

use std::io;
use std::path::{Path, PathBuf};

use viworks_common::catalogue::SHIPPED;

/// What could not be removed, and why.
pub(super) type Refused = (PathBuf, io::Error);

/// What `pki init` writes, and what is added for servers.
const BACKEND: [&str; 9] = [
    "backend.toml",
    "database.password",
    "queue.password",
    "ca.crt",
    "ca.key",
    "server.crt",
    "server.key",
    "next.key",
    "master.key",
];
/// What a gateway's agent writes when it enrols, and what `pki issue-gateway` wrote in demos of before.
const GATEWAY: [&str; 8] = [
    "gateway.toml",
    "gateway.crt",
    "gateway.key",
    "ca.crt",
    "identity.json",
    ".unfinished",
    ".ticket",
    ENROLLING,
];
/// Where its files are until all of them are whole.
const ENROLLING: &str = ".enrolling";
/// What lies beside the folders.
const ROOT: [&str; 2] = ["operator.key", ".lock"];
/// What the processes are remembered by.
const RUN: [&str; 4] = ["demo.json", "backend.json", "backend-2.json", "sockets"];

/// Removes the demo in `root`, whose mark goes last, and returns what is left there.
pub(super) fn demo(root: &Path, mark: &str) -> Result<Vec<PathBuf>, Refused> {
    backend(&root.join("backend"))?;
    let second = root.join("backend-2");
    if !is_link(&second) {
        state(&second.join("state"))?;
        empty(&second)?;
    }
    let gateways = root.join("gateways");
    for folder in entries(&gateways)? {
        gateway(&folder)?;
    }
    empty(&gateways)?;
    let logs = root.join("logs");
    for log in entries(&logs)? {
        if log.extension().is_some_and(|extension| extension == "log") {
            file(&log)?;
        }
    }
    empty(&logs)?;
    named(&root.join("run"), &RUN)?;
    for name in ROOT {
        file(&root.join(name))?;
    }
    // What is left of a key that was being made.
    for draft in entries(root)? {
        let name = draft.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(".operator.key.") && name.ends_with(".tmp") {
            file(&draft)?;
        }
    }
    file(&root.join(mark))?;
    empty(root)?;
    entries(root)
}

/// Removes the backend in `folder`.
pub(super) fn backend(folder: &Path) -> Result<(), Refused> {
    state(&folder.join("state"))?;
    named(folder, &BACKEND)
}

fn gateway(folder: &Path) -> Result<(), Refused> {
    let made_here = |name: &str| folder.join(name).symlink_metadata().is_ok();
    // Somebody's folder among those of the gateways.
    if is_link(folder) || !GATEWAY.into_iter().any(made_here) {
        return Ok(());
    }
    state(&folder.join("state"))?;
    state(&folder.join(ENROLLING))?;
    let shipped: Vec<&str> = SHIPPED.iter().map(|(name, _text)| *name).collect();
    named(&folder.join("commands.d"), &shipped)?;
    named(folder, &GATEWAY)
}

/// Removes the folder of sockets that was made in a short place.
pub(super) fn sockets(folder: &Path) -> io::Result<()> {
    let found = entries(folder).map_err(|(_path, error)| error)?;
    for socket in found {
        if socket.extension().is_some_and(|name| name == "sock") {
            file(&socket).map_err(|(_path, error)| error)?;
        }
    }
    empty(folder).map_err(|(_path, error)| error)
}

/// Removes the files of a server at `place`, or `elsewhere` where that is a link.
pub(super) fn server(place: &Path, elsewhere: Option<&Path>) -> Result<(), Refused> {
    match elsewhere {
        Some(folder) => {
            state(folder)?;
            file(place)
        }
        None => state(place),
    }
}

/// An agent's own folder, which it locks and keeps for itself: all of it.
fn state(folder: &Path) -> Result<(), Refused> {
    if is_link(folder) {
        return Ok(());
    }
    done(folder, std::fs::remove_dir_all(folder))
}

/// These files of a folder, and the folder when nothing else is in it.
fn named(folder: &Path, names: &[&str]) -> Result<(), Refused> {
    // What is behind somebody's link is not what was made here.
    if is_link(folder) {
        return Ok(());
    }
    for name in names {
        file(&folder.join(name))?;
    }
    empty(folder)
}

fn file(path: &Path) -> Result<(), Refused> {
    if path
        .symlink_metadata()
        .is_ok_and(|found| found.file_type().is_dir())
    {
        return Ok(());
    }
    done(path, std::fs::remove_file(path))
}

/// Removes a folder when nothing is left in it.
fn empty(folder: &Path) -> Result<(), Refused> {
    match std::fs::remove_dir(folder) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(())
        }
        other => done(folder, other),
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Refused> {
    let failed = |error| (folder.to_owned(), error);
    if is_link(folder) {
        return Ok(Vec::new());
    }
    match std::fs::read_dir(folder) {
        Ok(found) => found
            .map(|entry| Ok(entry.map_err(failed)?.path()))
            .collect(),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(failed(error)),
    }
}

fn is_link(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|found| found.is_symlink())
}

fn done(path: &Path, result: io::Result<()>) -> Result<(), Refused> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err((path.to_owned(), error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
