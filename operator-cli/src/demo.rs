//! The local demo: its own certificates, a backend and gateways as real processes on loopback.

mod absent;
mod context;
mod ending;
mod first;
pub mod layout;
mod postgres;
pub mod processes;
mod remove;
mod start;
pub mod up;

pub use processes::down;
pub use up::{Options, up};
