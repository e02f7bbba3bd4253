//! The simulation over many seeds, and the proof that it notices.

mod simulation;
