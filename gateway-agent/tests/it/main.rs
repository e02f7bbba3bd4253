//! The gateway agent's parts against the real operating system: processes, files, sockets.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod catalogue;
mod config;
mod dial;
mod echo;
mod engine;
mod enrol;
mod executor;
mod helper;
mod journal;
mod lease;
mod local_api;
mod old_state;
mod spool;
