//! The durable record of every command (accepted → started → finished → reported) and of the session ratchet.
//!
//! Each step returns once it is on disk; only then may the other end be told. What the steps mean, and what a message
//! or a restart does to an entry, is decided by the pure rules in `common::journal`.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::warn;
use viworks_common::command::{Outcome, OutcomeState};
use viworks_common::human;
use viworks_common::id::{AgentRunId, CommandId};
use viworks_common::journal::{Entry, EntryState};
use viworks_runtime::blocking::{self, Unanswered};
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::fault;
use viworks_runtime::files::{Guard, Lost, with_suffix};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::sqlite::{self, Connection, Database, Migration, Row, migration, params};

use crate::reserve::Reserve;

mod lookout;
mod row;

use lookout::Lookout;

/// How long the disk may take to make or remove the reserve.
const RESERVE_TIME: Duration = Duration::from_secs(60);

pub(crate) const MIGRATIONS: &[Migration] = &[
    migration!("../migrations/journal", "0001_entries_and_ratchet.sql"),
    migration!("../migrations/journal", "0002_time_limits.sql"),
];

/// Entries that are kept when the configuration does not say: everything unreported, and a long tail of reported ones
/// that wait for the low-water mark.
pub const ENTRIES_MAX_DEFAULT: u32 = 1_024;

/// Why the journal cannot do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// The file.
    #[error("the command journal failed")]
    Database(#[from] sqlite::Error),
    /// As many entries as there may be.
    #[error("the command journal holds {}, as many as it may", human::counted_all(u64::from(*.0), "entry", "entries"))]
    Full(u32),
    /// The entry is not in the state that this step starts from.
    #[error("command {command_id} is not {wanted} in the journal")]
    WrongState {
        /// The command.
        command_id: CommandId,
        /// What it had to be.
        wanted: &'static str,
    },
    /// The disk did not take it, or the file did not give it; the journal as a whole is as it was, and it can be tried
    /// again.
    #[error("the command journal failed: {}: {cause}; {fix}", path.display())]
    Unusable {
        /// The file.
        path: Arc<Path>,
        /// What SQLite and the system say.
        cause: String,
        /// What to do.
        fix: &'static str,
    },
    /// What is on disk cannot be relied on.
    #[error("{}: {cause}; the agent ends, and its next start says whether the file can be used: if it cannot, this gateway's state is lost (docs/errors/identity_fork.md)", path.display())]
    Broken {
        /// The file.
        path: Arc<Path>,
        /// What SQLite says.
        cause: String,
    },
    /// Its folder is not what it was: what is written now may be gone with this process.
    #[error("the state folder is lost: {0}")]
    Lost(#[from] Lost),
    /// A row that this program cannot have written.
    #[error("the command journal is inconsistent: {0}")]
    Inconsistent(&'static str),
}

impl JournalError {
    /// Whether what is on disk is no longer known, so that the process must end and read it again.
    ///
    /// A write that failed is not such a case: SQLite gives its transaction up, writes every page of the next one anew,
    /// and says that it is durable only after the disk did (docs/decisions/0013).
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        match self {
            Self::Database(error) => is_broken(error),
            Self::Broken { .. } | Self::Inconsistent(_) => true,
            Self::Full(_) | Self::WrongState { .. } | Self::Unusable { .. } | Self::Lost(_) => {
                false
            }
        }
    }
}

const fn is_broken(error: &sqlite::Error) -> bool {
    matches!(error, sqlite::Error::Corrupt { .. } | sqlite::Error::Closed)
}

/// What to do where the file cannot be used any more. A copy of it would not help: it is behind what this gateway did.
pub(crate) const LOST_FIX: &str = "what this gateway did and its epoch are lost with it: revoke the gateway, issue its \
name again, and install the new files with an empty state folder (docs/errors/identity_fork.md)";

/// Whether what is on disk cannot be used, however often it is tried.
pub(crate) fn is_damage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(sqlite::Error::Corrupt { .. }))
            || matches!(
                cause.downcast_ref(),
                Some(JournalError::Broken { .. } | JournalError::Inconsistent(_))
            )
    })
}

