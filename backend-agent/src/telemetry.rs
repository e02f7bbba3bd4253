//! Telemetry on its way into the store.

mod composed;
mod doubts;
mod line;
mod others;
mod pause;
mod pending;
pub mod processor;
mod watch;
mod withheld;
