//! The process shell: what both agents need before they have a purpose.
//!
//! Everything impure that is not about the product lives here, each in one place: the clock ([`clock`]), randomness
//! ([`random`]), the environment and the configuration file ([`config`]), tasks and shutdown ([`lifecycle`]), calls
//! that may hang ([`blocking`]), TLS material ([`tls`]), the embedded database ([`sqlite`]), the steps of any
//! database's schema ([`migrations`]), and what a process shows of itself ([`answers`], [`ask`], [`conditions`],
//! [`logging`], [`metrics`], [`probe`], [`ready_file`], [`stdout`], [`throttle`], [`exit`]), what it shares out among
//! its callers ([`door`], [`shares`]), how many files it may have ([`descriptors`]), what it hands to whoever is asked
//! for help ([`bundle`]), how it asks for a ticket ([`ticket`]), and with the feature `websocket` the socket that both
//! agents hold their sessions through.

#![warn(missing_docs)]

pub mod answers;
pub mod ask;
pub mod blocking;
pub mod bundle;
pub mod checked;
pub mod clock;
pub mod conditions;
pub mod config;
pub mod descriptors;
pub mod door;
pub mod exit;
pub mod fault;
pub mod files;
pub mod lifecycle;
pub mod logging;
pub mod metrics;
pub mod migrations;
pub mod probe;
mod problem;
pub mod progress;
pub mod random;
pub mod ready_file;
pub mod shares;
pub mod sqlite;
pub mod stdout;
pub mod throttle;
pub mod ticket;
pub mod tls;
#[cfg(feature = "websocket")]
pub mod websocket;
