//! The durable, bounded telemetry spool: append, read in contiguous batches, trim what is acknowledged.
//!
//! A record has the sequence number that the process which appended it gave it, for ever. At the bound the oldest
//! records are given up; what remains of them is a counted gap, which is stored in their place and delivered like
//! them. So at any time every sequence number is acknowledged, a record, or inside a gap.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;
use viworks_common::id::AgentRunId;
use viworks_common::limits;
use viworks_common::telemetry::room::{Origin, Room};
use viworks_common::telemetry::{Batch, Position, Record, RecordRefusal};
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::sqlite::{self, Column, Connection, Database, Migration, Row, migration};

use crate::journal;

mod append;
mod batch;
mod portion;
mod trim;

pub(crate) const MIGRATIONS: &[Migration] = &[
    migration!("../migrations/spool", "0001_records_gaps_and_positions.sql"),
    migration!("../migrations/spool", "0002_portions.sql"),
];

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;
/// The smallest spool, below which the overhead of the file leaves no room for records.
pub const BYTES_MIN: u64 = 512 * 1024;
/// The share of local programs when the configuration does not say, in a hundred.
pub const LOCAL_PERCENT_DEFAULT: u8 = 75;
/// Bytes of one batch's body, with room for the envelope within a bulk message.
pub const BATCH_BYTES_MAX: usize = limits::BULK_MESSAGE_BYTES_MAX - 1024;
/// Bytes of one record in a batch, so that every record fits into one.
pub const RECORD_BYTES_MAX: usize = BATCH_BYTES_MAX - batch::FRAME_BYTES;

/// Reasons of refused records that are told apart.
const REFUSAL_REASONS_MAX: usize = 16;

// What fits into a batch also fits into what the backend unpacks.
const _: () = assert!(BATCH_BYTES_MAX <= limits::BULK_BODY_BYTES_MAX);

/// Why the spool cannot do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpoolError {
    /// The file.
    #[error("the telemetry spool failed")]
    Database(#[from] sqlite::Error),
    /// Nothing is written for now.
    #[error("the telemetry spool takes nothing: {0}")]
    Held(String),
    /// A record that would not fit into any batch; the caller had to check.
    #[error("a telemetry record is larger than {RECORD_BYTES_MAX} bytes")]
    RecordTooLarge,
    /// A row that this program cannot have written.
    #[error("the telemetry spool is inconsistent: {0}")]
    Inconsistent(&'static str),
}

impl SpoolError {
    /// Whether the disk has no room left.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Database(sqlite::Error::Full(_)))
    }
}

/// Why nothing is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong, with the file.
    pub cause: String,
    /// What to do.
    pub fix: &'static str,
    /// Whether the disk has no room left.
    full: bool,
}

/// Why a record is not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IntakeRefusal {
    /// It breaks a rule that the backend would refuse it for, too.
    Record(RecordRefusal),
    /// It is larger than a batch.
    TooLarge,
}

impl IntakeRefusal {
    /// The name in answers and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Record(refusal) => refusal.name(),
            Self::TooLarge => "too_large",
        }
    }
}

/// Whether the spool would take in `record`.
///
/// # Errors
/// The first rule it breaks.
pub fn check(record: &Record) -> Result<(), IntakeRefusal> {
    record.check().map_err(IntakeRefusal::Record)?;
    if batch::record_bytes(record) > RECORD_BYTES_MAX {
        return Err(IntakeRefusal::TooLarge);
    }
    Ok(())
}

/// How much a spool may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the file.
    pub bytes_max: u64,
    /// So many in a hundred of them are for what local programs hand in.
    pub local_percent: u8,
}

impl Bounds {
    /// A file of so many bytes, shared as it is when the configuration does not say.
    #[must_use]
    pub const fn of(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            local_percent: LOCAL_PERCENT_DEFAULT,
        }
    }
}

/// How full the spool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Records that wait.
    pub records: u64,
    /// Bytes of the file on disk.
    pub bytes: u64,
    /// The bound of the file.
    pub bytes_max: u64,
    /// About so many of the bytes hold what local programs handed in.
    pub local_bytes: u64,
    /// The bound of those.
    pub local_bytes_max: u64,
    /// Records given up since the file was made.
    pub dropped: u64,
}

/// An open spool. Clones share it.
#[derive(Debug, Clone)]
pub struct Spool {
    database: Database,
    path: Arc<Path>,
    agent_run_id: AgentRunId,
    pages_max: u32,
    room: Room,
    gauges: Arc<Gauges>,
}

