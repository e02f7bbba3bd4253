//! The gateway agent's parts against the real operating system: processes, files, sockets.

#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    reason = "a helper that fails fails its test"
)]

mod config;
mod dial;
mod executor;
mod journal;
mod local_api;
mod spool;
