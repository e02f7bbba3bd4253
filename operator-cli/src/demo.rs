//! The local demo: its own certificates, a backend and gateways as real processes on loopback.

mod layout;
mod processes;
mod up;

pub use processes::down;
pub use up::{Options, up};
