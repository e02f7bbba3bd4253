//! The agent on every gateway: dials the backend, runs allow-listed commands, delivers telemetry.

pub mod executor;
pub mod spool;
