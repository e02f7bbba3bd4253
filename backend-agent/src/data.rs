//! The store contract: one intent, one method, one transaction, its audit record included.
//!
//! Rules every implementation follows; the conformance suite in `tests/it/store.rs` holds them to it:
//! - `now` is an argument, a reading of the time line ([`viworks_common::timeline`]), whose differences are elapsed
//!   time;
//!   no method reads a clock. The audit log alone is in wall time, by what the stored anchor says of it.
//! - Every method takes the tenant, and every key contains it.
//! - Not found is `Ok(None)`. A row that contradicts the schema is [`StoreError::Inconsistent`].
//! - When a method has returned, what it did survives a power cut.
//! - What a session does carries its epoch; once a newer epoch is confirmed, or the gateway is revoked, the answer is
//!   [`StoreError::Fenced`] and nothing has changed.
//! - A command changes its state only as [`viworks_common::command::transition`] allows, guarded by the state it had.

mod intents;
pub mod ledger;
pub mod line;
pub mod model;
pub mod moving;
pub mod postgres;
pub mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use viworks_common::catalogue::CatalogueEntry;
use viworks_common::claims::{Probed, Verdict};
use viworks_common::code::CloseCode;
use viworks_common::command::Outcome;
use viworks_common::id::{
    AgentId, ApiKeyId, CommandId, CommandName, GatewayName, InstanceId, RunId, SessionId,
    StreamName, Tenant,
};
use viworks_common::telemetry::Position;
use viworks_common::time::Timestamp;
use viworks_common::timeline::Anchored;
use viworks_common::timeline::shared::Point;

pub use intents::SqlStore;
pub use intents::link::{Engine, Urgency};
pub use intents::tx::View;
pub use model::*;

/// Why the store did not do what was asked. Nothing has changed when an error is returned, except perhaps for
/// [`StoreError::Unknown`].
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Something unique exists already.
    #[error("{what} exists already")]
    Conflict {
        /// What exists, such as ``gateway name "berlin-1"``.
        what: String,
    },
    /// Something that the request refers to does not exist or cannot be used.
    #[error("{what} does not exist or was revoked")]
    Missing {
        /// What is missing.
        what: String,
    },
    /// A bound on waiting commands was reached; the whole run was refused.
    #[error("{scope} already has its {limit} waiting commands")]
    QueueFull {
        /// Whose bound it is: `the backend`, or the first gateway's name.
        scope: String,
        /// The gateways whose bound it is; empty when it is the backend's.
        gateways: Vec<GatewayName>,
        /// The bound.
        limit: u64,
        /// When trying again makes sense.
        retry_after: Duration,
    },
    /// As many reports are being made as may be at a time.
    #[error("too many reports are being made at the moment")]
    ReportsBusy,
    /// The session's epoch is no longer the current one: the session must end.
    #[error("the session was superseded or its gateway was revoked")]
    Fenced,
    /// The database cannot be reached or did not answer in time.
    #[error("the database is unavailable")]
    Unavailable(#[source] Cause),
    /// The answer to a commit was lost: it may have happened, or not. Every intent is safe to repeat.
    #[error("the connection to the database broke before it said whether it had committed")]
    Unknown(#[source] Cause),
    /// The database cannot grow any further.
    #[error("the database is full")]
    Full(#[source] Cause),
    /// A row contradicts the schema: damage, or a fault of ours.
    #[error("{table}.{column} of row {row} holds what it cannot hold")]
    Inconsistent {
        /// Which table.
        table: &'static str,
        /// Which column.
        column: &'static str,
        /// Which row.
        row: String,
    },
}

impl StoreError {
    /// Whether the database could not be used, rather than that it refused something. The store has said so in the log.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Unknown(_))
    }
}

/// A migration of a schema that was not applied yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its number.
    pub version: i64,
    /// What it does.
    pub description: String,
}

/// What lies beneath a store error.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// An error with everything beneath it, for the log.
pub(crate) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What every method answers.
pub type StoreResult<T> = Result<T, StoreError>;

/// The system of record. Used as `Arc<dyn Store>`.
#[async_trait]
pub trait Store: Send + Sync {
    // Gateways and their certificates.

