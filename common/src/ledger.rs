//! The ledger: every decision of the backend's store, once. Facts go in; changes, an answer and audit records come out.
//!
//! A store loads facts, asks here, and writes what it is told, guarded by the state that the decision was made from. So
//! PostgreSQL, SQLite and the simulation cannot differ in what they decide, only in how they keep it.

pub mod command;
pub mod end;
pub mod lease;
pub mod permit;
pub mod record;
pub mod session;
pub mod submit;
pub mod telemetry;

pub use self::command::{By, Change, Command, Ended};
pub use self::record::{Record, Stance};
