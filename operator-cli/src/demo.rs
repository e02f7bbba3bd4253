//! The local demo: its own certificates, a backend and gateways as real processes on loopback.

mod absent;
mod context;
mod enrol;
mod first;
pub mod layout;
mod named;
mod postgres;
pub mod processes;
mod redis;
mod remove;
mod servers;
mod start;
pub mod stores;
pub mod up;

pub use processes::down;
pub use up::{Options, up};
