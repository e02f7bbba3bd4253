//! The operator's command line as a library, so that its parts can be tested without a process.
//!
//! Three rooms: [`flags`] is what can be typed, [`verbs`] what is done about it, [`views`] how the outcome looks. A
//! room uses only what stands before it in this list, and none uses a room that uses it.

mod ending;
pub mod failure;
pub mod output;
pub mod program;
pub mod unparsed;
pub mod verdict;

pub mod client;
pub mod contexts;
pub mod validation;
pub mod views;

pub mod demo;
pub mod flags;
pub mod verbs;
