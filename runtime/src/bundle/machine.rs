//! What a bundle tells of the machine and the process: versions, limits, and the files of a folder by name and size.

use std::fmt::Write as _;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io};

use rustix::fs::OFlags;
use viworks_common::pin::SpkiPin;

use super::{Bundle, FILE_BYTES_MAX, READ_TIME};
use crate::{blocking, tls};

const LOG: &str = "log.txt";

const CERTIFICATES: &str = "certificates.txt";

/// Bytes of the end of a log.
const LOG_BYTES_MAX: usize = FILE_BYTES_MAX / 2;

/// How long another program may take to write a log into the standard input.
const PIPE_TIME: Duration = Duration::from_secs(60);

/// Files of a folder that are named.
const FILES_MAX: usize = 1_000;

/// Adds what is the same for every program: its version and the system's, and the limits of this process.
pub fn add(bundle: &mut Bundle, program: &str, version: &str) {
    let kernel = rustix::system::uname();
    let word = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let mut about = format!(
        "{program} {version}\n{} {} {}\n",
        word(kernel.sysname()),
        word(kernel.release()),
        word(kernel.machine())
    );
    if let Ok(release) = fs::read_to_string("/etc/os-release") {
        about.push_str(&release);
    }
    bundle.add(
        "version.txt",
        "the program's and the system's version",
        &about,
    );
    for (name, path, what) in [
        (
            "limits.txt",
            "/proc/self/limits",
            "limits of this user's processes",
        ),
        ("memory.txt", "/proc/meminfo", "memory of the machine"),
        ("pressure.txt", "/proc/pressure/io", "waiting for disks"),
    ] {
        match fs::read_to_string(path) {
            Ok(text) => bundle.add(name, what, &text),
            Err(error) => bundle.missing(name, &error.to_string()),
        }
    }
}

/// Adds the names and sizes of the files in `folder`, and the room of its disk; never what is in them.
pub async fn add_folder(bundle: &mut Bundle, name: &'static str, folder: &Path) {
    let folder = folder.to_owned();
    let read = move |part: &mut Bundle| read_folder(part, name, &folder);
    bundle.gather(&[name], READ_TIME, read).await;
}

fn read_folder(bundle: &mut Bundle, name: &str, folder: &Path) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return bundle.missing(name, &format!("{}: {error}", folder.display())),
    };
    let mut lines = Vec::new();
    for entry in entries.flatten().take(FILES_MAX) {
        let size = entry.metadata().map_or(0, |metadata| metadata.len());
        let file = entry.file_name();
        lines.push(format!("{size:>14} {}", file.to_string_lossy()));
    }
    lines.sort_by(|one, other| one[14..].cmp(&other[14..]));
    let mut text = format!("{}\n", folder.display());
    if let Ok(disk) = rustix::fs::statvfs(folder) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let all = disk.f_blocks.saturating_mul(disk.f_frsize);
        // Writing to a string succeeds.
        let _written = writeln!(text, "{free} of {all} bytes of the disk are free");
    }
    text.push_str(&lines.join("\n"));
    text.push('\n');
    bundle.add(
        name,
        "files of the state folder by size, and its disk",
        &text,
    );
}

/// Adds the end of a log: of a file, or of the standard input where the path is `-`, as of `journalctl`. Of a program
/// that writes on, what came within a minute is taken.
pub async fn add_log(bundle: &mut Bundle, path: &Path) {
    if path == Path::new("-") {
        return add_piped(bundle, io::stdin(), PIPE_TIME).await;
    }
    let path = path.to_owned();
    let read = move |part: &mut Bundle| match tail(&path) {
        Ok(text) => part.add(LOG, "the end of the log", &text),
        Err(error) => part.missing(LOG, &format!("{}: {error}", path.display())),
    };
    bundle.gather(&[LOG], READ_TIME, read).await;
}

async fn add_piped(bundle: &mut Bundle, mut from: impl io::Read + Send + 'static, limit: Duration) {
    let came = Arc::new(Mutex::new(Tail::default()));
    let into = Arc::clone(&came);
    let outcome = blocking::call("bundle", limit, move || read_into(&mut from, &into)).await;
    let text = held(&came).text();
    match outcome {
        Ok(Ok(())) => bundle.add(LOG, "the end of the log", &text),
        Ok(Err(error)) => bundle.missing(LOG, &format!("-: {error}")),
        Err(late) if text.is_empty() => bundle.missing(LOG, &late.to_string()),
        Err(_late) => {
            let what = format!("the end of what came of the log within {limit:?}");
            bundle.add(LOG, &what, &text);
        }
    }
}

/// The end of a file. A link is not followed: whoever may make one beside a log would choose what is sent to others.
fn tail(path: &Path) -> io::Result<String> {
    if fs::symlink_metadata(path)?.is_symlink() {
        return Err(io::Error::other("it is a link: name the file it leads to"));
    }
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let mut options = fs::OpenOptions::new();
    let mut file = options.read(true).custom_flags(flags).open(path)?;
    let bound = u64::try_from(LOG_BYTES_MAX).unwrap_or(u64::MAX);
    let length = file.metadata()?.len();
    // One byte more than is kept, so that it is seen that the first line is not whole.
    file.seek(SeekFrom::Start(length.saturating_sub(bound + 1)))?;
    end_of(&mut file)
}

