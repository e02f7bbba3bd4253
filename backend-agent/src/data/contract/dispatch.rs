//! Commands on their way to gateways and back.

use std::time::Duration;

use async_trait::async_trait;
use viworks_common::command::Outcome;
use viworks_common::id::{AgentId, CommandId, RunId, Tenant};
use viworks_common::time::Timestamp;

use crate::data::{
    AcceptOutcome, Accepted, CompleteOutcome, Holder, LeaseLimits, Leased, Listing, Orphan,
    OrphanCursor, Page, Rejected, Settled, StoreResult,
};

/// Commands on their way to gateways and back.
#[async_trait]
pub trait DispatchStore: Send + Sync {
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
    /// Those of some gateways for which commands may wait to be leased: surely those for which they do.
    async fn queued_among(
        &self,
        tenant: &Tenant,
        agents: Vec<AgentId>,
    ) -> StoreResult<Vec<AgentId>>;
    /// The commands of a gateway that are not final, each with its run.
    async fn open_commands(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Vec<(CommandId, RunId)>>;
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
    /// The kept outcomes of commands that nobody knows, as a gateway reported them, the latest first.
    async fn orphans(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        page: Page<OrphanCursor>,
    ) -> StoreResult<Listing<Orphan, OrphanCursor>>;
}
