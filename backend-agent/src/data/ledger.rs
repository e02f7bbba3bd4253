//! Decisions of the store: facts in, changes and answers out. Nothing here reads or writes anything, so that every store
//! asks the same functions, and a simulation can.

pub mod command;
pub mod intake;
pub mod submission;
