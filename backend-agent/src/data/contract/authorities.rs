//! The authorities that gateways are given, and which gateways have them.

use async_trait::async_trait;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::time::Timestamp;

use crate::data::{AuthorityBundle, AuthorityTrust, Signed, SignedFor, StoreResult, Unaware};

/// The authorities that gateways are given, and which gateways have them.
#[async_trait]
pub trait AuthorityStore: Send + Sync {
    /// Notes what is in the bundle that this backend gives, and forgets those that no gateway has and that no backend
    /// gave for a while.
    async fn note_bundle(
        &self,
        tenant: &Tenant,
        bundle: AuthorityBundle,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// Stores which bundle a gateway has, by its digest; none where its agent takes none.
    async fn report_bundle(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        digest: Option<String>,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// Which bundles gateways have, and what is in them.
    async fn authority_trust(&self, tenant: &Tenant) -> StoreResult<AuthorityTrust>;
    /// The first so many gateways behind one that do not have an authority, by id; of these only the ones that reported
    /// what they have, where that is asked for.
    async fn unaware(
        &self,
        tenant: &Tenant,
        authority: String,
        reported: bool,
        after: Option<AgentId>,
        limit: usize,
    ) -> StoreResult<Vec<Unaware>>;
    /// How many gateways have a certificate of which authority with which they get in at this moment of the wall clock.
    async fn signed(&self, tenant: &Tenant, wall: Timestamp) -> StoreResult<Vec<Signed>>;
    /// The first so many gateways that have such a certificate of one authority, by id; of none, those of which it is
    /// not known which one signed it.
    async fn signed_for(
        &self,
        tenant: &Tenant,
        issuer: Option<[u8; 32]>,
        wall: Timestamp,
        limit: usize,
    ) -> StoreResult<Vec<SignedFor>>;
    /// Which authorities signed such certificates of some gateways, as far as that is known: each gateway with each of
    /// them.
    async fn signers(
        &self,
        tenant: &Tenant,
        gateways: Vec<AgentId>,
        wall: Timestamp,
    ) -> StoreResult<Vec<(AgentId, [u8; 32])>>;
}
