//! Sessions of gateways: who may open one, which is the current one, and its end.

use async_trait::async_trait;
use viworks_common::claims::{Probed, Verdict};
use viworks_common::code::CloseCode;
use viworks_common::id::{AgentId, InstanceId, Tenant};
use viworks_common::time::Timestamp;

use crate::data::{
    Actor, AdmitOutcome, AdmitRequest, ConfirmOutcome, ConfirmRequest, Fork, ForkDecision,
    ForkResolution, SessionRecord, SessionTouch, StoreResult,
};

/// Sessions of gateways: who may open one, which is the current one, and its end.
#[async_trait]
pub trait SessionStore: Send + Sync {
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
    /// Decides between two holders of an identity: the session of whoever is not kept ends, its epochs are fenced, and
    /// the one that is kept is let in once although its epoch was left behind. `None` when there is no such gateway;
    /// the same decision again changes nothing.
    async fn resolve_fork(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        decision: ForkDecision,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<ForkResolution>>;
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
}
