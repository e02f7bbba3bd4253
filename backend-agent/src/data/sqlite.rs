//! The embedded store: one SQLite file, one writer with group commit, readers beside it.
//!
//! Each method of the contract is one function in the file of its feature, run in one transaction of the writer or on
//! one reader. Because there is one writer, what a transaction has read holds until it commits; every guarded update
//! still names the state it expects, and its count of rows is checked.

mod admit;
mod agents;
mod audit;
mod budget;
mod catalogues;
mod commands;
mod confirm;
mod forks;
mod ground;
mod keys;
mod opening;
mod outputs;
mod page;
mod row;
mod runs;
mod sessions;
mod settle;
mod submit;
mod telemetry;
mod timeline;
mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::Migrator;
use viworks_common::catalogue::CatalogueEntry;
use viworks_common::code::CloseCode;
use viworks_common::command::Outcome;
use viworks_common::id::{
    AgentId, ApiKeyId, CommandId, CommandName, GatewayName, RunId, StreamName, Tenant,
};
use viworks_common::telemetry::Position;
use viworks_common::time::Timestamp;
use viworks_common::timeline::Anchored;
use viworks_runtime::fault;
use viworks_runtime::sqlite::{Constraint, Database, Error, Options, Together};

use super::{
    AcceptOutcome, Accepted, Actor, AdmitOutcome, AdmitRequest, ApiKey, AuditRecord, Cancelled,
    Certificate, Command, CommandOutput, CompleteOutcome, ConfirmOutcome, ConfirmRequest, Counts,
    Fork, GapCursor, Gateway, GatewayFilter, GatewayRef, Holder, Idempotency, LeaseLimits, Leased,
    Listing, MergedEntry, NewApiKey, NewAuditRecord, NewCertificate, NewGateway, NewRun, Page,
    Purged, RefusalCursor, Rejected, Revoked, Run, SessionRecord, SessionTouch, Settled,
    SkippedGateway, Store, StoreError, StoreHealth, StoreResult, StoredCatalogue, StoredGap,
    StoredRecord, StoredRefusal, StreamSummary, Submission, Target, TargetSelection,
    TelemetryCursor, TelemetryLimits, TelemetryOutcome, TelemetryQuery, TelemetryWrite,
};

use admit::Hello;
use commands::{Report, Taker};
use confirm::Confirm;
use ground::Ground;
use row::to_json;
use sessions::PinReport;
use submit::Asked;

/// Targets of a run that is submitted together with others.
const SMALL_RUN_TARGETS_MAX: usize = 100;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

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
        let database = Database::open(options, &MIGRATIONS).await?;
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

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::from(Error::from(error))
    }
}

/// Turns the refusal of a unique key into a conflict.
fn conflict_or<E: Into<StoreError>>(
    kinds: &'static [Constraint],
    what: impl FnOnce() -> String,
) -> impl FnOnce(E) -> StoreError {
    move |error| {
        let error = error.into();
        let refused = match &error {
            StoreError::Unavailable(cause) => cause
                .downcast_ref::<Error>()
                .is_some_and(|cause| kinds.iter().any(|kind| cause.is_constraint(*kind))),
            StoreError::Conflict { .. }
            | StoreError::Missing { .. }
            | StoreError::QueueFull { .. }
            | StoreError::Fenced
            | StoreError::Full(_)
            | StoreError::Inconsistent { .. } => false,
        };
        if refused {
            StoreError::Conflict { what: what() }
        } else {
            error
        }
    }
}

/// Runs a feature's function in one transaction: first its arguments by reference, then those by value.
macro_rules! write {
    ($store:ident, $function:path, [$($by_ref:ident),*], ($($by_value:expr),*)) => {{
        $store.ground.check()?;
        $(let $by_ref = $by_ref.to_owned();)*
        $store.database.write(move |connection| {
            Box::pin(async move { $function(connection, $(&$by_ref,)* $($by_value),*).await })
        }).await
    }};
}

