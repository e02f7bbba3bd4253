//! Runs and their commands, as operators see them.

use async_trait::async_trait;
use viworks_common::id::{AgentId, CommandId, CommandName, RunId, Tenant};
use viworks_common::time::Timestamp;

use crate::data::{
    Actor, Cancelled, Command, CommandOutput, Counts, DeadLetter, DeadLetterFilter, Idempotency,
    Listing, NewRun, Page, Run, SkippedGateway, StoreResult, Submission, Target, TargetSelection,
};

/// Runs and their commands, as operators see them.
#[async_trait]
pub trait RunStore: Send + Sync {
    /// The gateways that a run may go to and what each says about `command`; an explicit gateway that does not exist is
    /// [`Target::Unknown`].
    async fn resolve_targets(
        &self,
        tenant: &Tenant,
        selection: &TargetSelection,
        command: &CommandName,
    ) -> StoreResult<Vec<Target>>;
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
    /// How many of what there is; of what gateways did wrong, what is a day old at most.
    async fn counts(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<Counts>;
}