fn end_of(from: &mut impl io::Read) -> io::Result<String> {
    let tail = Mutex::new(Tail::default());
    read_into(from, &tail)?;
    Ok(held(&tail).text())
}

/// Reads to the end, and keeps what came so far where others see it.
fn read_into(from: &mut impl io::Read, into: &Mutex<Tail>) -> io::Result<()> {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        held(into).take(chunk.get(..count).unwrap_or_default());
    }
}

fn held(tail: &Mutex<Tail>) -> MutexGuard<'_, Tail> {
    // Nothing panics while it is held.
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The end of what came.
#[derive(Debug, Default)]
struct Tail {
    kept: Vec<u8>,
    is_cut: bool,
}

impl Tail {
    fn take(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        let beyond = self.kept.len().saturating_sub(LOG_BYTES_MAX);
        self.is_cut |= beyond > 0;
        // Not with every read, which would move all of it each time.
        if beyond > LOG_BYTES_MAX {
            self.kept.drain(..beyond);
        }
    }

    /// Whole lines of it.
    fn text(&self) -> String {
        let beyond = self.kept.len().saturating_sub(LOG_BYTES_MAX);
        let text = String::from_utf8_lossy(self.kept.get(beyond..).unwrap_or_default());
        let whole = text.split_once('\n').filter(|_first| self.is_cut);
        whole.map_or(&*text, |(_cut, rest)| rest).to_owned()
    }
}

/// Adds what is public of the certificates in `files`: their lives, digests and pins.
pub async fn add_certificates(bundle: &mut Bundle, files: &[&Path]) {
    let files: Vec<PathBuf> = files.iter().map(|path| (*path).to_owned()).collect();
    let read = move |part: &mut Bundle| read_certificates(part, &files);
    bundle.gather(&[CERTIFICATES], READ_TIME, read).await;
}

fn read_certificates(bundle: &mut Bundle, files: &[PathBuf]) {
    let mut lines = Vec::new();
    for path in files {
        lines.push(path.display().to_string());
        match tls::load_certificates(path) {
            Ok(chain) => lines.extend(chain.iter().map(|one| certificate(one))),
            Err(error) => lines.push(format!("  {error}")),
        }
    }
    let text = format!("{}\n", lines.join("\n"));
    bundle.add(CERTIFICATES, "what is public of the certificates", &text);
}

fn certificate(der: &[u8]) -> String {
    let life = tls::validity(der).map_or_else(
        |error| error.to_string(),
        |(from, to)| format!("from {from} until {to}"),
    );
    let pin = tls::spki_sha256(der).map_or_else(
        |error| error.to_string(),
        |digest| SpkiPin::from_digest(digest).to_string(),
    );
    format!("  {life}, pin {pin}")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn of_a_long_log_the_end_is_kept_in_whole_lines() {
        let line = format!("{}\n", "x".repeat(99));
        let long = format!("first\n{}last\n", line.repeat(4 * LOG_BYTES_MAX / 100));
        let kept = end_of(&mut long.as_bytes()).unwrap();
        assert!(kept.len() <= LOG_BYTES_MAX && kept.len() > LOG_BYTES_MAX - 200);
        assert!(kept.starts_with(&line) && kept.ends_with("x\nlast\n"));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &long).unwrap();
        assert_eq!(tail(file.path()).unwrap(), kept);
        let link = file.path().with_extension("link");
        std::os::unix::fs::symlink(file.path(), &link).unwrap();
        let refused = tail(&link).unwrap_err().to_string();
        fs::remove_file(&link).unwrap();
        assert!(refused.contains("it is a link"), "{refused}");
        assert_eq!(end_of(&mut "one\ntwo\n".as_bytes()).unwrap(), "one\ntwo\n");
    }

    #[tokio::test]
    async fn of_a_program_that_writes_on_what_came_is_kept() {
        let limit = Duration::from_secs(1);
        let (from, mut into) = io::pipe().unwrap();
        into.write_all(b"one\ntwo\n").unwrap();
        let mut bundle = Bundle::default();
        add_piped(&mut bundle, from, limit).await;
        assert_eq!(bundle.files, [(LOG.to_owned(), "one\ntwo\n".to_owned())]);
        assert!(bundle.list[0].contains("within 1s"), "{:?}", bundle.list);
        drop(into);

        let (from, into) = io::pipe().unwrap();
        let mut bundle = Bundle::default();
        add_piped(&mut bundle, from, limit).await;
        drop(into);
        assert!(bundle.files.is_empty(), "{:?}", bundle.files);
        assert!(bundle.list[0].contains("not there"), "{:?}", bundle.list);
    }
}
