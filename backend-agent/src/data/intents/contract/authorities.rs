//! The authorities that gateways are given, and which gateways have them.

use async_trait::async_trait;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::time::Timestamp;

use super::super::authorities;
use super::super::link::Engine;
use super::super::store::SqlStore;
use crate::data::{
    AuthorityBundle, AuthorityStore, AuthorityTrust, Signed, SignedFor, StoreResult, Unaware,
};

#[async_trait]
impl<E: Engine> AuthorityStore for SqlStore<E> {
    async fn note_bundle(
        &self,
        tenant: &Tenant,
        bundle: AuthorityBundle,
        now: Timestamp,
    ) -> StoreResult<()> {
        self.write(tenant, now, move |tx| authorities::note(tx, &bundle))
            .await
    }

    async fn report_bundle(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        digest: Option<String>,
        now: Timestamp,
    ) -> StoreResult<()> {
        self.write(tenant, now, move |tx| {
            authorities::report(tx, agent_id, epoch, digest.as_deref())
        })
        .await
    }

    async fn authority_trust(&self, tenant: &Tenant) -> StoreResult<AuthorityTrust> {
        self.read(tenant, authorities::trust).await
    }

    async fn unaware(
        &self,
        tenant: &Tenant,
        authority: String,
        reported: bool,
        after: Option<AgentId>,
        limit: usize,
    ) -> StoreResult<Vec<Unaware>> {
        self.read(tenant, move |view| {
            authorities::unaware(view, &authority, reported, (after, limit))
        })
        .await
    }

    async fn signed(&self, tenant: &Tenant, wall: Timestamp) -> StoreResult<Vec<Signed>> {
        self.read(tenant, move |view| authorities::signed(view, wall))
            .await
    }

    async fn signed_for(
        &self,
        tenant: &Tenant,
        issuer: Option<[u8; 32]>,
        wall: Timestamp,
        limit: usize,
    ) -> StoreResult<Vec<SignedFor>> {
        self.read(tenant, move |view| {
            authorities::signed_for(view, issuer, wall, limit)
        })
        .await
    }

    async fn signers(
        &self,
        tenant: &Tenant,
        gateways: Vec<AgentId>,
        wall: Timestamp,
    ) -> StoreResult<Vec<(AgentId, [u8; 32])>> {
        self.read(tenant, move |view| {
            authorities::signers(view, &gateways, wall)
        })
        .await
    }
}
