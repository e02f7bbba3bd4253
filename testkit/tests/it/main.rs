//! Tests of what the test kit itself can do.

#![expect(clippy::unwrap_used, reason = "tests")]

mod proxy;
mod simulation;
mod trust;
mod year;
