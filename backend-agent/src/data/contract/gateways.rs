//! Gateways, their certificates, and what they allow.

use async_trait::async_trait;
use viworks_common::catalogue::CatalogueEntry;
use viworks_common::id::{AgentId, CommandName, GatewayName, Tenant};
use viworks_common::key::MASTER_ID_BYTES;
use viworks_common::time::Timestamp;

use crate::data::{
    Actor, Certificate, CertificateEnds, CertificateRef, CertificateRevocation, Gateway,
    GatewayFilter, GatewayRef, KeyRotation, Listing, LookedForRefusal, MergedCommand,
    NewCertificate, NewGateway, Page, RegisteredCertificate, Renewal, RenewalOutcome, Revocation,
    Revoked, StoreResult, StoredCatalogue, WithdrawnCertificate,
};

/// Gateways, their certificates, and what they allow.
#[async_trait]
pub trait GatewayStore: Send + Sync {
    /// Creates a gateway; [`Conflict`](crate::data::StoreError::Conflict) when its name or its id was ever used.
    async fn create_gateway(
        &self,
        tenant: &Tenant,
        new: NewGateway,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// The gateway with an id or a name.
    async fn gateway(&self, tenant: &Tenant, which: &GatewayRef) -> StoreResult<Option<Gateway>>;
    /// Gateways in the order of their creation.
    async fn list_gateways(
        &self,
        tenant: &Tenant,
        filter: &GatewayFilter,
        page: Page<AgentId>,
    ) -> StoreResult<Listing<Gateway, AgentId>>;
    /// Gives a gateway another name; `None` when there is no such gateway.
    async fn rename_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        name: &GatewayName,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<()>>;
    /// Revokes a gateway and everything it may do, at once; its non-final commands end. `None` when there is no such
    /// gateway; revoking twice is revoking once, and the first reason stays.
    async fn revoke_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        reason: Option<&str>,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<Revoked>>;
    /// Has a gateway given the agent key of the next generation, by whichever backend has its session, or in its next
    /// one; asking twice before it uses that is asking once. `None` when there is no such gateway.
    async fn rotate_key(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<KeyRotation>>;
    /// Notes whether the agent of a gateway takes keys over its session, which is of this epoch, and of which master
    /// key its agent key and its token are.
    async fn note_keys(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        takes: bool,
        master: Option<[u8; MASTER_ID_BYTES]>,
    ) -> StoreResult<()>;
    /// Ephemeral gateways that stayed away for longer than they may: the first `limit`, which are revoked next.
    async fn absent_gateways(
        &self,
        tenant: &Tenant,
        limit: usize,
        now: Timestamp,
    ) -> StoreResult<Vec<AgentId>>;
    /// Revokes ephemeral gateways that stayed away for longer than they may, at most `limit`, and frees their names;
    /// answers what that did.
    async fn remove_absent_gateways(
        &self,
        tenant: &Tenant,
        limit: usize,
        now: Timestamp,
    ) -> StoreResult<Vec<(AgentId, Revoked)>>;
    /// Who revoked a gateway, and why; `None` when it is not revoked, or a program of before did so, and so long ago
    /// that the audit log has gone on by more than is looked through.
    async fn revocation(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Option<Revocation>>;
    /// When somebody who showed a certificate of this gateway was last refused a session, and why; none when nobody
    /// was, or, as the answer says, perhaps so long ago that the audit log has gone on by more than is looked through.
    async fn last_refusal(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<LookedForRefusal>;
    /// Revokes one certificate of a gateway, at once: whoever has its key gets no session any more, and the session
    /// that was opened with it ends. Its other certificates go on. Revoking twice is revoking once. An earlier
    /// certificate of a key that got another one at the door names that key, as long as it is remembered.
    async fn revoke_certificate(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        which: &CertificateRef,
        reason: &str,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<CertificateRevocation>;
    /// The latest certificates of a gateway, the last one first.
    async fn list_certificates(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Vec<RegisteredCertificate>>;
    /// The certificates of all gateways that are not accepted any more and end later than this; at most 100,000, those
    /// that were revoked before those that a later one has replaced. Earlier ones of a key are among them.
    async fn withdrawn_certificates(
        &self,
        tenant: &Tenant,
        now: Timestamp,
    ) -> StoreResult<Vec<WithdrawnCertificate>>;
    /// Registers a certificate's key for exactly this gateway; [`Conflict`](crate::data::StoreError::Conflict) when the
    /// key was ever registered.
    async fn register_certificate(
        &self,
        tenant: &Tenant,
        new: NewCertificate,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// Registers a certificate that a gateway asked for over the session of this epoch, beside the one in use, unless
    /// it got as many as it may: one a minute and six an hour, or one an hour once many of them were in no session. The
    /// same key gets the same certificate again, until a session was confirmed with it.
    async fn renew_certificate(
        &self,
        tenant: &Tenant,
        renewal: Renewal,
        now: Timestamp,
    ) -> StoreResult<RenewalOutcome>;
    /// What is known about a key presented for a gateway; `None` when it is not registered for it.
    async fn certificate(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        spki: &[u8; 32],
    ) -> StoreResult<Option<Certificate>>;
    /// When the certificates of all gateways end, as seen at `wall` by the wall clock.
    async fn certificate_ends(
        &self,
        tenant: &Tenant,
        wall: Timestamp,
    ) -> StoreResult<CertificateEnds>;
    /// Stores what a gateway allows.
    async fn save_catalogue(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        digest: &str,
        entries: Vec<CatalogueEntry>,
        now: Timestamp,
    ) -> StoreResult<()>;
    /// What a gateway allows, by its last report.
    async fn catalogue(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Option<StoredCatalogue>>;
    /// The commands over all gateways that are not revoked, by name, each merged from all reports of it.
    async fn merged_catalogue(
        &self,
        tenant: &Tenant,
        page: Page<CommandName>,
    ) -> StoreResult<Listing<MergedCommand, CommandName>>;
    /// One of them; `None` when no gateway has it.
    async fn merged_command(
        &self,
        tenant: &Tenant,
        name: &CommandName,
    ) -> StoreResult<Option<MergedCommand>>;
}
