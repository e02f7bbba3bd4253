//! The proxy in front of this backend: nginx's configuration, written for a site and held against what we expect of it.

pub mod check;
mod directive;
mod operators;
mod passed;
pub mod render;
mod renewal;
mod sources;
mod terminated;
mod whole;

pub(crate) use whole::host;
