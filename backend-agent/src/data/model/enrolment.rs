//! Tickets by which machines become gateways, and what comes of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use viworks_common::enrolment::NameRule;
use viworks_common::id::{AgentId, GatewayName, InstallId, TicketId};
use viworks_common::network::IpNetwork;
use viworks_common::time::Timestamp;

use super::{NewGateway, Settled};

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
    /// The gateway whose place a machine takes with it, where it is for that.
    pub replaces: Option<AgentId>,
    /// Whether a machine takes the place of the gateway that has its name.
    pub allow_replace: bool,
    /// After how long an absence its gateways are removed, if they are.
    pub ephemeral: Option<Duration>,
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
    /// The gateway whose place a machine takes with it, where it is for that.
    pub replaces: Option<AgentId>,
    /// Whether a machine takes the place of the gateway that has its name.
    pub allow_replace: bool,
    /// After how long an absence its gateways are removed, if they are.
    pub ephemeral: Option<Duration>,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom, as the audit trail names them.
    pub created_by: String,
    /// The name of the API key that it was, where it was one and is known.
    pub creator: Option<String>,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
}

/// How many tickets there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TicketBounds {
    /// By which a gateway can still come.
    pub live: u64,
    /// Of these, those that one principal made.
    pub of_one: u64,
    /// That ended and are kept; beyond that the oldest are forgotten.
    pub ended: u64,
}

/// What became of a new ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TicketOutcome {
    /// It is there.
    Made,
    /// There are as many live ones as may be.
    Full,
    /// Whoever asks has made as many live ones as one may.
    FullOfOne,
}

/// A challenge that somebody with its ticket answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnsweredChallenge {
    /// Its bytes.
    pub challenge: [u8; 32],
    /// From when on no backend takes it any more, so that it may be forgotten.
    pub expires_at: Timestamp,
}

/// What a look at a ticket tells about a redemption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreseen {
    /// The ticket.
    pub ticket: StoredTicket,
    /// Why nothing would come of it.
    pub refusal: Option<TicketRefusal>,
}

/// A machine that has proved that it has a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redemption {
    /// The ticket.
    pub ticket: TicketId,
    /// The challenge that the proof answers.
    pub challenge: AnsweredChallenge,
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
    /// Whether it comes again with another name when this one is taken.
    pub has_other_name: bool,
    /// Whether it takes the place of that gateway, which is there: the name is checked, labels and generation stay.
    pub replaces: bool,
}

/// What became of a redemption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedeemOutcome {
    /// It is a gateway now.
    Enrolled,
    /// It took a gateway's place.
    Replaced(Box<Replaced>),
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
    /// The labels that it got.
    pub labels: BTreeMap<String, String>,
    /// The generation of its key.
    pub key_generation: u32,
    /// The epoch that it begins with.
    pub epoch: u64,
    /// Its certificate, PEM.
    pub certificate: String,
}

/// A gateway with a new machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// The labels that its operator gave it.
    pub labels: BTreeMap<String, String>,
    /// The generation of its new key, behind all before.
    pub key_generation: u32,
    /// The epoch that it begins with: above every one that the machine before was given.
    pub epoch: u64,
    /// Its commands that ended because the machine before may have run them.
    pub ended: Vec<Settled>,
}

/// A redemption of somebody with a ticket that the backend itself refuses, as the audit trail has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRedemption {
    /// The ticket.
    pub ticket: TicketId,
    /// The challenge that the proof answers.
    pub challenge: AnsweredChallenge,
    /// Where the machine is.
    pub peer: IpAddr,
    /// The word for programs.
    pub why: &'static str,
    /// What the machine is told.
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
    /// Another gateway has the name.
    NameTaken,
    /// A revoked gateway had the name, and the ticket is not for it.
    NameOfRevoked,
    /// The gateway that has the name was heard of a moment ago, so that nobody takes its place by its name alone.
    Connected,
    /// The gateway had as many keys as one can have.
    KeysUsedUp,
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
            Self::NameTaken => "name_taken",
            Self::NameOfRevoked => "name_of_revoked",
            Self::Connected => "gateway_connected",
            Self::KeysUsedUp => "keys_used_up",
        }
    }
}
