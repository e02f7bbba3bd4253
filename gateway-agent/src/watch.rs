//! Looks after the ground that the agent stands on: its state folder and the disk beneath it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::statvfs;
use viworks_common::human;
use viworks_common::rate::Lately;
use viworks_runtime::blocking::Worker;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::files::Lost;
use viworks_runtime::lifecycle::{Lifecycle, notify};

use crate::journal::{Journal, JournalError};
use crate::spool::Spool;
use crate::status::Status;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// How long a look at the disk may take.
const LOOK_TIME: Duration = Duration::from_secs(10);

/// Free bytes with which readings are taken in again.
pub(crate) const ROOM_BYTES: u64 = 1024 * 1024;

/// The condition while the backend did not store records of this gateway lately.
pub const TELEMETRY_REFUSED: &str = "telemetry.refused";

/// How long after the last refusal that is told.
const REFUSED_TIME: Duration = Duration::from_secs(3_600);

const STATE_FOLDER: &str = "state_folder";
const STATE_FOLDER_FIX: &str = "put the folder back where it was, on a disk that can be written, before this agent is restarted: what it must remember exists in this process only; if it is gone for good, revoke this gateway and issue its name again (docs/errors/identity_fork.md)";
const READ_ONLY_FIX: &str = "see dmesg for why, mend the disk and mount it to be written again, then restart this agent if it does not go on by itself; until then commands are refused and telemetry is counted";
/// What the spool did not take, by one and by several.
const RECORD_REFUSED: &str = "telemetry record was refused";
const RECORDS_REFUSED: &str = "telemetry records were refused";
const JOURNAL: &str = "journal";
const DISK: &str = "disk";
pub(crate) const DISK_FIX: &str =
    "make room on the disk of the state folder; nothing has to be restarted";
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
    /// Knows whether there is a session.
    pub status: Arc<Status>,
    /// Where it is told.
    pub conditions: Conditions,
}

impl Watch {
    /// Looks until the agent stops.
    pub async fn run(self, clock: Arc<dyn Clock>, lifecycle: Lifecycle) {
        let mut lately = Lately::default();
        let mut disk = self.disk_worker();
        loop {
            notify::status(&self.status.connection().to_string(), &self.conditions);
            let next = clock.now().saturating_add(INTERVAL);
            tokio::select! {
                () = lifecycle.stopping() => return,
                () = sleep_until(&*clock, next) => {}
            }
            let kept = self.folder().await;
            self.journal().await;
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
                self.spool.hold(None);
                true
            }
            Err(lost) => {
                let read_only = matches!(lost, Lost::ReadOnly { .. });
                let (what, fix) = if read_only {
                    (self.held(), READ_ONLY_FIX)
                } else {
                    let what = "commands that must not run twice are refused until it is back";
                    (what.to_owned(), STATE_FOLDER_FIX)
                };
                self.spool.hold(read_only.then(|| lost.to_string()));
                let cause = format!("{lost}; {what}");
                self.conditions
                    .raise(STATE_FOLDER, Severity::Fail, &cause, fix);
                false
            }
        }
    }

    fn held(&self) -> String {
        format!(
            "no command is taken, and {} since this process started",
            human::counted_all(self.spool.refused(), RECORD_REFUSED, RECORDS_REFUSED)
        )
    }

    /// Whether the journal takes writes; after one that failed it is tried again here, so that it heals by itself.
    async fn journal(&self) {
        if self.journal.trouble().is_some() {
            // What it came to is told below.
            drop(self.journal.try_again().await);
        }
        match self.journal.trouble() {
            Some(JournalError::Unusable { path, cause, fix }) => {
                let cause = format!(
                    "{} cannot be written, and commands are refused: {cause}",
                    path.display()
                );
                self.conditions.raise(JOURNAL, Severity::Fail, &cause, fix);
            }
            Some(_) | None => self.conditions.clear(JOURNAL),
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
        if kept && (room >= ROOM_BYTES || !self.spool.is_full()) {
            // Counts what was lost meanwhile, and so finds out whether the spool takes writes again; if not, that is
            // told below.
            drop(self.spool.settle().await);
        }
        match self.spool.trouble() {
            Some(trouble) if kept => {
                let cause = format!(
                    "{}: {} since this process started",
                    trouble.cause,
                    human::counted_all(self.spool.refused(), RECORD_REFUSED, RECORDS_REFUSED)
                );
                self.conditions
                    .raise(DISK, Severity::Fail, &cause, trouble.fix);
            }
            // While the folder is what is wrong, that is what is told.
            Some(_) | None => self.conditions.clear(DISK),
        }
        if reserve || !kept {
            // Without its folder there is no reserve, and it is the folder that is to be put right.
            self.conditions.clear(RESERVE);
        } else if room < ROOM_BYTES {
            // Whether the next command finds its few pages is chance: one that was refused says nothing of another.
            let cause = format!(
                "{} KiB are free and there is no reserve: commands that find no room in the journal are refused",
                human::count(room / 1_024)
            );
            self.conditions
                .raise(RESERVE, Severity::Fail, &cause, DISK_FIX);
        } else {
            let cause = "the disk has no room for the reserve that lets commands be journalled when it is full";
            self.conditions
                .raise(RESERVE, Severity::Warn, cause, DISK_FIX);
        }
    }
}

/// Bytes that this process could still write there; none when nobody can tell.
pub(crate) fn room(folder: &Path) -> u64 {
    statvfs(folder).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}
