//! Sessions of gateways: who may open one, which is the current one, and its end.

use std::sync::Arc;

use async_trait::async_trait;
use viworks_common::claims::{Probed, Verdict};
use viworks_common::code::CloseCode;
use viworks_common::id::{AgentId, InstanceId, Tenant};
use viworks_common::time::Timestamp;

use super::super::link::{Engine, Urgency};
use super::super::merged::{Answer, Intent, heartbeats};
use super::super::store::SqlStore;
use super::super::tx::{Outcome, Tx, View};
use super::super::{admit, confirm, forks, instances, resolutions, sessions, standing};
use crate::data::{
    Actor, AdmitOutcome, AdmitRequest, ConfirmOutcome, ConfirmRequest, Fork, ForkDecision,
    ForkResolution, InstanceStore, SessionRecord, SessionStore, SessionTouch, StoreResult,
};

#[async_trait]
impl<E: Engine> SessionStore for SqlStore<E> {
    async fn admit(
        &self,
        tenant: &Tenant,
        request: AdmitRequest,
        now: Timestamp,
    ) -> StoreResult<AdmitOutcome> {
        let limits = self.limits();
        let request = Arc::new(request);
        let intent = Intent::Admit(Arc::clone(&request), limits);
        if let Some(Answer::Admitted(admitted)) = self.write_together(tenant, now, intent).await? {
            return Ok(admitted);
        }
        self.write(tenant, now, move |tx| admit::admit(tx, &request, &limits))
            .await
    }

    async fn confirm_session(
        &self,
        tenant: &Tenant,
        request: ConfirmRequest,
        now: Timestamp,
    ) -> StoreResult<ConfirmOutcome> {
        let request = Arc::new(request);
        let intent = Intent::Confirm(Arc::clone(&request));
        let together = self.write_together(tenant, now, intent).await?;
        if let Some(Answer::Confirmed(answer, mailed)) = together {
            let mailed = mailed.into_iter().collect();
            return Ok(self.told(Outcome { answer, mailed }));
        }
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

    async fn touch_sessions(
        &self,
        tenant: &Tenant,
        touches: Vec<SessionTouch>,
        now: Timestamp,
    ) -> StoreResult<()> {
        for together in touches.chunks(E::HEARTBEATS) {
            let (together, same) = (together.to_vec(), together.to_vec());
            let at_once = move |tx: &Tx<'_>| heartbeats::touch_all(tx, &together).map(Some);
            let touch = move |tx: &Tx<'_>| sessions::touch(tx, &same).map(|()| Vec::new());
            let left = self.write_at_once(tenant, now, at_once, touch).await?;
            if !left.is_empty() {
                let touch = move |tx: &Tx<'_>| sessions::touch(tx, &left);
                self.write(tenant, now, touch).await?;
            }
        }
        Ok(())
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

    async fn resolve_fork(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        decision: ForkDecision,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<ForkResolution>> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| {
            resolutions::resolve(tx, agent_id, decision, &actor)
        })
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
}
