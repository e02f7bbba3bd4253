//! API keys, the audit log, the time line, whose the database is, and the store itself.

use async_trait::async_trait;
use viworks_common::id::{AgentId, ApiKeyId, Tenant};
use viworks_common::time::Timestamp;
use viworks_common::timeline::Anchored;
use viworks_common::timeline::shared::Point;

use crate::data::{
    Actor, ApiKey, AuditFilter, AuditRecord, Listing, NewApiKey, NewAuditRecord, Page, Purged,
    Recounted, SiteClaim, StoreHealth, StoreResult, StoredLine,
};

/// API keys, the audit log, the time line, whose the database is, and the store itself.
#[async_trait]
pub trait UpkeepStore: Send + Sync {
    /// Creates an API key; only the digest of its secret is stored.
    async fn create_api_key(
        &self,
        tenant: &Tenant,
        new: NewApiKey,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// The API key whose secret has this SHA-256, whatever its state. Callers compare again in constant time.
    async fn api_key_by_hash(
        &self,
        tenant: &Tenant,
        sha256: &[u8; 32],
    ) -> StoreResult<Option<ApiKey>>;
    /// An API key, whatever its state.
    async fn api_key(&self, tenant: &Tenant, id: ApiKeyId) -> StoreResult<Option<ApiKey>>;
    /// API keys, latest first.
    async fn list_api_keys(
        &self,
        tenant: &Tenant,
        page: Page<ApiKeyId>,
    ) -> StoreResult<Listing<ApiKey, ApiKeyId>>;
    /// Revokes an API key; `None` when there is no such key.
    async fn revoke_api_key(
        &self,
        tenant: &Tenant,
        id: ApiKeyId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<()>>;
    /// Remembers that an API key was used.
    async fn touch_api_key(&self, tenant: &Tenant, id: ApiKeyId, now: Timestamp)
    -> StoreResult<()>;
    /// The audit log, newest first.
    async fn list_audit(
        &self,
        tenant: &Tenant,
        page: Page<u64>,
    ) -> StoreResult<Listing<AuditRecord, u64>>;
    /// The records of the audit log that are meant, newest first. Each page looks at no more than `looked` records, and
    /// may be short of its rows for that, or empty: it is the last one when it says so.
    async fn find_audit(
        &self,
        tenant: &Tenant,
        filter: AuditFilter,
        looked: u64,
        page: Page<u64>,
    ) -> StoreResult<Listing<AuditRecord, u64>>;
    /// Appends what no other intent records: refusals and security events.
    async fn append_audit(
        &self,
        tenant: &Tenant,
        record: NewAuditRecord,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// The same about a gateway, which cannot add to the log without end: `false` when it is only counted, for the next
    /// record of this gateway to tell.
    async fn note_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        record: NewAuditRecord,
        now: Timestamp,
    ) -> StoreResult<bool>;
    /// Deletes what has served, about `limit` rows of a kind: idempotency keys after a day, ended sessions and
    /// resolved dead letters after 30 days, and dead letters that are too many.
    async fn purge(&self, tenant: &Tenant, limit: usize, now: Timestamp) -> StoreResult<Purged>;
    /// Makes room for the telemetry of the days that come next, where that is not there yet.
    async fn make_days_ahead(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<()>;
    /// Holds the counters of open commands against what they count, and sets right what is off; whatever is under way
    /// meanwhile stays counted.
    async fn recount(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<Recounted>;
    /// What recognises the master key that the database belongs to ([`viworks_common::key::MasterKey::check`]); `None`
    /// before a backend claimed it.
    async fn site_key_check(&self) -> StoreResult<Option<[u8; 32]>>;
    /// Makes the database that of the key with this check, as `claim` says; `false`, and nothing is stored, when it
    /// belongs to another one.
    async fn claim_site(&self, key_check: &[u8; 32], claim: SiteClaim) -> StoreResult<bool>;
    /// The time line as it was stored last, with what the clock of a server shows.
    async fn time_line(&self) -> StoreResult<StoredLine>;
    /// Stores the anchor of the time line; what is audited from here on is in the wall time that it knows of. On a
    /// server, together with the point that follows the one that was read: `false`, and nothing is stored, when another
    /// process has stored one since.
    async fn anchor_time_line(
        &self,
        anchored: &Anchored,
        point: Option<&Point>,
    ) -> StoreResult<bool>;
    /// Whether the store works, by reading and by committing something.
    async fn health(&self) -> StoreResult<StoreHealth>;
    /// Finishes what is under way and closes; everything after this is
    /// [`Unavailable`](crate::data::StoreError::Unavailable).
    async fn close(&self);
}
