//! Tickets, and machines that become gateways by them.

use std::net::IpAddr;

use async_trait::async_trait;
use viworks_common::admission::Shown;
use viworks_common::id::{AgentId, Tenant, TicketId};
use viworks_common::time::Timestamp;
use viworks_runtime::fault;

use super::super::link::Engine;
use super::super::store::SqlStore;
use super::super::tx::Tx;
use super::super::{enrolments, reissues, tickets};
use crate::data::{
    Actor, EnrolmentStore, Foreseen, Listing, NewTicket, Page, RedeemOutcome, Redemption,
    RefusedRedemption, RefusedReissue, Reissue, ReissueOutcome, StoreResult, StoredTicket,
    TicketBounds, TicketOutcome,
};

#[async_trait]
impl<E: Engine> EnrolmentStore for SqlStore<E> {
    async fn create_ticket(
        &self,
        tenant: &Tenant,
        new: NewTicket,
        bounds: TicketBounds,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<TicketOutcome> {
        let actor = actor.clone();
        self.write(tenant, now, move |tx| {
            tickets::create(tx, &new, bounds, &actor)
        })
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

    async fn foresee_redemption(
        &self,
        tenant: &Tenant,
        ticket: TicketId,
        spki: [u8; 32],
        peer: IpAddr,
        now: Timestamp,
    ) -> StoreResult<Option<Foreseen>> {
        self.read(tenant, move |view| {
            enrolments::foresee(view, ticket, &spki, peer, now)
        })
        .await
    }

    async fn redeem_ticket(
        &self,
        tenant: &Tenant,
        redemption: Redemption,
        now: Timestamp,
    ) -> StoreResult<RedeemOutcome> {
        let redeem = move |tx: &Tx<'_>| enrolments::redeem(tx, &redemption);
        let outcome = self.write(tenant, now, redeem).await?;
        if matches!(
            outcome,
            RedeemOutcome::Enrolled | RedeemOutcome::Replaced(_)
        ) {
            fault::point("store.redeem.after_commit");
        }
        Ok(outcome)
    }

    async fn refuse_redemption(
        &self,
        tenant: &Tenant,
        refused: RefusedRedemption,
        now: Timestamp,
    ) -> StoreResult<bool> {
        self.write(tenant, now, move |tx| enrolments::refuse(tx, &refused))
            .await
    }

    async fn foresee_reissue(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        spki: [u8; 32],
        shown: Shown,
        wall: Timestamp,
        now: Timestamp,
    ) -> StoreResult<Option<ReissueOutcome>> {
        self.read(tenant, move |view| {
            reissues::foresee(view, agent_id, &spki, shown, (wall, now))
        })
        .await
    }

    async fn reissue_certificate(
        &self,
        tenant: &Tenant,
        reissue: Reissue,
        now: Timestamp,
    ) -> StoreResult<ReissueOutcome> {
        self.write(tenant, now, move |tx| reissues::reissue(tx, &reissue))
            .await
    }

    async fn refuse_reissue(
        &self,
        tenant: &Tenant,
        refused: RefusedReissue,
        now: Timestamp,
    ) -> StoreResult<bool> {
        self.write(tenant, now, move |tx| reissues::refuse(tx, &refused))
            .await
    }
}
