//! Tickets, and machines that become gateways by them.

use async_trait::async_trait;
use serde_json::json;
use viworks_common::id::{Tenant, TicketId};
use viworks_common::time::Timestamp;

use super::super::link::Engine;
use super::super::store::SqlStore;
use super::super::{enrolments, tickets};
use crate::data::{
    Actor, ChallengeOutcome, EnrolmentStore, Listing, NewTicket, NotedRefusal, Page, RedeemOutcome,
    Redemption, StoreResult, StoredTicket,
};

#[async_trait]
impl<E: Engine> EnrolmentStore for SqlStore<E> {
    async fn create_ticket(
        &self,
        tenant: &Tenant,
        new: NewTicket,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<bool> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| tickets::create(tx, &new, &actor))
            .await
    }

    async fn ticket(&self, tenant: &Tenant, id: TicketId) -> StoreResult<Option<StoredTicket>> {
        self.read(tenant, move |view| tickets::by_id(view, id))
            .await
    }

    async fn list_tickets(
        &self,
        tenant: &Tenant,
        page: Page<TicketId>,
    ) -> StoreResult<Listing<StoredTicket, TicketId>> {
        self.read(tenant, move |view| tickets::list(view, page))
            .await
    }

    async fn revoke_ticket(
        &self,
        tenant: &Tenant,
        id: TicketId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<()>> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| tickets::revoke(tx, id, &actor))
            .await
    }

    async fn add_challenge(
        &self,
        tenant: &Tenant,
        ticket: TicketId,
        challenge: [u8; 32],
        expires_at: Timestamp,
        now: Timestamp,
    ) -> StoreResult<ChallengeOutcome> {
        self.write(tenant, now, move |tx| {
            enrolments::challenge(tx, ticket, &challenge, expires_at)
        })
        .await
    }

    async fn redeem_ticket(
        &self,
        tenant: &Tenant,
        redemption: Redemption,
        now: Timestamp,
    ) -> StoreResult<RedeemOutcome> {
        self.write(tenant, now, move |tx| enrolments::redeem(tx, &redemption))
            .await
    }

    async fn note_refused_ticket(
        &self,
        tenant: &Tenant,
        ticket: TicketId,
        refusal: NotedRefusal,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| {
            let detail = json!({ "why": refusal.why, "told": refusal.told });
            tickets::note_refused(tx, ticket, &detail, &actor)
        })
        .await
    }
}
