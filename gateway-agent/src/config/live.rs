//! What of the configuration is taken over while the agent runs.

use std::collections::BTreeMap;

use viworks_common::telemetry::intake::IntakeQuota;
use viworks_runtime::config::LOG_FILTER;

use super::{Config, OutboundConfig};

/// The keys that are taken over while the agent runs.
pub const LIVE: &[&str] = &[
    "[gateway.labels]",
    "[outbound] url",
    "[outbound] server_name",
    "[outbound] binding",
    "[outbound] pins",
    "[outbound] door_url",
    "[outbound] version_floor",
    "[outbound] resolve_timeout_ms",
    "[outbound] connect_timeout_ms",
    "[outbound] tls_timeout_ms",
    "[outbound] upgrade_timeout_ms",
    "[outbound] opening_timeout_ms",
    "[outbound] send_timeout_ms",
    "[outbound] backoff_base_ms",
    "[outbound] backoff_max_ms",
    "[outbound] permanent_backoff_min_ms",
    "[outbound] permanent_backoff_max_ms",
    "[outbound] unproved_backoff_base_ms",
    "[outbound] backoff_reset_after_ms",
    "[intake] records_per_minute",
    "[intake] bytes_per_minute",
    LOG_FILTER,
];

/// What is in force of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Labels for HELLO.
    pub labels: BTreeMap<String, String>,
    /// The connection to the backend; of its files those are used that the start has named.
    pub outbound: OutboundConfig,
    /// How much telemetry one local user may hand in.
    pub intake: IntakeQuota,
}

impl From<&Config> for Live {
    fn from(config: &Config) -> Self {
        Self {
            labels: config.gateway.labels.clone(),
            outbound: config.outbound.clone(),
            intake: config.intake.quota(),
        }
    }
}

impl Live {
    /// Whether a session that was begun with this one goes on when `later` is in force: what it is about is the same.
    #[must_use]
    pub fn keeps_its_session(&self, later: &Self) -> bool {
        let about = |live: &Self| {
            let OutboundConfig {
                host,
                port,
                path,
                server_name,
                binding,
                version_floor,
                ..
            } = &live.outbound;
            let target = (host.clone(), *port, path.clone(), server_name.clone());
            (target, *binding, *version_floor, live.labels.clone())
        };
        about(self) == about(later)
    }
}
