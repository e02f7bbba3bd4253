//! The handlers: one file for each resource.

pub(super) mod agent_keys;
pub(super) mod apikeys;
pub(super) mod audit;
pub(super) mod authorities;
pub(super) mod catalogue;
pub(super) mod certificates;
pub(super) mod dead_letters;
pub(super) mod gateways;
pub(super) mod orphans;
pub(super) mod pins;
pub(super) mod probes;
pub(super) mod runs;
pub(super) mod telemetry;
pub(super) mod tickets;