/// Runs a feature's function in one transaction with whatever of its kind waits at the same moment; a question that is
/// `alone` by an id of its own is with nobody.
macro_rules! together {
    ($store:ident, $function:path, $tenant:ident, $question:expr, alone: $alone:expr) => {{
        let group: (Tenant, Option<RunId>) = ($tenant.to_owned(), $alone);
        let work: Together<_, _, _, _> = |connection, (tenant, _alone), questions| {
            Box::pin(async move { $function(connection, &tenant, &questions).await })
        };
        $store.ground.check()?;
        $store.database.write_together(group, $question, work).await
    }};
    ($store:ident, $function:path, $tenant:ident, $question:expr) => {
        together!($store, $function, $tenant, $question, alone: None)
    };
}

/// Runs a feature's function on a reader with whatever of its kind is asked at the same moment.
macro_rules! read_together {
    ($store:ident, $function:path, $tenant:ident, $question:expr) => {{
        let work: Together<_, _, _, _> = |connection, tenant: Tenant, questions| {
            Box::pin(async move { $function(connection, &tenant, &questions).await })
        };
        $store
            .database
            .read_together($tenant.to_owned(), $question, work)
            .await
    }};
}

/// Runs a feature's function on a reader.
macro_rules! read {
    ($store:ident, $function:path, $($argument:expr),* $(,)?) => {{
        let mut connection = $store.database.read().await?;
        $function(&mut connection $(, $argument)*).await
    }};
}

