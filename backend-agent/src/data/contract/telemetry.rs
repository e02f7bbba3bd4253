//! Telemetry: taking it in, asking for it, and letting it go.

use std::sync::Arc;

use async_trait::async_trait;
use viworks_common::id::{AgentId, StreamName, Tenant};
use viworks_common::telemetry::Position;
use viworks_common::time::Timestamp;

use crate::data::{
    GapCursor, Listing, Page, PurgedTelemetry, RefusalCursor, RolledUp, StepCursor, StepQuery,
    Stepped, StoreError, StoreResult, StoredGap, StoredRecord, StoredRefusal, StreamSummary,
    TelemetryCursor, TelemetryLimits, TelemetryOutcome, TelemetryQuery, TelemetryWrite,
};

/// Telemetry: taking it in, asking for it, and letting it go.
#[async_trait]
pub trait TelemetryStore: Send + Sync {
    /// Whether writes come in that people wait for, so that telemetry should take little room.
    fn is_busy(&self) -> bool;
    /// What a gateway may have stored, from now on.
    fn limit_telemetry(&self, limits: TelemetryLimits);
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
    /// What committing telemetry met speaks of the database, and not of what was given: until this is called, health
    /// says nothing of an error that is [in doubt](StoreError::is_in_doubt). Of room it is told as telemetry's.
    fn believe(&self, error: StoreError);
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
}
