//! The store contract on an SQL database, feature by feature: each intent is one function in the file of its feature,
//! in one transaction.

mod authorities;
mod dispatch;
mod enrolment;
mod gateways;
mod instances;
mod pins;
mod runs;
mod sessions;
mod telemetry;
mod upkeep;
