//! Looks after the ground that the agent stands on: its state folder and the disk beneath it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::statvfs;
use viworks_runtime::blocking;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::lifecycle::Lifecycle;

use crate::journal::Journal;
use crate::spool::Spool;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// How long a look at the disk may take.
const LOOK_TIME: Duration = Duration::from_secs(10);

/// Free bytes with which readings are taken in again.
const ROOM_BYTES: u64 = 1024 * 1024;

const STATE_FOLDER: &str = "state_folder";
const STATE_FOLDER_FIX: &str = "put the folder back where it was, on a disk that can be written, before this agent is restarted: what it must remember exists in this process only; if it is gone for good, revoke this gateway and issue its name again (docs/errors/identity_fork.md)";
const DISK: &str = "disk";
const DISK_FIX: &str = "make room on the disk of the state folder; nothing has to be restarted";
const RESERVE: &str = "disk.reserve";

/// What is looked at.
#[derive(Debug, Clone)]
pub struct Watch {
    /// The state folder.
    pub folder: PathBuf,
    /// Knows the folder that was opened.
    pub journal: Journal,
    /// Knows what was refused.
    pub spool: Spool,
    /// Where it is told.
    pub conditions: Conditions,
}

impl Watch {
    /// Looks until the agent stops.
    pub async fn run(self, clock: Arc<dyn Clock>, lifecycle: Lifecycle) {
        loop {
            let next = clock.now().saturating_add(INTERVAL);
            tokio::select! {
                () = lifecycle.stopping() => return,
                () = sleep_until(&*clock, next) => {}
            }
            self.folder().await;
            self.disk().await;
        }
    }

    async fn folder(&self) {
        match self.journal.kept().await {
            Ok(()) => self.conditions.clear(STATE_FOLDER),
            Err(lost) => {
                let cause = format!(
                    "{lost}; commands that must not run twice are refused until it is back"
                );
                self.conditions
                    .raise(STATE_FOLDER, Severity::Fail, &cause, STATE_FOLDER_FIX);
            }
        }
    }

    async fn disk(&self) {
        let (folder, journal) = (self.folder.clone(), self.journal.clone());
        let look = move || (room(&folder), journal.holds_reserve());
        let Ok((room, reserve)) = blocking::call("disk", LOOK_TIME, look).await else {
            // Without a thread, or with a disk that hangs, there will be another time.
            return;
        };
        if room >= ROOM_BYTES {
            self.spool.has_room_again();
        }
        if self.spool.is_full() {
            let cause = format!(
                "the disk is full: {} telemetry records were refused since this process started",
                self.spool.refused()
            );
            self.conditions
                .raise(DISK, Severity::Fail, &cause, DISK_FIX);
        } else {
            self.conditions.clear(DISK);
        }
        if reserve {
            self.conditions.clear(RESERVE);
        } else {
            let cause = "the disk has no room for the reserve that lets commands be journalled when it is full";
            self.conditions
                .raise(RESERVE, Severity::Warn, cause, DISK_FIX);
        }
    }
}

/// Bytes that this process could still write there; none when nobody can tell.
fn room(folder: &Path) -> u64 {
    statvfs(folder).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}