    /// Creates a gateway; [`StoreError::Conflict`] when its name or its id was ever used.
    async fn create_gateway(
        &self,
        tenant: &Tenant,
        new: NewGateway,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// The gateway with an id or a name.
    async fn gateway(&self, tenant: &Tenant, which: &GatewayRef) -> StoreResult<Option<Gateway>>;
    /// Gateways in the order of their creation.
    async fn list_gateways(
        &self,
        tenant: &Tenant,
        filter: &GatewayFilter,
        page: Page<AgentId>,
    ) -> StoreResult<Listing<Gateway, AgentId>>;
    /// Gives a gateway another name; `None` when there is no such gateway.
    async fn rename_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        name: &GatewayName,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<()>>;
    /// Revokes a gateway and everything it may do, at once; its non-final commands end. `None` when there is no such
    /// gateway; revoking twice is revoking once.
    async fn revoke_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<Revoked>>;
    /// Registers a certificate's key for exactly this gateway; [`StoreError::Conflict`] when the key was ever
    /// registered.
    async fn register_certificate(
        &self,
        tenant: &Tenant,
        new: NewCertificate,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// What is known about a key presented for a gateway; `None` when it is not registered for it.
    async fn certificate(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        spki: &[u8; 32],
    ) -> StoreResult<Option<Certificate>>;

    // Sessions.

    /// Judges a HELLO and, when it is acceptable, issues the next epoch by compare-and-swap. Refusals, forks and a
    /// rolled-back database are recorded in the same transaction.
    async fn admit(
        &self,
        tenant: &Tenant,
        request: AdmitRequest,
        now: Timestamp,
    ) -> StoreResult<AdmitOutcome>;
    /// Confirms an epoch, which fences the older session, and settles the commands of older sessions and runs.
    async fn confirm_session(
        &self,
        tenant: &Tenant,
        request: ConfirmRequest,
        now: Timestamp,
    ) -> StoreResult<ConfirmOutcome>;
    /// Ends a session; what it had dispatched and not released is queued again. A newer session is never touched:
    /// answers whether this session was still the current one.
    async fn end_session(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        code: CloseCode,
        now: Timestamp,
    ) -> StoreResult<bool>;
    /// Ends the sessions that no process has any more, as one that has just started finds them: all, where a database
    /// has one backend; otherwise those that none has, those of instances whose lease ran out, and those of `earlier`,
    /// which this process's state folder had before.
    async fn end_abandoned_sessions(
        &self,
        tenant: &Tenant,
        earlier: Option<InstanceId>,
        now: Timestamp,
    ) -> StoreResult<u64>;
    /// The gateways with a session of this backend, and the epoch of that, as the database has it.
    async fn open_sessions(&self, tenant: &Tenant) -> StoreResult<Vec<(AgentId, u64)>>;
    /// Stores the figures of many heartbeats; those of fenced sessions are dropped.
    async fn touch_sessions(
        &self,
        tenant: &Tenant,
        touches: Vec<SessionTouch>,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// Settles who of two processes keeps an identity, once its confirmed session, of the epoch `asked`, was probed for
    /// the sake of the one that asks. A fork is recorded, and a gateway that answered another instance is told to
    /// connect again.
    async fn settle_probed(
        &self,
        tenant: &Tenant,
        request: &AdmitRequest,
        asked: u64,
        probed: Probed,
        now: Timestamp,
    ) -> StoreResult<Verdict>;
    /// The recorded forks of a gateway, newest first.
    async fn list_forks(&self, tenant: &Tenant, agent_id: AgentId) -> StoreResult<Vec<Fork>>;
    /// The latest sessions of a gateway, newest first.
    async fn list_sessions(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        limit: usize,
    ) -> StoreResult<Vec<SessionRecord>>;
    /// Stores the version of the pin set that a gateway trusts.
    async fn report_pins(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        version: u64,
    ) -> StoreResult<()>;

    // Catalogues.

    /// Stores what a gateway allows.
    async fn save_catalogue(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        digest: &str,
        entries: Vec<CatalogueEntry>,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// What a gateway allows, by its last report.
    async fn catalogue(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Option<StoredCatalogue>>;
    /// The commands over all gateways that are not revoked, by name, each merged from all reports of it.
    async fn merged_catalogue(
        &self,
        tenant: &Tenant,
        page: Page<CommandName>,
    ) -> StoreResult<Listing<MergedCommand, CommandName>>;
    /// One of them; `None` when no gateway has it.
    async fn merged_command(
        &self,
        tenant: &Tenant,
        name: &CommandName,
    ) -> StoreResult<Option<MergedCommand>>;
    /// The gateways that a run may go to and what each says about `command`; an explicit gateway that does not exist is
    /// [`Target::Unknown`].
    async fn resolve_targets(
        &self,
        tenant: &Tenant,
        selection: &TargetSelection,
        command: &CommandName,
    ) -> StoreResult<Vec<Target>>;

    // Runs and commands.

    /// Accepts a run whole, or refuses it whole; a refused run leaves only its audit record.
    async fn submit_run(
        &self,
        tenant: &Tenant,
        new: NewRun,
        now: Timestamp,
    ) -> StoreResult<Submission>;
    /// What an `Idempotency-Key` was used for in the last day; `None` when it was not used.
    async fn earlier_submission(
        &self,
        tenant: &Tenant,
        idempotency: &Idempotency,
        now: Timestamp,
    ) -> StoreResult<Option<Submission>>;
    /// One run with its counters.
    async fn run(&self, tenant: &Tenant, run_id: RunId) -> StoreResult<Option<Run>>;
    /// Runs, newest first.
    async fn list_runs(
        &self,
        tenant: &Tenant,
        page: Page<RunId>,
    ) -> StoreResult<Listing<Run, RunId>>;
    /// The commands of a run in the order of their ids.
    async fn run_commands(
        &self,
        tenant: &Tenant,
        run_id: RunId,
        page: Page<CommandId>,
    ) -> StoreResult<Listing<Command, CommandId>>;
    /// The gateways that a run skipped, in the order of their ids.
    async fn run_skipped(
        &self,
        tenant: &Tenant,
        run_id: RunId,
        page: Page<AgentId>,
    ) -> StoreResult<Listing<SkippedGateway, AgentId>>;
    /// One command.
    async fn command(&self, tenant: &Tenant, command_id: CommandId)
    -> StoreResult<Option<Command>>;
    /// What was kept of a command's output.
    async fn command_output(
        &self,
        tenant: &Tenant,
        command_id: CommandId,
    ) -> StoreResult<Option<CommandOutput>>;
    /// Cancels what has no start permit yet and asks for the end of the rest.
    async fn cancel_run(
        &self,
        tenant: &Tenant,
        run_id: RunId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<Cancelled>>;

    /// Commands that could not be delivered, the one that was submitted last first.
    async fn list_dead_letters(
        &self,
        tenant: &Tenant,
        filter: DeadLetterFilter,
        page: Page<CommandId>,
    ) -> StoreResult<Listing<DeadLetter, CommandId>>;
    /// One of them.
    async fn dead_letter(
        &self,
        tenant: &Tenant,
        command_id: CommandId,
    ) -> StoreResult<Option<DeadLetter>>;
    /// Discards one that nobody has decided about; answers it as it stands afterwards. It is retried by the run that
    /// names it ([`NewRun::retry_of`]), once.
    async fn discard_dead_letter(
        &self,
        tenant: &Tenant,
        command_id: CommandId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<DeadLetter>>;

    // Dispatch.

    /// Takes the next commands of a gateway for a session, in order: idempotent ones are released to its run in the
    /// same transaction, the others are dispatched.
    async fn lease_commands(
        &self,
        tenant: &Tenant,
        holder: &Holder,
        limits: LeaseLimits,
        now: Timestamp,
    ) -> StoreResult<Leased>;
    /// The gateway has journalled a command: decides about its start permit, and commits the permit before it is given.
    async fn accept_command(
        &self,
        tenant: &Tenant,
        holder: &Holder,
        accepted: Accepted,
        now: Timestamp,
    ) -> StoreResult<AcceptOutcome>;
    /// The gateway has refused a command on arrival; `None` when it is unknown.
    async fn reject_command(
        &self,
        tenant: &Tenant,
        holder: &Holder,
        rejected: Rejected,
        now: Timestamp,
    ) -> StoreResult<Option<Settled>>;
    /// The gateway has started a command: answers whether that was news.
    async fn start_command(
        &self,
        tenant: &Tenant,
        holder: &Holder,
        command_id: CommandId,
        started_at: Timestamp,
        now: Timestamp,
    ) -> StoreResult<bool>;
    /// The gateway has reported how a command ended. Whatever the answer, the result may be acknowledged.
    async fn complete_command(
        &self,
        tenant: &Tenant,
        holder: &Holder,
        command_id: CommandId,
        outcome: Outcome,
        now: Timestamp,
    ) -> StoreResult<CompleteOutcome>;
    /// The gateways for which commands wait to be leased, in the order of their ids.
    async fn queued_agents(
        &self,
        tenant: &Tenant,
        page: Page<AgentId>,
        now: Timestamp,
    ) -> StoreResult<Listing<AgentId, AgentId>>;
    /// Ends commands whose deadline passed before they had a start permit, at most `limit` of them.
    async fn expire_commands(
        &self,
        tenant: &Tenant,
        limit: usize,
        now: Timestamp,
    ) -> StoreResult<Vec<Settled>>;
    /// Ends released and running commands whose deadline, time limit and `wait` have all passed, at most `limit`.
    async fn end_overdue(
        &self,
        tenant: &Tenant,
        wait: Duration,
        limit: usize,
        now: Timestamp,
    ) -> StoreResult<Vec<Settled>>;
    /// How many of what there is; of what gateways did wrong, what is a day old at most.
    async fn counts(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<Counts>;

    // Telemetry.

    /// Whether writes come in that people wait for, so that telemetry should take little room.
    fn is_busy(&self) -> bool;
    /// How many such writes go on at a time, each for other gateways; one at least.
    fn telemetry_lanes(&self) -> usize;
    /// Stores batches of many gateways together with the positions they reach; one answer for each, in their order.
    /// `wall` is only what gateways' clocks are held against.
    async fn commit_telemetry(
        &self,
        tenant: &Tenant,
        writes: Arc<[TelemetryWrite]>,
        wall: Timestamp,
        now: Timestamp,
    ) -> StoreResult<Vec<TelemetryOutcome>>;
    /// How far the spool epochs of a gateway are committed.
    async fn telemetry_positions(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Vec<Position>>;
    /// Records of one gateway, of one stream or of all, by time.
    async fn query_telemetry(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        query: &TelemetryQuery,
        page: Page<TelemetryCursor>,
    ) -> StoreResult<Listing<StoredRecord, TelemetryCursor>>;
    /// The numbers of one field over time: steps that hold records, by the time at which they begin.
    async fn telemetry_steps(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        query: &StepQuery,
        page: Page<StepCursor>,
    ) -> StoreResult<Stepped>;
    /// The streams of a gateway, by name.
    async fn telemetry_streams(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        page: Page<StreamName>,
    ) -> StoreResult<Listing<StreamSummary, StreamName>>;
    /// What will never arrive from a gateway, in the order of spool epoch and number.
    async fn telemetry_gaps(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        page: Page<GapCursor>,
    ) -> StoreResult<Listing<StoredGap, GapCursor>>;

    /// What was refused of a gateway's telemetry, by spool epoch and reason.
    async fn telemetry_refusals(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        page: Page<RefusalCursor>,
    ) -> StoreResult<Listing<StoredRefusal, RefusalCursor>>;

    /// The kept outcomes of commands that nobody knows, as a gateway reported them, the latest first.
    async fn orphans(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        page: Page<OrphanCursor>,
    ) -> StoreResult<Listing<Orphan, OrphanCursor>>;

    // API keys.

    /// Creates an API key; only the digest of its secret is stored.
    async fn create_api_key(
        &self,
        tenant: &Tenant,
        new: NewApiKey,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// The API key whose secret has this SHA-256, whatever its state. Callers compare again in constant time.
    async fn api_key_by_hash(
        &self,
        tenant: &Tenant,
        sha256: &[u8; 32],
    ) -> StoreResult<Option<ApiKey>>;
    /// An API key, whatever its state.
    async fn api_key(&self, tenant: &Tenant, id: ApiKeyId) -> StoreResult<Option<ApiKey>>;
    /// API keys, latest first.
    async fn list_api_keys(
        &self,
        tenant: &Tenant,
        page: Page<ApiKeyId>,
    ) -> StoreResult<Listing<ApiKey, ApiKeyId>>;
    /// Revokes an API key; `None` when there is no such key.
    async fn revoke_api_key(
        &self,
        tenant: &Tenant,
        id: ApiKeyId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<()>>;
    /// Remembers that an API key was used.
    async fn touch_api_key(&self, tenant: &Tenant, id: ApiKeyId, now: Timestamp)
    -> StoreResult<()>;

    // Instances: backends that share a database. Where it has one, there is nothing of them.

    /// Which instance this is, from now on: a process that lost its lease of the database goes on as another one, and
    /// has none of its sessions any more.
    fn instance(&self) -> watch::Receiver<Option<InstanceId>>;
    /// The others that have their lease, as they told of themselves when this one renewed its own last.
    fn neighbours(&self) -> watch::Receiver<Vec<Neighbour>>;
    /// Tells the others of this one, with the next renewal of its lease.
    fn note_load(&self, load: InstanceLoad);
    /// From here on `hurry` is told whenever something was left for another instance, which would find it by itself
    /// within a moment. The first one stays.
    fn hurry_by(&self, hurry: Arc<dyn Hurry>);
    /// What other instances left for this one, without what was `handled` since, which is deleted. What is not handled
    /// comes again.
    async fn take_inbox(
        &self,
        tenant: &Tenant,
        handled: &[u64],
        now: Timestamp,
    ) -> StoreResult<Vec<Mail>>;
    /// Has whoever owns the session of this epoch asked whether its gateway is alive, for the sake of `newcomer`.
    async fn ask_owner(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        newcomer: SessionId,
        now: Timestamp,
    ) -> StoreResult<Owner>;
    /// Answers what other instances asked; one that is gone hears nothing.
    async fn answer_probes(
        &self,
        tenant: &Tenant,
        answers: Vec<ProbeAnswer>,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// The instances that there are, by name.
    async fn list_instances(&self) -> StoreResult<Vec<Instance>>;
    /// Ends some of the sessions of instances whose lease ran out.
    async fn end_dead_instances(
        &self,
        tenant: &Tenant,
        now: Timestamp,
    ) -> StoreResult<EndedInstances>;

    // Audit and upkeep.

    /// The audit log, newest first.
    async fn list_audit(
        &self,
        tenant: &Tenant,
        page: Page<u64>,
    ) -> StoreResult<Listing<AuditRecord, u64>>;
    /// Appends what no other intent records: refusals and security events.
    async fn append_audit(
        &self,
        tenant: &Tenant,
        record: NewAuditRecord,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// The same about a gateway, which cannot add to the log without end: `false` when it is only counted, for the next
    /// record of this gateway to tell.
    async fn note_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        record: NewAuditRecord,
        now: Timestamp,
    ) -> StoreResult<bool>;
    /// Deletes what has served, about `limit` rows of a kind: idempotency keys after a day, ended sessions and
    /// resolved dead letters after 30 days, and dead letters that are too many.
    async fn purge(&self, tenant: &Tenant, limit: usize, now: Timestamp) -> StoreResult<Purged>;
    /// Deletes telemetry that is older than it is kept: at most `most` records of the gateways behind `after`. Called
    /// until there is no more.
    async fn purge_telemetry(
        &self,
        tenant: &Tenant,
        after: Option<AgentId>,
        most: usize,
        now: Timestamp,
    ) -> StoreResult<PurgedTelemetry>;

    /// Rolls up one day of a gateway that is over and has changed, and forgets roll-ups that are older than they are
    /// kept.
    ///
    /// # Errors
    /// When the store cannot do it, or is busy with other reports; the day is rolled up later.
    async fn roll_up_telemetry(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<RolledUp>;
    /// The time line as it was stored last, with what the clock of a server shows.
    async fn time_line(&self) -> StoreResult<StoredLine>;
    /// Stores the anchor of the time line; what is audited from here on is in the wall time that it knows of. On a
    /// server, together with the point that follows the one that was read: `false`, and nothing is stored, when another
    /// process has stored one since.
    async fn anchor_time_line(
        &self,
        anchored: &Anchored,
        point: Option<&Point>,
    ) -> StoreResult<bool>;
    /// Whether the store works, by reading and by committing something.
    async fn health(&self) -> StoreResult<StoreHealth>;
    /// Finishes what is under way and closes; everything after this is [`StoreError::Unavailable`].
    async fn close(&self);
}
