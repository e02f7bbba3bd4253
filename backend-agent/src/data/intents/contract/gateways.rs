//! Gateways, their certificates, and what they allow.

use async_trait::async_trait;
use viworks_common::catalogue::CatalogueEntry;
use viworks_common::id::{AgentId, CommandName, GatewayName, Tenant};
use viworks_common::key::MASTER_ID_BYTES;
use viworks_common::time::Timestamp;

use super::super::link::{Engine, Urgency};
use super::super::merged::{Answer, Intent};
use super::super::store::SqlStore;
use super::super::tx::View;
use super::super::{agents, catalogues, certificates, expiry, refusals, replacements, rotation};
use crate::data::{
    Actor, Certificate, CertificateEnds, CertificateRef, CertificateRevocation, Gateway,
    GatewayFilter, GatewayRef, GatewayStore, KeyRotation, Listing, LookedForRefusal, MergedCommand,
    NewCertificate, NewGateway, Page, RegisteredCertificate, Renewal, RenewalOutcome, Revocation,
    Revoked, StoreResult, StoredCatalogue, WithdrawnCertificate,
};

/// For what depends on no time.
const TIMELESS: Timestamp = Timestamp::from_unix_micros(0);

#[async_trait]
impl<E: Engine> GatewayStore for SqlStore<E> {
    async fn create_gateway(
        &self,
        tenant: &Tenant,
        new: NewGateway,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| agents::create(tx, &new, &actor))
            .await
    }

    async fn gateway(&self, tenant: &Tenant, which: &GatewayRef) -> StoreResult<Option<Gateway>> {
        let which = which.clone();
        self.read(tenant, move |view| agents::load(view, &which))
            .await
    }

    async fn list_gateways(
        &self,
        tenant: &Tenant,
        filter: &GatewayFilter,
        page: Page<AgentId>,
    ) -> StoreResult<Listing<Gateway, AgentId>> {
        let filter = filter.clone();
        self.read(tenant, move |view| agents::list(view, &filter, page))
            .await
    }

    async fn rename_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        name: &GatewayName,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<()>> {
        let (name, actor) = (name.clone(), actor.clone());
        self.write(tenant, now, move |tx| {
            agents::rename(tx, agent_id, &name, &actor)
        })
        .await
    }

    async fn revoke_gateway(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        reason: Option<&str>,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<Revoked>> {
        let (reason, actor) = (reason.map(str::to_owned), actor.clone());
        self.write(tenant, now, move |tx| {
            agents::revoke(tx, agent_id, reason.as_deref(), &actor)
        })
        .await
    }

    async fn absent_gateways(
        &self,
        tenant: &Tenant,
        limit: usize,
        now: Timestamp,
    ) -> StoreResult<Vec<AgentId>> {
        self.ask(tenant, move |view| replacements::absent(view, limit, now))
            .await
    }

    async fn remove_absent_gateways(
        &self,
        tenant: &Tenant,
        limit: usize,
        now: Timestamp,
    ) -> StoreResult<Vec<(AgentId, Revoked)>> {
        self.write(tenant, now, move |tx| {
            replacements::remove_absent(tx, limit)
        })
        .await
    }

    async fn rotate_key(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<KeyRotation>> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| {
            rotation::rotate(tx, agent_id, &actor)
        })
        .await
    }

    async fn note_keys(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        takes: bool,
        master: Option<[u8; MASTER_ID_BYTES]>,
    ) -> StoreResult<()> {
        let note = move |view: &View<'_>| rotation::note(view, agent_id, epoch, takes, master);
        self.write_view(tenant, Urgency::Prompt, note).await
    }

    async fn revocation(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Option<Revocation>> {
        self.read(tenant, move |view| agents::revocation(view, agent_id))
            .await
    }

    async fn last_refusal(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<LookedForRefusal> {
        self.read(tenant, move |view| refusals::last(view, agent_id))
            .await
    }

    async fn revoke_certificate(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        which: &CertificateRef,
        reason: &str,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<CertificateRevocation> {
        let (which, reason, actor) = (which.clone(), reason.to_owned(), actor.clone());
        self.write(tenant, now, move |tx| {
            certificates::revoke(tx, agent_id, &which, &reason, &actor)
        })
        .await
    }

    async fn list_certificates(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Vec<RegisteredCertificate>> {
        self.read(tenant, move |view| certificates::list(view, agent_id))
            .await
    }

    async fn withdrawn_certificates(
        &self,
        tenant: &Tenant,
        now: Timestamp,
    ) -> StoreResult<Vec<WithdrawnCertificate>> {
        self.read(tenant, move |view| certificates::withdrawn(view, now))
            .await
    }

    async fn register_certificate(
        &self,
        tenant: &Tenant,
        new: NewCertificate,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| {
            certificates::register(tx, &new, &actor)
        })
        .await
    }

    async fn renew_certificate(
        &self,
        tenant: &Tenant,
        renewal: Renewal,
        now: Timestamp,
    ) -> StoreResult<RenewalOutcome> {
        self.write(tenant, now, move |tx| certificates::renew(tx, &renewal))
            .await
    }

    async fn certificate_ends(
        &self,
        tenant: &Tenant,
        wall: Timestamp,
    ) -> StoreResult<CertificateEnds> {
        self.read(tenant, move |view| expiry::ends(view, wall))
            .await
    }

    async fn certificate(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        spki: &[u8; 32],
    ) -> StoreResult<Option<Certificate>> {
        let spki = *spki;
        let together = Intent::Certificate(agent_id, spki);
        // Whatever is the matter with that way is no matter of a question.
        let together = self.write_together(tenant, TIMELESS, together).await;
        if let Ok(Some(Answer::Certificate(known))) = together {
            return Ok(known);
        }
        self.ask_before_writing(tenant, move |view| {
            certificates::load(view, agent_id, &spki)
        })
        .await
    }

    async fn save_catalogue(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        digest: &str,
        entries: Vec<CatalogueEntry>,
        now: Timestamp,
    ) -> StoreResult<()> {
        let digest = digest.to_owned();
        self.write(tenant, now, move |tx| {
            catalogues::save(tx, agent_id, epoch, &digest, &entries)
        })
        .await
    }

    async fn catalogue(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
    ) -> StoreResult<Option<StoredCatalogue>> {
        self.read(tenant, move |view| catalogues::load(view, agent_id))
            .await
    }

    async fn merged_catalogue(
        &self,
        tenant: &Tenant,
        page: Page<CommandName>,
    ) -> StoreResult<Listing<MergedCommand, CommandName>> {
        self.read(tenant, move |view| catalogues::merged(view, &page))
            .await
    }

    async fn merged_command(
        &self,
        tenant: &Tenant,
        name: &CommandName,
    ) -> StoreResult<Option<MergedCommand>> {
        let name = name.clone();
        self.read(tenant, move |view| catalogues::merged_one(view, &name))
            .await
    }
}
