//! Backends that share a database. Where it has one, there is nothing of them.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use viworks_common::id::{AgentId, InstanceId, SessionId, Tenant};
use viworks_common::time::Timestamp;

use crate::data::{
    EndedInstances, Hurry, Instance, InstanceLoad, KeyHolder, Mail, MasterIds, Neighbour, Owner,
    ProbeAnswer, Retention, StoreResult,
};

/// Backends that share a database. Where it has one, there is nothing of them.
#[async_trait]
pub trait InstanceStore: Send + Sync {
    /// Which instance this is, from now on: a process that lost its lease of the database goes on as another one, and
    /// has none of its sessions any more.
    fn instance(&self) -> watch::Receiver<Option<InstanceId>>;
    /// The others that have their lease, as they told of themselves when this one renewed its own last.
    fn neighbours(&self) -> watch::Receiver<Vec<Neighbour>>;
    /// The longest of what the others promised to keep, those among them that are away.
    fn promised(&self) -> Option<Retention>;
    /// Tells the others of this one, with the next renewal of its lease.
    fn note_load(&self, load: InstanceLoad);
    /// Says which bundle of authorities this one gives gateways, by its digest: with each renewal of its lease.
    fn note_authorities(&self, bundle: &str);
    /// Says which master keys this one has: with each renewal of its lease, where there are several, and else at once.
    async fn note_masters(&self, masters: MasterIds) -> StoreResult<()>;
    /// The backends that are there, by name, and which master keys each has.
    async fn key_holders(&self) -> StoreResult<Vec<KeyHolder>>;
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
}
