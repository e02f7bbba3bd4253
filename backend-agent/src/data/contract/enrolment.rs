//! Tickets, and machines that become gateways by them.

use std::net::IpAddr;

use async_trait::async_trait;
use viworks_common::admission::Shown;
use viworks_common::id::{AgentId, Tenant, TicketId};
use viworks_common::time::Timestamp;

use crate::data::{
    Actor, Foreseen, Listing, NewTicket, Page, RedeemOutcome, Redemption, RefusedRedemption,
    RefusedReissue, Reissue, ReissueOutcome, StoreResult, StoredTicket, TicketBounds,
    TicketOutcome,
};

/// Tickets, and machines that become gateways by them.
#[async_trait]
pub trait EnrolmentStore: Send + Sync {
    /// Makes a ticket, unless there are as many as may be. Those that ended a month ago are forgotten, and beyond the
    /// bound of those the oldest.
    async fn create_ticket(
        &self,
        tenant: &Tenant,
        new: NewTicket,
        bounds: TicketBounds,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<TicketOutcome>;
    /// The ticket with this id.
    async fn ticket(&self, tenant: &Tenant, id: TicketId) -> StoreResult<Option<StoredTicket>>;
    /// The tickets, latest first.
    async fn list_tickets(
        &self,
        tenant: &Tenant,
        page: Page<TicketId>,
    ) -> StoreResult<Listing<StoredTicket, TicketId>>;
    /// Revokes a ticket; once is enough, and gateways that came of it stay. `None` when there is no such ticket.
    async fn revoke_ticket(
        &self,
        tenant: &Tenant,
        id: TicketId,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<Option<()>>;
    /// What would keep a machine with this certificate's key (SHA-256) from becoming a gateway, as far as a look tells;
    /// `None` when there is no such ticket.
    async fn foresee_redemption(
        &self,
        tenant: &Tenant,
        ticket: TicketId,
        spki: [u8; 32],
        peer: IpAddr,
        now: Timestamp,
    ) -> StoreResult<Option<Foreseen>>;
    /// Consumes the challenge, uses the ticket and creates the gateway, all or nothing;
    /// [`Conflict`](crate::data::StoreError::Conflict) when its name is taken and there is another one, with which
    /// nothing has changed. The same key of the same installation is the same gateway again, as long as that was never
    /// connected.
    async fn redeem_ticket(
        &self,
        tenant: &Tenant,
        redemption: Redemption,
        now: Timestamp,
    ) -> StoreResult<RedeemOutcome>;
    /// Consumes the challenge that somebody with a ticket answered, and records why nothing came of that; `false` when
    /// it was consumed before, which is recorded instead.
    async fn refuse_redemption(
        &self,
        tenant: &Tenant,
        refused: RefusedRedemption,
        now: Timestamp,
    ) -> StoreResult<bool>;
    /// What comes of a request at the door for this key (SHA-256) by whoever shows this, as far as a look tells; `None`
    /// where a certificate would be made. Whether one has ended is judged by the wall clock, as TLS does.
    async fn foresee_reissue(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        spki: [u8; 32],
        shown: Shown,
        wall: Timestamp,
        now: Timestamp,
    ) -> StoreResult<Option<ReissueOutcome>>;
    /// Consumes the challenge and registers a certificate that a gateway asked for at the door because its own has
    /// ended, in place of that, all or nothing. It has as many as over its sessions. Until a session was confirmed with
    /// it, the same key gets the same one again. The gateway's epoch stays where it is.
    async fn reissue_certificate(
        &self,
        tenant: &Tenant,
        reissue: Reissue,
        now: Timestamp,
    ) -> StoreResult<ReissueOutcome>;
    /// Consumes the challenge that a gateway answered at the door, and records, within bounds, why nothing came of
    /// that, where nothing did; `false` when it was consumed before, which is recorded instead. Without one, only
    /// records it.
    async fn refuse_reissue(
        &self,
        tenant: &Tenant,
        refused: RefusedReissue,
        now: Timestamp,
    ) -> StoreResult<bool>;
}
