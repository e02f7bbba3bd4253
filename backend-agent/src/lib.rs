//! The backend: agents' listener, registry, dispatch, telemetry, store and operators' API.

pub mod command;
pub mod data;
