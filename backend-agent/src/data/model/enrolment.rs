//! Tickets by which machines become gateways, and what comes of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use viworks_common::enrolment::NameRule;
use viworks_common::id::{AgentId, GatewayName, InstallId, TicketId};
use viworks_common::network::IpNetwork;
use viworks_common::time::Timestamp;

use super::NewGateway;

/// A ticket to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTicket {
    /// Its id.
    pub id: TicketId,
    /// SHA-256 of its secret.
    pub sha256: [u8; 32],
    /// How many gateways may come of it.
    pub uses_max: u32,
    /// Labels that they get.
    pub labels: BTreeMap<String, String>,
    /// How they are called.
    pub naming: NameRule,
    /// Where they must be; anywhere when empty.
    pub networks: Vec<IpNetwork>,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// A ticket as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTicket {
    /// Its id.
    pub id: TicketId,
    /// SHA-256 of its secret.
    pub sha256: [u8; 32],
    /// How many gateways may come of it.
    pub uses_max: u32,
    /// How many have.
    pub uses: u32,
    /// Attempts that knew it and were refused.
    pub refusals: u64,
    /// Labels that its gateways get.
    pub labels: BTreeMap<String, String>,
    /// How they are called.
    pub naming: NameRule,
    /// Where they must be; anywhere when empty.
    pub networks: Vec<IpNetwork>,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom, as the audit trail names them.
    pub created_by: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
}

/// What became of a wish for a challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeOutcome {
    /// It is kept for one redemption.
    Kept,
    /// There is no such ticket.
    Unknown,
    /// As many wait as may.
    Full,
}

/// A machine that has proved that it has a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redemption {
    /// The ticket.
    pub ticket: TicketId,
    /// The challenge that the proof answers.
    pub challenge: [u8; 32],
    /// The installation.
    pub install_id: InstallId,
    /// Where it is.
    pub peer: IpAddr,
    /// What it is to become, with its certificate's key.
    pub gateway: NewGateway,
    /// SHA-256 of that key.
    pub spki: [u8; 32],
    /// The certificate, PEM.
    pub certificate: String,
}

/// What became of a redemption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedeemOutcome {
    /// It is a gateway now.
    Enrolled,
    /// It was one before: the answer to that was lost.
    Before(EnrolledBefore),
    /// It is none.
    Refused(TicketRefusal),
}

/// The gateway that came of the same key, ticket and installation before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolledBefore {
    /// Who it is.
    pub agent_id: AgentId,
    /// How it is called.
    pub name: GatewayName,
    /// The generation of its key.
    pub key_generation: u32,
    /// Its certificate, PEM.
    pub certificate: String,
}

/// A refusal as the audit trail has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotedRefusal {
    /// The word for programs.
    pub why: &'static str,
    /// What the machine was told.
    pub told: String,
}

/// Why no gateway comes of a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TicketRefusal {
    /// There is no such ticket.
    Unknown,
    /// The proof is not right.
    BadProof,
    /// The challenge was answered, is too old, or was never given.
    Challenge,
    /// Somebody revoked it.
    Revoked,
    /// Its time is over.
    Expired,
    /// As many gateways came of it as may.
    UsedUp,
    /// It is for other networks.
    OtherNetwork,
    /// The key belongs to a gateway already.
    KeyInUse,
}

impl TicketRefusal {
    /// The word in the audit trail and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_ticket",
            Self::BadProof => "bad_proof",
            Self::Challenge => "challenge",
            Self::Revoked => "ticket_revoked",
            Self::Expired => "ticket_expired",
            Self::UsedUp => "ticket_used_up",
            Self::OtherNetwork => "other_network",
            Self::KeyInUse => "key_in_use",
        }
    }
}
