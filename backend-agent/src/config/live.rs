//! What of the configuration is taken over while the backend runs.

use viworks_runtime::config::LOG_FILTER;

/// The keys that SIGHUP takes over.
pub const LIVE: &[&str] = &[
    "[api] key_requests_per_minute",
    "[api] key_requests_burst",
    "[telemetry] gateway_epochs_per_day",
    "[telemetry] gateway_streams_max",
    "[telemetry] gateway_records_per_day",
    "[telemetry] gateway_bytes_per_day",
    "[telemetry] gateway_gaps_per_day",
    "[telemetry] retention_days",
    "[telemetry] rollup_retention_days",
    LOG_FILTER,
];
