//! The backend: agents' listener, registry, dispatch, telemetry, store and operators' API.
//!
//! The binary is a thin shell around this library, and the tests start it in process.

pub mod agent;
pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod command;
pub mod config;
pub mod credentials;
pub mod data;
pub mod database;
mod earlier;
pub mod enrolment;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod inbound;
pub mod jobs;
mod listening;
pub mod material;
pub mod metrics;
pub mod nginx;
pub mod pki;
mod protocol;
pub mod reload;
pub mod setup;
pub mod start_error;
pub mod telemetry;
