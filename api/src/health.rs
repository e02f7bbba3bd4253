//! The full health document.

use std::collections::BTreeMap;

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
    /// What to do about it, where somebody can do something; `detail` may end with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// Since when something is wrong, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// How long the part took to answer, in microseconds, where it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u64>,
    /// What was measured of it, with the unit in each name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, i64>,
    /// What was wrong with it last and is no more, as long as that is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<HealthPast>,
}

/// What was wrong, and is no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HealthPast {
    /// Which part.
    pub name: String,
    /// What was found last.
    pub detail: String,
    /// Since when it was wrong.
    pub since: Timestamp,
    /// Until when.
    pub until: Timestamp,
}

/// Why a probe fails: only the names of what is in the way, because whoever asks needs no key. What each of them means is
/// in the health document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NotReady {
    /// What the backend is not.
    pub status: NotReadyStatus,
    /// The checks of the health document that are in the way; none where it only stops.
    pub reasons: Vec<String>,
}

/// What a backend is not that fails a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum NotReadyStatus {
    /// It takes no requests at the moment.
    NotReady,
    /// It has not finished starting.
    Starting,
    /// It is about to end.
    Stopping,
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
    /// What was wrong since the backend started, and is no more: the latest first, at most 32.
    #[serde(default)]
    pub past: Vec<HealthPast>,
}
