//! The local, append-only audit log: what was asked of this gateway, by whom, and how it ended. One JSON object a line.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use viworks_common::time::Timestamp;
use viworks_runtime::blocking;
use viworks_runtime::files::{self, FileError};

/// Bytes of one file; then it is put aside as `NAME.1`, and the one before that is gone.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How long the disk may take for an entry.
const APPEND_TIME: Duration = Duration::from_secs(30);

/// One entry.
#[derive(Debug, Clone, Serialize)]
pub struct AuditRecord {
    /// When, by the gateway's wall clock.
    pub at: Timestamp,
    /// Who: `uid:1000` for a local user, `backend` for the connection.
    pub actor: String,
    /// What was done or refused, as a stable word.
    pub action: &'static str,
    /// On what, such as a command's name.
    pub subject: String,
    /// How it ended, as a stable word.
    pub result: String,
    /// In words.
    pub detail: String,
}

/// The open log. Clones share it.
#[derive(Debug, Clone)]
pub struct Audit {
    file: Arc<Mutex<LogFile>>,
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Audit {
    /// Opens or makes the file, for the owner only.
    ///
    /// # Errors
    /// When it cannot be opened, is a link, or others could change it.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = files::open_append(path)?;
        let bytes = file.metadata().map_err(|source| FileError::Io {
            action: "examine",
            path: path.to_owned(),
            source,
        })?;
        let bytes = bytes.len();
        Ok(Self {
            file: Arc::new(Mutex::new(LogFile {
                path: path.to_owned(),
                file,
                bytes,
            })),
        })
    }

    /// Appends an entry; once this returns it is durable.
    ///
    /// # Errors
    /// When it cannot be written: what was to be done must not be done then.
    pub async fn append(&self, record: AuditRecord) -> io::Result<()> {
        let mut line = serde_json::to_vec(&record)?;
        line.push(b'\n');
        let log = Arc::clone(&self.file);
        blocking::call("audit", APPEND_TIME, move || {
            log.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .append(&line)
        })
        .await
        .map_err(io::Error::other)?
    }
}

impl LogFile {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.bytes > 0 && self.bytes.saturating_add(length) > FILE_BYTES_MAX {
            let mut aside = self.path.as_os_str().to_owned();
            aside.push(".1");
            fs::rename(&self.path, aside)?;
            self.file = files::open_append(&self.path).map_err(io::Error::other)?;
            self.bytes = 0;
        }
        self.file.write_all(line)?;
        self.file.sync_data()?;
        self.bytes = self.bytes.saturating_add(length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_full_is_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let audit = Audit::open(&path).unwrap();
        let line = vec![b'x'; 9 * 1024 * 1024];
        let length = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
        let aside = folder.path().join("audit.log.1");
        for times in 1..=3 {
            audit.file.lock().unwrap().append(&line).unwrap();
            // Two of them are more than one file takes.
            assert_eq!(length(&path), 9 * 1024 * 1024);
            assert_eq!(aside.exists(), times > 1);
        }
        assert_eq!(length(&aside), 9 * 1024 * 1024);
    }
}
