//! The embedded store: one SQLite file, one writer with group commit, readers beside it.
//!
//! Because there is one writer, what a transaction has read holds until it commits; every guarded update still names
//! the state it expects, and its count of rows is checked.

mod ground;
mod telemetry;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use viworks_common::id::{AgentId, InstanceId, Tenant};
use viworks_common::pin::rotation::ServerKey;
use viworks_common::telemetry::steps::Range;
use viworks_common::time::Timestamp;
use viworks_runtime::migrations::Standing;
use viworks_runtime::sqlite::{
    Connection, Database, Error, Migration, Options, Params, Statement, migration, params,
};

use super::intents::SqlStore;
use super::intents::link::{Doubt, Engine, Link, LinkError, Party, Record, Sql, Take, Urgency};
use super::intents::merged::{Answer, Item};
use super::intents::store::REPORT_TIME;
use super::intents::tx::View;
use super::intents::{authorities, pins, site, upkeep};
use super::{
    InstanceLoad, MasterIds, Neighbour, Retention, Signed, SignedFor, StoreError, StoreHealth,
    StoreResult,
};

use ground::Ground;

/// A file that is on the main branch is never changed; a test has their checksums.
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
    migration!(
        "../../migrations/sqlite",
        "0012_name_the_instance_of_a_session.sql"
    ),
    migration!("../../migrations/sqlite", "0013_keep_dead_letters.sql"),
    migration!("../../migrations/sqlite", "0014_roll_up_telemetry.sql"),
    migration!(
        "../../migrations/sqlite",
        "0016_tie_a_site_to_its_master_key.sql"
    ),
    migration!(
        "../../migrations/sqlite",
        "0017_write_fewer_pages_for_a_command.sql"
    ),
    migration!("../../migrations/sqlite", "0018_keep_enrolment_tickets.sql"),
    migration!(
        "../../migrations/sqlite",
        "0019_forget_positions_of_telemetry.sql"
    ),
    migration!(
        "../../migrations/sqlite",
        "0020_forget_gaps_of_telemetry.sql"
    ),
    migration!("../../migrations/sqlite", "0021_renew_certificates.sql"),
    migration!("../../migrations/sqlite", "0022_rotate_server_keys.sql"),
    migration!("../../migrations/sqlite", "0023_replace_gateways.sql"),
    migration!("../../migrations/sqlite", "0024_decide_about_forks.sql"),
    migration!("../../migrations/sqlite", "0025_rotate_agent_keys.sql"),
    migration!("../../migrations/sqlite", "0026_revoke_certificates.sql"),
    migration!("../../migrations/sqlite", "0027_say_which_master_keys.sql"),
    migration!(
        "../../migrations/sqlite",
        "0028_tell_the_planner_of_certificates.sql"
    ),
    migration!(
        "../../migrations/sqlite",
        "0029_keep_reissued_certificates.sql"
    ),
    migration!(
        "../../migrations/sqlite",
        "0030_keep_which_authorities_gateways_have.sql"
    ),
    migration!(
        "../../migrations/sqlite",
        "0031_say_who_signed_certificates.sql"
    ),
    migration!(
        "../../migrations/sqlite",
        "0032_say_how_long_what_is_shown_is_good.sql"
    ),
];

/// What to do about a file that is damaged.
pub const DAMAGED_FIX: &str = "with every backend stopped, put back the copy of its folder that was kept before an \
upgrade (docs/operations/upgrade.md); without a copy, move the file and those beside it (-wal, -shm) away: the backend \
then begins anew, and every gateway has to be issued again";

/// The store of a backend that needs nothing else.
pub type SqliteStore = SqlStore<Sqlite>;

/// The database of a [`SqliteStore`]. Clones share it.
#[derive(Debug, Clone)]
pub struct Sqlite {
    database: Database,
    ground: Ground,
    /// It has one backend.
    alone: Arc<watch::Sender<Option<InstanceId>>>,
}

impl SqliteStore {
    /// Opens the file, makes it if it is missing, and brings its schema up to date.
    ///
    /// # Errors
    /// When the file cannot be opened or its schema is not ours.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let file = options.path.clone();
        let database = Database::open(options, MIGRATIONS).await?;
        let ground = Ground::new(&file)?;
        Ok(Self::on(Sqlite {
            database,
            ground,
            alone: Arc::new(watch::Sender::new(None)),
        }))
    }

    /// The database beneath, for its metrics.
    #[must_use]
    pub const fn database(&self) -> &Database {
        &self.engine().database
    }
}

/// How long any other question may take, as on a server.
const READ_TIME: Duration = Duration::from_secs(30);