#[derive(Debug, Default)]
struct Gauges {
    records: AtomicU64,
    bytes: AtomicU64,
    local_bytes: AtomicU64,
    dropped: AtomicU64,
    /// Records that the disk refused, and those of them that nobody was told of and no gap stands for yet.
    refused: AtomicU64,
    uncounted: AtomicU64,
    /// Why the last write failed, until one succeeds.
    trouble: Mutex<Option<Trouble>>,
    /// Why nothing is to be written.
    held: Mutex<Option<String>>,
    /// Records that the backend did not store.
    unstored: Mutex<BTreeMap<String, u64>>,
}

/// A spool that was just opened.
#[derive(Debug)]
pub struct Opened {
    /// The spool.
    pub spool: Spool,
    /// Where a damaged predecessor was put; its records are lost, and somebody should be told.
    pub damaged: Option<PathBuf>,
}

impl Spool {
    /// Opens or makes the file within `bounds`. New records belong to `agent_run_id`.
    ///
    /// A damaged file is put aside and replaced: losing what waits there is better than taking no more telemetry.
    ///
    /// # Errors
    /// When there can be no spool at that place.
    pub async fn open(
        path: &Path,
        bounds: Bounds,
        agent_run_id: AgentRunId,
    ) -> Result<Opened, SpoolError> {
        match Self::open_file(path, bounds, agent_run_id).await {
            Ok(spool) => Ok(Opened {
                spool,
                damaged: None,
            }),
            Err(SpoolError::Database(sqlite::Error::Corrupt { .. })) => {
                let aside = put_aside(path, agent_run_id)?;
                let spool = Self::open_file(path, bounds, agent_run_id).await?;
                Ok(Opened {
                    spool,
                    damaged: Some(aside),
                })
            }
            Err(error) => Err(error),
        }
    }

    async fn open_file(
        path: &Path,
        bounds: Bounds,
        agent_run_id: AgentRunId,
    ) -> Result<Self, SpoolError> {
        let pages_max =
            u32::try_from(bounds.bytes_max.max(BYTES_MIN) / PAGE_BYTES).unwrap_or(u32::MAX);
        let options = sqlite::Options::new(path).max_page_count(pages_max);
        let database = Database::open(options, MIGRATIONS).await?;
        let spool = Self {
            database,
            path: path.into(),
            agent_run_id,
            pages_max,
            room: Room::new(pages_max.into(), bounds.local_percent),
            gauges: Arc::default(),
        };
        let usage = spool
            .database
            .write(move |connection| {
                trim::forget_delivered(connection, agent_run_id)?;
                trim::usage(connection)
            })
            .await?;
        spool.note(usage);
        Ok(spool)
    }

    /// Takes in what a local program hands in; once this returns it is durable. At the bound of local programs the
    /// oldest records of theirs are given up for it, at that of the file the oldest of all.
    ///
    /// # Errors
    /// When the disk or the file fails; then none of them was taken in.
    pub async fn append(&self, records: &[Record]) -> Result<(), SpoolError> {
        self.append_of(Origin::Local, records).await
    }

    async fn append_of(&self, origin: Origin, records: &[Record]) -> Result<(), SpoolError> {
        if records.is_empty() {
            return Ok(());
        }
        let bodies = append::bodies(records)?;
        let (agent_run_id, room) = (self.agent_run_id, self.room);
        let appended = self
            .write_of(origin, move |connection| {
                append::run(connection, agent_run_id, room, origin, &bodies)
            })
            .await;
        if appended.is_err() {
            let count = u64::try_from(records.len()).unwrap_or(u64::MAX);
            self.gauges.refused.fetch_add(count, Ordering::Relaxed);
        }
        self.note(appended?);
        Ok(())
    }

    /// Like [`Self::append`], for the agent's own records, which exist nowhere else: what is not taken in becomes a
    /// gap, which the backend is told of like any other, as soon as the spool can be written again.
    ///
    /// # Errors
    /// As [`Self::append`]; the loss is counted then.
    pub async fn append_or_count(&self, records: &[Record]) -> Result<(), SpoolError> {
        let appended = self.append_of(Origin::Agent, records).await;
        if appended.is_err() {
            let count = u64::try_from(records.len()).unwrap_or(u64::MAX);
            self.gauges.uncounted.fetch_add(count, Ordering::Relaxed);
        }
        appended
    }

