//! Telemetry on its way into the store.

pub mod processor;