impl Sqlite {
    async fn read_within<T: Send + 'static>(
        &self,
        limit: Duration,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let tenant = tenant.clone();
        let job = move |connection: &Connection| {
            connection.within(limit, || question(&View::new(connection, &tenant)))
        };
        self.database.read(job).await
    }
}

impl Engine for Sqlite {
    const BULK_WRITES: usize = 1;

    /// Each commit is a wait for the disk; in between somebody else has the writer.
    const HEARTBEATS: usize = 2_000;

    async fn write<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        urgency: Urgency,
        intent: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        // Refused, where what is committed would be gone with this process.
        self.ground.check()?;
        let tenant = tenant.clone();
        let job = move |connection: &Connection| intent(&View::new(connection, &tenant));
        match urgency {
            Urgency::Prompt => self.database.write(job).await,
            Urgency::Bulk => self.database.write_bulk(job).await,
        }
    }

    /// A statement is no journey here, and a transaction costs nothing that it would save.
    async fn write_at_once<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        _at_once: impl Fn(&View<'_>) -> StoreResult<Option<T>> + Send + 'static,
        intent: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        self.write(tenant, Urgency::Prompt, intent).await
    }

    /// Whatever waits at the writer is committed together anyway.
    async fn write_together(&self, _item: Item) -> StoreResult<Option<Answer>> {
        Ok(None)
    }

    async fn read<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        self.read_within(READ_TIME, tenant, question).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + Sync + 'static,
    ) -> StoreResult<T> {
        self.read(tenant, question).await
    }

    async fn ask_before_writing<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + Sync + 'static,
    ) -> StoreResult<T> {
        let tenant = tenant.clone();
        let job = move |connection: &Connection| question(&View::new(connection, &tenant));
        self.database.look(job).await
    }

    /// On one of the readers, of which reports do not take all.
    async fn report<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        self.read_within(REPORT_TIME, tenant, question).await
    }

    async fn delete_days(&self, _before: Timestamp) -> StoreResult<u64> {
        Ok(0)
    }

    fn is_busy(&self) -> bool {
        self.database.counters().is_busy()
    }

    fn instance(&self) -> watch::Receiver<Option<InstanceId>> {
        self.alone.subscribe()
    }

    fn neighbours(&self) -> watch::Receiver<Vec<Neighbour>> {
        watch::Sender::default().subscribe()
    }

    fn promised(&self) -> Option<Retention> {
        None
    }

    fn note_load(&self, _load: InstanceLoad) {}

    fn note_authorities(&self, _bundle: &str) {}

    async fn note_masters(&self, masters: MasterIds) -> StoreResult<()> {
        let note = move |view: &View<'_>| site::note_masters(view, masters);
        self.write(&Tenant::default_tenant(), Urgency::Prompt, note)
            .await
    }

    async fn health(&self, _doubt: Doubt) -> StoreResult<StoreHealth> {
        if let Some(lost) = self.ground.look().await {
            return Err(StoreError::Unavailable(Box::new(lost)));
        }
        let beat = |view: &View<'_>| upkeep::health(view, "sqlite");
        let tenant = Tenant::default_tenant();
        let beaten = self.write(&tenant, Urgency::Prompt, beat).await;
        if beaten.is_err()
            && let Some(lost) = self.ground.write().await
        {
            return Err(StoreError::Unavailable(Box::new(lost)));
        }
        beaten
    }

    async fn close(&self) {
        if let Err(error) = self.database.close().await {
            tracing::warn!(%error, "failed to close the store; what was committed is safe");
        }
    }
}

impl Link for Connection {
    fn execute(
        &self,
        sql: Sql,
        params: Params<'_>,
        offers: Params<'_>,
    ) -> Result<usize, LinkError> {
        Ok(bound(self, sql, params, offers)?.execute()?)
    }

    fn query(
        &self,
        sql: Sql,
        params: Params<'_>,
        offers: Params<'_>,
        take: Take<'_>,
    ) -> Result<(), LinkError> {
        Ok(bound(self, sql, params, offers)?.each(take)?)
    }

    fn query_and_commit(
        &self,
        sql: Sql,
        params: Params<'_>,
        offers: Params<'_>,
        take: Take<'_>,
    ) -> Result<(), LinkError> {
        self.query(sql, params, offers, take)
    }

    fn party(&self) -> Party {
        Party::Alone
    }

    // There is one writer, so what a transaction has read holds until it ends.

    fn lock_gateways(&self, _tenant: &Tenant, _gateways: &[AgentId]) -> Result<bool, LinkError> {
        Ok(false)
    }

    fn lock_names(&self, _tenant: &Tenant, _names: &[String]) -> Result<(), LinkError> {
        Ok(())
    }

