//! Backends that share a database. Where it has one, there is nothing of them.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use viworks_common::id::{AgentId, InstanceId, SessionId, Tenant};
use viworks_common::time::Timestamp;

use super::super::link::Engine;
use super::super::store::SqlStore;
use super::super::tx::Tx;
use super::super::{inbox, instances};
use crate::data::{
    EndedInstances, Hurry, Instance, InstanceLoad, InstanceStore, KeyHolder, Mail, MasterIds,
    Neighbour, Owner, ProbeAnswer, Retention, StoreResult,
};

#[async_trait]
impl<E: Engine> InstanceStore for SqlStore<E> {
    fn instance(&self) -> watch::Receiver<Option<InstanceId>> {
        self.engine.instance()
    }

    fn neighbours(&self) -> watch::Receiver<Vec<Neighbour>> {
        self.engine.neighbours()
    }

    fn promised(&self) -> Option<Retention> {
        self.engine.promised()
    }

    fn note_load(&self, load: InstanceLoad) {
        self.engine.note_load(InstanceLoad {
            retention: Some(Retention::of(&self.telemetry())),
            ..load
        });
    }

    fn note_authorities(&self, bundle: &str) {
        self.engine.note_authorities(bundle);
    }

    async fn note_masters(&self, masters: MasterIds) -> StoreResult<()> {
        self.note_masters_of(masters).await
    }

    async fn key_holders(&self) -> StoreResult<Vec<KeyHolder>> {
        self.read(&Tenant::default_tenant(), instances::key_holders)
            .await
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

    async fn end_dead_instances(
        &self,
        tenant: &Tenant,
        now: Timestamp,
    ) -> StoreResult<EndedInstances> {
        self.write(tenant, now, instances::end_dead).await
    }
}
