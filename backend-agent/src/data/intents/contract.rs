//! The store contract on an SQL database: each intent is one function in the file of its feature, in one transaction.

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
use viworks_runtime::fault;

use super::link::{Engine, Urgency};
use super::store::SqlStore;
use super::telemetry::{queries, retention, rollups, steps};
use super::tx::{Tx, View};
use super::{
    admit, agents, audit, catalogues, certificates, confirm, dead_letters, forks, inbox, instances,
    keys, lease, merged, orphans, outputs, reports, runs, sessions, standing, submit, targets,
    telemetry, timeline, upkeep,
};
use crate::data::{
    AcceptOutcome, Accepted, Actor, AdmitOutcome, AdmitRequest, ApiKey, AuditRecord, Cancelled,
    Certificate, Command, CommandOutput, CompleteOutcome, ConfirmOutcome, ConfirmRequest, Counts,
    DeadLetter, DeadLetterFilter, EndedInstances, Fork, GapCursor, Gateway, GatewayFilter,
    GatewayRef, Holder, Hurry, Idempotency, Instance, InstanceLoad, LeaseLimits, Leased, Listing,
    Mail, MergedCommand, Neighbour, NewApiKey, NewAuditRecord, NewCertificate, NewGateway, NewRun,
    Orphan, OrphanCursor, Owner, Page, ProbeAnswer, Purged, PurgedTelemetry, RefusalCursor,
    Rejected, Revoked, RolledUp, Run, SessionRecord, SessionTouch, Settled, SkippedGateway,
    StepCursor, StepQuery, Stepped, Store, StoreHealth, StoreResult, StoredCatalogue, StoredGap,
    StoredLine, StoredRecord, StoredRefusal, StreamSummary, Submission, Target, TargetSelection,
    TelemetryCursor, TelemetryOutcome, TelemetryQuery, TelemetryWrite,
};

