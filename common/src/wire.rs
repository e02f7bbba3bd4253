//! Bytes and typed messages: the envelope that authenticates, and the bodies inside it.

pub mod envelope;
pub mod message;
