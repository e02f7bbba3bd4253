//! Runs and their commands, as operators see them.

use std::sync::Arc;

use async_trait::async_trait;
use viworks_common::id::{AgentId, CommandId, CommandName, RunId, Tenant};
use viworks_common::time::Timestamp;
use viworks_runtime::fault;

use super::super::link::Engine;
use super::super::merged::{Answer, Intent, submission};
use super::super::store::SqlStore;
use super::super::tx::Tx;
use super::super::{dead_letters, outputs, runs, submit, targets};
use crate::data::{
    Actor, Cancelled, Command, CommandOutput, Counts, DeadLetter, DeadLetterFilter, Idempotency,
    Listing, NewRun, Page, Run, RunStore, SkippedGateway, StoreResult, Submission, Target,
    TargetSelection,
};

#[async_trait]
impl<E: Engine> RunStore for SqlStore<E> {
    async fn resolve_targets(
        &self,
        tenant: &Tenant,
        selection: &TargetSelection,
        command: &CommandName,
    ) -> StoreResult<Vec<Target>> {
        let (selection, command) = (selection.clone(), command.clone());
        self.read(tenant, move |view| {
            targets::resolve(view, &selection, &command)
        })
        .await
    }

    async fn submit_run(
        &self,
        tenant: &Tenant,
        new: NewRun,
        now: Timestamp,
    ) -> StoreResult<Submission> {
        let new = Arc::new(new);
        let intent = Intent::Submit(Arc::clone(&new));
        if let Some(Answer::Submitted(submission)) =
            self.write_together(tenant, now, intent).await?
        {
            fault::point("store.submit.after_commit");
            return Ok(submission);
        }
        let same = Arc::clone(&new);
        let recent = Arc::clone(&self.recent);
        let at_once = move |tx: &Tx<'_>| Ok(submission::submit(tx, &recent, &same)?.map(Ok));
        let submit = move |tx: &Tx<'_>| submit::submit(tx, &new);
        let answer = self.write_at_once(tenant, now, at_once, submit);
        let answer = answer.await?;
        fault::point("store.submit.after_commit");
        answer
    }

    async fn earlier_submission(
        &self,
        tenant: &Tenant,
        idempotency: &Idempotency,
        now: Timestamp,
    ) -> StoreResult<Option<Submission>> {
        let idempotency = idempotency.clone();
        self.read(tenant, move |view| runs::replay(view, &idempotency, now))
            .await
    }

    async fn run(&self, tenant: &Tenant, run_id: RunId) -> StoreResult<Option<Run>> {
        self.read(tenant, move |view| runs::load(view, run_id))
            .await
    }

    async fn list_runs(
        &self,
        tenant: &Tenant,
        page: Page<RunId>,
    ) -> StoreResult<Listing<Run, RunId>> {
        self.read(tenant, move |view| runs::list(view, page)).await
    }

    async fn run_commands(
        &self,
        tenant: &Tenant,
        run_id: RunId,
        page: Page<CommandId>,
    ) -> StoreResult<Listing<Command, CommandId>> {
        self.read(tenant, move |view| runs::commands(view, run_id, page))
            .await
    }

    async fn run_skipped(
        &self,
        tenant: &Tenant,
        run_id: RunId,
        page: Page<AgentId>,
    ) -> StoreResult<Listing<SkippedGateway, AgentId>> {
        self.read(tenant, move |view| runs::skipped(view, run_id, page))
            .await
    }

    async fn command(
        &self,
        tenant: &Tenant,
        command_id: CommandId,
    ) -> StoreResult<Option<Command>> {
        self.read(tenant, move |view| runs::command(view, command_id))
            .await
    }

    async fn command_output(
        &self,
        tenant: &Tenant,
        command_id: CommandId,
    ) -> StoreResult<Option<CommandOutput>> {
        self.read(tenant, move |view| outputs::load(view, command_id))
            .await
    }

    async fn cancel_run(
        &self,
        tenant: &Tenant,
        run_id: RunId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<Cancelled>> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| runs::cancel(tx, run_id, &actor))
            .await
    }

    async fn list_dead_letters(
        &self,
        tenant: &Tenant,
        filter: DeadLetterFilter,
        page: Page<CommandId>,
    ) -> StoreResult<Listing<DeadLetter, CommandId>> {
        self.read(tenant, move |view| dead_letters::list(view, filter, page))
            .await
    }

    async fn dead_letter(
        &self,
        tenant: &Tenant,
        command_id: CommandId,
    ) -> StoreResult<Option<DeadLetter>> {
        self.read(tenant, move |view| dead_letters::load(view, command_id))
            .await
    }

    async fn discard_dead_letter(
        &self,
        tenant: &Tenant,
        command_id: CommandId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<DeadLetter>> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| {
            dead_letters::discard(tx, command_id, &actor)
        })
        .await
    }

    async fn counts(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<Counts> {
        self.read(tenant, move |view| runs::counts(view, now)).await
    }
}
