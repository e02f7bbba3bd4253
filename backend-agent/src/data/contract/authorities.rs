//! The authorities that gateways are given, and which gateways have them.

use async_trait::async_trait;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::time::Timestamp;

use crate::data::{AuthorityBundle, AuthorityTrust, StoreResult, Unaware};

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
}
