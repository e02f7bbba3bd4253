//! The backend: agents' listener, registry, dispatch, telemetry, store and operators' API.

pub mod api;
pub mod auth;
pub mod command;
pub mod data;
