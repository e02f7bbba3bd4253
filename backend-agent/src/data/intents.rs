//! The intents of the store contract, each one function in the file of its feature, for every SQL database.
//!
//! An intent is a plain function on a thread that has a connection inside a transaction ([`link::Link`]): it loads
//! facts, lets a decision of `common` judge them, and writes what that changes. What the dialects say differently is
//! said side by side ([`link::Sql`]).

mod admit;
mod agents;
mod arrays;
mod audit;
pub(super) mod authorities;
mod budget;
mod catalogues;
mod certificates;
mod confirm;
mod contract;
mod dead_letters;
mod earlier;
mod enrolments;
mod expiry;
mod forks;
mod inbox;
pub(super) mod instances;
mod keys;
mod lease;
pub(super) mod link;
pub(super) mod merged;
mod opening;
mod orphans;
pub(super) mod outage;
mod outputs;
mod page;
pub(super) mod pins;
mod recent;
mod recount;
mod refusals;
mod reissues;
mod replacements;
mod reports;
mod resolutions;
mod room;
mod rotation;
mod row;
mod runs;
mod sessions;
mod settle;
pub(super) mod site;
mod standing;
pub(super) mod store;
mod submit;
mod targets;
mod telemetry;
mod tickets;
mod timeline;
pub(super) mod tx;
pub(super) mod upkeep;

pub use store::SqlStore;

#[cfg(test)]
pub(super) mod statements;
