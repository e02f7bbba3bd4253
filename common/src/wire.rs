//! Bytes and typed messages: the envelope that authenticates, and the bodies inside it.

mod batch;
mod check;
pub mod envelope;
pub mod message;

pub use batch::PackedBatch;
pub use check::{Violation, is_traceparent};

/// Where the backend listens for agents.
pub const CONNECT_PATH: &str = "/agent/v1/connect";

/// The subprotocol of WebSocket that both ends must agree to.
pub const SUBPROTOCOL: &str = "viworks.agent.v1";
