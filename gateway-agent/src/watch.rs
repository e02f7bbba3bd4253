//! Looks after the ground that the agent stands on: its state folder and the disk beneath it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::statvfs;
use viworks_common::rate::Lately;
use viworks_runtime::blocking::Worker;
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

/// The condition while the backend did not store records of this gateway lately.
pub const TELEMETRY_REFUSED: &str = "telemetry.refused";

/// How long after the last refusal that is told.
const REFUSED_TIME: Duration = Duration::from_secs(3_600);

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
        let mut lately = Lately::default();
        let mut disk = self.disk_worker();
        loop {
            let next = clock.now().saturating_add(INTERVAL);
            tokio::select! {
                () = lifecycle.stopping() => return,
                () = sleep_until(&*clock, next) => {}
            }
            let kept = self.folder().await;
            self.disk(&mut disk, kept).await;
            let unstored = self.spool.unstored();
            if lately.is_over(unstored.values().sum(), REFUSED_TIME, clock.now()) {
                self.conditions.clear(TELEMETRY_REFUSED);
            }
        }
    }

    /// Whether the folder is still there.
    async fn folder(&self) -> bool {
        match self.journal.kept().await {
            Ok(()) => {
                self.conditions.clear(STATE_FOLDER);
                true
            }
            Err(lost) => {
                let cause = format!(
                    "{lost}; commands that must not run twice are refused until it is back"
                );
                self.conditions
                    .raise(STATE_FOLDER, Severity::Fail, &cause, STATE_FOLDER_FIX);
                false
            }
        }
    }

    /// Looks at the disk, on one thread of its own: the free bytes, and whether the reserve is there.
    fn disk_worker(&self) -> Worker<(), (u64, bool)> {
        let (folder, journal) = (self.folder.clone(), self.journal.clone());
        Worker::new("disk", move || {
            let (folder, journal) = (folder.clone(), journal.clone());
            move |()| (room(&folder), journal.holds_reserve())
        })
    }

    async fn disk(&self, worker: &mut Worker<(), (u64, bool)>, kept: bool) {
        let Ok((room, reserve)) = worker.ask((), LOOK_TIME).await else {
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
        if reserve || !kept {
            // Without its folder there is no reserve, and it is the folder that is to be put right.
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
