//! Enrolment tickets.

use reqwest::Method;
use viworks_api::{GatewayList, ReplaceRequest, Ticket, TicketCreated, TicketList, TicketRequest};
use viworks_common::id::TicketId;

use super::{ALL, Client, segment};
use crate::failure::Failure;

impl Client {
    /// Makes a ticket.
    pub async fn create_ticket(&self, request: &TicketRequest) -> Result<TicketCreated, Failure> {
        let builder = self.request(Method::POST, "/v1/tickets").json(request);
        let created = self.answer(builder).await;
        let unknown = "whether a ticket was made is not known; nobody has its string, and viworks ticket ls lists it";
        created.map_err(|failure: Failure| failure.if_unanswered(unknown))
    }

    /// Makes a ticket by which another machine takes a gateway's place.
    pub async fn replace_gateway(
        &self,
        reference: &str,
        request: &ReplaceRequest,
    ) -> Result<TicketCreated, Failure> {
        let path = format!("/v1/gateways/{}/replace", segment(reference)?);
        let builder = self.request(Method::POST, &path).json(request);
        let created = self.answer(builder).await;
        let unknown = "whether a ticket was made is not known; nobody has its string, viworks ticket ls lists it, and \
                       nothing else has changed";
        created.map_err(|failure: Failure| failure.if_unanswered(unknown))
    }

    /// The gateways that came of a ticket.
    pub async fn gateways_of(&self, ticket: TicketId) -> Result<GatewayList, Failure> {
        let query = [("ticket", ticket.to_string())];
        self.list("/v1/gateways", &query, ALL).await
    }

    /// All tickets, the latest first.
    pub async fn tickets(&self) -> Result<TicketList, Failure> {
        self.list("/v1/tickets", &[], ALL).await
    }

    /// One ticket.
    pub async fn ticket(&self, id: TicketId) -> Result<Ticket, Failure> {
        self.get(&format!("/v1/tickets/{id}"), &[]).await
    }

    /// Revokes one.
    pub async fn revoke_ticket(&self, id: TicketId) -> Result<(), Failure> {
        let builder = self.request(Method::DELETE, &format!("/v1/tickets/{id}"));
        let revoked = self.promptly(builder, async |_nothing| Ok(()));
        let unknown =
            "whether it was revoked is not known: revoke it again, which changes nothing more";
        revoked
            .await
            .map_err(|failure| failure.if_unanswered(unknown))
    }
}
