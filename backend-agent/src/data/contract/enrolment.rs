//! Tickets, and machines that become gateways by them.

use async_trait::async_trait;
use viworks_common::id::{Tenant, TicketId};
use viworks_common::time::Timestamp;

use crate::data::{
    Actor, ChallengeOutcome, Listing, NewTicket, NotedRefusal, Page, RedeemOutcome, Redemption,
    StoreResult, StoredTicket,
};

/// Tickets, and machines that become gateways by them.
#[async_trait]
pub trait EnrolmentStore: Send + Sync {
    /// Makes a ticket; `false` when there are as many as may be. Those that ended a month ago are forgotten.
    async fn create_ticket(
        &self,
        tenant: &Tenant,
        new: NewTicket,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<bool>;
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
    /// Keeps a challenge for one redemption of a ticket until `expires_at`.
    async fn add_challenge(
        &self,
        tenant: &Tenant,
        ticket: TicketId,
        challenge: [u8; 32],
        expires_at: Timestamp,
        now: Timestamp,
    ) -> StoreResult<ChallengeOutcome>;
    /// Consumes the challenge, uses the ticket and creates the gateway, all or nothing;
    /// [`Conflict`](crate::data::StoreError::Conflict) when its name is taken, with which nothing has changed. The same
    /// key of the same installation is the same gateway again, as long as that was never connected.
    async fn redeem_ticket(
        &self,
        tenant: &Tenant,
        redemption: Redemption,
        now: Timestamp,
    ) -> StoreResult<RedeemOutcome>;
    /// Records that somebody who knows a ticket, or its id, was refused.
    async fn note_refused_ticket(
        &self,
        tenant: &Tenant,
        ticket: TicketId,
        refusal: NotedRefusal,
        actor: &Actor,
        now: Timestamp,
    ) -> StoreResult<()>;
}
