//! The local demo: its own certificates, a backend and gateways as real processes on loopback.

pub mod layout;
pub mod processes;
mod remove;
pub mod up;

pub use processes::down;
pub use up::{Options, up};
