//! A bundle for whoever is asked for help: text files in one archive that only its owner can read, bounded, and with
//! what looks like a secret taken out.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use viworks_common::time::Timestamp;

pub mod machine;
mod redact;

use redact::redact;

use crate::blocking;
use crate::exit::ExitCode;
use crate::files;

/// How long what is read from files may take for each part of a bundle: a disk that is away is a reason to collect one.
pub const READ_TIME: Duration = Duration::from_secs(5);

/// Bytes of one file; the rest of it is left out, and said to be.
const FILE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Bytes of all files together; those that would go beyond are left out, and named in the list.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// The list of what is in it.
const LIST: &str = "CONTENTS.txt";

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Something is there already, and may be somebody's.
    #[error("{} is there already, and is left as it is: name a new file with --out", .0.display())]
    Taken(PathBuf),
    /// It cannot be made.
    #[error("{} cannot be written", path.display())]
    Io {
        /// Where it was to be.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
}

impl BundleError {
    /// What a process ends with that has none, the same for every program.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Taken(_) => ExitCode::Conflict,
            Self::Io { source, .. } => ExitCode::of_file(source),
        }
    }

    /// What to do about it; nothing where it says so itself.
    #[must_use]
    pub fn fix(&self) -> Option<&'static str> {
        match self {
            Self::Taken(_) => None,
            Self::Io { source, .. } => files::output_fix(source),
        }
    }
}

/// A bundle that is being collected.
#[derive(Debug, Default)]
pub struct Bundle {
    files: Vec<(String, String)>,
    list: Vec<String>,
    bytes: usize,
}

/// What a bundle of `program` is called that was begun `now`: in the folder where somebody is.
#[must_use]
pub fn name(program: &str, now: Timestamp) -> PathBuf {
    let mut time = now.to_string();
    time.retain(|c| c.is_ascii_digit() || c == 'T' || c == '.');
    let second = time.split('.').next().unwrap_or_default();
    PathBuf::from(format!("{program}-{second}Z.tar.gz"))
}

impl Bundle {
    /// Adds a file of text, with what it holds in a few words. What looks like a secret is taken out of it.
    pub fn add(&mut self, name: &str, what: &str, text: &str) {
        let mut text = redact(text);
        let whole = text.len();
        if whole > FILE_BYTES_MAX {
            text.truncate(text.floor_char_boundary(FILE_BYTES_MAX));
        }
        let left_out = whole - text.len();
        if self.bytes.saturating_add(text.len()) > BYTES_MAX {
            self.list
                .push(format!("{name}: left out, the bundle is full"));
            return;
        }
        self.bytes += text.len();
        let cut = match left_out {
            0 => String::new(),
            bytes => format!(" ({bytes} bytes at its end left out)"),
        };
        self.list
            .push(format!("{name}: {what}, {} bytes{cut}", text.len()));
        self.files.push((name.to_owned(), text));
    }

    /// Says that something is not in it, and why.
    pub fn missing(&mut self, name: &str, why: &str) {
        self.list
            .push(format!("{name}: not there, {}", redact(why)));
    }

    /// Adds what `work` reads, on a thread of its own. Where it does not come back within `limit`, each of `names` is
    /// said to be missing, and the bundle is made without them.
    pub async fn gather(
        &mut self,
        names: &[&str],
        limit: Duration,
        work: impl FnOnce(&mut Self) + Send + 'static,
    ) {
        // What is in it already takes its room.
        let mut part = Self {
            bytes: self.bytes,
            ..Self::default()
        };
        let read = move || {
            work(&mut part);
            part
        };
        match blocking::call("bundle", limit, read).await {
            Ok(part) => {
                self.files.extend(part.files);
                self.list.extend(part.list);
                self.bytes = part.bytes;
            }
            Err(error) => {
                for name in names {
                    self.missing(name, &error.to_string());
                }
            }
        }
    }

    /// Adds every key with its value and where that comes from, as `config explain` has it.
    pub fn add_configuration(&mut self, explained: &str) {
        let what = "every key, its value and where that comes from";
        self.add("configuration.txt", what, explained);
    }

    /// What is in it and where it goes, for people.
    #[must_use]
    pub fn told(&self, out: &Path) -> String {
        format!("{}:\n  {}\n", out.display(), self.list.join("\n  "))
    }

    /// What is in it, a line for each file.
    #[must_use]
    pub fn list(&self) -> &[String] {
        &self.list
    }

