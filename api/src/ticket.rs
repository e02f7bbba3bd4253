//! Enrolment tickets: one string by which machines become gateways.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use viworks_common::id::{AgentId, GatewayName, TicketId};
use viworks_common::time::Timestamp;

use crate::page::{Kind, list};

/// How long a ticket is valid when the request does not say.
pub const TICKET_LIFE_MS_DEFAULT: u64 = 3_600 * 1_000;
/// The longest that one may be.
pub const TICKET_LIFE_MS_MAX: u64 = 90 * 24 * 3_600 * 1_000;
/// The shortest absence after which an ephemeral gateway is removed: a restart is no absence.
pub const EPHEMERAL_MS_MIN: u64 = 60 * 1_000;
/// The longest.
pub const EPHEMERAL_MS_MAX: u64 = 365 * 24 * 3_600 * 1_000;

/// A request for a ticket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TicketRequest {
    /// How many gateways may come of it.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 10000))]
    pub uses: u32,
    /// How long it is valid, in milliseconds, at most ninety days; an hour when absent. Gateways that came of it stay.
    #[cfg_attr(feature = "openapi", schema(minimum = 1000, maximum = 7776000000_u64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
    /// Labels that its gateways get.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "viworks_common::unique::map"
    )]
    pub labels: BTreeMap<String, String>,
    /// The name of its one gateway.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<GatewayName>,
    /// What the names of its gateways begin with; machines add what they are called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_prefix: Option<String>,
    /// The addresses and networks that machines must come from, such as `192.0.2.0/24`, at most 16; any when
    /// empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// Whether a machine takes the place of the gateway that has its name, where that is neither connected nor revoked:
    /// the same gateway with another key. Needs `gateways:write` as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_replace: bool,
    /// Its gateways are removed after so long an absence, in milliseconds; never when absent.
    #[cfg_attr(
        feature = "openapi",
        schema(minimum = 60000, maximum = 31536000000_u64)
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_ms: Option<u64>,
}

/// A request for a ticket by which another machine takes a gateway's place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReplaceRequest {
    /// How long it is valid, in milliseconds, at most ninety days.
    #[cfg_attr(feature = "openapi", schema(minimum = 1000, maximum = 7776000000_u64))]
    pub expires_in_ms: u64,
    /// The addresses and networks that the machine must come from, at most 16; any when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
}

/// Whether a machine can become a gateway with a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TicketStatus {
    /// It can.
    Active,
    /// As many came of it as may.
    UsedUp,
    /// Its time is over.
    Expired,
    /// Somebody revoked it.
    Revoked,
    /// It was made with a master key that the backend has no more: nobody knows its secret.
    KeyGone,
}

/// One ticket, without its secret, which nobody has but its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ticket {
    /// What this is.
    pub kind: Kind,
    /// Its id.
    pub id: TicketId,
    /// Whether it opens anything.
    pub status: TicketStatus,
    /// How many gateways came of it.
    pub uses: u32,
    /// How many may.
    pub uses_max: u32,
    /// Attempts that knew it and were refused; the audit trail has the first hundred.
    pub refusals: u64,
    /// Labels that its gateways get.
    pub labels: BTreeMap<String, String>,
    /// The name of its one gateway.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub name: Option<GatewayName>,
    /// What the names of its gateways begin with.
    pub name_prefix: Option<String>,
    /// Where machines must come from; anywhere when empty.
    pub networks: Vec<String>,
    /// The gateway whose place a machine takes with it, where it is for that.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    #[serde(default)]
    pub replaces: Option<AgentId>,
    /// Whether a machine takes the place of the gateway that has its name.
    #[serde(default)]
    pub allow_replace: bool,
    /// After how long an absence its gateways are removed, in milliseconds, if they are.
    #[serde(default)]
    pub ephemeral_ms: Option<u64>,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom, such as `api_key:01…`.
    pub created_by: String,
    /// The name of the API key that it was, where that is known.
    #[serde(default)]
    pub created_by_name: Option<String>,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
}

list! {
    /// Tickets, latest first.
    TicketList of Ticket
}

/// A fresh ticket: the only time its string is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TicketCreated {
    /// What this is.
    pub kind: Kind,
    /// The ticket.
    pub ticket: Ticket,
    /// What `viworks-gateway-agent enroll` is given.
    pub secret: String,
}

impl std::fmt::Debug for TicketCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TicketCreated")
            .field("ticket", &self.ticket)
            .finish_non_exhaustive()
    }
}
