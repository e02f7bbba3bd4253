//! Bytes from agents.

pub mod limits;
pub mod replay;
