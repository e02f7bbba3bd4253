//! How outcomes look: tables and sentences for people, documents for programs.

pub mod audit;
pub mod authority;
pub mod catalogue;
pub mod certificates;
pub mod codes;
pub mod contexts;
pub mod demo;
pub mod diag;
pub mod dlq;
mod document;
pub mod expiry;
pub mod failure;
pub mod forks;
pub mod gateway;
pub mod key;
pub mod live;
pub mod orphans;
pub mod pin;
pub mod plan;
pub mod result;
pub mod runs;
pub mod submitted;
pub mod telemetry;
pub mod ticket;
pub mod validation;
pub mod waiting;
mod words;
