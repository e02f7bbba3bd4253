//! Tests of the backend through its public parts.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod answer;
mod api;
mod clock;
mod config;
mod dispatch;
mod echo;
mod inbound;
mod lapsed;
mod migrations;
mod nginx;
mod pins;
mod pki;
mod proxies;
mod queue;
mod rekeying;
mod renewing;
mod signer;
mod slow_clients;
mod store;
mod trust;
