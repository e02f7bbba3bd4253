//! The ledger's decisions in the words of this agent's contract. What is decided, is decided in `common::ledger`.

pub mod submission;
