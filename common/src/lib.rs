//! The pure core of ViWorkS: vocabulary, wire format, session machines and life-cycles.
//!
//! Nothing here performs IO, reads a clock or draws randomness: time and nonces are arguments. What can be decided
//! without a socket, a file or a database is decided in this crate and tested in microseconds.

#![warn(missing_docs)]

pub mod admission;
pub mod arrivals;
pub mod breaker;
pub mod catalogue;
pub mod certificate;
pub mod claims;
pub mod code;
pub mod command;
pub mod engine;
pub mod enrolment;
pub mod fork;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod group;
pub mod human;
pub mod id;
pub mod journal;
pub mod key;
pub mod ledger;
pub mod limits;
pub mod network;
pub mod output;
pub mod pem;
pub mod pin;
pub mod places;
pub mod proxy_protocol;
pub mod rate;
pub mod renewal;
pub mod room;
pub mod rotation;
pub mod rules;
pub mod session;
pub mod telemetry;
pub mod text;
pub mod time;
pub mod timeline;
pub mod unique;
pub mod wire;