#[async_trait]
impl<E: Engine> Store for SqlStore<E> {
    async fn create_gateway(
        &self,
        tenant: &Tenant,
        new: NewGateway,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| agents::create(tx, &new, &actor))
            .await
    }

    async fn gateway(&self, tenant: &Tenant, which: &GatewayRef) -> StoreResult<Option<Gateway>> {
        let which = which.clone();
        self.read(tenant, move |view| agents::load(view, &which))
            .await
    }

    async fn list_gateways(
        &self,
        tenant: &Tenant,
        filter: &GatewayFilter,
        page: Page<AgentId>,
    ) -> StoreResult<Listing<Gateway, AgentId>> {
        let filter = filter.clone();
        self.read(tenant, move |view| agents::list(view, &filter, page))
            .await
    }

    async fn rename_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        name: &GatewayName,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<()>> {
        let (name, actor) = (name.clone(), actor.clone());
        self.write(tenant, now, move |tx| {
            agents::rename(tx, agent_id, &name, &actor)
        })
        .await
    }

    async fn revoke_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<Revoked>> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| agents::revoke(tx, agent_id, &actor))
            .await
    }

    async fn register_certificate(
        &self,
        tenant: &Tenant,
        new: NewCertificate,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| {
            certificates::register(tx, &new, &actor)
        })
        .await
    }

    async fn certificate(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        spki: &[u8; 32],
    ) -> StoreResult<Option<Certificate>> {
        let spki = *spki;
        self.read(tenant, move |view| {
            certificates::load(view, agent_id, &spki)
        })
        .await
    }

    async fn admit(
        &self,
        tenant: &Tenant,
        request: AdmitRequest,
        now: Timestamp,
    ) -> StoreResult<AdmitOutcome> {
        let limits = self.telemetry;
        self.write(tenant, now, move |tx| admit::admit(tx, &request, &limits))
            .await
    }

    async fn confirm_session(
        &self,
        tenant: &Tenant,
        request: ConfirmRequest,
        now: Timestamp,
    ) -> StoreResult<ConfirmOutcome> {
        self.write(tenant, now, move |tx| confirm::confirm(tx, &request))
            .await
    }

    async fn end_session(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        code: CloseCode,
        now: Timestamp,
    ) -> StoreResult<bool> {
        self.write(tenant, now, move |tx| {
            sessions::end(tx, agent_id, epoch, code)
        })
        .await
    }

    async fn end_abandoned_sessions(
        &self,
        tenant: &Tenant,
        earlier: Option<InstanceId>,
        now: Timestamp,
    ) -> StoreResult<u64> {
        if let Some(earlier) = earlier {
            let note = move |tx: &Tx<'_>| instances::end_earlier(tx, earlier);
            self.write(tenant, now, note).await?;
        }
        let mut all = 0;
        loop {
            let ended = self.write(tenant, now, sessions::end_abandoned).await?;
            all += ended;
            if ended == 0 {
                break;
            }
        }
        loop {
            let ended = self.end_dead_instances(tenant, now).await?;
            all += ended.sessions;
            if !ended.more {
                return Ok(all);
            }
        }
    }

    async fn open_sessions(&self, tenant: &Tenant) -> StoreResult<Vec<(AgentId, u64)>> {
        self.read(tenant, sessions::open).await
    }

    async fn end_dead_instances(
        &self,
        tenant: &Tenant,
        now: Timestamp,
    ) -> StoreResult<EndedInstances> {
        self.write(tenant, now, instances::end_dead).await
    }

    fn instance(&self) -> watch::Receiver<Option<InstanceId>> {
        self.engine.instance()
    }

    fn neighbours(&self) -> watch::Receiver<Vec<Neighbour>> {
        self.engine.neighbours()
    }

    fn note_load(&self, load: InstanceLoad) {
        self.engine.note_load(load);
    }

    fn hurry_by(&self, hurry: Arc<dyn Hurry>) {
        self.set_hurry(hurry);
    }

    async fn take_inbox(
        &self,
        tenant: &Tenant,
        handled: &[u64],
        now: Timestamp,
    ) -> StoreResult<Vec<Mail>> {
        let handled = handled.to_vec();
        self.write(tenant, now, move |tx| inbox::take(tx, &handled))
            .await
    }

    async fn ask_owner(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        newcomer: SessionId,
        now: Timestamp,
    ) -> StoreResult<Owner> {
        self.write(tenant, now, move |tx| {
            inbox::ask(tx, agent_id, epoch, newcomer)
        })
        .await
    }

    async fn answer_probes(
        &self,
        tenant: &Tenant,
        answers: Vec<ProbeAnswer>,
        now: Timestamp,
    ) -> StoreResult<()> {
        let answer = move |tx: &Tx<'_>| {
            inbox::answer(tx, &answers);
            Ok(())
        };
        self.write(tenant, now, answer).await
    }

    async fn list_instances(&self) -> StoreResult<Vec<Instance>> {
        self.read(&Tenant::default_tenant(), instances::list).await
    }

    async fn touch_sessions(
        &self,
        tenant: &Tenant,
        touches: Vec<SessionTouch>,
        now: Timestamp,
    ) -> StoreResult<()> {
        self.write(tenant, now, move |tx| sessions::touch(tx, &touches))
            .await
    }

    async fn settle_probed(
        &self,
        tenant: &Tenant,
        request: &AdmitRequest,
        asked: u64,
        probed: Probed,
        now: Timestamp,
    ) -> StoreResult<Verdict> {
        let request = request.clone();
        self.write(tenant, now, move |tx| {
            standing::settle(tx, &request, (asked, probed))
        })
        .await
    }

    async fn list_forks(&self, tenant: &Tenant, agent_id: AgentId) -> StoreResult<Vec<Fork>> {
        self.read(tenant, move |view| forks::list(view, agent_id))
            .await
    }

    async fn list_sessions(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        limit: usize,
    ) -> StoreResult<Vec<SessionRecord>> {
        self.read(tenant, move |view| sessions::list(view, agent_id, limit))
            .await
    }

    async fn report_pins(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        version: u64,
    ) -> StoreResult<()> {
        let report = move |view: &View<'_>| sessions::report_pins(view, agent_id, epoch, version);
        self.write_view(tenant, Urgency::Prompt, report).await
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
        let digest = digest.to_owned();
        self.write(tenant, now, move |tx| {
            catalogues::save(tx, agent_id, epoch, &digest, &entries)
        })
        .await
    }

    async fn catalogue(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Option<StoredCatalogue>> {
        self.read(tenant, move |view| catalogues::load(view, agent_id))
            .await
    }

    async fn merged_catalogue(
        &self,
        tenant: &Tenant,
        page: Page<CommandName>,
    ) -> StoreResult<Listing<MergedCommand, CommandName>> {
        self.read(tenant, move |view| catalogues::merged(view, &page))
            .await
    }

    async fn merged_command(
        &self,
        tenant: &Tenant,
        name: &CommandName,
    ) -> StoreResult<Option<MergedCommand>> {
        let name = name.clone();
        self.read(tenant, move |view| catalogues::merged_one(view, &name))
            .await
    }

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
        let same = Arc::clone(&new);
        let recent = Arc::clone(&self.recent);
        let at_once = move |tx: &Tx<'_>| Ok(merged::submit(tx, &recent, &same)?.map(Ok));
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
        let outcome = self.write(tenant, now, move |tx| {
            reports::accept(tx, &holder, accepted)
        });
        let outcome = outcome.await?;
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
        let same = Arc::clone(&outcome);
        let recent = Arc::clone(&self.recent);
        let at_once = move |tx: &Tx<'_>| merged::complete(tx, &recent, &holder, command_id, &same);
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

    async fn counts(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<Counts> {
        self.read(tenant, move |view| runs::counts(view, now)).await
    }

    fn is_busy(&self) -> bool {
        self.engine.is_busy()
    }

    fn telemetry_lanes(&self) -> usize {
        E::BULK_WRITES
    }

    async fn commit_telemetry(
        &self,
        tenant: &Tenant,
        writes: Arc<[TelemetryWrite]>,
        wall: Timestamp,
        now: Timestamp,
    ) -> StoreResult<Vec<TelemetryOutcome>> {
        let limits = self.telemetry;
        let commit = move |view: &View<'_>| {
            let commit = |tx: &Tx<'_>| telemetry::commit(tx, &writes, &limits, wall);
            Ok(Tx::run(view, now, commit)?.answer)
        };
        let outcomes = self.write_view(tenant, Urgency::Bulk, commit).await?;
        fault::point("store.telemetry.after_commit");
        Ok(outcomes)
    }

    async fn telemetry_positions(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Vec<Position>> {
        self.read(tenant, move |view| telemetry::positions(view, agent_id))
            .await
    }

    async fn query_telemetry(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        query: &TelemetryQuery,
        page: Page<TelemetryCursor>,
    ) -> StoreResult<Listing<StoredRecord, TelemetryCursor>> {
        let query = query.clone();
        self.read(tenant, move |view| {
            queries::records(view, agent_id, &query, page)
        })
        .await
    }

    async fn telemetry_steps(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        query: &StepQuery,
        page: Page<StepCursor>,
    ) -> StoreResult<Stepped> {
        let query = query.clone();
        self.report(tenant, move |view| {
            steps::steps(view, agent_id, &query, page)
        })
        .await
    }

    async fn telemetry_streams(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        page: Page<StreamName>,
    ) -> StoreResult<Listing<StreamSummary, StreamName>> {
        self.read(tenant, move |view| queries::streams(view, agent_id, &page))
            .await
    }

    async fn telemetry_gaps(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        page: Page<GapCursor>,
    ) -> StoreResult<Listing<StoredGap, GapCursor>> {
        self.read(tenant, move |view| queries::gaps(view, agent_id, page))
            .await
    }

    async fn telemetry_refusals(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        page: Page<RefusalCursor>,
    ) -> StoreResult<Listing<StoredRefusal, RefusalCursor>> {
        self.read(tenant, move |view| queries::refusals(view, agent_id, page))
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

    async fn create_api_key(
        &self,
        tenant: &Tenant,
        new: NewApiKey,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| keys::create(tx, &new, &actor))
            .await
    }

    async fn api_key_by_hash(
        &self,
        tenant: &Tenant,
        sha256: &[u8; 32],
    ) -> StoreResult<Option<ApiKey>> {
        let sha256 = *sha256;
        self.read(tenant, move |view| keys::by_hash(view, &sha256))
            .await
    }

    async fn api_key(&self, tenant: &Tenant, id: ApiKeyId) -> StoreResult<Option<ApiKey>> {
        self.read(tenant, move |view| keys::by_id(view, id)).await
    }

    async fn list_api_keys(
        &self,
        tenant: &Tenant,
        page: Page<ApiKeyId>,
    ) -> StoreResult<Listing<ApiKey, ApiKeyId>> {
        self.read(tenant, move |view| keys::list(view, page)).await
    }

    async fn revoke_api_key(
        &self,
        tenant: &Tenant,
        id: ApiKeyId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<()>> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| keys::revoke(tx, id, &actor))
            .await
    }

    async fn touch_api_key(
        &self,
        tenant: &Tenant,
        id: ApiKeyId,
        now: Timestamp,
    ) -> StoreResult<()> {
        self.write(tenant, now, move |tx| keys::touch(tx, id)).await
    }

    async fn list_audit(
        &self,
        tenant: &Tenant,
        page: Page<u64>,
    ) -> StoreResult<Listing<AuditRecord, u64>> {
        self.read(tenant, move |view| audit::list(view, page)).await
    }

    async fn append_audit(
        &self,
        tenant: &Tenant,
        record: NewAuditRecord,
        now: Timestamp,
    ) -> StoreResult<()> {
        self.write(tenant, now, move |tx| audit::append_record(tx, &record))
            .await
    }

    async fn note_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        record: NewAuditRecord,
        now: Timestamp,
    ) -> StoreResult<bool> {
        self.write(tenant, now, move |tx| {
            audit::note(tx, agent_id, record.clone())
        })
        .await
    }

    async fn purge(&self, tenant: &Tenant, limit: usize, now: Timestamp) -> StoreResult<Purged> {
        self.write(tenant, now, move |tx| upkeep::purge(tx, limit))
            .await
    }

    async fn purge_telemetry(
        &self,
        tenant: &Tenant,
        after: Option<AgentId>,
        most: usize,
        now: Timestamp,
    ) -> StoreResult<PurgedTelemetry> {
        let limits = self.telemetry;
        let days = match limits.kept_from(now) {
            Some(before) if after.is_none() => self.engine.delete_days(before).await?,
            Some(_) | None => 0,
        };
        let purge = move |view: &View<'_>| {
            let purge = |tx: &Tx<'_>| retention::purge(tx, after, most, &limits);
            Ok(Tx::run(view, now, purge)?.answer)
        };
        let purged = self.write_view(tenant, Urgency::Bulk, purge).await?;
        Ok(PurgedTelemetry { days, ..purged })
    }

    async fn roll_up_telemetry(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<RolledUp> {
        let limits = self.telemetry;
        let claim =
            move |view: &View<'_>| Ok(Tx::run(view, now, |tx| rollups::claim(tx, &limits))?.answer);
        let claimed = self.write_view(tenant, Urgency::Bulk, claim).await?;
        let mut done = RolledUp {
            days: 0,
            forgotten: claimed.forgotten,
            twice: claimed.twice,
            more: claimed.more,
        };
        let Some(due) = claimed.due else {
            return Ok(done);
        };
        let rolled = self.report(tenant, move |view| rollups::read(view, &due, &limits));
        let rolled = rolled.await?;
        let save = move |view: &View<'_>| {
            Tx::run(view, now, |tx| rollups::save(tx, &due, &rolled)).map(drop)
        };
        self.write_view(tenant, Urgency::Bulk, save).await?;
        (done.days, done.more) = (1, true);
        Ok(done)
    }

    async fn time_line(&self) -> StoreResult<StoredLine> {
        let tenant = Tenant::default_tenant();
        self.engine.read(&tenant, timeline::load).await
    }

    async fn anchor_time_line(
        &self,
        anchored: &Anchored,
        point: Option<&Point>,
    ) -> StoreResult<bool> {
        let (tenant, anchored, point) = (Tenant::default_tenant(), *anchored, point.copied());
        let save = move |view: &View<'_>| timeline::save(view, &anchored, point.as_ref());
        self.write_view(&tenant, Urgency::Prompt, save).await
    }

    async fn health(&self) -> StoreResult<StoreHealth> {
        let health = self
            .room
            .note(self.outage.note(self.engine.health().await))?;
        Ok(StoreHealth {
            full: self.room.is_full(),
            ..health
        })
    }

    async fn close(&self) {
        self.engine.close().await;
    }
}
