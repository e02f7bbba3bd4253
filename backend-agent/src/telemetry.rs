//! Telemetry on its way into the store.

mod line;
pub mod processor;
mod watch;
mod withheld;
