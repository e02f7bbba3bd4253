//! Telemetry from all sessions into the store.

mod line;
pub mod processor;
