//! The embedded store: one SQLite file, one writer with group commit, readers beside it.
//!
//! Because there is one writer, what a transaction has read holds until it commits; every guarded update still names
//! the state it expects, and its count of rows is checked.

mod admit;
mod agents;
mod audit;
mod budget;
mod catalogues;
mod certificates;
mod confirm;
mod contract;
mod forks;
mod ground;
mod keys;
mod lease;
mod opening;
mod orphans;
mod outputs;
mod page;
mod reports;
mod row;
mod runs;
mod sessions;
mod settle;
mod submit;
mod targets;
mod telemetry;
mod timeline;
mod tx;
mod upkeep;

use viworks_common::id::Tenant;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Constraint, Database, Error, Migration, Options, migration};

use super::{StoreError, StoreResult, TelemetryLimits};

use ground::Ground;
use tx::{Tx, View};

const MIGRATIONS: &[Migration] = &[
    migration!(
        "../../migrations/sqlite",
        "0001_create_system_of_record.sql"
    ),
    migration!("../../migrations/sqlite", "0002_bound_stored_telemetry.sql"),
    migration!("../../migrations/sqlite", "0003_keep_a_time_line.sql"),
    migration!(
        "../../migrations/sqlite",
        "0004_say_since_when_holders_of_an_identity_are_known.sql"
    ),
    migration!("../../migrations/sqlite", "0005_keep_skipped_gateways.sql"),
    migration!(
        "../../migrations/sqlite",
        "0008_keep_the_time_limit_of_a_run.sql"
    ),
    migration!(
        "../../migrations/sqlite",
        "0009_bound_what_a_gateway_leaves_behind.sql"
    ),
    migration!("../../migrations/sqlite", "0010_count_open_commands.sql"),
    migration!(
        "../../migrations/sqlite",
        "0011_remember_refused_spool_epochs.sql"
    ),
];

/// The store of a backend that needs nothing else.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    database: Database,
    ground: Ground,
    telemetry: TelemetryLimits,
}

impl SqliteStore {
    /// Opens the file, makes it if it is missing, and brings its schema up to date.
    ///
    /// # Errors
    /// When the file cannot be opened or its schema is not ours.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let file = options.path.clone();
        let database = Database::open(options, MIGRATIONS).await?;
        Ok(Self {
            database,
            ground: Ground::new(&file)?,
            telemetry: TelemetryLimits::default(),
        })
    }

    /// The same, with these bounds of what a gateway may have stored.
    #[must_use]
    pub const fn telemetry_limits(mut self, limits: TelemetryLimits) -> Self {
        self.telemetry = limits;
        self
    }

    /// The database beneath, for its metrics.
    #[must_use]
    pub const fn database(&self) -> &Database {
        &self.database
    }

    /// Carries out an intent in one transaction, unless what it commits would be gone with this process.
    async fn write<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        now: Timestamp,
        intent: impl Fn(&Tx<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        self.ground.check()?;
        let tenant = tenant.clone();
        self.database
            .write(move |connection| Tx::run(connection, &tenant, now, &intent))
            .await
    }

    /// Answers a question on one reader.
    async fn read<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let tenant = tenant.clone();
        self.database
            .read(move |connection| question(&View::new(connection, &tenant)))
            .await
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match error {
            Error::Full(_) => Self::Full(Box::new(error)),
            Error::Busy(_)
            | Error::ReadersBusy
            | Error::Constraint { .. }
            | Error::Corrupt(_)
            | Error::Io(_)
            | Error::Open { .. }
            | Error::Unsafe(_)
            | Error::SchemaTooNew { .. }
            | Error::Migrate(_)
            | Error::LibraryTooOld { .. }
            | Error::Setting { .. }
            | Error::Panicked
            | Error::Closed
            | Error::Other(_) => Self::Unavailable(Box::new(error)),
        }
    }
}

/// Turns the refusal of a unique key into a conflict.
fn conflict_or(
    kinds: &'static [Constraint],
    what: impl FnOnce() -> String,
) -> impl FnOnce(Error) -> StoreError {
    move |error| {
        if kinds.iter().any(|kind| error.is_constraint(*kind)) {
            StoreError::Conflict { what: what() }
        } else {
            error.into()
        }
    }
}

#[cfg(test)]
mod tests;
