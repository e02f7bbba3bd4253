//! Bytes and typed messages: the envelope that authenticates, and the bodies inside it.

mod check;
pub mod envelope;
pub mod message;

pub(crate) use check::check_batch;
pub use check::{Violation, is_traceparent};
