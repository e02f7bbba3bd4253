//! Telemetry: taking it in, asking for it, and letting it go.

use std::sync::Arc;

use async_trait::async_trait;
use viworks_common::id::{AgentId, StreamName, Tenant};
use viworks_common::telemetry::Position;
use viworks_common::time::Timestamp;
use viworks_runtime::fault;

use super::super::link::{Engine, Urgency};
use super::super::store::SqlStore;
use super::super::telemetry;
use super::super::telemetry::{queries, retention, rollups, steps};
use super::super::tx::{Tx, View};
use crate::data::{
    GapCursor, Listing, Page, PurgedTelemetry, RefusalCursor, RolledUp, StepCursor, StepQuery,
    Stepped, StoreError, StoreResult, StoredGap, StoredRecord, StoredRefusal, StreamSummary,
    TelemetryCursor, TelemetryLimits, TelemetryOutcome, TelemetryQuery, TelemetryStore,
    TelemetryWrite,
};

#[async_trait]
impl<E: Engine> TelemetryStore for SqlStore<E> {
    fn is_busy(&self) -> bool {
        self.engine.is_busy()
    }

    fn limit_telemetry(&self, limits: TelemetryLimits) {
        self.set_telemetry(limits);
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
        let limits = self.limits();
        let commit = move |view: &View<'_>| {
            let commit = |tx: &Tx<'_>| telemetry::commit(tx, &writes, &limits, wall);
            Ok(Tx::run(view, now, commit)?.answer)
        };
        let outcomes = match self.engine.write(tenant, Urgency::Bulk, commit).await {
            // Of whom it speaks is for whoever has the writes of others to find out. Whether somebody holds a lock is
            // looked for anyway.
            Err(error) if error.is_in_doubt() && !matches!(error, StoreError::Held(_)) => {
                return Err(error);
            }
            written => self.noted(written)?,
        };
        fault::point("store.telemetry.after_commit");
        let stores = outcomes.iter().any(TelemetryOutcome::stores);
        if stores {
            self.room.found_for_telemetry();
        }
        Ok(outcomes)
    }

    fn believe(&self, error: StoreError) {
        // Whether there is room for anything else, what else is written finds out.
        if let StoreError::Full(_) = &error {
            self.room.doubt(&error);
            return;
        }
        drop(self.noted::<()>(Err(error)));
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

    async fn purge_telemetry(
        &self,
        tenant: &Tenant,
        after: Option<AgentId>,
        most: usize,
        now: Timestamp,
    ) -> StoreResult<PurgedTelemetry> {
        let limits = self.limits();
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
        let (limits, makes) = (self.limits(), self.makes_rollups());
        let claim = move |view: &View<'_>| {
            let claim = |tx: &Tx<'_>| rollups::claim(tx, &limits, makes.is_some());
            Ok(Tx::run(view, now, claim)?.answer)
        };
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
        let makes = makes == Some(true);
        let rolled = self.report(tenant, move |view| rollups::read(view, &due, makes));
        let rolled = rolled.await?;
        let save = move |view: &View<'_>| {
            Tx::run(view, now, |tx| rollups::save(tx, &due, &rolled)).map(drop)
        };
        self.write_view(tenant, Urgency::Bulk, save).await?;
        (done.days, done.more) = (1, true);
        Ok(done)
    }
}