    /// Writes it to a new file, which only this user can read, with the list as its first entry.
    ///
    /// # Errors
    ///
    /// When something is there already, a link included, or it cannot be written; nothing is left then.
    pub fn write(&self, path: &Path) -> Result<(), BundleError> {
        let failed = |source| BundleError::Io {
            path: path.to_owned(),
            source,
        };
        let list = format!("{}\n", self.list.join("\n"));
        let packed = archive(&list, &self.files).map_err(failed)?;
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let mut file = file.map_err(|source| {
            if source.kind() == io::ErrorKind::AlreadyExists {
                BundleError::Taken(path.to_owned())
            } else {
                failed(source)
            }
        })?;
        let written = file.write_all(&packed).and_then(|()| file.sync_all());
        written.map_err(|source| {
            // Best effort: half a bundle helps nobody.
            drop(fs::remove_file(path));
            failed(source)
        })
    }
}

fn archive(list: &str, files: &[(String, String)]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let files = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()));
    for (name, text) in std::iter::once((LIST, list)).chain(files) {
        let mut header = tar::Header::new_ustar();
        header.set_size(u64::try_from(text.len()).unwrap_or(u64::MAX));
        header.set_mode(0o600);
        archive.append_data(&mut header, name, text.as_bytes())?;
    }
    let mut packed = archive.into_inner()?;
    packed.flush()?;
    packed.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Bytes of a line with its end.
    const LINE: usize = 128;

    /// So many bytes in lines of few words, which are soon looked through.
    fn lines(bytes: usize) -> String {
        format!("{}\n", "x".repeat(LINE - 1)).repeat(bytes / LINE)
    }

    #[test]
    fn a_bundle_is_its_owners_lists_what_is_in_it_and_has_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.tar.gz");
        let mut bundle = Bundle::default();
        bundle.add("version.txt", "the version", "0.1.0\n");
        for number in 0..12 {
            let name = format!("log.{number}");
            bundle.add(&name, "lines", &lines(FILE_BYTES_MAX + LINE));
        }
        bundle.missing("status.json", "nobody answers");
        let list = bundle.list().join("\n");
        assert!(list.contains("bytes at its end left out"), "{list}");
        assert!(
            list.contains("log.8: left out, the bundle is full"),
            "{list}"
        );
        bundle.write(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let packed = File::open(&path).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed));
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let name = entry.path().unwrap().display().to_string();
            if name == LIST {
                assert!(text.contains("status.json: not there, nobody answers"));
            }
            names.push(name);
        }
        assert_eq!(&names[..2], [LIST, "version.txt"]);
        assert_eq!(names.len(), 2 + 7);
        let now = Timestamp::parse("2026-03-02T08:00:10.5Z").unwrap();
        let named = name("viworks", now);
        assert_eq!(named, Path::new("viworks-20260302T080010Z.tar.gz"));
        let again = Bundle::default().write(&path).unwrap_err();
        assert!(again.to_string().contains("--out"), "{again}");
        assert!(path.metadata().unwrap().len() > 1_000, "it is as it was");
        let nowhere = folder.path().join("missing/bundle.tar.gz");
        let refused = Bundle::default().write(&nowhere).unwrap_err();
        assert_eq!(refused.exit_code(), ExitCode::Config);
        assert!(refused.fix().unwrap().contains("folder"), "{refused}");
    }

    #[tokio::test]
    async fn what_does_not_come_back_is_told_of_and_holds_nothing_up() {
        let mut bundle = Bundle::default();
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let never = move |part: &mut Bundle| {
            // Until the test ends.
            let _never = hang.recv();
            part.add("state.txt", "files", "late\n");
        };
        let names = ["state.txt", "certificates.txt"];
        bundle
            .gather(&names, Duration::from_millis(10), never)
            .await;
        bundle
            .gather(&["log.txt"], READ_TIME, |part| {
                part.add("log.txt", "lines", "one\n");
            })
            .await;
        let list = bundle.list().join("\n");
        for name in names {
            let told = format!("{name}: not there, it did not answer within 10ms");
            assert!(list.contains(&told), "{list}");
        }
        assert!(list.contains("log.txt: lines, 4 bytes"), "{list}");
        drop(release);
    }

    #[tokio::test]
    async fn what_is_gathered_shares_the_room_of_the_bundle() {
        let mut bundle = Bundle::default();
        for number in 0..9 {
            let name = format!("log.{number}");
            let add = move |part: &mut Bundle| {
                part.add(&name, "lines", &lines(FILE_BYTES_MAX));
            };
            bundle.gather(&["log"], READ_TIME, add).await;
        }
        let list = bundle.list().join("\n");
        assert!(list.contains("log.7: lines"), "{list}");
        assert!(
            list.contains("log.8: left out, the bundle is full"),
            "{list}"
        );
    }
}