    /// Makes a gap of what was refused and is gone; after a write that failed, finds out whether the next one would,
    /// too.
    ///
    /// # Errors
    /// When nothing can be written; it is counted another time then.
    pub async fn settle(&self) -> Result<(), SpoolError> {
        let lost = self.gauges.uncounted.swap(0, Ordering::Relaxed);
        if lost == 0 && self.trouble().is_none() {
            return Ok(());
        }
        let agent_run_id = self.agent_run_id;
        let settled = self
            .write(move |connection| append::count_lost(connection, agent_run_id, lost))
            .await;
        if settled.is_err() {
            self.gauges.uncounted.fetch_add(lost, Ordering::Relaxed);
        }
        self.note(settled?);
        Ok(())
    }

    /// Why the last write failed; none once one succeeded.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        lock(&self.gauges.trouble).clone()
    }

    /// Whether the last write failed because the disk has no room left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.trouble().is_some_and(|trouble| trouble.full)
    }

    /// Refuses every write because of this, without trying, until it is called with none.
    pub fn hold(&self, why: Option<String>) {
        *lock(&self.gauges.held) = why;
    }

    /// Records that the disk refused in this process.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.gauges.refused.load(Ordering::Relaxed)
    }

    async fn write<T, F>(&self, job: F) -> Result<T, SpoolError>
    where
        F: Fn(&Connection) -> Result<T, SpoolError> + Send + 'static,
        T: Send + 'static,
    {
        self.write_of(Origin::Agent, job).await
    }

    /// What local programs cause waits for what the agent writes itself, and leaves it room between.
    async fn write_of<T, F>(&self, origin: Origin, job: F) -> Result<T, SpoolError>
    where
        F: Fn(&Connection) -> Result<T, SpoolError> + Send + 'static,
        T: Send + 'static,
    {
        let held = lock(&self.gauges.held).clone();
        if let Some(held) = held {
            return Err(SpoolError::Held(held));
        }
        let written = match origin {
            Origin::Agent => self.database.write(job).await,
            Origin::Local => self.database.write_bulk(job).await,
        };
        let trouble = match &written {
            Err(SpoolError::Database(error)) => Some(Trouble {
                cause: format!(
                    "{} cannot be written: {:#}",
                    self.path.display(),
                    anyhow::Error::new(error.clone())
                ),
                fix: journal::fix(error),
                full: matches!(error, sqlite::Error::Full(_)),
            }),
            Ok(_) | Err(_) => None,
        };
        *lock(&self.gauges.trouble) = trouble;
        written
    }

    /// The next records that may be sent: from one spool epoch, contiguous behind what is acknowledged and behind
    /// `after` (what is under way), with a body of at most `credit_bytes`. The oldest epoch comes first.
    ///
    /// # Errors
    /// When the file fails.
    pub async fn next_batch(
        &self,
        after: &BTreeMap<AgentRunId, u64>,
        credit_bytes: usize,
    ) -> Result<Option<Batch>, SpoolError> {
        let room = credit_bytes.min(BATCH_BYTES_MAX);
        match self.look(after, room).await? {
            batch::Next::Batch(batch) => Ok(Some(batch)),
            batch::Next::Nothing => Ok(None),
            batch::Next::Unreadable { epoch, seq } => {
                self.write(move |connection| trim::mark_damaged(connection, epoch, seq))
                    .await?;
                match self.look(after, room).await? {
                    batch::Next::Batch(batch) => Ok(Some(batch)),
                    // The next call takes care of the next unreadable record.
                    batch::Next::Nothing | batch::Next::Unreadable { .. } => Ok(None),
                }
            }
        }
    }

    async fn look(
        &self,
        after: &BTreeMap<AgentRunId, u64>,
        room: usize,
    ) -> Result<batch::Next, SpoolError> {
        let after = after.clone();
        self.database
            .read(move |connection| batch::next(connection, &after, room))
            .await
    }

    /// Notes that the backend has committed everything up to `position`, and trims it.
    ///
    /// # Errors
    /// When the file fails; the records are sent again then, which does no harm.
    pub async fn acknowledge(&self, position: Position) -> Result<(), SpoolError> {
        let own = self.agent_run_id;
        let usage = self
            .write(move |connection| {
                let usage = trim::acknowledge(connection, position, own)?;
                fault::point("spool.trimmed.before_commit");
                Ok::<_, SpoolError>(usage)
            })
            .await?;
        fault::point("spool.trimmed.after_commit");
        self.note(usage);
        Ok(())
    }

    /// What is acknowledged of each epoch, as HELLO names them: first those with something waiting, oldest first, then
    /// the youngest of those that were delivered, by which a backend notices that its database was restored.
    ///
    /// # Errors
    /// When the file fails.
    pub async fn positions(&self) -> Result<Vec<Position>, SpoolError> {
        self.database
            .read(|connection| {
                let waiting = batch::waiting_epochs(connection)?;
                let mut positions: Vec<Position> = waiting
                    .into_iter()
                    .map(|epoch| Position {
                        spool_epoch: epoch.agent_run_id,
                        seq: epoch.acknowledged,
                    })
                    .collect();
                positions.extend(trim::delivered(connection)?);
                Ok(positions)
            })
            .await
    }

    /// When the record was observed that has waited longest, by this gateway's clock; none without one.
    ///
    /// # Errors
    /// When the file fails.
    pub async fn oldest(&self) -> Result<Option<Timestamp>, SpoolError> {
        const OLDEST: &str = "SELECT body FROM record ORDER BY epoch, seq LIMIT 1";
        let oldest = |connection: &Connection| {
            connection.optional(OLDEST, &[], |row| {
                let record = row
                    .text("body")
                    .and_then(|body| serde_json::from_str(body).ok());
                Ok::<_, SpoolError>(record.map(|record: Record| record.observed_at))
            })
        };
        Ok(self.database.read(oldest).await?.flatten())
    }

    /// How full it is, as of the last change.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            records: self.gauges.records.load(Ordering::Relaxed),
            bytes: self.gauges.bytes.load(Ordering::Relaxed),
            bytes_max: u64::from(self.pages_max) * PAGE_BYTES,
            local_bytes: self.gauges.local_bytes.load(Ordering::Relaxed),
            local_bytes_max: self.room.local() * PAGE_BYTES,
            dropped: self.gauges.dropped.load(Ordering::Relaxed),
        }
    }

    /// Notes that the backend did not store records, since this process started.
    pub fn note_unstored(&self, reason: &str, records: u64) {
        let mut unstored = self
            .gauges
            .unstored
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // A backend that invents reasons is counted under one.
        let known = unstored.len() < REFUSAL_REASONS_MAX || unstored.contains_key(reason);
        let reason = if known { reason } else { "other" };
        let sum = unstored.entry(reason.to_owned()).or_default();
        *sum = sum.saturating_add(records);
    }

    /// Records that the backend did not store, by reason, since this process started.
    #[must_use]
    pub fn unstored(&self) -> BTreeMap<String, u64> {
        self.gauges
            .unstored
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Closes the file.
    ///
    /// # Errors
    /// When the last checkpoint fails; what was taken in is safe all the same.
    pub async fn close(&self) -> Result<(), SpoolError> {
        // The last moment at which somebody knows.
        let settled = self.settle().await;
        if let Err(error) = settled {
            let lost = self.gauges.uncounted.load(Ordering::Relaxed);
            warn!(%error, records = lost, "records that were refused could not be counted in the spool");
        }
        Ok(self.database.close().await?)
    }

    fn note(&self, usage: trim::Usage) {
        self.gauges.records.store(usage.records, Ordering::Relaxed);
        self.gauges.dropped.store(usage.dropped, Ordering::Relaxed);
        let bytes = usage.pages.saturating_mul(PAGE_BYTES);
        self.gauges.bytes.store(bytes, Ordering::Relaxed);
        let local_bytes = usage.filled.local_pages().saturating_mul(PAGE_BYTES);
        let gauge = &self.gauges.local_bytes;
        gauge.store(local_bytes, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves a damaged file and its side files out of the way, under a name that this process alone uses.
fn put_aside(path: &Path, agent_run_id: AgentRunId) -> Result<PathBuf, SpoolError> {
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = with(&format!(".damaged-{agent_run_id}"));
    let failed = |source: std::io::Error| {
        SpoolError::Database(sqlite::Error::Open {
            path: path.to_owned(),
            source: Arc::new(source),
        })
    };
    std::fs::rename(path, &aside).map_err(failed)?;
    for suffix in ["-wal", "-shm"] {
        match std::fs::remove_file(with(suffix)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(aside)
}

/// What a column holds.
fn read<T: Column>(row: &Row<'_>, column: &'static str) -> Result<T, SpoolError> {
    row.get(column).ok_or(SpoolError::Inconsistent(column))
}
