//! Tests of what the test kit itself can do.

mod simulation;
