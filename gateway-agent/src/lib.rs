//! The agent on every gateway: dials the backend, runs allow-listed commands, delivers telemetry.

pub mod api;
pub mod app;
pub mod audit;
pub mod builtin;
pub mod catalogue;
pub mod cli;
pub mod collect;
pub mod config;
pub mod credentials;
pub mod engine;
pub mod enrol;
pub mod executor;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod helper;
pub mod host;
pub mod identity;
pub mod journal;
pub mod keyring;
pub mod launcher;
pub mod material;
pub mod outbound;
pub mod program;
pub mod reload;
pub mod renewal;
pub mod renewed;
pub mod reserve;
pub mod setup;
pub mod spawner;
pub mod spool;
pub mod status;
pub mod trust;
pub mod watch;
