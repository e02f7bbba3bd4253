//! Tests of the backend through its public parts.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod api;
mod clock;
mod config;
mod dispatch;
mod echo;
mod inbound;
mod migrations;
mod nginx;
mod pki;
mod proxies;
mod queue;
mod rekeying;
mod renewing;
mod slow_clients;
mod store;
