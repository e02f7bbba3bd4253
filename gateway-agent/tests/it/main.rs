//! The gateway agent's parts against the real operating system: processes, files, sockets.

mod executor;
mod journal;
mod local_api;
mod spool;