/// What must never go backwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Up to which order everything is final, as far as the backend said.
    pub low_water: u64,
    /// The highest order ever accepted or noted.
    pub highest_order: u64,
    /// The epoch of the ratchet; zero before the first session.
    pub epoch: u64,
    /// The ratchet token of that epoch.
    pub token: String,
}

/// An open journal. Clones share it.
#[derive(Debug, Clone)]
pub struct Journal {
    database: Database,
    entries_max: u32,
    /// How many there are, or will be once what is under way is committed: to count them for each would be a read on
    /// the path of every command.
    entries: Arc<AtomicU32>,
    path: Arc<Path>,
    reserve: Reserve,
    lookout: Arc<Lookout>,
    /// Why the last write failed, until one succeeds.
    trouble: Arc<Mutex<Option<JournalError>>>,
}

impl Journal {
    /// Opens or makes the file, and sets the reserve aside next to it if the disk has room for it. On a disk that is
    /// full the reserve of the process before is given up first: to start takes room as well.
    ///
    /// # Errors
    /// When there can be no journal at that place; the agent must not run without one.
    pub async fn open(path: &Path, entries_max: u32) -> Result<Self, JournalError> {
        let reserve = Reserve::new(with_suffix(path, ".reserve"));
        let mut gave_up = reserve.make_room_to_start();
        let mut opened = Database::open(sqlite::Options::new(path), MIGRATIONS).await;
        // A quota is met that nobody sees beforehand.
        let made_room = opened
            .as_ref()
            .is_err_and(|error| makes_room(&reserve, error));
        if made_room {
            gave_up = true;
            opened = Database::open(sqlite::Options::new(path), MIGRATIONS).await;
        }
        let database = opened?;
        let count = |connection: &Connection| {
            let sql = "SELECT count(*) AS entries FROM entry";
            connection.one(sql, &[], |row| row::read(row, "entries"))
        };
        let entries: u32 = database.read(count).await?;
        if !gave_up {
            reserve.set_aside();
        }
        let guard = Guard::new(path).map_err(|source| sqlite::Error::Open {
            path: path.to_owned(),
            source: Arc::new(source),
        })?;
        Ok(Self {
            database,
            entries_max: entries_max.max(1),
            entries: Arc::new(AtomicU32::new(entries)),
            path: path.into(),
            reserve,
            lookout: Arc::new(Lookout::new(path.parent().unwrap_or(path), guard)),
            trouble: Arc::default(),
        })
    }

