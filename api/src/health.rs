//! The full health document.

use serde::{Deserialize, Serialize};

use crate::page::Kind;
use viworks_common::time::Timestamp;

/// How a part is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HealthStatus {
    /// As it should.
    Pass,
    /// It works and somebody should look.
    Warn,
    /// It does not work.
    Fail,
}

/// One part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HealthCheck {
    /// Which part.
    pub name: String,
    /// How it is doing.
    pub status: HealthStatus,
    /// What was found.
    pub detail: String,
    /// Since when something is wrong, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// Whether the backend takes requests, and what each of its parts says about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Standing {
    /// Whether it does.
    pub ready: bool,
    /// The parts.
    pub checks: Vec<StandingCheck>,
}

/// What one part says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StandingCheck {
    /// Which part.
    pub name: String,
    /// Whether it is well.
    pub ok: bool,
    /// Why, in words for an operator.
    pub reason: String,
}

/// The backend's health, part by part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// What this is.
    pub kind: Kind,
    /// The worst status of any part.
    pub status: HealthStatus,
    /// The backend's version.
    pub version: String,
    /// For how long it has been running, in milliseconds.
    pub uptime_ms: u64,
    /// The parts.
    pub checks: Vec<HealthCheck>,
}