#[async_trait]
impl Store for SqliteStore {
    async fn create_gateway(
        &self,
        tenant: &Tenant,
        new: NewGateway,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()> {
        write!(self, agents::create, [tenant, new, actor], (now))
    }

    async fn gateway(&self, tenant: &Tenant, which: &GatewayRef) -> StoreResult<Option<Gateway>> {
        read!(self, agents::load, tenant, which)
    }

    async fn list_gateways(
        &self,
        tenant: &Tenant,
        filter: &GatewayFilter,
        page: Page<AgentId>,
    ) -> StoreResult<Listing<Gateway, AgentId>> {
        read!(self, agents::list, tenant, filter, page)
    }

    async fn rename_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        name: &GatewayName,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<()>> {
        write!(self, agents::rename, [tenant, name, actor], (agent_id, now))
    }

    async fn revoke_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<Revoked>> {
        write!(self, agents::revoke, [tenant, actor], (agent_id, now))
    }

    async fn register_certificate(
        &self,
        tenant: &Tenant,
        new: NewCertificate,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()> {
        write!(
            self,
            agents::register_certificate,
            [tenant, new, actor],
            (now)
        )
    }

    async fn certificate(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        spki: &[u8; 32],
    ) -> StoreResult<Option<Certificate>> {
        read_together!(self, agents::certificates, tenant, (agent_id, *spki))
    }

    async fn admit(
        &self,
        tenant: &Tenant,
        request: AdmitRequest,
        now: Timestamp,
    ) -> StoreResult<AdmitOutcome> {
        let limits = self.telemetry;
        let hello = Hello {
            request,
            limits,
            now,
        };
        together!(self, admit::admit, tenant, hello)
    }

    async fn confirm_session(
        &self,
        tenant: &Tenant,
        request: ConfirmRequest,
        now: Timestamp,
    ) -> StoreResult<ConfirmOutcome> {
        together!(self, confirm::confirm, tenant, Confirm { request, now })
    }

    async fn end_session(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        code: CloseCode,
        now: Timestamp,
    ) -> StoreResult<bool> {
        write!(self, sessions::end, [tenant], (agent_id, epoch, code, now))
    }

    async fn end_abandoned_sessions(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<u64> {
        write!(self, sessions::end_abandoned, [tenant], (now))
    }

    async fn touch_sessions(
        &self,
        tenant: &Tenant,
        touches: Vec<SessionTouch>,
        now: Timestamp,
    ) -> StoreResult<()> {
        write!(self, sessions::touch, [tenant, touches], (now))
    }

    async fn record_fork(
        &self,
        tenant: &Tenant,
        request: &AdmitRequest,
        now: Timestamp,
    ) -> StoreResult<()> {
        write!(self, forks::record, [tenant, request], (now))
    }

    async fn list_forks(&self, tenant: &Tenant, agent_id: AgentId) -> StoreResult<Vec<Fork>> {
        read!(self, forks::list, tenant, agent_id)
    }

    async fn list_sessions(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        limit: usize,
    ) -> StoreResult<Vec<SessionRecord>> {
        read!(self, sessions::list, tenant, agent_id, limit)
    }

    async fn report_pins(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        version: u64,
    ) -> StoreResult<()> {
        let report = PinReport {
            agent_id,
            epoch,
            version,
        };
        together!(self, sessions::report_pins, tenant, report)
    }

    async fn save_catalogue(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        digest: &str,
        entries: Vec<CatalogueEntry>,
        now: Timestamp,
    ) -> StoreResult<()> {
        let report = catalogues::Report {
            agent_id,
            epoch,
            digest: digest.to_owned(),
            entries: to_json(&entries),
            now,
        };
        together!(self, catalogues::save, tenant, report)
    }

    async fn catalogue(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Option<StoredCatalogue>> {
        read!(self, catalogues::load, tenant, agent_id)
    }

    async fn merged_catalogue(&self, tenant: &Tenant) -> StoreResult<Vec<MergedEntry>> {
        read!(self, catalogues::merged, tenant)
    }

    async fn resolve_targets(
        &self,
        tenant: &Tenant,
        selection: &TargetSelection,
        command: &CommandName,
    ) -> StoreResult<Vec<Target>> {
        match selection {
            TargetSelection::All => read!(self, catalogues::resolve_all, tenant, command),
            TargetSelection::AllExcept(left_out) => {
                let all = read!(self, catalogues::resolve_all, tenant, command)?;
                Ok(catalogues::without(all, left_out))
            }
            TargetSelection::Gateways(named) if named.len() <= SMALL_RUN_TARGETS_MAX => {
                let named = (command.clone(), named.clone());
                read_together!(self, catalogues::resolve, tenant, named)
            }
            TargetSelection::Gateways(named) => {
                let named = [(command.clone(), named.clone())];
                let mut answers = read!(self, catalogues::resolve, tenant, &named)?;
                answers.pop().unwrap_or_else(|| Ok(Vec::new()))
            }
        }
    }

    async fn submit_run(
        &self,
        tenant: &Tenant,
        new: NewRun,
        now: Timestamp,
    ) -> StoreResult<Submission> {
        // Many large runs in one document would take memory without end.
        let alone = (new.targets.len() > SMALL_RUN_TARGETS_MAX).then_some(new.run_id);
        let submission = together!(self, submit::submit, tenant, Asked { new, now }, alone: alone)?;
        fault::point("store.submit.after_commit");
        submission
    }

    async fn earlier_submission(
        &self,
        tenant: &Tenant,
        idempotency: &Idempotency,
        now: Timestamp,
    ) -> StoreResult<Option<Submission>> {
        read_together!(self, runs::replays, tenant, (idempotency.clone(), now))
    }

    async fn run(&self, tenant: &Tenant, run_id: RunId) -> StoreResult<Option<Run>> {
        read_together!(self, runs::load, tenant, run_id)
    }

    async fn list_runs(
        &self,
        tenant: &Tenant,
        page: Page<RunId>,
    ) -> StoreResult<Listing<Run, RunId>> {
        read!(self, runs::list, tenant, page)
    }

    async fn run_commands(
        &self,
        tenant: &Tenant,
        run_id: RunId,
        page: Page<CommandId>,
    ) -> StoreResult<Listing<Command, CommandId>> {
        read!(self, runs::commands, tenant, run_id, page)
    }

    async fn run_skipped(
        &self,
        tenant: &Tenant,
        run_id: RunId,
        page: Page<AgentId>,
    ) -> StoreResult<Listing<SkippedGateway, AgentId>> {
        read!(self, runs::skipped, tenant, run_id, page)
    }

    async fn command(
        &self,
        tenant: &Tenant,
        command_id: CommandId,
    ) -> StoreResult<Option<Command>> {
        read!(self, runs::command, tenant, command_id)
    }

    async fn command_output(
        &self,
        tenant: &Tenant,
        command_id: CommandId,
    ) -> StoreResult<Option<CommandOutput>> {
        read!(self, outputs::load, tenant, command_id)
    }

    async fn cancel_run(
        &self,
        tenant: &Tenant,
        run_id: RunId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<Cancelled>> {
        write!(self, runs::cancel, [tenant, actor], (run_id, now))
    }

    async fn lease_commands(
        &self,
        tenant: &Tenant,
        holder: &Holder,
        limits: LeaseLimits,
        now: Timestamp,
    ) -> StoreResult<Leased> {
        let taker = Taker {
            holder: *holder,
            limits,
            now,
        };
        let leased = together!(self, commands::lease, tenant, taker)?;
        if leased.commands.iter().any(|command| command.permitted) {
            fault::point("store.release.after_commit");
        }
        Ok(leased)
    }

    async fn accept_command(
        &self,
        tenant: &Tenant,
        holder: &Holder,
        accepted: Accepted,
        now: Timestamp,
    ) -> StoreResult<AcceptOutcome> {
        let holder = *holder;
        if !accepted.awaiting_permit
            && let Some(outcome) =
                read_together!(self, commands::accepted_before, tenant, (holder, accepted))?
        {
            return Ok(outcome);
        }
        let outcome = write!(self, commands::accept, [tenant], (holder, accepted, now))?;
        if matches!(outcome, AcceptOutcome::Go { .. }) {
            fault::point("store.release.after_commit");
        }
        Ok(outcome)
    }

    async fn reject_command(
        &self,
        tenant: &Tenant,
        holder: &Holder,
        rejected: Rejected,
        now: Timestamp,
    ) -> StoreResult<Option<Settled>> {
        let holder = *holder;
        write!(self, commands::reject, [tenant, rejected], (holder, now))
    }

    async fn start_command(
        &self,
        tenant: &Tenant,
        holder: &Holder,
        command_id: CommandId,
        started_at: Timestamp,
        now: Timestamp,
    ) -> StoreResult<bool> {
        let holder = *holder;
        write!(
            self,
            commands::start,
            [tenant],
            (holder, command_id, started_at, now)
        )
    }

    async fn complete_command(
        &self,
        tenant: &Tenant,
        holder: &Holder,
        command_id: CommandId,
        outcome: Outcome,
        now: Timestamp,
    ) -> StoreResult<CompleteOutcome> {
        let report = Report {
            holder: *holder,
            command_id,
            outcome,
            now,
        };
        let completed = together!(self, commands::complete, tenant, report)?;
        fault::point("store.result.after_commit");
        Ok(completed)
    }

    async fn queued_agents(
        &self,
        tenant: &Tenant,
        page: Page<AgentId>,
        now: Timestamp,
    ) -> StoreResult<Listing<AgentId, AgentId>> {
        read!(self, commands::queued_agents, tenant, page, now)
    }

    async fn expire_commands(
        &self,
        tenant: &Tenant,
        limit: usize,
        now: Timestamp,
    ) -> StoreResult<Vec<Settled>> {
        write!(self, commands::expire, [tenant], (limit, now))
    }

    async fn end_overdue(
        &self,
        tenant: &Tenant,
        wait: Duration,
        limit: usize,
        now: Timestamp,
    ) -> StoreResult<Vec<Settled>> {
        write!(self, commands::end_overdue, [tenant], (wait, limit, now))
    }

    async fn counts(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<Counts> {
        read!(self, runs::counts, tenant, now)
    }

    fn is_busy(&self) -> bool {
        self.database.counters().is_busy()
    }

    async fn commit_telemetry(
        &self,
        tenant: &Tenant,
        writes: Arc<[TelemetryWrite]>,
        wall: Timestamp,
        now: Timestamp,
    ) -> StoreResult<Vec<TelemetryOutcome>> {
        let (tenant, limits) = (tenant.clone(), self.telemetry);
        self.ground.check()?;
        let stored = self.database.write_bulk(move |connection| {
            Box::pin(async move {
                let times = telemetry::Times { wall, now };
                telemetry::commit(connection, &tenant, &writes, limits, times).await
            })
        });
        let outcomes = stored.await?;
        fault::point("store.telemetry.after_commit");
        Ok(outcomes)
    }

    async fn telemetry_positions(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Vec<Position>> {
        read!(self, telemetry::positions, tenant, agent_id)
    }

    async fn query_telemetry(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        query: &TelemetryQuery,
        page: Page<TelemetryCursor>,
    ) -> StoreResult<Listing<StoredRecord, TelemetryCursor>> {
        read!(self, telemetry::query, tenant, query, agent_id, page)
    }

    async fn telemetry_streams(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        page: Page<StreamName>,
    ) -> StoreResult<Listing<StreamSummary, StreamName>> {
        read!(self, telemetry::streams, tenant, agent_id, page)
    }

    async fn telemetry_gaps(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        page: Page<GapCursor>,
    ) -> StoreResult<Listing<StoredGap, GapCursor>> {
        read!(self, telemetry::gaps, tenant, agent_id, page)
    }

    async fn telemetry_refusals(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        page: Page<RefusalCursor>,
    ) -> StoreResult<Listing<StoredRefusal, RefusalCursor>> {
        read!(self, telemetry::refusals, tenant, agent_id, page)
    }

    async fn create_api_key(
        &self,
        tenant: &Tenant,
        new: NewApiKey,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()> {
        write!(self, keys::create, [tenant, new, actor], (now))
    }

    async fn api_key_by_hash(
        &self,
        tenant: &Tenant,
        sha256: &[u8; 32],
    ) -> StoreResult<Option<ApiKey>> {
        read_together!(self, keys::by_hash, tenant, *sha256)
    }

    async fn api_key(&self, tenant: &Tenant, id: ApiKeyId) -> StoreResult<Option<ApiKey>> {
        read!(self, keys::by_id, tenant, id)
    }

    async fn list_api_keys(
        &self,
        tenant: &Tenant,
        page: Page<ApiKeyId>,
    ) -> StoreResult<Listing<ApiKey, ApiKeyId>> {
        read!(self, keys::list, tenant, page)
    }

    async fn revoke_api_key(
        &self,
        tenant: &Tenant,
        id: ApiKeyId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<()>> {
        write!(self, keys::revoke, [tenant, actor], (id, now))
    }

    async fn touch_api_key(
        &self,
        tenant: &Tenant,
        id: ApiKeyId,
        now: Timestamp,
    ) -> StoreResult<()> {
        write!(self, keys::touch, [tenant], (id, now))
    }

    async fn list_audit(
        &self,
        tenant: &Tenant,
        page: Page<u64>,
    ) -> StoreResult<Listing<AuditRecord, u64>> {
        read!(self, audit::list, tenant, page)
    }

    async fn append_audit(
        &self,
        tenant: &Tenant,
        record: NewAuditRecord,
        now: Timestamp,
    ) -> StoreResult<()> {
        write!(self, audit::append, [tenant, record], (now))
    }

    async fn note_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        record: NewAuditRecord,
        now: Timestamp,
    ) -> StoreResult<bool> {
        write!(self, audit::note, [tenant, record], (agent_id, now))
    }

    async fn purge(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<Purged> {
        write!(self, upkeep::purge, [tenant], (now))
    }

    async fn time_line(&self) -> StoreResult<Option<Anchored>> {
        read!(self, timeline::load,)
    }

    async fn anchor_time_line(&self, anchored: &Anchored) -> StoreResult<()> {
        write!(self, timeline::save, [anchored], ())
    }

    async fn health(&self) -> StoreResult<StoreHealth> {
        let tenant = Tenant::default_tenant();
        if let Some(lost) = self.ground.look().await {
            return Err(StoreError::Unavailable(Box::new(lost)));
        }
        write!(self, upkeep::health, [tenant], ())
    }

    async fn close(&self) {
        if let Err(error) = self.database.close().await {
            tracing::warn!(%error, "failed to close the store; what was committed is safe");
        }
    }
}

#[cfg(test)]
mod tests;
