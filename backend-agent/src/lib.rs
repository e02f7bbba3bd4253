//! The backend as a library: the binary is a thin shell around it, and the tests start it in process.

pub mod command;
pub mod inbound;
pub mod metrics;
