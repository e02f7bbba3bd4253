//! API keys, the audit log, the time line, whose the database is, and the store itself.

use async_trait::async_trait;
use viworks_common::id::{AgentId, ApiKeyId, Tenant};
use viworks_common::time::Timestamp;
use viworks_common::timeline::Anchored;
use viworks_common::timeline::shared::Point;

use super::super::link::{Engine, Urgency};
use super::super::store::SqlStore;
use super::super::tx::View;
use super::super::{audit, keys, recount, site, timeline, upkeep};
use crate::data::{
    Actor, ApiKey, AuditFilter, AuditRecord, Listing, NewApiKey, NewAuditRecord, Page, Purged,
    Recounted, SiteClaim, StoreHealth, StoreResult, StoredLine, UpkeepStore,
};

#[async_trait]
impl<E: Engine> UpkeepStore for SqlStore<E> {
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
        self.ask(tenant, move |view| keys::by_hash(view, &sha256))
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

    async fn find_audit(
        &self,
        tenant: &Tenant,
        filter: AuditFilter,
        looked: u64,
        page: Page<u64>,
    ) -> StoreResult<Listing<AuditRecord, u64>> {
        self.read(tenant, move |view| audit::find(view, &filter, looked, page))
            .await
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
        let most = self.dead_letters_max;
        self.write(tenant, now, move |tx| upkeep::purge(tx, most, limit))
            .await
    }

    async fn make_days_ahead(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<()> {
        self.write(tenant, now, |tx| tx.make_days_ahead(tx.now))
            .await
    }

    async fn recount(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<Recounted> {
        self.write(tenant, now, recount::recount).await
    }

    async fn site_key_check(&self) -> StoreResult<Option<[u8; 32]>> {
        self.read(&Tenant::default_tenant(), site::load).await
    }

    async fn claim_site(&self, key_check: &[u8; 32], claim: SiteClaim) -> StoreResult<bool> {
        let (tenant, key_check) = (Tenant::default_tenant(), *key_check);
        let own = move |view: &View<'_>| site::claim(view, key_check, claim);
        self.write_view(&tenant, Urgency::Prompt, own).await
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
        let doubt = self.outage.doubt();
        let health = self.engine.health(doubt).await;
        let health = self.room.note(self.outage.explain(doubt, health))?;
        Ok(StoreHealth {
            full: self.room.is_full(),
            full_for_telemetry: self.room.is_doubted(),
            ..health
        })
    }

    async fn close(&self) {
        self.engine.close().await;
    }
}