    /// Whether the folder is still the one that was opened, and can be written: only then does the next process know
    /// what this one did, and only then may anything start that must not run twice.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn kept(&self) -> Result<(), Lost> {
        self.lookout.look().await
    }

    /// Why the last write failed, if that is no question of the folder; none once one succeeded.
    #[must_use]
    pub fn trouble(&self) -> Option<JournalError> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone()
    }

    /// Writes something that changes nothing, to find out whether the journal takes writes again.
    ///
    /// # Errors
    /// When it does not.
    pub async fn try_again(&self) -> Result<(), JournalError> {
        self.write(|connection| {
            connection.execute("UPDATE meta SET low_water = low_water", &[])?;
            Ok(())
        })
        .await
    }

    /// How many commands it remembers, and how many it may.
    #[must_use]
    pub fn entries(&self) -> (u32, u32) {
        (self.entries.load(Ordering::Relaxed), self.entries_max)
    }

    /// Whether the reserve is set aside. It looks at the disk: not for a runtime thread.
    #[must_use]
    pub fn holds_reserve(&self) -> bool {
        self.reserve.is_held()
    }

    /// Every entry, by order.
    ///
    /// # Errors
    /// When the file fails.
    pub async fn load(&self) -> Result<Vec<Entry>, JournalError> {
        let load = |connection: &Connection| connection.all(row::SELECT_ALL, &[], row::entry);
        self.read(load).await
    }

    /// One entry.
    ///
    /// # Errors
    /// When the file fails.
    pub async fn entry(&self, command_id: CommandId) -> Result<Option<Entry>, JournalError> {
        self.read(move |connection| {
            connection.optional(row::SELECT_ONE, params! { command_id }, row::entry)
        })
        .await
    }

    /// Every command whose result the backend has not acknowledged, by order.
    ///
    /// # Errors
    /// When the file fails.
    pub async fn unreported(&self) -> Result<Vec<CommandId>, JournalError> {
        let load = |connection: &Connection| {
            let sql = "SELECT command_id FROM entry WHERE state <> 'reported' ORDER BY ordinal, command_id";
            connection.all(sql, &[], |row| row::read(row, "command_id"))
        };
        self.read(load).await
    }

    /// Marks and ratchet.
    ///
    /// # Errors
    /// When the file fails.
    pub async fn meta(&self) -> Result<Meta, JournalError> {
        let read = |row: &Row<'_>| {
            Ok(Meta {
                low_water: row::read(row, "low_water")?,
                highest_order: row::read(row, "highest_order")?,
                epoch: row::read(row, "epoch")?,
                token: row::read(row, "token")?,
            })
        };
        self.read(move |connection| {
            let sql = "SELECT low_water, highest_order, epoch, token FROM meta";
            connection.one(sql, &[], read)
        })
        .await
    }

    /// Takes in a new entry, *accepted* or already *started*, and raises the highest order with it.
    ///
    /// # Errors
    /// [`JournalError::Full`] at the bound, [`JournalError::WrongState`] if the id is known, or when the file fails.
    pub async fn accept(&self, entry: Entry) -> Result<(), JournalError> {
        let full = |entries| (entries < self.entries_max).then_some(entries + 1);
        self.entries
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, full)
            .map_err(|_full| JournalError::Full(self.entries_max))?;
        let (before, after) = match entry.state {
            EntryState::Accepted => (
                "journal.accepted.before_commit",
                "journal.accepted.after_commit",
            ),
            EntryState::Started | EntryState::Finished | EntryState::Reported => {
                ("journal.begun.before_commit", "journal.begun.after_commit")
            }
        };
        let inserted = self.write(move |connection| {
            row::insert(connection, &entry)?;
            let sql = "UPDATE meta SET highest_order = max(highest_order, :order)";
            connection.execute(sql, params! { order: entry.order })?;
            fault::point(before);
            Ok(())
        });
        if let Err(error) = inserted.await {
            self.entries.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        fault::point(after);
        Ok(())
    }

    /// Moves an accepted entry to *started*, by this process.
    ///
    /// # Errors
    /// [`JournalError::WrongState`] unless it is *accepted*, or when the file fails; then it must not be started.
    pub async fn mark_started(
        &self,
        command_id: CommandId,
        agent_run_id: AgentRunId,
    ) -> Result<(), JournalError> {
        const MOVE: &str = "\
            UPDATE entry SET state = 'started', agent_run_id = :agent_run_id
            WHERE command_id = :command_id AND state = 'accepted'";
        self.write(move |connection| {
            let moved = connection.execute(MOVE, params! { command_id, agent_run_id })?;
            fault::point("journal.started.before_commit");
            moved_one(moved, command_id, "accepted")
        })
        .await?;
        fault::point("journal.started.after_commit");
        Ok(())
    }

    /// Records how an entry ended, whether it ran or not.
    ///
    /// # Errors
    /// [`JournalError::WrongState`] unless it is *accepted* or *started*, or when the file fails.
    pub async fn finish(
        &self,
        command_id: CommandId,
        outcome: &Outcome,
    ) -> Result<(), JournalError> {
        const MOVE: &str = "\
            UPDATE entry SET state = 'finished', outcome = :outcome
            WHERE command_id = :command_id AND state IN ('accepted', 'started')";
        let outcome = row::outcome_json(outcome)?;
        self.write(move |connection| {
            let moved = connection.execute(MOVE, params! { command_id, outcome })?;
            fault::point("journal.finished.before_commit");
            moved_one(moved, command_id, "accepted or started")
        })
        .await?;
        fault::point("journal.finished.after_commit");
        Ok(())
    }

    /// Notes that the backend has committed the result. Harmless when it was noted before.
    ///
    /// # Errors
    /// [`JournalError::WrongState`] if it has no result, or when the file fails.
    pub async fn mark_reported(&self, command_id: CommandId) -> Result<(), JournalError> {
        const MOVE: &str = "\
            UPDATE entry SET state = 'reported'
            WHERE command_id = :command_id AND state IN ('finished', 'reported')";
        self.write(move |connection| {
            let moved = connection.execute(MOVE, params! { command_id })?;
            fault::point("journal.reported.before_commit");
            moved_one(moved, command_id, "finished")
        })
        .await?;
        fault::point("journal.reported.after_commit");
        Ok(())
    }

    /// Puts an idempotent entry that was started by an earlier process back to *accepted*: it waits for a new permit.
    ///
    /// # Errors
    /// [`JournalError::WrongState`] unless it is *started* and idempotent, or when the file fails.
    pub async fn await_again(
        &self,
        command_id: CommandId,
        agent_run_id: AgentRunId,
    ) -> Result<(), JournalError> {
        const MOVE: &str = "\
            UPDATE entry SET state = 'accepted', agent_run_id = :agent_run_id
            WHERE command_id = :command_id AND state = 'started' AND idempotent = 1";
        self.write(move |connection| {
            let moved = connection.execute(MOVE, params! { command_id, agent_run_id })?;
            moved_one(moved, command_id, "started and idempotent")
        })
        .await
    }

    /// Records that the backend withdrew an accepted entry: it never starts, and needs no report. False if it is not
    /// *accepted* any more.
    ///
    /// # Errors
    /// When the file fails.
    pub async fn discard(&self, command_id: CommandId) -> Result<bool, JournalError> {
        const MOVE: &str = "\
            UPDATE entry SET state = 'reported', outcome = :outcome
            WHERE command_id = :command_id AND state = 'accepted'";
        let withdrawn = Outcome::without_run(OutcomeState::Cancelled, "the backend withdrew it");
        let outcome = row::outcome_json(&withdrawn)?;
        self.write(move |connection| {
            Ok(connection.execute(MOVE, params! { command_id, outcome })? == 1)
        })
        .await
    }

    /// Raises the low-water mark and forgets the reported entries at or below it. Returns how many.
    ///
    /// # Errors
    /// When the file fails.
    pub async fn forget_up_to(&self, low_water: u64) -> Result<usize, JournalError> {
        const FORGET: &str = "\
            DELETE FROM entry WHERE state = 'reported' AND ordinal <= (SELECT low_water FROM meta)";
        let forgotten = self
            .write(move |connection| {
                let sql = "UPDATE meta SET low_water = max(low_water, :low_water)";
                connection.execute(sql, params! { low_water })?;
                Ok(connection.execute(FORGET, &[])?)
            })
            .await?;
        // There were never more than fit.
        let gone = u32::try_from(forgotten).unwrap_or(u32::MAX);
        self.entries.fetch_sub(gone, Ordering::Relaxed);
        Ok(forgotten)
    }

    /// Makes epoch and token durable, before CONFIRM is sent. An older epoch never replaces a newer one.
    ///
    /// # Errors
    /// [`JournalError::Inconsistent`] for an older epoch, or when the file fails.
    pub async fn store_epoch(&self, epoch: u64, token: &str) -> Result<(), JournalError> {
        let token = token.to_owned();
        self.write(move |connection| {
            let sql = "UPDATE meta SET epoch = :epoch, token = :token WHERE epoch <= :epoch";
            if connection.execute(sql, params! { epoch, token })? == 0 {
                return Err(JournalError::Inconsistent("an epoch that goes backwards"));
            }
            Ok(())
        })
        .await
    }

    /// Has the reserve again, once room was made on a disk that was full; looks for it until the agent stops.
    pub async fn keep_reserve(
        self,
        clock: Arc<dyn Clock>,
        interval: Duration,
        lifecycle: Lifecycle,
    ) {
        loop {
            let next = clock.now().saturating_add(interval);
            tokio::select! {
                () = lifecycle.stopping() => return,
                () = sleep_until(&*clock, next) => {}
            }
            let reserve = self.reserve.clone();
            let look = move || reserve.restore();
            if let Err(error) = blocking::call("journal reserve", RESERVE_TIME, look).await {
                // Without a thread, or with a disk that hangs, there will be another time.
                warn!(%error, "the journal's reserve was not looked at");
            }
        }
    }

    /// Closes the file.
    ///
    /// # Errors
    /// When the last checkpoint fails; what was journalled is safe all the same.
    pub async fn close(&self) -> Result<(), JournalError> {
        Ok(self.database.close().await?)
    }

    /// Gives the reserve up where there was no room, on a thread that may wait for the disk; false if there was none to
    /// give, or it is not what is missing.
    async fn give_up_reserve(&self, error: sqlite::Error) -> bool {
        let (reserve, refused) = (self.reserve.clone(), error.clone());
        let give_up = move || makes_room(&reserve, &refused);
        match blocking::call("journal reserve", RESERVE_TIME, give_up).await {
            Ok(given) => given,
            // Commands need it more than this thread needs to be quick.
            Err(Unanswered::NoThread(_)) => makes_room(&self.reserve, &error),
            Err(Unanswered::Late(_) | Unanswered::Hanging(_) | Unanswered::Panicked) => false,
        }
    }

    async fn read<T, F>(&self, job: F) -> Result<T, JournalError>
    where
        F: Fn(&Connection) -> Result<T, JournalError> + Send + 'static,
        T: Send + 'static,
    {
        let read = self.database.read(job).await;
        read.map_err(|error| self.explained(error))
    }

    /// Writes; when there is no room, gives the reserve up and tries once more.
    async fn write<T, F>(&self, job: F) -> Result<T, JournalError>
    where
        F: Fn(&Connection) -> Result<T, JournalError> + Send + Sync + 'static,
        T: Send + 'static,
    {
        if let Some(lost) = self.lookout.read_only() {
            return Err(JournalError::Lost(lost));
        }
        let job = Arc::new(job);
        let again = Arc::clone(&job);
        let mut written = self.database.write(move |connection| job(connection)).await;
        // SQLite has one answer for a disk that broke, turned read-only, or holds this user to a quota.
        if let Err(JournalError::Database(sqlite::Error::Io(_))) = &written {
            self.lookout.write().await?;
        }
        let refused = match &written {
            Err(JournalError::Database(
                error @ (sqlite::Error::Full(_) | sqlite::Error::Io(_)),
            )) => Some(error.clone()),
            Ok(_) | Err(_) => None,
        };
        if let Some(refused) = refused
            && self.give_up_reserve(refused).await
        {
            let again = move |connection: &Connection| again(connection);
            written = self.database.write(again).await;
        }
        let written = written.map_err(|error| self.explained(error));
        let trouble = match &written {
            Err(error @ JournalError::Unusable { .. }) => Some(error.clone()),
            Ok(_) | Err(_) => None,
        };
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        written
    }

    /// The same with the path, the whole cause, and what to do.
    fn explained(&self, error: JournalError) -> JournalError {
        let JournalError::Database(error) = error else {
            return error;
        };
        let path = Arc::clone(&self.path);
        let (broken, fix) = (is_broken(&error), fix(&error));
        let cause = if let sqlite::Error::Corrupt { source, .. } = &error {
            // The file is named beside it.
            format!("the database is damaged: {source}")
        } else {
            format!("{:#}", anyhow::Error::new(error))
        };
        if broken {
            JournalError::Broken { path, cause }
        } else {
            JournalError::Unusable { path, cause, fix }
        }
    }
}

/// Gives the reserve up where that is what the database lacks. Of a disk that is full it says so, or only that it
/// failed, as of one that broke: then room is tried for.
fn makes_room(reserve: &Reserve, error: &sqlite::Error) -> bool {
    if matches!(error, sqlite::Error::Full(_)) {
        reserve.give_up()
    } else {
        matches!(error, sqlite::Error::Io(_)) && reserve.give_up_if_full()
    }
}

/// What to do about a database that does not take a write.
pub(crate) const fn fix(error: &sqlite::Error) -> &'static str {
    if matches!(error, sqlite::Error::Full(_)) {
        "make room on its disk; nothing has to be restarted"
    } else {
        "see dmesg, the mount and the quotas of its disk; nothing has to be restarted once it takes writes again"
    }
}

fn moved_one(
    moved: usize,
    command_id: CommandId,
    wanted: &'static str,
) -> Result<(), JournalError> {
    if moved == 1 {
        return Ok(());
    }
    Err(JournalError::WrongState { command_id, wanted })
}
