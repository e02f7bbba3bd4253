//! Commands: submitted, queued, dispatched.

pub mod queue;
