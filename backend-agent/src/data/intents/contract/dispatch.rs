//! Commands on their way to gateways and back.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use viworks_common::command::Outcome;
use viworks_common::id::{AgentId, CommandId, RunId, Tenant};
use viworks_common::time::Timestamp;
use viworks_runtime::fault;

use super::super::link::Engine;
use super::super::merged::{Answer, Intent, end};
use super::super::store::SqlStore;
use super::super::tx::Tx;
use super::super::{lease, orphans, reports, settle};
use crate::data::{
    AcceptOutcome, Accepted, CompleteOutcome, DispatchStore, Holder, LeaseLimits, Leased, Listing,
    Orphan, OrphanCursor, Page, Rejected, Settled, StoreResult,
};

#[async_trait]
impl<E: Engine> DispatchStore for SqlStore<E> {
    async fn lease_commands(
        &self,
        tenant: &Tenant,
        holder: &Holder,
        limits: LeaseLimits,
        now: Timestamp,
    ) -> StoreResult<Leased> {
        let holder = *holder;
        let leased = self.write(tenant, now, move |tx| lease::lease(tx, &holder, limits));
        let leased = leased.await?;
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
        let intent = Intent::Accept(holder, accepted);
        let together = self.write_together(tenant, now, intent).await?;
        let outcome = if let Some(Answer::Accepted(outcome)) = together {
            outcome
        } else {
            let accept = move |tx: &Tx<'_>| reports::accept(tx, &holder, accepted);
            self.write(tenant, now, accept).await?
        };
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
        self.write(tenant, now, move |tx| {
            reports::reject(tx, &holder, &rejected)
        })
        .await
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
        self.write(tenant, now, move |tx| {
            reports::start(tx, &holder, command_id, started_at)
        })
        .await
    }

    async fn complete_command(
        &self,
        tenant: &Tenant,
        holder: &Holder,
        command_id: CommandId,
        outcome: Outcome,
        now: Timestamp,
    ) -> StoreResult<CompleteOutcome> {
        let holder = *holder;
        let outcome = Arc::new(outcome);
        let intent = Intent::Complete(holder, command_id, Arc::clone(&outcome));
        if let Some(Answer::Completed(completed)) = self.write_together(tenant, now, intent).await?
        {
            fault::point("store.result.after_commit");
            return Ok(completed);
        }
        let same = Arc::clone(&outcome);
        let recent = Arc::clone(&self.recent);
        let at_once = move |tx: &Tx<'_>| end::complete(tx, &recent, &holder, command_id, &same);
        let complete = move |tx: &Tx<'_>| reports::complete(tx, &holder, command_id, &outcome);
        let completed = self.write_at_once(tenant, now, at_once, complete).await?;
        fault::point("store.result.after_commit");
        Ok(completed)
    }

    async fn queued_agents(
        &self,
        tenant: &Tenant,
        page: Page<AgentId>,
        now: Timestamp,
    ) -> StoreResult<Listing<AgentId, AgentId>> {
        self.read(tenant, move |view| lease::queued_agents(view, page, now))
            .await
    }

    async fn queued_among(
        &self,
        tenant: &Tenant,
        agents: Vec<AgentId>,
    ) -> StoreResult<Vec<AgentId>> {
        self.ask(tenant, move |view| lease::queued_among(view, &agents))
            .await
    }

    async fn open_commands(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Vec<(CommandId, RunId)>> {
        self.ask(tenant, move |view| {
            let open = settle::load_open(view, agent_id, u64::MAX)?.into_iter();
            Ok(open.map(|it| (it.command_id, it.run_id)).collect())
        })
        .await
    }

    async fn expire_commands(
        &self,
        tenant: &Tenant,
        limit: usize,
        now: Timestamp,
    ) -> StoreResult<Vec<Settled>> {
        self.write(tenant, now, move |tx| lease::expire(tx, limit))
            .await
    }

    async fn end_overdue(
        &self,
        tenant: &Tenant,
        wait: Duration,
        limit: usize,
        now: Timestamp,
    ) -> StoreResult<Vec<Settled>> {
        self.write(tenant, now, move |tx| lease::end_overdue(tx, wait, limit))
            .await
    }

    async fn orphans(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        page: Page<OrphanCursor>,
    ) -> StoreResult<Listing<Orphan, OrphanCursor>> {
        self.read(tenant, move |view| orphans::list(view, agent_id, page))
            .await
    }
}
