//! The agent on every gateway: dials the backend, runs allow-listed commands, delivers telemetry.

pub mod api;
pub mod audit;
pub mod builtin;
pub mod catalogue;
pub mod engine;
pub mod collect;
pub mod executor;
pub mod journal;
pub mod outbound;
pub mod spool;
pub mod status;