    fn append_telemetry(&self, tenant: &Tenant, records: &[Record<'_>]) -> Result<(), LinkError> {
        telemetry::append(self, tenant, records)
    }

    fn telemetry_tables(&self, _range: Range) -> Result<Option<Vec<Range>>, LinkError> {
        Ok(None)
    }

    fn make_days_ahead(&self, _now: Timestamp) -> Result<(), LinkError> {
        Ok(())
    }

    fn delete_telemetry(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        before: Timestamp,
        most: usize,
    ) -> Result<usize, LinkError> {
        telemetry::delete(self, tenant, agent_id, before, most)
    }

    fn forget_telemetry(
        &self,
        _tenant: &Tenant,
        _agent_id: AgentId,
        _emptied_to: Timestamp,
    ) -> Result<(), LinkError> {
        Ok(())
    }

    fn emptied_to(&self, before: Timestamp) -> Result<Timestamp, LinkError> {
        Ok(before)
    }
}

fn bound<'c>(
    connection: &'c Connection,
    sql: Sql,
    params: Params<'_>,
    offers: Params<'_>,
) -> Result<Statement<'c>, Error> {
    let mut statement = connection.prepare(sql.sqlite)?.with(params)?;
    for (name, value) in offers {
        statement = statement.offer(name, *value)?;
    }
    Ok(statement)
}

/// Where a database file stands; where there is none, it lacks everything.
///
/// # Errors
///
/// When the file cannot be read, or holds a newer schema.
pub fn standing(file: &Path) -> Result<Standing, Error> {
    viworks_runtime::sqlite::standing(file, MIGRATIONS)
}

/// Whether a file lacks one of the migrations.
fn lacks(file: &Path, version: i64) -> Result<bool, Error> {
    let missing = standing(file)?.missing;
    Ok(missing.iter().any(|missing| missing.version() == version))
}

/// Whether a database file has a gateway; it is not changed, and there may be none.
///
/// # Errors
///
/// When the file cannot be read, or holds a newer schema.
pub fn has_gateways(file: &Path) -> Result<bool, Error> {
    const GATEWAYS: &str = "SELECT agent_id FROM gateways LIMIT 1";
    if lacks(file, 1)? {
        return Ok(false);
    }
    viworks_runtime::sqlite::is_answered(file, GATEWAYS, &[])
}

/// Whether a database file belongs to another master key than that with this check; it is not changed, and there may be
/// none.
///
/// # Errors
///
/// When the file cannot be read, or holds a newer schema.
pub fn belongs_to_another(file: &Path, key_check: [u8; 32]) -> Result<bool, Error> {
    const OTHER: &str = "SELECT one FROM site WHERE key_check <> :key_check";
    if lacks(file, 16)? {
        return Ok(false);
    }
    viworks_runtime::sqlite::is_answered(file, OTHER, params! { key_check })
}

/// The keys of the server that a database file has; it is not changed, and there may be none.
///
/// # Errors
///
/// When the file cannot be read, or holds a newer schema.
pub fn server_keys(file: &Path, tenant: &Tenant) -> StoreResult<Vec<ServerKey>> {
    if lacks(file, 22)? {
        return Ok(Vec::new());
    }
    let keys = viworks_runtime::sqlite::answers(file, pins::LOAD, params! { tenant }, pins::read)?;
    keys.into_iter().collect()
}

/// How many gateways have a good certificate of which authority, by a database file; it is not changed, and there may
/// be none.
///
/// # Errors
///
/// When the file cannot be read, or holds a newer schema.
pub fn signed(file: &Path, tenant: &Tenant, wall: Timestamp) -> StoreResult<Vec<Signed>> {
    if lacks(file, 32)? {
        return Ok(Vec::new());
    }
    let params = params! { tenant, wall };
    let read = authorities::read_signed;
    let signed = viworks_runtime::sqlite::answers(file, authorities::SIGNED, params, read)?;
    signed.into_iter().collect()
}

/// The first so many gateways that have such a certificate of one authority, by a database file that has [`signed`]
/// told of it.
///
/// # Errors
///
/// When the file cannot be read.
pub fn signed_for(
    file: &Path,
    tenant: &Tenant,
    issuer: Option<[u8; 32]>,
    wall: Timestamp,
    limit: usize,
) -> StoreResult<Vec<SignedFor>> {
    let params = params! { tenant, issuer, wall, limit };
    let read = authorities::read_signed_for;
    let first = viworks_runtime::sqlite::answers(file, authorities::SIGNED_FOR, params, read)?;
    first.into_iter().collect()
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match error {
            Error::Full(_) => Self::Full(Box::new(error)),
            Error::TooLong(_) => Self::TooLong(Box::new(error)),
            Error::Busy(_)
            | Error::ReadersBusy
            | Error::Constraint { .. }
            | Error::Corrupt { .. }
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

#[cfg(test)]
mod tests;
