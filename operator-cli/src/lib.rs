//! The operator's command line as a library, so that its parts can be tested without a process.

pub mod catalogue;
pub mod cli;
pub mod client;
pub mod codes;
pub mod context;
pub mod demo;
pub mod error;
pub mod gateway;
pub mod output;
pub mod run;
pub mod runs;
pub mod telemetry;
