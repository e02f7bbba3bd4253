//! The proxy in front of this backend: nginx's configuration, written for a site and held against what we expect of it.

mod asked;
pub mod check;
mod directive;
mod gate;
mod lists;
mod names;
mod operators;
mod passed;
mod place;
pub mod render;
mod renewal;
mod sources;
mod strength;
mod terminated;
mod whole;
