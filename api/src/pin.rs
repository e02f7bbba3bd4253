//! Pins: which keys of the server gateways trust, and how one follows another.

use serde::{Deserialize, Serialize};
use viworks_common::id::{AgentId, GatewayName};
use viworks_common::time::Timestamp;

use crate::page::Kind;

/// What a key of the server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PinState {
    /// Gateways are to trust it; the server may not show it yet.
    Staged,
    /// The server may show it.
    Promoted,
    /// Gateways are not to trust it any more.
    Retired,
}

impl PinState {
    /// The word in answers and on screen.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Promoted => "promoted",
            Self::Retired => "retired",
        }
    }
}

/// A gateway that has not confirmed that it trusts a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PinGateway {
    /// Its id.
    pub id: AgentId,
    /// Its name.
    pub name: GatewayName,
    /// The version of the pin set that it trusts; 0 is the set of its own configuration.
    pub pin_set_version: u64,
    /// Whether it is connected.
    pub online: bool,
    /// When it was last heard.
    pub last_seen: Option<Timestamp>,
}

/// One key of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pin {
    /// Its pin: `sha256/` and the Base64 of SHA-256 over the public key.
    pub pin: String,
    /// What it is for.
    pub state: PinState,
    /// Whether a backend shows it.
    pub shown: bool,
    /// The version of the first set that has it.
    pub staged_in: u64,
    /// The version of the first set that leaves it out again.
    pub retired_in: Option<u64>,
    /// Since when it is in this state; not known of a key of the configuration.
    pub since: Option<Timestamp>,
    /// Gateways that have confirmed a set with it.
    pub confirmed_by: u64,
    /// Gateways that have not, and would be cut off by it: the first 50 of a key that is staged.
    pub cut_off: Vec<PinGateway>,
}

/// Where the rotation of the server's keys stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PinStatus {
    /// What this is.
    pub kind: Kind,
    /// The version of the set that gateways are to trust.
    pub version: u64,
    /// Gateways that are neither revoked themselves nor by their only certificate.
    pub gateways: u64,
    /// The keys: those that may be shown, those that are staged, those that were retired.
    pub pins: Vec<Pin>,
}

/// A request to stage a key, or to retire one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PinRequest {
    /// Its pin.
    pub pin: String,
    /// Why, for the audit trail.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 512))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A request to promote a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PinPromotion {
    /// Its pin.
    pub pin: String,
    /// Whatever gateways are cut off by it; needs a reason.
    #[serde(default)]
    pub force: bool,
    /// Why, for the audit trail.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 512))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PinChanged {
    /// What this is.
    pub kind: Kind,
    /// Whether that was so before: then nothing has changed.
    pub already: bool,
    /// Where the rotation stands.
    pub status: PinStatus,
}
