//! Fail-closed configuration: one TOML file plus the environment, every problem reported at once.

mod environment;

pub use environment::{Environment, environment};
